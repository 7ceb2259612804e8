#include "base/progress.h"

#include <atomic>
#include <sys/ioctl.h>

#include <unistd.h>

#include "base/units.h"

namespace plait {
namespace {

constexpr double kTerminalPeriodSeconds = 0.1;
constexpr double kPlainPeriodSeconds = 5;
constexpr int kPlainColumns = 120;
constexpr int kMaxBarColumns = 40, kMinBarColumns = 8;

// The bar whose line is open on the terminal.
std::atomic<const ProgressBar*> line_owner{nullptr};

// "03:07", "1:02:03"
std::string format_clock(double seconds) {
  const auto whole = static_cast<int64_t>(std::clamp(seconds, 0.0, 1e6));
  if (whole < 3600) return fmt::format("{:02}:{:02}", whole / 60, whole % 60);
  return fmt::format("{}:{:02}:{:02}", whole / 3600, whole / 60 % 60, whole % 60);
}

std::string format_bar(double fraction, int columns) {
  const auto filled = static_cast<size_t>(fraction * columns);
  return fmt::format("|{}{}", std::string(filled, '#'), std::string(static_cast<size_t>(columns) - filled, ' '));
}

int terminal_columns() {
  winsize size = {};
  if (ioctl(STDERR_FILENO, TIOCGWINSZ, &size) != 0 || size.ws_col == 0) return 80;
  return size.ws_col;
}

void write_standard_error(std::string_view text) {
  while (!text.empty()) {
    const ssize_t written = ::write(STDERR_FILENO, text.data(), text.size());
    if (written <= 0) return;  // nobody is there to be told
    text.remove_prefix(static_cast<size_t>(written));
  }
}

}  // namespace

std::string format_progress(std::string_view label, size_t done, size_t total, double seconds, int columns,
                            ProgressUnit unit, std::optional<double> given_fraction) {
  const bool bytes = unit == ProgressUnit::kBytes;
  const double counted = total == 0 ? 1 : static_cast<double>(done) / static_cast<double>(total);
  const double fraction = std::min(1.0, given_fraction.value_or(counted));
  const double rate = seconds > 0 ? static_cast<double>(done) / seconds : 0;
  const auto amount = [&](size_t value) { return bytes ? format_bytes(value) : fmt::to_string(value); };
  const std::string left = fraction > 0 ? format_clock(seconds / fraction - seconds) : "?";
  // Rounded down: 100 % means that nothing is left.
  const std::string begin = fmt::format("{}: {:3}% Completed ", label, static_cast<int>(fraction * 100));
  const std::string end = fmt::format("| {}/{} [{}<{}, {}]", amount(done), amount(total), format_clock(seconds), left,
                                      bytes ? format_rate(rate) : fmt::format("{:.1f}/s", rate));
  const int room = columns - static_cast<int>(begin.size() + end.size()) - 1;
  std::string line = begin;
  if (room >= kMinBarColumns) line += format_bar(fraction, std::min(room, kMaxBarColumns));
  line += end;
  if (line.size() > static_cast<size_t>(std::max(columns, 0))) line.resize(static_cast<size_t>(std::max(columns, 0)));
  return line;
}

ProgressBar::Output ProgressBar::standard_error() {
  const auto now_seconds = [] {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
  };
  return {isatty(STDERR_FILENO) == 1, terminal_columns, write_standard_error, now_seconds};
}

ProgressBar::ProgressBar(std::string label, Output output, Unit unit)
    : label_(std::move(label)),
      unit_(unit),
      output_(std::move(output)),
      begin_seconds_(output_.now_seconds()),
      // The first redrawn line comes at once, the first plain one after a period: most work ends before.
      drawn_seconds_(output_.is_terminal ? -std::numeric_limits<double>::infinity() : begin_seconds_) {}

ProgressBar::~ProgressBar() {
  if (line_open_) output_.write("\n");
  const ProgressBar* own = this;
  line_owner.compare_exchange_strong(own, nullptr);
}

bool ProgressBar::owns_terminal() {
  const ProgressBar* nobody = nullptr;
  return line_owner.compare_exchange_strong(nobody, this) || nobody == this;
}

void ProgressBar::update(size_t done, size_t total, std::optional<double> fraction) {
  if (complete_) return;
  if (output_.is_terminal && !owns_terminal()) return;
  complete_ = done >= total;
  const double now = output_.now_seconds();
  const double period = output_.is_terminal ? kTerminalPeriodSeconds : kPlainPeriodSeconds;
  if (!complete_ && now - drawn_seconds_ < period) return;
  drawn_seconds_ = now;
  if (!output_.is_terminal) {
    output_.write(format_progress(label_, done, total, now - begin_seconds_, kPlainColumns, unit_, fraction) + "\n");
    return;
  }
  // One column stays free, so that no terminal wraps. ESC [K clears what a longer line left.
  const std::string line =
      format_progress(label_, done, total, now - begin_seconds_, output_.columns() - 1, unit_, fraction);
  output_.write(fmt::format("\r{}\x1b[K{}", line, complete_ ? "\n" : ""));
  line_open_ = !complete_;
}

}  // namespace plait
