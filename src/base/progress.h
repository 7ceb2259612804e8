// How far a long piece of work is: one line redrawn in place on a terminal, a plain line every few seconds elsewhere.
//
// A ProgressBar belongs to one thread. It begins when it is made and ends its line when it goes, whether the work was
// completed or not.
#pragma once

#include <cstddef>
#include <functional>
#include <string>
#include <string_view>

namespace plait {

// "Loading weights:  42% Completed | 1.21 GiB/2.88 GiB [00:03<00:04, 412.0 MB/s]", at most `columns` wide; where there
// is room, with a bar after "Completed".
std::string format_progress(std::string_view label, size_t done_bytes, size_t total_bytes, double seconds, int columns);

class ProgressBar {
 public:
  // Where lines go and what time it is; tests bring their own.
  struct Output {
    bool is_terminal = false;
    std::function<int()> columns;
    std::function<void(std::string_view text)> write;
    std::function<double()> now_seconds;
  };
  static Output standard_error();

  explicit ProgressBar(std::string label, Output output = standard_error());
  ~ProgressBar();
  ProgressBar(const ProgressBar&) = delete;
  ProgressBar& operator=(const ProgressBar&) = delete;

  // Cheap: draws only when enough time has passed, and always when done_bytes reaches total_bytes.
  void update(size_t done_bytes, size_t total_bytes);

 private:
  std::string label_;
  Output output_;
  double begin_seconds_;
  double drawn_seconds_;  // when the last line was written
  bool line_open_ = false;
  bool complete_ = false;
};

}  // namespace plait
