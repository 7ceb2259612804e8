// Hand-written scanners for the split patterns of published checkpoints: the same pieces as the regexes, several times
// faster. The regexes remain the specification; a test compares the two on random text.
#pragma once

#include <cstddef>
#include <span>
#include <string_view>

namespace plait {

// Where the piece that begins at `at` ends. Pieces cover the text: start at 0, go on from each end. `text` is
// well-formed UTF-8.
using PieceScanner = size_t (*)(std::string_view text, size_t at);

// The three splits of DeepSeek-V3 (also R1, V3.1, V3.2), in sequence, all "Isolated".
extern const std::string_view kDeepseekV3Numbers, kDeepseekV3Cjk, kDeepseekV3Words;
// The one of Kimi-K2.
extern const std::string_view kKimiK2Split;

// The scanner for a sequence of isolating splits by these regexes; null if there is none.
PieceScanner find_scanner(std::span<const std::string_view> patterns);

}  // namespace plait
