#include "tests/comm/battery.h"

#include <mutex>
#include <numeric>
#include <thread>

#include <fmt/format.h>

namespace plait::comm::testing {
namespace {

uint64_t mix(uint64_t x) {
  x += 0x9e3779b97f4a7c15;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
  x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
  return x ^ (x >> 31);
}

// Values of very different size, so that another order of summation gives other bits.
float number(uint64_t key) {
  const uint64_t bits = mix(key);
  const float unit = static_cast<float>(static_cast<int32_t>(bits)) * 0x1p-31f;
  return unit * static_cast<float>(1 << (bits >> 60));
}

std::vector<std::byte> values(DType dtype, int member, int64_t count, uint64_t salt) {
  std::vector<std::byte> data(static_cast<size_t>(count * size_of(dtype)));
  for (int64_t i = 0; i < count; ++i) {
    const uint64_t key = salt * 1000003 + static_cast<uint64_t>(member) * 7919 + static_cast<uint64_t>(i) * 31;
    std::byte* at = data.data() + i * size_of(dtype);
    if (dtype == DType::kF32) {
      const float value = number(key);
      std::memcpy(at, &value, sizeof(value));
    } else if (dtype == DType::kBF16) {
      const BFloat16 value(number(key));
      std::memcpy(at, &value, sizeof(value));
    } else {
      const uint64_t value = mix(key);
      std::memcpy(at, &value, static_cast<size_t>(size_of(dtype)));
    }
  }
  return data;
}

// The definition: rank 0 + rank 1 + ... in float32, rounded once.
std::vector<std::byte> reference_sum(DType dtype, const std::vector<std::vector<std::byte>>& inputs) {
  std::vector<std::byte> out = inputs[0];
  const int64_t count = static_cast<int64_t>(out.size()) / size_of(dtype);
  for (int64_t i = 0; i < count; ++i) {
    float sum = 0;
    for (size_t r = 0; r < inputs.size(); ++r) {
      float value;
      if (dtype == DType::kF32) {
        std::memcpy(&value, inputs[r].data() + i * 4, 4);
      } else {
        BFloat16 narrow;
        std::memcpy(&narrow, inputs[r].data() + i * 2, 2);
        value = static_cast<float>(narrow);
      }
      sum = r == 0 ? value : sum + value;
    }
    if (dtype == DType::kF32) {
      std::memcpy(out.data() + i * 4, &sum, 4);
    } else {
      const BFloat16 narrow(sum);
      std::memcpy(out.data() + i * 2, &narrow, 2);
    }
  }
  return out;
}

// What member `from` sends to member `to`, of about `size` in all.
int64_t skewed(int64_t size, int from, int to) {
  return size * ((from * 5 + to * 3) % 4) / 3;
}

class Battery {
 public:
  explicit Battery(Communicator& comm) : comm_(comm), n_(comm.size()), me_(comm.rank()) {}

  Report run(std::span<const int64_t> sizes) {
    for (const int64_t size : sizes) {
      for (const DType dtype : {DType::kF32, DType::kBF16}) {
        all_reduce(dtype, size, false);
        all_reduce(dtype, size, true);
        reduce_scatter(dtype, size);
        reduce_scatter_by_rank(dtype, size);
      }
      for (const DType dtype : {DType::kF32, DType::kBF16, DType::kU8, DType::kI32, DType::kI64}) {
        all_gather(dtype, size);
        all_gather_by_rank(dtype, size);
        all_to_all(dtype, size);
        broadcast(dtype, size);
        ring(dtype, size);
      }
      expect(comm_.barrier("barrier"), "barrier");
    }
    return std::move(report_);
  }

 private:
  void expect(const Status& status, const std::string& what) {
    if (status.has_error()) fail(what + ": " + status.error().message);
  }
  void fail(std::string what) {
    if (report_.failures.size() < 3) report_.failures.push_back(fmt::format("member {} of {}: {}", me_, n_, what));
  }
  void compare(const Status& status, std::span<const std::byte> got, std::span<const std::byte> want,
               std::string_view what, DType dtype, int64_t size) {
    ++report_.cases;
    const std::string title = fmt::format("{} {} {}", what, name_of(dtype), size);
    expect(status, title);
    if (!std::ranges::equal(got, want)) fail(title + ": wrong bytes");
    ++salt_;
  }
  std::vector<std::vector<std::byte>> inputs(DType dtype, int64_t count) {
    std::vector<std::vector<std::byte>> all;
    for (int member = 0; member < n_; ++member) all.push_back(values(dtype, member, count, salt_));
    return all;
  }

  void all_reduce(DType dtype, int64_t size, bool in_place) {
    const auto all = inputs(dtype, size);
    std::vector<std::byte> in = all[static_cast<size_t>(me_)], out(in.size());
    const Status status = comm_.all_reduce("sum", in.data(), in_place ? in.data() : out.data(), size, dtype);
    compare(status, in_place ? in : out, reference_sum(dtype, all), "all_reduce", dtype, size);
  }
  void reduce_scatter(DType dtype, int64_t size) {
    const auto all = inputs(dtype, size * n_);
    std::vector<std::byte> out(static_cast<size_t>(size * size_of(dtype)));
    const auto sum = reference_sum(dtype, all);
    const Status status =
        comm_.reduce_scatter("scatter", all[static_cast<size_t>(me_)].data(), out.data(), size, dtype);
    compare(status, out, std::span(sum).subspan(out.size() * static_cast<size_t>(me_), out.size()), "reduce_scatter",
            dtype, size);
  }
  std::vector<int64_t> counts_by_rank(int64_t size) {
    std::vector<int64_t> counts;
    for (int member = 0; member < n_; ++member) counts.push_back(skewed(size, member, 1));
    return counts;
  }
  void reduce_scatter_by_rank(DType dtype, int64_t size) {
    const auto counts = counts_by_rank(size);
    const auto before = std::accumulate(counts.begin(), counts.begin() + me_, int64_t{0});
    const auto all = inputs(dtype, std::accumulate(counts.begin(), counts.end(), int64_t{0}));
    std::vector<std::byte> out(static_cast<size_t>(counts[static_cast<size_t>(me_)] * size_of(dtype)));
    const auto sum = reference_sum(dtype, all);
    const Status status =
        comm_.reduce_scatter("scatter by rank", all[static_cast<size_t>(me_)].data(), out.data(), counts, dtype);
    compare(status, out, std::span(sum).subspan(static_cast<size_t>(before * size_of(dtype)), out.size()),
            "reduce_scatter by rank", dtype, size);
  }
  void all_gather(DType dtype, int64_t size) {
    const auto all = inputs(dtype, size);
    std::vector<std::byte> want;
    for (const auto& in : all) want.insert(want.end(), in.begin(), in.end());
    std::vector<std::byte> out(want.size());
    const Status status = comm_.all_gather("gather", all[static_cast<size_t>(me_)].data(), out.data(), size, dtype);
    compare(status, out, want, "all_gather", dtype, size);
  }
  void all_gather_by_rank(DType dtype, int64_t size) {
    const auto counts = counts_by_rank(size);
    std::vector<std::byte> want, own;
    for (int member = 0; member < n_; ++member) {
      const auto in = values(dtype, member, counts[static_cast<size_t>(member)], salt_);
      want.insert(want.end(), in.begin(), in.end());
      if (member == me_) own = in;
    }
    std::vector<std::byte> out(want.size());
    const Status status = comm_.all_gather("gather by rank", own.data(), out.data(), counts, dtype);
    compare(status, out, want, "all_gather by rank", dtype, size);
  }
  void all_to_all(DType dtype, int64_t size) {
    std::vector<int64_t> send, receive;
    std::vector<std::byte> in, want;
    for (int member = 0; member < n_; ++member) {
      send.push_back(skewed(size, me_, member));
      receive.push_back(skewed(size, member, me_));
      const auto out = values(dtype, me_ * 64 + member, send.back(), salt_);
      in.insert(in.end(), out.begin(), out.end());
      const auto got = values(dtype, member * 64 + me_, receive.back(), salt_);
      want.insert(want.end(), got.begin(), got.end());
    }
    std::vector<std::byte> out(want.size());
    const Status status = comm_.all_to_all("swap", in.data(), send, out.data(), receive, dtype);
    compare(status, out, want, "all_to_all", dtype, size);
  }
  void broadcast(DType dtype, int64_t size) {
    const int root = static_cast<int>(salt_ % static_cast<uint64_t>(n_));
    const auto want = values(dtype, root, size, salt_);
    auto data = me_ == root ? want : std::vector<std::byte>(want.size());
    const Status status = comm_.broadcast("tell", data.data(), size, dtype, root);
    compare(status, data, want, "broadcast", dtype, size);
  }
  // Two messages to the next member, then two from the one before: needs the buffering of send.
  void ring(DType dtype, int64_t size) {
    if (n_ == 1) return;
    const int next = (me_ + 1) % n_, before = (me_ + n_ - 1) % n_;
    for (const int64_t count : {size, size / 2}) {
      const auto data = values(dtype, me_, count, salt_);
      expect(comm_.send("pass", data.data(), count, dtype, next), "send");
    }
    for (const int64_t count : {size, size / 2}) {
      const auto want = values(dtype, before, count, salt_);
      std::vector<std::byte> got(want.size());
      const Status status = comm_.receive("pass", got.data(), count, dtype, before);
      compare(status, got, want, "send and receive", dtype, size);
      --salt_;
    }
    ++salt_;
  }

  Communicator& comm_;
  const int n_;
  const int me_;
  uint64_t salt_ = 1;
  Report report_;
};

}  // namespace

Report run_battery(Communicator& comm, std::span<const int64_t> sizes) {
  return Battery(comm).run(sizes);
}

Report run_ranks(World& world, std::span<const int> ranks, std::string_view group,
                 const std::function<Report(Communicator&)>& body) {
  Report total;
  std::mutex mutex;
  std::vector<std::thread> threads;
  for (const int rank : ranks) {
    if (!world.is_local(rank)) continue;
    threads.emplace_back([&, rank] {
      Report report;
      auto comm = world.communicator(group, ranks, rank);
      if (comm.has_error())
        report.failures.push_back(comm.error().message);
      else
        report = body(comm.value());
      std::lock_guard lock(mutex);
      total.cases += report.cases;
      total.failures.insert(total.failures.end(), report.failures.begin(), report.failures.end());
    });
  }
  for (auto& thread : threads) thread.join();
  return total;
}

}  // namespace plait::comm::testing
