// Numbers for people: "20.4 MiB", "1.25 GB/s", "3.2 s".
#pragma once

#include <cstdint>
#include <string>

namespace plait {

std::string format_bytes(uint64_t bytes);          // binary units: 512 B, 20.4 MiB, 1.50 GiB
std::string format_seconds(double seconds);        // 850 us, 12.3 ms, 3.21 s, 4 min 10 s
std::string format_rate(double bytes_per_second);  // decimal units, as memory vendors count: 1.25 GB/s

}  // namespace plait
