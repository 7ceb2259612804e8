// The token axes of a pipeline stage: the directions in which ranks can differ in the rows that they hold.
//
// A rank's place in its stage is written in digits, outer to inner: data-parallel rank, context rank, attention-TP
// rank. Where the experts' or the dense layers' blocks of ranks begin inside one of these, it is two digits. An axis is
// one digit; axes of width 1 do not exist. So a set of axes names both a way to shard rows and a group of ranks, and
// equal sets mean equal placement. Values; safe from any thread.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "topology/parallel_config.h"

namespace plait {

class AxisSet {
 public:
  constexpr AxisSet() = default;
  static constexpr AxisSet of_bits(uint32_t bits) {
    AxisSet set;
    set.bits_ = static_cast<uint8_t>(bits);
    return set;
  }
  static constexpr AxisSet axis(int index) { return of_bits(1u << index); }

  constexpr bool empty() const { return bits_ == 0; }
  constexpr bool contains(AxisSet other) const { return (bits_ & other.bits_) == other.bits_; }
  constexpr bool meets(AxisSet other) const { return (bits_ & other.bits_) != 0; }
  constexpr uint32_t bits() const { return bits_; }

  friend constexpr AxisSet operator|(AxisSet a, AxisSet b) { return of_bits(a.bits_ | b.bits_); }
  friend constexpr AxisSet operator&(AxisSet a, AxisSet b) { return of_bits(a.bits_ & b.bits_); }
  friend constexpr AxisSet operator-(AxisSet a, AxisSet b) { return of_bits(a.bits_ & ~b.bits_); }
  constexpr bool operator==(const AxisSet&) const = default;

 private:
  uint8_t bits_ = 0;
};

// What SGLang's groups are called, by where an axis comes from.
enum class AxisOrigin : uint8_t { kAttnDp, kAttnCp, kAttnTp };

struct TokenAxis {
  AxisOrigin origin;
  int width;   // at least 2
  int stride;  // ranks between neighbours along it
};

class TokenAxes {
 public:
  TokenAxes() : TokenAxes(ParallelConfig{}) {}
  explicit TokenAxes(const ParallelConfig& config);  // `config` has passed judge()

  std::span<const TokenAxis> axes() const { return axes_; }  // outer to inner
  int count() const { return static_cast<int>(axes_.size()); }
  int ranks() const { return ranks_; }  // of a stage

  AxisSet all() const { return AxisSet::of_bits((1u << axes_.size()) - 1); }
  AxisSet attn_dp() const { return of(AxisOrigin::kAttnDp); }
  AxisSet attn_cp() const { return of(AxisOrigin::kAttnCp); }
  AxisSet attn_tp() const { return of(AxisOrigin::kAttnTp); }
  AxisSet experts() const { return experts_; }  // inside one copy of all experts
  AxisSet dense() const { return dense_; }      // inside one dense MLP's group

  int width(AxisSet set) const { return widths_[set.bits()]; }
  // The rank's digits along `set`, read as one number, outer digits first.
  int place(AxisSet set, int rank) const { return places_[set.bits() * static_cast<size_t>(ranks_) + rank]; }
  // Ranks of the stage that differ from `rank` along `set` only, ascending.
  std::vector<int> group(AxisSet set, int rank) const;

  // "{attn_dp, attn_cp}"; an axis that is part of its origin is written with its width: "attn_dp(2)".
  std::string to_string(AxisSet set) const;
  // What the group of ranks along `set` is called: "tp" for the whole stage, "attn_tp", "moe", "attn_dp+attn_cp", ...
  std::string group_name(AxisSet set) const;

 private:
  AxisSet of(AxisOrigin origin) const;
  std::vector<std::string> names(AxisSet set) const;

  int ranks_ = 1;
  std::vector<TokenAxis> axes_;
  AxisSet experts_;
  AxisSet dense_;
  std::vector<int> widths_;  // [axis set]
  std::vector<int> places_;  // [axis set, rank]
};

}  // namespace plait
