// Operations in numbers so coarse that float32 holds every sum of products exactly, in any order of its terms.
//
// For Implementation::kExact. Norms, rotations, probabilities, results of attention, activations and expert weights are
// those of the reference, rounded to multiples of a power of two and clamped; products and sums are left alone. If
// weights are few-bit multiples of powers of two as well, then no sum of a small model needs more than float32's 24
// bits, and ranks that divide it in whatever way have to give one rank's bits. ExactnessAudit proves that of a run.
//
// Softmax is the plain one of two passes over all keys: what an online softmax or a merge of partial results would
// round on the way is not what is tested.
#pragma once

#include <cstdint>
#include <string>

namespace plait::testing {

// Makes Implementation::kExact work in this program. Weights are float32. Not while another thread computes.
void install_exact_operations();

// While one lives, kExact operations also follow every sum that ranks might divide: the magnitudes of all its terms,
// added, and the lowest bit that any of them has. If float32 holds the former in units of the latter, then it holds
// every partial sum of any subset, in any order. For steps of a whole model on one thread, logits of all rows wanted.
class ExactnessAudit {
 public:
  ExactnessAudit();
  ~ExactnessAudit();
  ExactnessAudit(const ExactnessAudit&) = delete;
  ExactnessAudit& operator=(const ExactnessAudit&) = delete;

  struct Findings {
    int64_t sums = 0;
    int bits = 0;         // that the widest sum needs
    std::string widest;   // which operation made it
    std::string problem;  // the first sum that float32 cannot hold or did not hold; empty: none
  };
  const Findings& findings() const;
};

}  // namespace plait::testing
