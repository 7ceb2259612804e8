#include "checkpoint/tensor_names.h"

#include <charconv>

#include <fmt/ranges.h>

namespace plait {
namespace {

constexpr char kNumber = '\x01';  // stands for a number in a template

bool is_number(std::string_view part) {
  return !part.empty() && part.size() <= 9 &&
         std::all_of(part.begin(), part.end(), [](char c) { return c >= '0' && c <= '9'; });
}

using Numbers = std::vector<int>;

// "a.7.b.12" -> "a.#.b.#" and {7, 12}
std::string template_of(std::string_view name, Numbers& numbers) {
  std::string result;
  for (size_t begin = 0; begin <= name.size();) {
    const size_t end = std::min(name.find('.', begin), name.size());
    const std::string_view part = name.substr(begin, end - begin);
    if (begin > 0) result += '.';
    // "07" is not what a number would print as
    if (is_number(part) && (part.size() == 1 || part.front() != '0')) {
      int number = 0;
      std::from_chars(part.data(), part.data() + part.size(), number);
      numbers.push_back(number);
      result += kNumber;
    } else {
      result += part;
    }
    begin = end + 1;
  }
  return result;
}

// Sorted numbers as "7" or "{0,3-5}".
std::string format_set(const Numbers& numbers) {
  if (numbers.size() == 1) return fmt::format("{}", numbers.front());
  std::string text;
  for (size_t i = 0; i < numbers.size();) {
    size_t last = i;
    while (last + 1 < numbers.size() && numbers[last + 1] == numbers[last] + 1) ++last;
    if (!text.empty()) text += ',';
    text += last == i ? fmt::format("{}", numbers[i]) : fmt::format("{}-{}", numbers[i], numbers[last]);
    i = last + 1;
  }
  return fmt::format("{{{}}}", text);
}

struct Pattern {
  std::vector<std::string> sets;  // one for each number of the template
  size_t count = 0;
  auto operator<=>(const Pattern&) const = default;
};

// The tuples [begin, end), which are sorted and agree before `position`, as few products of sets: first numbers with
// the same rest go together.
std::vector<Pattern> factor(std::span<const Numbers> tuples, size_t position) {
  if (position == tuples.front().size()) return {Pattern{{}, 1}};
  std::map<std::vector<Pattern>, Numbers> firsts_of_rest;
  for (size_t begin = 0; begin < tuples.size();) {
    size_t end = begin;
    while (end < tuples.size() && tuples[end][position] == tuples[begin][position]) ++end;
    firsts_of_rest[factor(tuples.subspan(begin, end - begin), position + 1)].push_back(tuples[begin][position]);
    begin = end;
  }
  std::vector<Pattern> patterns;
  for (const auto& [rest, firsts] : firsts_of_rest) {
    for (Pattern pattern : rest) {
      pattern.sets.insert(pattern.sets.begin(), format_set(firsts));
      pattern.count *= firsts.size();
      patterns.push_back(std::move(pattern));
    }
  }
  return patterns;
}

std::string fill_in(std::string_view name_template, const Pattern& pattern) {
  std::string name;
  size_t next = 0;
  for (const char c : name_template) {
    if (c == kNumber)
      name += pattern.sets[next++];
    else
      name += c;
  }
  return pattern.count == 1 ? name : fmt::format("{} ({} tensors)", name, pattern.count);
}

}  // namespace

bool is_mtp_tensor(std::string_view name, int64_t num_hidden_layers) {
  constexpr std::string_view kPrefix = "model.layers.";
  if (num_hidden_layers <= 0 || !name.starts_with(kPrefix)) return false;
  name.remove_prefix(kPrefix.size());
  const std::string_view number = name.substr(0, name.find('.'));
  int64_t layer = 0;
  return is_number(number) && std::from_chars(number.data(), number.data() + number.size(), layer).ec == std::errc() &&
         layer >= num_hidden_layers;
}

bool is_rotary_table(std::string_view name) {
  return name.ends_with(".rotary_emb.inv_freq");
}

std::vector<std::string> fold_tensor_names(std::span<const std::string> names) {
  std::map<std::string, std::vector<Numbers>> groups;
  for (const std::string& name : names) {
    Numbers numbers;
    std::string name_template = template_of(name, numbers);
    groups[std::move(name_template)].push_back(std::move(numbers));
  }
  std::vector<std::string> folded;
  for (auto& [name_template, tuples] : groups) {
    std::sort(tuples.begin(), tuples.end());
    tuples.erase(std::unique(tuples.begin(), tuples.end()), tuples.end());
    for (const Pattern& pattern : factor(tuples, 0)) folded.push_back(fill_in(name_template, pattern));
  }
  std::sort(folded.begin(), folded.end());
  return folded;
}

}  // namespace plait
