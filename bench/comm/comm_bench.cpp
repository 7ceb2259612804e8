// Latency and bandwidth of each collective between two threads and between two processes on loopback, beside what the
// machine allows, measured in the same run:
//   comm_bench [RANKS [threads|processes|mixed]]       default: 2, all three
#include <algorithm>
#include <cstdio>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <numeric>
#include <sys/socket.h>
#include <sys/wait.h>
#include <thread>

#include <fmt/format.h>
#include <unistd.h>

#include "base/log.h"
#include "base/units.h"
#include "comm/expert_exchange.h"
#include "comm/signal.h"
#include "comm/world.h"

namespace plait::comm {
namespace {

double seconds_since(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

struct Times {
  double median = 0;
  double p99 = 0;
};

Times summarise(std::vector<double> seconds) {
  std::sort(seconds.begin(), seconds.end());
  return {seconds[seconds.size() / 2], seconds[seconds.size() * 99 / 100]};
}

template <typename Body>
Times measure(int calls, Body&& body) {
  std::vector<double> seconds;
  for (int i = 0; i < calls; ++i) {
    const auto begin = Clock::now();
    body();
    seconds.push_back(seconds_since(begin));
  }
  seconds.erase(seconds.begin(), seconds.begin() + calls / 10);  // the first ones warm up
  return summarise(std::move(seconds));
}

// The limits

double copy_bandwidth() {
  std::vector<char> from(64 << 20, 1), to(64 << 20);
  const Times times = measure(10, [&] { std::memcpy(to.data(), from.data(), from.size()); });
  return static_cast<double>(from.size()) / times.median;
}

// The median: on a busy machine a thread may lose its core in between.
double atomic_round_trip() {
  std::atomic<int> ball{0};
  std::atomic<bool> over{false};
  std::thread other([&] {
    int last = 0;
    while (!over.load(std::memory_order_relaxed)) {
      const int now = ball.load(std::memory_order_acquire);
      if (now == last || now % 2 == 0) continue;
      last = now + 1;
      ball.store(last, std::memory_order_release);
    }
  });
  int next = 1;
  const Times times = measure(3000, [&] {
    ball.store(next, std::memory_order_release);
    while (ball.load(std::memory_order_acquire) != next + 1) {
    }
    next += 2;
  });
  over.store(true);
  other.join();
  return times.median;
}

int port_of(int socket) {
  sockaddr_in address{};
  socklen_t length = sizeof(address);
  getsockname(socket, reinterpret_cast<sockaddr*>(&address), &length);
  return ntohs(address.sin_port);
}

int listen_on_loopback() {
  const int listener = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  if (bind(listener, reinterpret_cast<sockaddr*>(&address), sizeof(address)) != 0 || listen(listener, 1) != 0)
    std::abort();
  return listener;
}

// Blocking sockets, one byte there and back, between two threads.
Times tcp_round_trip() {
  const int listener = listen_on_loopback();
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  address.sin_port = htons(static_cast<uint16_t>(port_of(listener)));
  const int client = socket(AF_INET, SOCK_STREAM, 0);
  if (connect(client, reinterpret_cast<sockaddr*>(&address), sizeof(address)) != 0) std::abort();
  const int server = accept(listener, nullptr, nullptr);
  const int on = 1;
  for (const int s : {client, server}) setsockopt(s, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
  std::thread echo([&] {
    char byte = 0;
    while (recv(server, &byte, 1, 0) == 1)
      if (send(server, &byte, 1, 0) != 1) break;
  });
  char byte = 1;
  const Times times = measure(2000, [&] {
    if (send(client, &byte, 1, 0) != 1 || recv(client, &byte, 1, 0) != 1) std::abort();
  });
  shutdown(client, SHUT_RDWR);
  echo.join();
  for (const int s : {client, server, listener}) close(s);
  return times;
}

// The collectives

void check(const Status& status) {
  if (!status.has_error()) return;
  std::fprintf(stderr, "%s\n", status.error().message.c_str());
  std::abort();
}

struct Row {
  const char* name;
  // bytes: of the largest buffer, what the call is about
  std::function<void(Communicator&, std::byte* in, std::byte* out, int64_t bytes)> call;
};

const std::vector<Row>& rows() {
  static const std::vector<Row> kRows = {
      {"barrier", [](Communicator& c, std::byte*, std::byte*, int64_t) { check(c.barrier("bench")); }},
      {"all_reduce F32", [](Communicator& c, std::byte* in, std::byte* out,
                            int64_t bytes) { check(c.all_reduce("bench", in, out, bytes / 4, DType::kF32)); }},
      {"all_reduce BF16", [](Communicator& c, std::byte* in, std::byte* out,
                             int64_t bytes) { check(c.all_reduce("bench", in, out, bytes / 2, DType::kBF16)); }},
      {"reduce_scatter F32",
       [](Communicator& c, std::byte* in, std::byte* out, int64_t bytes) {
         check(c.reduce_scatter("bench", in, out, bytes / 4 / c.size(), DType::kF32));
       }},
      {"all_gather", [](Communicator& c, std::byte* in, std::byte* out,
                        int64_t bytes) { check(c.all_gather("bench", in, out, bytes / c.size(), DType::kU8)); }},
      {"all_to_all",
       [](Communicator& c, std::byte* in, std::byte* out, int64_t bytes) {
         const std::vector<int64_t> counts(static_cast<size_t>(c.size()), bytes / c.size());
         check(c.all_to_all("bench", in, counts, out, counts, DType::kU8));
       }},
      {"broadcast", [](Communicator& c, std::byte* in, std::byte*,
                       int64_t bytes) { check(c.broadcast("bench", in, bytes, DType::kU8, 0)); }},
      {"send + receive, and back",
       [](Communicator& c, std::byte* in, std::byte* out, int64_t bytes) {
         if (c.rank() > 1) return;
         if (c.rank() == 0) check(c.send("bench", in, bytes, DType::kU8, 1));
         check(c.receive("bench", out, bytes, DType::kU8, 1 - c.rank()));
         if (c.rank() == 1) check(c.send("bench", in, bytes, DType::kU8, 0));
       }},
  };
  return kRows;
}

void bench_collectives(Communicator& comm) {
  constexpr int64_t kLarge = 14 << 20;  // 1000 tokens of 7168 BF16
  std::vector<std::byte> in(kLarge), out(kLarge);
  const bool printing = comm.rank() == 0;
  for (const Row& row : rows()) {
    for (const int64_t bytes : {int64_t{1} << 10, int64_t{64} << 10, kLarge}) {
      if (std::string_view(row.name) == "barrier" && bytes > 1024) continue;
      check(comm.barrier("line up"));
      const int calls = bytes == kLarge ? 20 : 1000;
      const Times times = measure(calls, [&] { row.call(comm, in.data(), out.data(), bytes); });
      if (printing)
        fmt::print("  {:<26}{:>10}{:>12.1f}{:>12.1f}{:>12.2f}\n", row.name, format_bytes(static_cast<uint64_t>(bytes)),
                   times.median * 1e6, times.p99 * 1e6, static_cast<double>(bytes) / times.median * 1e-9);
      if (printing) std::fflush(stdout);
    }
  }
}

// Decode and prefill of one layer with the sizes of V3: hidden 7168, 256 experts, 8 choices.
void bench_exchange(Communicator& comm) {
  ExpertExchangeOptions options;
  options.hidden = 7168;
  options.experts = 256;
  options.top_k = 8;
  options.capacity_tokens = 32;
  auto exchange = ExpertExchange::make(options, comm).value();
  for (const auto& [form, tokens] :
       {std::pair(ExchangeForm::kLowLatency, int64_t{16}), std::pair(ExchangeForm::kNormal, int64_t{256})}) {
    std::vector<float> values(static_cast<size_t>(tokens * options.hidden), 1.0F), out(values.size());
    std::vector<int32_t> experts;
    for (int64_t i = 0; i < tokens * options.top_k; ++i)
      experts.push_back(static_cast<int32_t>((i * 37 + comm.rank()) % options.experts));
    const std::vector<float> weights(experts.size(), 0.125F);
    std::vector<float> results;
    std::vector<double> dispatch, combine;
    constexpr int kCalls = 30;
    for (int i = 0; i < kCalls; ++i) {
      check(comm.barrier("line up"));
      auto begin = Clock::now();
      check(exchange->start_dispatch("dispatch", form, {values.data(), tokens, options.hidden}, experts));
      const DispatchedRows rows = exchange->finish_dispatch().value();
      dispatch.push_back(seconds_since(begin));
      results.resize(static_cast<size_t>(rows.rows * options.hidden), 1.0F);
      check(comm.barrier("line up"));
      begin = Clock::now();
      check(exchange->start_combine("combine", {results.data(), rows.rows, options.hidden}, rows.expert_first_row));
      check(exchange->finish_combine(weights, {out.data(), tokens, options.hidden}));
      combine.push_back(seconds_since(begin));
    }
    if (comm.rank() == 0)
      fmt::print("  {:<12} {:>4} tokens a rank: dispatch (BF16) {:>8.0f} us, combine (F32) {:>8.0f} us\n",
                 form == ExchangeForm::kNormal ? "normal" : "low latency", tokens, summarise(dispatch).median * 1e6,
                 summarise(combine).median * 1e6);
  }
}

void bench_group(World& world, std::string_view title) {
  std::vector<int> ranks(static_cast<size_t>(world.size()));
  std::iota(ranks.begin(), ranks.end(), 0);
  std::vector<std::thread> threads;
  for (const int rank : ranks) {
    if (!world.is_local(rank)) continue;
    threads.emplace_back([&, rank] {
      auto comm = world.communicator("bench", ranks, rank).value();
      if (rank == 0)
        fmt::print("\n{}\n  {:<26}{:>10}{:>12}{:>12}{:>12}\n", title, "collective", "size", "median us", "p99 us",
                   "GB/s");
      bench_collectives(comm);
      bench_exchange(comm);
    });
  }
  for (auto& thread : threads) thread.join();
}

void bench_processes(int nodes, int ranks, std::string_view title) {
  const int listener = listen_on_loopback();
  RendezvousOptions options;
  options.address = fmt::format("127.0.0.1:{}", port_of(listener));
  options.nodes = nodes;
  options.ranks = ranks;
  options.limit = std::chrono::seconds(20);
  close(listener);
  std::fflush(nullptr);
  std::vector<pid_t> children;
  for (int node = 0; node < nodes; ++node) {
    const pid_t pid = fork();
    if (pid != 0) {
      children.push_back(pid);
      continue;
    }
    log::initialise(log::Level::kWarning, "");
    options.node = node;
    {
      auto world = World::join(options).value();
      world->set_deadline(std::chrono::seconds(60));
      bench_group(*world, title);
    }
    std::fflush(nullptr);
    _exit(0);
  }
  for (const pid_t pid : children) waitpid(pid, nullptr, 0);
}

int main_of(int ranks, std::string_view only) {
  const auto wanted = [only](std::string_view kind) { return only.empty() || only == kind; };
  fmt::print("limits: copying memory {}, a cache line there and back {:.2f} us", format_rate(copy_bandwidth()),
             atomic_round_trip() * 1e6);
  const Times tcp = tcp_round_trip();
  fmt::print(", a TCP message there and back {:.0f} us (p99 {:.0f})\n", tcp.median * 1e6, tcp.p99 * 1e6);
  std::fflush(nullptr);
  // Processes first: forking wants a process without threads.
  if (wanted("processes")) bench_processes(ranks, 1, fmt::format("{} processes (Gloo over TCP on loopback)", ranks));
  if (wanted("mixed")) bench_processes(2, ranks, fmt::format("2 processes of {} threads", ranks));
  if (wanted("threads")) bench_group(*World::local(ranks), fmt::format("{} threads of one process", ranks));
  return 0;
}

}  // namespace
}  // namespace plait::comm

int main(int argc, char** argv) {
  return plait::comm::main_of(argc > 1 ? std::max(2, std::atoi(argv[1])) : 2, argc > 2 ? argv[2] : "");
}
