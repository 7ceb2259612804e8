// How far a long piece of work is: one line redrawn in place on a terminal, a plain line every few seconds elsewhere.
//
// A ProgressBar belongs to one thread. It begins when it is made and ends its line when it goes, whether the work was
// completed or not. Of several at once on one terminal the first one that draws has the line until it ends; the others
// then draw theirs.
#pragma once

#include <cstddef>
#include <functional>
#include <optional>
#include <string>
#include <string_view>

namespace plait {

// How amounts are written.
enum class ProgressUnit { kBytes, kCount };

// "Loading weights:  42% Completed | 1.21 GiB/2.88 GiB [00:03<00:04, 412.0 MB/s]", at most `columns` wide; where there
// is room, with a bar after "Completed".
// `fraction` of the work, if that is not done / total.
std::string format_progress(std::string_view label, size_t done, size_t total, double seconds, int columns,
                            ProgressUnit unit = ProgressUnit::kBytes, std::optional<double> fraction = std::nullopt);

class ProgressBar {
 public:
  using Unit = ProgressUnit;
  // Where lines go and what time it is; tests bring their own.
  struct Output {
    bool is_terminal = false;
    std::function<int()> columns;
    std::function<void(std::string_view text)> write;
    std::function<double()> now_seconds;
  };
  static Output standard_error();

  explicit ProgressBar(std::string label, Output output = standard_error(), Unit unit = Unit::kBytes);
  ~ProgressBar();
  ProgressBar(const ProgressBar&) = delete;
  ProgressBar& operator=(const ProgressBar&) = delete;

  // Cheap: draws only when enough time has passed, and always when done reaches total.
  void update(size_t done, size_t total, std::optional<double> fraction = std::nullopt);

 private:
  bool owns_terminal();

  std::string label_;
  Unit unit_;
  Output output_;
  double begin_seconds_;
  double drawn_seconds_;  // when the last line was written
  bool line_open_ = false;
  bool complete_ = false;
};

}  // namespace plait
