// Bytes of a connection. The first byte chooses how they are cut; every cut must give the same requests and the same
// end.
#include <fmt/format.h>

#include "base/assert.h"
#include "server/http_parser.h"

namespace {

constexpr size_t kHeaderBytes = 2048;
constexpr size_t kBodyBytes = 8192;

struct Outcome {
  std::string requests;  // everything that was understood
  int error = 0;
  bool operator==(const Outcome&) const = default;
};

void append(std::string& out, std::string_view text) {
  out += fmt::format("{}:{}", text.size(), text);
}

// As a connection does it: what the parser does not take stays in the buffer.
Outcome read(std::string_view bytes, size_t piece) {
  Outcome outcome;
  std::string buffer;
  auto parser = std::make_unique<plait::HttpParser>(kHeaderBytes, kBodyBytes);
  for (size_t begin = 0; begin < bytes.size(); begin += piece) {
    buffer += bytes.substr(begin, piece);
    while (true) {
      size_t consumed = 0;
      const auto state = parser->feed(buffer, consumed);
      PLAIT_ASSERT(consumed <= buffer.size(), "a parser takes what there is");
      buffer.erase(0, consumed);
      if (state == plait::HttpParser::State::kNeedMore) break;
      if (state == plait::HttpParser::State::kHeader) continue;
      if (state == plait::HttpParser::State::kError) {
        outcome.error = parser->error()->status;
        PLAIT_ASSERT(outcome.error >= 400 && outcome.error < 500, "a client's mistake is a 4xx");
        return outcome;
      }
      const plait::HttpRequest& request = parser->request();
      PLAIT_ASSERT(request.body.size() <= kBodyBytes, "the limit holds");
      for (const std::string* part : {&request.method, &request.path, &request.query, &request.authorization,
                                      &request.content_type, &request.body}) {
        append(outcome.requests, *part);
      }
      parser = std::make_unique<plait::HttpParser>(kHeaderBytes, kBodyBytes);
      if (buffer.empty()) break;
    }
  }
  return outcome;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const std::string_view bytes(reinterpret_cast<const char*>(data) + 1, size - 1);
  const size_t piece = 1 + data[0] % 64;
  const Outcome whole = read(bytes, std::max<size_t>(bytes.size(), 1));
  const Outcome cut = read(bytes, piece);
  PLAIT_ASSERT(whole.requests == cut.requests, "the cut of the bytes does not change the requests");
  return 0;
}
