#include "text/bpe.h"

#include <map>

#include <gtest/gtest.h>

#include "tests/text/random_text.h"

namespace plait {
namespace {

// A random vocabulary over few letters, so that many merges compete, and the plain loop that merging is defined by.
class Reference {
 public:
  Reference(RandomText& random, int merges) {
    for (int byte = 0; byte < 256; ++byte) EXPECT_TRUE(vocabulary_.add_bytes(byte, std::string(1, char(byte))));
    std::vector<std::string> tokens;
    for (int i = 0; i < 4; ++i) tokens.push_back(std::string(1, static_cast<char>('a' + i)));
    for (int rank = 0; rank < merges; ++rank) {
      const std::string& left = tokens[random.below(tokens.size())];
      const std::string& right = tokens[random.below(tokens.size())];
      std::string both = left + right;
      auto id = vocabulary_.id_of_bytes(both);
      if (!id) {
        id = vocabulary_.size();
        EXPECT_TRUE(vocabulary_.add_bytes(*id, both));
      }
      merges_.insert_or_assign({*vocabulary_.id_of_bytes(left), *vocabulary_.id_of_bytes(right)},
                               MergeTable::Merge{static_cast<uint32_t>(rank), *id});
      if (both.size() < 40) tokens.push_back(std::move(both));
    }
  }

  Bpe bpe(bool ignore_merges = false) const {
    MergeTable table(merges_.size());
    for (const auto& [pair, merge] : merges_) table.insert(pair.first, pair.second, merge);
    return Bpe(&vocabulary_, std::move(table), ignore_merges);
  }

  std::vector<int32_t> encode(std::string_view piece) const {
    std::vector<int32_t> ids;
    for (const char byte : piece) ids.push_back(static_cast<unsigned char>(byte));
    for (;;) {
      MergeTable::Merge best;
      size_t place = 0;
      for (size_t i = 0; i + 1 < ids.size(); ++i) {
        const auto merge = merges_.find({ids[i], ids[i + 1]});
        if (merge != merges_.end() && merge->second.rank < best.rank) {
          best = merge->second;
          place = i;
        }
      }
      if (best.rank == MergeTable::kNone) return ids;
      ids[place] = best.id;
      ids.erase(ids.begin() + static_cast<ptrdiff_t>(place) + 1);
    }
  }

  Vocabulary vocabulary_;

 private:
  std::map<std::pair<int32_t, int32_t>, MergeTable::Merge> merges_;
};

std::string random_piece(RandomText& random, size_t max_bytes) {
  std::string piece;
  const size_t letters = 1 + random.below(4);
  for (size_t n = 1 + random.below(max_bytes); n > 0; --n) piece += static_cast<char>('a' + random.below(letters));
  return piece;
}

TEST(Bpe, EqualsThePlainMergeLoop) {
  RandomText random(3);
  int pieces = 0;
  for (int vocabulary = 0; vocabulary < 25; ++vocabulary) {
    const Reference reference(random, 5 + static_cast<int>(random.below(200)));
    const Bpe bpe = reference.bpe();
    BpeScratch scratch;
    for (int i = 0; i < 500; ++i, ++pieces) {
      // short ones, around the border between the two algorithms, and long ones
      const std::string piece = random_piece(random, i % 100 == 0 ? 1000 : i % 5 == 0 ? 150 : 12);
      std::vector<int32_t> ids{-7};
      bpe.encode(piece, scratch, ids);
      std::vector<int32_t> expected = reference.encode(piece);
      expected.insert(expected.begin(), -7);
      ASSERT_EQ(ids, expected) << piece;
    }
  }
  std::printf("%d pieces with 25 vocabularies\n", pieces);
}

TEST(Bpe, AMillionBytesOfOneWord) {
  RandomText random(4);
  const Reference reference(random, 200);
  const Bpe bpe = reference.bpe();
  BpeScratch scratch;
  const std::string piece(1'000'000, 'a');
  std::vector<int32_t> ids;
  bpe.encode(piece, scratch, ids);
  std::string back;
  for (const int32_t id : ids) back += reference.vocabulary_.bytes(id);
  EXPECT_EQ(back, piece);
}

TEST(Bpe, IgnoreMergesTakesWholeTokens) {
  Vocabulary vocabulary;
  for (int byte = 0; byte < 256; ++byte) ASSERT_TRUE(vocabulary.add_bytes(byte, std::string(1, char(byte))));
  ASSERT_TRUE(vocabulary.add_bytes(300, "abc"));  // no merge leads there
  BpeScratch scratch, other_scratch;
  std::vector<int32_t> whole, merged;
  Bpe(&vocabulary, MergeTable(0), true).encode("abc", scratch, whole);
  Bpe(&vocabulary, MergeTable(0), false).encode("abc", other_scratch, merged);
  EXPECT_EQ(whole, std::vector<int32_t>{300});
  EXPECT_EQ(merged, (std::vector<int32_t>{'a', 'b', 'c'}));
}

TEST(Vocabulary, RefusesIdsThatCannotBe) {
  Vocabulary vocabulary;
  EXPECT_TRUE(vocabulary.add_bytes(5, "a"));
  EXPECT_TRUE(vocabulary.add_bytes(-1, "b").has_error());
  EXPECT_TRUE(vocabulary.add_bytes(Vocabulary::kMaxId + 1, "b").has_error());
  EXPECT_TRUE(vocabulary.add_bytes(int64_t{1} << 40, "b").has_error());
  EXPECT_TRUE(vocabulary.add_bytes(5, "b").has_error());
  EXPECT_TRUE(vocabulary.add_bytes(6, "a").has_error());
  EXPECT_TRUE(vocabulary.add_added(7, "a", true).has_error());
  EXPECT_TRUE(vocabulary.add_added(5, "a", true));
  EXPECT_TRUE(vocabulary.is_special(5));
}

}  // namespace
}  // namespace plait
