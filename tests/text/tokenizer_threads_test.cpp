// One tokenizer, many threads: run under the thread sanitizer.
#include <atomic>
#include <thread>

#include "tests/text/random_text.h"
#include "tests/text/test_data.h"
#include "text/detokenizer.h"

namespace plait {
namespace {

TEST(TokenizerThreads, EncodeAndDecodeAtOnce) {
  const Tokenizer& tokenizer = demo_tokenizer();
  constexpr int kThreads = 8, kTexts = 300;
  std::vector<std::string> texts;
  std::vector<std::vector<int32_t>> ids;
  RandomText random(12);
  for (int i = 0; i < kTexts; ++i) {
    texts.push_back(random.text(60));
    ids.push_back(tokenizer.encode(texts.back(), true));
  }
  std::atomic<int> wrong = 0;
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t)
    threads.emplace_back([&, t] {
      for (int i = 0; i < kTexts; ++i) {
        const size_t which = static_cast<size_t>((i * 7 + t * 31) % kTexts);
        wrong += tokenizer.encode(texts[which], true) != ids[which];
        StreamingDetokenizer detokenizer(&tokenizer, {}, true, false);
        wrong += detokenizer.push(ids[which]) + detokenizer.finish() != texts[which];
      }
    });
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0);
}

}  // namespace
}  // namespace plait
