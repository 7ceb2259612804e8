// Text of an answer with long values in it that are made while they are sent.
//
// A value of many megabytes (routed experts) would be copied several times as part of one string, and whoever made it
// at once would keep every other client of the loop waiting. It stays a source: the connection takes piece after piece,
// as fast as the client reads.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace plait {

class ByteSource {
 public:
  virtual ~ByteSource() = default;
  virtual size_t size() const = 0;  // of all pieces together
  // The next piece, of at least one byte. Not called once size() bytes were appended.
  virtual void append_piece(std::string& out) = 0;
};

struct LongValue {
  size_t at = 0;  // in the text that it belongs to
  std::shared_ptr<ByteSource> source;
};

struct AnswerText {
  std::string text;
  std::vector<LongValue> long_values;  // ascending, none empty

  void append(std::shared_ptr<ByteSource> source) {
    if (source->size() > 0) long_values.push_back({text.size(), std::move(source)});
  }
  void append(AnswerText&& more) {
    for (LongValue& value : more.long_values) long_values.push_back({text.size() + value.at, std::move(value.source)});
    text += more.text;
  }
  void clear() {
    text.clear();
    long_values.clear();
  }
};

}  // namespace plait
