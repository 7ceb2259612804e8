// How `plait bench` prints: a table, a line per row, or JSON.
#pragma once

#include <cstdio>
#include <string>

#include <boost/json/array.hpp>
#include <boost/json/object.hpp>

#include "bench/bench.h"
#include "bench/machine_probe.h"
#include "bench/model_bench.h"

namespace plait {

class BenchReport {
 public:
  BenchReport(BenchOptions::Format format, std::FILE* out) : format_(format), out_(out) {}

  void machine(const MachineProfile& profile);
  // `name`: "V2-Lite's widths, 8 layers, BF16".
  void begin_model(const std::string& name, size_t weight_bytes);
  void row(const BenchRow& row);
  // Prints what has to wait for the end: the JSON document.
  void finish();

 private:
  void table_row(const BenchRow& row);
  void line(const BenchRow& row);

  BenchOptions::Format format_;
  std::FILE* out_;
  std::string model_;
  boost::json::object document_;
  boost::json::array rows_;
};

}  // namespace plait
