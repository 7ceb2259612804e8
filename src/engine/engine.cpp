#include "engine/engine.h"

#include <atomic>
#include <fstream>
#include <mutex>

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
#include "engine/first_touch.h"
#include "engine/host_team.h"
#include "engine/kernel_build.h"
#include "engine/start_up.h"

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

// How old the other hosts' counts may be.
constexpr std::chrono::milliseconds kCountPeriod{500};

class CpuEngine : public Engine {
 public:
  CpuEngine(const EngineOptions& options, EngineSetup setup, const ManifestOfRank& manifests, StartListener* listener)
      : options_(options),
        setup_(std::move(setup)),
        kernels_(std::make_unique<KernelBuild>(setup_.parallel.nnodes, ranks_here(), manifests,
                                               kernel_cache_directory(options))),
        start_up_(std::make_unique<StartUp>(setup_.parallel.node_rank, setup_.parallel.node_rank * ranks_here(),
                                            ranks_here(), listener)) {}

  // From a decision about everything to ready. On hosts other than the first the phases after kRanks are the first
  // one's orders (follow).
  Status start() {
    using Phase = StartUp::Phase;
    kernels_->begin();
    const auto alone = [](Phase phase) { return StartUp::Row{.phases = {std::move(phase)}}; };
    // Until all ranks are ready, nobody's wait for another one has a limit.
    const StartUp::Row meeting[] = {alone({StartPhase::kMeeting, [this](auto&) { return meet(); }})};
    PLAIT_RETURN_IF_ERROR(start_up_->run(meeting));
    // From here on whoever fails says so.
    const StartUp::Row building[] = {
        alone({StartPhase::kMemory, [this](auto&) { return plan_memory(); }}),
        {.phases = {{StartPhase::kWeights, [this](auto&) { return load(); }, [this](auto&) { stop_loading_ = true; }},
                    {StartPhase::kKernels, [this](auto&) { return build_kernels(); },
                     [this](const Error& why) { kernels_->stop(why); }}}},
        {.phases = {{StartPhase::kBuilt, [this](const Status& so_far) { return agree_on_built(so_far); }}},
         .agreement = true},
        alone({StartPhase::kRanks, [this](auto&) { return start_ranks(); }}),
    };
    PLAIT_RETURN_IF_ERROR(start_up_->run(building));
    if (!hosts_->leads()) return {};
    const StartUp::Row touching[] = {
        alone({StartPhase::kFirstTouch, [this](auto&) { return first_touch(); }}),
        alone({StartPhase::kCapture, [this](auto&) { return on_all_hosts(StartPhase::kCapture); }}),
        alone({StartPhase::kProbe, [this](auto&) { return probe(); }}),
        alone({StartPhase::kReady, [this](auto&) { return agree_on_ready(); }}),
    };
    PLAIT_RETURN_IF_ERROR(start_up_->run(touching));
    serve();
    return {};
  }

  bool leads() const override { return hosts_->leads(); }
  Status follow(const std::function<void()>& ready) override {
    return hosts_->follow({.limit_when_armed = options_.hosts.collective_timeout,
                           .begin =
                               [this](StartPhase phase) {
                                 start_up_->enter(phase);
                                 return begin_here(phase);
                               },
                           .ready =
                               [&] {
                                 serve();
                                 ready();
                               }});
  }
  uint64_t followed_steps() const override { return hosts_->followed_steps(); }
  void end() override {
    if (const Status ended = hosts_->end(); ended.has_error()) log::warning("{}", ended.error().message);
  }
  std::optional<Error> failure() const override { return hosts_->failure(); }
  uint64_t compiles_after_ready() const override;

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
  int ranks_here() const { return static_cast<int>(Topology(setup_.parallel).world() / setup_.parallel.nnodes); }

  // With the other hosts, if there are any.
  Status meet() {
    const ParallelConfig& parallel = setup_.parallel;
    std::shared_ptr<comm::World> world;
    if (parallel.nnodes == 1) {
      world = comm::World::local(ranks_here());
    } else {
      const HostsOptions& hosts = options_.hosts;
      comm::RendezvousOptions rendezvous{.address = parallel.dist_init_addr,
                                         .nodes = parallel.nnodes,
                                         .node = parallel.node_rank,
                                         .ranks = ranks_here(),
                                         .limit = hosts.rejoins ? hosts.rejoin_timeout : hosts.dist_timeout};
      PLAIT_ASSIGN_OR_RETURN(rendezvous.secret, read_secret(hosts.secret_file));
      rendezvous.configuration = shared_settings(options_, setup_);
      rendezvous.configuration.emplace_back("kernels of all ranks", kernels_->digest());
      start_up_->note(StartPhase::kMeeting, parallel.dist_init_addr);
      PLAIT_ASSIGN_OR_RETURN(world, comm::World::join(rendezvous));
    }
    start_up_->join(world);
    PLAIT_RETURN_IF_ERROR(kernels_->open(world));
    PLAIT_ASSIGN_OR_RETURN(HostTeam hosts, HostTeam::open(std::move(world)));
    hosts_.emplace(std::move(hosts));
    return {};
  }

  // Refuses before anything is read.
  Status plan_memory() {
    available_bytes_ = available_memory_bytes();
    PLAIT_ASSIGN_OR_RETURN(requests_, expected_tensors(setup_));
    PLAIT_RETURN_IF_ERROR(plan_engine_memory(options_, setup_, available_bytes_));
    return {};
  }

  Status build_kernels() {
    if (kernels_->empty()) return {};
    ProgressBar bar("Building kernels", ProgressBar::standard_error(), ProgressBar::Unit::kCount);
    return kernels_->build(options_.threads, [&](const jit::FarmProgress& progress) {
      start_up_->note(StartPhase::kKernels, progress.building, progress.done, progress.total);
      bar.update(progress.done, progress.total, progress.fraction);
    });
  }

  // Pages of KV that all hosts have memory for beside the weights.
  Status agree_on_built(const Status& so_far) {
    if (so_far.has_error()) kernels_->refuse(so_far.error());
    PLAIT_ASSIGN_OR_RETURN(
        const int64_t pages,
        hosts_->agree_on_start(so_far.has_error() ? Result<int64_t>(so_far.error()) : plan_.kv_pages));
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
    return {};
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

  // Whether reading weights is of no use any more.
  bool gives_up_loading() const {
    return stop_loading_.load(std::memory_order_relaxed) || hosts_->world()->failure().has_value();
  }

  Status load() {
    for (WeightRequest& request : requests_) {
      if (!request.write) continue;
      request.write = [this, write = std::move(request.write)](const WeightSource& source) -> Status {
        if (gives_up_loading()) return cancelled("loading was given up, since the engine cannot start");
        return write(source);
      };
    }
    const size_t before = available_memory_bytes();
    log::info("Load weight begin. avail mem={:.2f} GB", gigabytes(before));
    LoadReport report;
    {
      ProgressBar bar("Loading weights");
      LoadOptions load_options;
      load_options.threads = options_.threads;
      load_options.num_hidden_layers = setup_.config.num_hidden_layers;
      load_options.progress = [&](size_t done, size_t total) {
        start_up_->note(StartPhase::kWeights, "", done, total);
        bar.update(done, total);
      };
      if (options_.dummy_weights) {
        PLAIT_ASSIGN_OR_RETURN(report, load_dummy_weights(requests_, setup_.config.weight_dtype,
                                                          setup_.config.fp8_block.value_or(0), load_options));
      } else {
        PLAIT_ASSIGN_OR_RETURN(const Checkpoint checkpoint, Checkpoint::open(setup_.folder));
        PLAIT_ASSIGN_OR_RETURN(report, load_weights(checkpoint, requests_, load_options));
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
    requests_.clear();
    // With the dtypes that were found
    PLAIT_ASSIGN_OR_RETURN(plan_, plan_engine_memory(options_, setup_, available_bytes_));
    return {};
  }

  TouchRoom touch_room() const {
    return {.kv_pages = plan_.kv_pages,
            .page_tokens = plan_.page_tokens,
            .step_rows = std::max(options_.chunked_prefill_tokens, options_.max_running_requests),
            .sequences = options_.max_running_requests};
  }

  // Begins a phase on the other hosts, and does what this host has to do in it.
  Status on_all_hosts(StartPhase phase) {
    PLAIT_RETURN_IF_ERROR(hosts_->begin_on_others(phase));
    return begin_here(phase);
  }

  // What a host does in a phase by itself. CPU ranks have no graphs to capture.
  Status begin_here(StartPhase phase) {
    if (phase == StartPhase::kReady) kernels_->expect_no_builds();
    return {};
  }

  // Whatever an operation does at its first call is not left to the first request: all data-parallel ranks make a step
  // of each forward mode that traffic can have.
  Status first_touch() {
    PLAIT_RETURN_IF_ERROR(on_all_hosts(StartPhase::kFirstTouch));
    const std::vector<StepMode> modes = touched_modes(options_.disaggregation, touch_room());
    for (size_t i = 0; i < modes.size(); ++i) {
      start_up_->note(StartPhase::kFirstTouch, name_of(modes[i]), i, modes.size());
      PLAIT_ASSIGN_OR_RETURN(const Step step, first_touch_step(modes[i], options_.disaggregation, touch_room()));
      const std::vector<const Step*> of_dp_ranks(static_cast<size_t>(dp_ranks()), &step);
      PLAIT_RETURN_IF_ERROR(run_untracked(of_dp_ranks));
    }
    start_up_->note(StartPhase::kFirstTouch, "", modes.size(), modes.size());
    return {};
  }

  // Each data-parallel rank answers by itself, while the others have nothing to do: the other half of first touch, and
  // the proof that no rank was left out.
  Status probe() {
    PLAIT_RETURN_IF_ERROR(on_all_hosts(StartPhase::kProbe));
    const Step idle = StepBuilder(0).build();
    for (int dp = 0; dp < dp_ranks(); ++dp) {
      const int rank = hosts_->team().logits_rank(dp);
      const std::string name =
          fmt::format("data-parallel rank {} ({})", dp, hosts_->team().world().describe_rank(rank));
      start_up_->note(StartPhase::kProbe, name, static_cast<uint64_t>(dp), static_cast<uint64_t>(dp_ranks()));
      for (const StepMode mode : touched_modes(options_.disaggregation, touch_room())) {
        PLAIT_ASSIGN_OR_RETURN(const Step step, first_touch_step(mode, options_.disaggregation, touch_room()));
        std::vector<const Step*> of_dp_ranks(static_cast<size_t>(dp_ranks()), &idle);
        of_dp_ranks[static_cast<size_t>(dp)] = &step;
        auto sampled = run_untracked(of_dp_ranks);
        if (sampled.has_error()) return std::move(sampled).error().within(name);
        PLAIT_RETURN_IF_ERROR(check_probe((*sampled)[static_cast<size_t>(dp)], step, name));
      }
    }
    start_up_->note(StartPhase::kProbe, "", static_cast<uint64_t>(dp_ranks()), static_cast<uint64_t>(dp_ranks()));
    return {};
  }

  Status check_probe(std::span<const SampledToken> tokens, const Step& step, const std::string& name) const {
    const auto wrong = [&](std::string_view what) {
      return internal(fmt::format("{} answered its probe ({}) with {}", name, name_of(step.mode), what));
    };
    if (tokens.size() != step.logit_rows.size())
      return wrong(fmt::format("{} tokens instead of {}", tokens.size(), step.logit_rows.size()));
    for (const SampledToken& token : tokens) {
      if (token.not_finite) return wrong("no finite logit");
      if (token.id < 0 || token.id >= setup_.config.vocab_size)
        return wrong(fmt::format("token {}, which is not in the vocabulary", token.id));
    }
    return {};
  }

  Result<SampledRows> run_untracked(std::span<const Step* const> of_dp_ranks) {
    const SamplingParams params{.temperature = 0};
    std::vector<std::vector<SamplingRow>> rows;
    std::vector<StepCall> calls;
    for (const Step* step : of_dp_ranks) rows.emplace_back(step->logit_rows.size(), SamplingRow{.params = &params});
    for (size_t dp = 0; dp < of_dp_ranks.size(); ++dp) calls.push_back({of_dp_ranks[dp], rows[dp]});
    PLAIT_RETURN_IF_ERROR(hosts_->launch(calls));
    return hosts_->collect();
  }

  Status agree_on_ready() {
    PLAIT_RETURN_IF_ERROR(on_all_hosts(StartPhase::kReady));
    PLAIT_RETURN_IF_ERROR(hosts_->agree_on_ready());
    return hosts_->arm_deadlines(options_.hosts.collective_timeout);
  }

  void serve() {
    start_up_->serve();
    log::info("{}", plan_.to_string());
    log::info("max_total_num_tokens={}, chunked_prefill_size={}, max_running_requests={}, context_len={}",
              plan_.kv_tokens, options_.chunked_prefill_tokens, options_.max_running_requests, setup_.context_tokens);
  }

  const EngineOptions options_;
  EngineSetup setup_;
  size_t available_bytes_ = 0;           // before weights
  std::vector<WeightRequest> requests_;  // until they are loaded
  std::atomic<bool> stop_loading_{false};
  mutable std::mutex compiles_mutex_;  // of the next two
  mutable std::chrono::steady_clock::time_point compiles_counted_at_;
  mutable uint64_t compiles_ = 0;  // of all hosts; on the others, what the first one was told
  MemoryPlan plan_;
  std::unique_ptr<KernelBuild> kernels_;
  std::unique_ptr<StartUp> start_up_;
  std::optional<HostTeam> hosts_;
};

// The other hosts tell the first one, which counts all.
uint64_t CpuEngine::compiles_after_ready() const {
  const uint64_t own = kernels_->compiles_after_ready();
  const auto& world = hosts_->world();
  const auto now = std::chrono::steady_clock::now();
  const std::lock_guard lock(compiles_mutex_);
  if (!hosts_->leads()) {
    if (std::exchange(compiles_, own) != own) world->set_note(encode(HostNote{start_up_->records(), own}));
    return own;
  }
  if (now - compiles_counted_at_ < kCountPeriod) return compiles_;
  compiles_counted_at_ = now;
  compiles_ = own;
  for (const comm::NodeNote& note : world->notes())
    if (const auto said = decode_host_note(note.text); said.has_value()) compiles_ += said->compiles_after_ready;
  return compiles_;
}

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

Result<std::unique_ptr<Engine>> Engine::create(const EngineOptions& options, StartListener* listener) {
  const auto begin = std::chrono::steady_clock::now();
  PLAIT_ASSIGN_OR_RETURN(EngineSetup setup, prepare_engine(options));
  PLAIT_ASSIGN_OR_RETURN(const ManifestOfRank manifests, rehearsed_manifests({setup.config, setup.parallel, options}));
  auto engine = std::make_unique<CpuEngine>(options, std::move(setup), manifests, listener);
  PLAIT_RETURN_IF_ERROR(engine->start());
  const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - begin;
  log::info("Engine is ready after {}.", format_seconds(elapsed.count()));
  return std::unique_ptr<Engine>(std::move(engine));
}

}  // namespace plait
