#include "bench/server_bench.h"

#include <csignal>
#include <numeric>

#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/json/object.hpp>
#include <boost/json/serialize.hpp>
#include <fcntl.h>
#include <unistd.h>

#include "base/process.h"
#include "base/units.h"
#include "bench/chat_stream.h"

namespace plait {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kMostStreams = 10;
constexpr std::chrono::seconds kStreamsLimit{20};  // no more streams after it; a slow build has one
constexpr int64_t kStreamTokens = 256;
constexpr std::chrono::seconds kStartLimit{120};
const char* const kPrompt = "Sort these numbers: 71 8 35 4 90 22";

double seconds_between(Clock::time_point begin, Clock::time_point end) {
  return std::chrono::duration<double>(end - begin).count();
}

// The least disturbed of several measurements.
double best(const std::vector<double>& seconds) {
  return *std::min_element(seconds.begin(), seconds.end());
}

uint16_t free_port() {
  boost::asio::io_context io;
  return boost::asio::ip::tcp::acceptor(io, {boost::asio::ip::address_v4::loopback(), 0}).local_endpoint().port();
}

Result<ChildProcess> start_server(const ServeOptions& options, uint16_t port) {
  std::vector<std::string> arguments = {"serve",
                                        "--model-path",
                                        options.engine.model_path,
                                        "--port",
                                        fmt::format("{}", port),
                                        "--log-level",
                                        "error",
                                        "--dtype",
                                        options.engine.dtype,
                                        "--threads",
                                        fmt::format("{}", options.engine.threads)};
  const int nothing = open("/dev/null", O_RDWR | O_CLOEXEC);
  if (nothing < 0) return io_error("cannot open /dev/null", errno);
  auto child = spawn_self(arguments, nothing);
  close(nothing);
  return child;
}

// The first completion, asked for until the server can give it.
Result<ChatStream> first_stream(uint16_t port, const std::string& model, Clock::time_point started) {
  for (;;) {
    auto stream = stream_chat(port, model, kPrompt, 1);
    if (stream.has_value() || stream.error().kind != ErrorKind::kUnavailable) return stream;
    if (Clock::now() - started > kStartLimit) return std::move(stream).error().within("the server did not start");
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
}

// The same prompt and positions as a stream had, straight through an engine.
class EngineRound {
 public:
  static Result<EngineRound> create(const EngineOptions& options, int64_t prompt_tokens) {
    EngineRound round;
    PLAIT_ASSIGN_OR_RETURN(round.engine_, Engine::create(options));
    const int64_t positions = prompt_tokens + kStreamTokens;
    const int64_t page_tokens = round.engine_->page_tokens();
    round.pages_.resize(static_cast<size_t>((positions + page_tokens - 1) / page_tokens));
    std::iota(round.pages_.begin(), round.pages_.end(), 0);
    if (static_cast<int64_t>(round.pages_.size()) > round.engine_->kv_pages()) {
      return exhausted("the KV cache is too small to measure");
    }
    round.prompt_.assign(static_cast<size_t>(prompt_tokens), 3);
    return round;
  }

  // Seconds per decoded token.
  double run() {
    std::vector<int32_t> output;
    const auto prompt_tokens = static_cast<int64_t>(prompt_.size());
    const auto step = [&](std::span<const int32_t> tokens, int64_t first_position) {
      StepBuilder builder(steps_++);
      builder.add(tokens, first_position, pages_, prompt_tokens, 1);
      const SamplingRow row{
          .params = &greedy_, .prompt_ids = prompt_, .output_ids = output, .output_index = std::ssize(output)};
      output.push_back(engine_->execute(std::move(builder).build(), {&row, 1})[0].id);
    };
    step(prompt_, 0);
    const auto begin = Clock::now();
    for (int64_t i = 1; i < kStreamTokens; ++i) {
      const int32_t last = output.back();
      step({&last, 1}, prompt_tokens + i - 1);
    }
    return seconds_between(begin, Clock::now()) / static_cast<double>(kStreamTokens - 1);
  }

 private:
  std::unique_ptr<Engine> engine_;
  std::vector<int32_t> pages_, prompt_;
  SamplingParams greedy_{.temperature = 0};
  uint64_t steps_ = 0;
};

}  // namespace

Result<ServerCost> measure_server(const ServeOptions& options) {
  ServerCost cost;
  cost.tokens = kStreamTokens;
  const uint16_t port = free_port();
  const auto started = Clock::now();
  PLAIT_ASSIGN_OR_RETURN(ChildProcess server, start_server(options, port));
  PLAIT_ASSIGN_OR_RETURN(const ChatStream first, first_stream(port, options.engine.model_path, started));
  cost.first_token_seconds = seconds_between(started, first.first_token);
  PLAIT_ASSIGN_OR_RETURN(EngineRound engine, EngineRound::create(options.engine, first.prompt_tokens));
  // In turns, so that what else the machine does disturbs both alike.
  std::vector<double> streams, rounds;
  const auto begin = Clock::now();
  for (; cost.streams < kMostStreams && (cost.streams == 0 || Clock::now() - begin < kStreamsLimit); ++cost.streams) {
    PLAIT_ASSIGN_OR_RETURN(const ChatStream stream,
                           stream_chat(port, options.engine.model_path, kPrompt, kStreamTokens));
    streams.push_back(seconds_between(stream.first_token, stream.last_token) /
                      static_cast<double>(stream.completion_tokens - 1));
    rounds.push_back(engine.run());
  }
  cost.streamed_seconds_per_token = best(streams);
  cost.step_seconds_per_token = best(rounds);
  ::kill(server.pid(), SIGTERM);
  server.wait();
  return cost;
}

Status bench_server(const ServeOptions& options, BenchOptions::Format format) {
  PLAIT_ASSIGN_OR_RETURN(const ServerCost cost, measure_server(options));
  if (format == BenchOptions::Format::kJson) {
    const boost::json::object document = {{"model", options.engine.model_path},
                                          {"first_token_seconds", cost.first_token_seconds},
                                          {"streamed_seconds_per_token", cost.streamed_seconds_per_token},
                                          {"step_seconds_per_token", cost.step_seconds_per_token},
                                          {"overhead_seconds_per_token", cost.overhead()},
                                          {"tokens", cost.tokens}};
    fmt::print("{}\n", boost::json::serialize(document));
    return {};
  }
  fmt::print("{}, batch 1, {} tokens a stream, best of {} streams\n", options.engine.model_path, cost.tokens,
             cost.streams);
  fmt::print("start of the process to the first token   {}\n", format_seconds(cost.first_token_seconds));
  fmt::print("streamed over HTTP                        {} a token\n", format_seconds(cost.streamed_seconds_per_token));
  fmt::print("the engine's own step                     {} a token\n", format_seconds(cost.step_seconds_per_token));
  fmt::print("HTTP, text and scheduling                 {} a token\n", format_seconds(cost.overhead()));
  return {};
}

}  // namespace plait
