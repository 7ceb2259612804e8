#include "engine/engine.h"

#include <fstream>

#include "base/assert.h"
#include "base/log.h"
#include "base/progress.h"
#include "base/units.h"
#include "checkpoint/checkpoint.h"
#include "checkpoint/tensor_names.h"
#include "checkpoint/weight_loader.h"
#include "comm/world.h"
#include "engine/available_memory.h"
#include "engine/engine_setup.h"
#include "engine/host_team.h"

namespace plait {
namespace {

using kernels::Activation;

double gigabytes(size_t bytes) {
  return static_cast<double>(bytes) / (1 << 30);
}

const char* architecture_of(const ModelConfig& config) {
  return config.family == Family::kDeepseekV2 ? "DeepseekV2ForCausalLM" : "DeepseekV3ForCausalLM";
}

const char* name_of(Activation activation) {
  return activation == Activation::kFloat32 ? "float32" : "bfloat16";
}

// Without the newline that editors put at the end. Empty path: the empty secret.
Result<std::string> read_secret(const std::string& path) {
  if (path.empty()) return std::string();
  std::ifstream file(path);
  std::string secret((std::istreambuf_iterator<char>(file)), {});
  if (!file.good() && !file.eof()) return invalid(fmt::format("--dist-secret-file {}: cannot be read", path));
  while (!secret.empty() && (secret.back() == '\n' || secret.back() == '\r')) secret.pop_back();
  if (secret.empty()) return invalid(fmt::format("--dist-secret-file {}: is missing or empty", path));
  return secret;
}

class CpuEngine : public Engine {
 public:
  CpuEngine(const EngineOptions& options, EngineSetup setup) : options_(options), setup_(std::move(setup)) {}

  // The steps of starting, in order. Until all ranks are ready, nobody's wait for another one has a limit.
  Status start(const Met& met) {
    PLAIT_RETURN_IF_ERROR(meet());
    if (met) met(hosts_->world());
    PLAIT_ASSIGN_OR_RETURN(const int64_t pages, hosts_->agree_on_start(load_within_memory()));
    if (pages < plan_.kv_pages) {
      log::info("another host has memory for {} pages of KV, this one for {}", pages, plan_.kv_pages);
      plan_.kv_bytes = plan_.kv_bytes / static_cast<size_t>(plan_.kv_pages) * static_cast<size_t>(pages);
      plan_.routed_expert_bytes =
          plan_.routed_expert_bytes / static_cast<size_t>(plan_.kv_pages) * static_cast<size_t>(pages);
      plan_.kv_pages = pages;
      plan_.kv_tokens = pages * plan_.page_tokens;
    }
    if (options_.max_total_tokens > plan_.kv_tokens)
      log::warning("--max-total-tokens {} does not fit: {} tokens do", options_.max_total_tokens, plan_.kv_tokens);
    if (setup_.context_tokens > plan_.kv_tokens) {
      log::warning("sequences are limited to {} tokens by KV memory, not {}", plan_.kv_tokens, setup_.context_tokens);
      setup_.context_tokens = plan_.kv_tokens;
    }
    PLAIT_RETURN_IF_ERROR(start_ranks());
    if (hosts_->leads()) {
      PLAIT_RETURN_IF_ERROR(first_touch());
      PLAIT_RETURN_IF_ERROR(hosts_->arm_deadlines(options_.hosts.collective_timeout));
    }
    log::info("{}", plan_.to_string());
    log::info("max_total_num_tokens={}, chunked_prefill_size={}, max_running_requests={}, context_len={}",
              plan_.kv_tokens, options_.chunked_prefill_tokens, options_.max_running_requests, setup_.context_tokens);
    return {};
  }

  bool leads() const override { return hosts_->leads(); }
  Status follow(const std::function<void()>& ready) override {
    return hosts_->follow(options_.hosts.collective_timeout, ready);
  }
  uint64_t followed_steps() const override { return hosts_->followed_steps(); }
  void end() override {
    if (const Status ended = hosts_->end(); ended.has_error()) log::warning("{}", ended.error().message);
  }
  std::optional<Error> failure() const override { return hosts_->failure(); }

  std::vector<SampledToken> execute(const Step& step, std::span<const SamplingRow> rows) override {
    const StepCall call{&step, rows};
    return std::move(execute({&call, 1}).front());
  }

  std::vector<std::vector<SampledToken>> execute(std::span<const StepCall> of_dp_ranks) override {
    launch(of_dp_ranks);
    return collect();
  }

  void launch(std::span<const StepCall> of_dp_ranks) override {
    for (const StepCall& call : of_dp_ranks)
      PLAIT_ASSERT(call.rows.size() == call.step->logit_rows.size(), "one sampling row per wanted row of logits");
    if (const Status launched = hosts_->launch(of_dp_ranks); launched.has_error())
      throw std::runtime_error(launched.error().message);
  }
  std::vector<std::vector<SampledToken>> collect() override {
    Result<SampledRows> sampled = hosts_->collect();
    if (sampled.has_error()) throw std::runtime_error(sampled.error().message);
    return std::move(sampled).value();
  }
  int most_steps_under_way() const override { return hosts_->most_steps_under_way(); }
  bool knows_future_tokens() const override { return hosts_->knows_future_tokens(); }

  int dp_ranks() const override { return setup_.parallel.attn_dp_size(); }
  int64_t kv_pages() const override { return plan_.kv_pages; }
  int64_t page_tokens() const override { return plan_.page_tokens; }
  const RoutedExpertPool* routed_experts(int dp) const override { return hosts_->team().routed_experts(dp); }
  const ModelConfig& config() const override { return setup_.config; }
  const MemoryPlan& memory_plan() const override { return plan_; }
  Model& model() override { return hosts_->team().first_model(); }
  int64_t context_tokens() const override { return setup_.context_tokens; }

 private:
  // With the other hosts, if there are any.
  Status meet() {
    const ParallelConfig& parallel = setup_.parallel;
    const auto ranks = static_cast<int>(setup_.models.size());
    std::shared_ptr<comm::World> world;
    if (parallel.nnodes == 1) {
      world = comm::World::local(ranks);
    } else {
      const HostsOptions& hosts = options_.hosts;
      comm::RendezvousOptions rendezvous{.address = parallel.dist_init_addr,
                                         .nodes = parallel.nnodes,
                                         .node = parallel.node_rank,
                                         .ranks = ranks,
                                         .limit = hosts.rejoins ? hosts.rejoin_timeout : hosts.dist_timeout};
      PLAIT_ASSIGN_OR_RETURN(rendezvous.secret, read_secret(hosts.secret_file));
      rendezvous.configuration = shared_settings(options_, setup_);
      PLAIT_ASSIGN_OR_RETURN(world, comm::World::join(rendezvous));
    }
    PLAIT_ASSIGN_OR_RETURN(HostTeam hosts, HostTeam::open(std::move(world)));
    hosts_.emplace(std::move(hosts));
    return {};
  }

  // Pages of KV that there is memory for beside the weights.
  Result<int64_t> load_within_memory() {
    const size_t available = available_memory_bytes();
    PLAIT_ASSIGN_OR_RETURN(const std::vector<WeightRequest> requests, expected_tensors(setup_));
    PLAIT_RETURN_IF_ERROR(plan_engine_memory(options_, setup_, available));  // refuses before anything is read
    PLAIT_RETURN_IF_ERROR(load(requests));
    PLAIT_ASSIGN_OR_RETURN(plan_, plan_engine_memory(options_, setup_, available));  // with the dtypes that were found
    return plan_.kv_pages;
  }

  // The models move to their ranks.
  Status start_ranks() {
    const TeamOptions options{
        .parallel = setup_.parallel,
        .model = {options_.implementation, setup_.activation, {}},
        .threads = options_.threads,
        .limits = step_limits(setup_.parallel, options_.max_running_requests, options_.chunked_prefill_tokens),
        .own_threads = options_.overlap,
        .keep_routed_experts = options_.keep_routed_experts,
        .world = hosts_->world()};
    PLAIT_ASSIGN_OR_RETURN(auto team, RankTeam::create(setup_.config, options, std::exchange(setup_.models, {})));
    team->allocate_kv(plan_.kv_pages, plan_.page_tokens, options_.max_running_requests);
    log::info("KV Cache is allocated. #tokens: {}, KV size: {:.2f} GB", plan_.kv_tokens, gigabytes(plan_.kv_bytes));
    if (team->topology().world() > 1) log::info("{} ranks: {}", team->topology().world(), to_flags(setup_.parallel));
    hosts_->take(std::move(team));
    return {};
  }

  Status load(std::span<const WeightRequest> requests) {
    const size_t before = available_memory_bytes();
    log::info("Load weight begin. avail mem={:.2f} GB", gigabytes(before));
    LoadReport report;
    {
      ProgressBar bar("Loading weights");
      LoadOptions load_options;
      load_options.threads = options_.threads;
      load_options.num_hidden_layers = setup_.config.num_hidden_layers;
      load_options.progress = [&bar](size_t done, size_t total) { bar.update(done, total); };
      if (options_.dummy_weights) {
        PLAIT_ASSIGN_OR_RETURN(report, load_dummy_weights(requests, setup_.config.weight_dtype,
                                                          setup_.config.fp8_block.value_or(0), load_options));
      } else {
        PLAIT_ASSIGN_OR_RETURN(const Checkpoint checkpoint, Checkpoint::open(setup_.folder));
        PLAIT_ASSIGN_OR_RETURN(report, load_weights(checkpoint, requests, load_options));
      }
    }
    size_t weight_bytes = 0;
    for (const auto& model : setup_.models) {
      PLAIT_RETURN_IF_ERROR(model->finish_loading());
      weight_bytes += model->weight_bytes();
    }
    const size_t after = available_memory_bytes();
    log::info("Load weight end. type={}, dtype={}, avail mem={:.2f} GB, mem usage={:.2f} GB. {} tensors, {} in {}",
              architecture_of(setup_.config), name_of(setup_.activation), gigabytes(after), gigabytes(weight_bytes),
              report.tensors, format_bytes(report.bytes), format_seconds(report.seconds));
    if (!report.set_aside.empty())
      log::info("{} tensors are set aside: multi-token prediction and rotary tables are not used",
                report.set_aside.size());
    for (const std::string& names : fold_tensor_names(report.unexpected))
      log::warning("unexpected in the checkpoint and ignored: {}", names);
    return {};
  }

  // A small prefill and a decode step: whatever an operation does at its first call is not left to the first request.
  Status first_touch() {
    const int64_t tokens = std::min(2 * plan_.page_tokens, plan_.kv_tokens) - 1;
    std::vector<int32_t> pages{0};
    if (plan_.kv_pages > 1) pages.push_back(1);
    const std::vector<int32_t> prompt(std::max<int64_t>(tokens, 1), 0);
    PLAIT_RETURN_IF_ERROR(run_untracked(prompt, 0, pages));
    if (tokens == 0) return {};
    return run_untracked(std::span(prompt).first(1), tokens, pages);
  }

  Status run_untracked(std::span<const int32_t> token_ids, int64_t first_position, std::span<const int32_t> pages) {
    StepBuilder builder(0);
    const int64_t prompt_tokens = first_position == 0 ? static_cast<int64_t>(token_ids.size()) : first_position;
    builder.add(token_ids, first_position, pages, /*expanded_until=*/prompt_tokens, /*logit_count=*/1);
    const Step step = std::move(builder).build();
    const SamplingParams params{.temperature = 0};
    const SamplingRow row{.params = &params};
    const std::vector<StepCall> of_dp_ranks(static_cast<size_t>(dp_ranks()), {&step, {&row, 1}});
    PLAIT_RETURN_IF_ERROR(hosts_->launch(of_dp_ranks));
    PLAIT_RETURN_IF_ERROR(hosts_->collect());
    return {};
  }

  const EngineOptions options_;
  EngineSetup setup_;
  MemoryPlan plan_;
  std::optional<HostTeam> hosts_;
};

}  // namespace

std::vector<std::vector<SampledToken>> StepExecutor::execute(std::span<const StepCall> of_dp_ranks) {
  PLAIT_ASSERT(of_dp_ranks.size() == 1, "several data-parallel ranks need an executor for them");
  return {execute(*of_dp_ranks.front().step, of_dp_ranks.front().rows)};
}

std::vector<std::vector<SampledToken>> StepExecutor::collect() {
  PLAIT_ASSERT(!done_.empty(), "a step that was launched is collected once");
  std::vector<std::vector<SampledToken>> sampled = std::move(done_.front());
  done_.pop_front();
  return sampled;
}

Result<std::unique_ptr<Engine>> Engine::create(const EngineOptions& options, const Met& met) {
  const auto begin = std::chrono::steady_clock::now();
  PLAIT_ASSIGN_OR_RETURN(EngineSetup setup, prepare_engine(options));
  auto engine = std::make_unique<CpuEngine>(options, std::move(setup));
  PLAIT_RETURN_IF_ERROR(engine->start(met));
  const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - begin;
  log::info("Engine is ready after {}.", format_seconds(elapsed.count()));
  return std::unique_ptr<Engine>(std::move(engine));
}

}  // namespace plait
