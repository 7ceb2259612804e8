#include "engine/rank_team.h"

#include <chrono>
#include <condition_variable>
#include <mutex>
#include <numeric>
#include <thread>

#include "base/assert.h"
#include "base/launch_region.h"
#include "base/thread_pool.h"
#include "engine/agreed_rows.h"
#include "engine/engine_setup.h"
#include "model/model_facts.h"
#include "topology/rules.h"

namespace plait {

namespace {

// The time that a step takes without its pauses.
class Stopwatch {
 public:
  void pause() { seconds_ += std::chrono::duration<double>(Clock::now() - begin_).count(); }
  void go_on() { begin_ = Clock::now(); }
  double seconds() {
    pause();
    go_on();
    return seconds_;
  }

 private:
  using Clock = std::chrono::steady_clock;
  Clock::time_point begin_ = Clock::now();
  double seconds_ = 0;
};

}  // namespace

struct RankTeam::Rank {
  int index = 0;
  RankCoordinates at;
  std::unique_ptr<Model> model;
  std::unique_ptr<ThreadPool> pool;
  kernels::Workspace workspace;
  std::optional<KvPool> kv;
  std::optional<ContextPages> context_pages;
  std::map<uint32_t, comm::Communicator> groups;  // by axes
  std::optional<comm::Communicator> pipeline;
  std::optional<comm::Communicator> attention_ranks;  // of its data-parallel rank, if they live on several hosts
  std::vector<int32_t> chosen;                        // [state slot] by the step before, from another host
  std::unique_ptr<comm::ExpertExchange> exchange;
  std::optional<RankBackend> backend;
  double busy_seconds = 0;  // of its own thread until a step's end is announced
  std::thread thread;

  // Of all its communicators: every wait of a step is reported with the step.
  void set_step(std::optional<int64_t> step);
};

void RankTeam::Rank::set_step(std::optional<int64_t> step) {
  for (auto& [axes, group] : groups) group.set_step(step);
  for (auto* group : {&pipeline, &attention_ranks})
    if (*group) (*group)->set_step(step);
}

Result<std::unique_ptr<RankTeam>> RankTeam::create(const ModelConfig& config, const TeamOptions& options,
                                                   std::vector<std::unique_ptr<Model>> models) {
  std::unique_ptr<RankTeam> team(new RankTeam(config, options, Topology(options.parallel)));
  ModelFacts facts = model_facts(config);
  facts.activation_bytes = sizeof(float);  // as CPU ranks keep and exchange them
  facts.cache_bytes = size_of(models.front()->kv_spec().components.front().dtype);
  PLAIT_ASSIGN_OR_RETURN(std::vector<Plan> plans, make_step_plans(team->topology_, facts));
  for (Plan& plan : plans)
    team->programs_.push_back(make_program(options.replan ? options.replan(std::move(plan)) : std::move(plan)));
  const comm::Node& here = team->world_->nodes()[static_cast<size_t>(team->world_->this_node())];
  PLAIT_ASSERT(std::ssize(models) == here.ranks, "a model for each rank of this process");
  for (int i = 0; i < here.ranks; ++i)
    PLAIT_RETURN_IF_ERROR(team->add_rank(here.first_rank + i, std::move(models[static_cast<size_t>(i)])));
  const int cores = options.threads > 0 ? options.threads : usable_cores();
  const int each = std::max(1, cores / here.ranks);
  for (const auto& rank : team->ranks_) {
    rank->pool = std::make_unique<ThreadPool>(each);
    // A single rank that never runs ahead works on the caller's thread.
    if (team->ranks_.size() > 1 || options.own_threads)
      rank->thread = std::thread([&team = *team, &rank = *rank] { team.work(rank); });
  }
  return team;
}

RankTeam::RankTeam(const ModelConfig& config, const TeamOptions& options, Topology topology)
    : config_(config),
      options_(options),
      topology_(std::move(topology)),
      world_(options.world ? options.world : comm::World::local(topology_.world())) {
  PLAIT_ASSERT(world_->size() == topology_.world(), "the world has the topology's ranks");
}

// A rank, and its seats in the groups that some plan needs.
Status RankTeam::add_rank(int index, std::unique_ptr<Model> model) {
  auto rank = std::make_unique<Rank>();
  rank->index = index;
  rank->at = topology_.coordinates(index);
  rank->model = std::move(model);
  for (const Program& program : programs_)
    for (const AxisSet axes : program.plan.groups()) {
      if (rank->groups.contains(axes.bits())) continue;
      std::vector<int> members = program.plan.axes.group(axes, rank->at.tp);
      for (int& member : members) member += rank->at.pp * options_.parallel.tp_size;
      const std::string name =
          fmt::format("{} of stage {} from rank {}", program.plan.axes.group_name(axes), rank->at.pp, members.front());
      PLAIT_ASSIGN_OR_RETURN(comm::Communicator group, world_->communicator(name, members, index));
      rank->groups.emplace(axes.bits(), std::move(group));
    }
  PLAIT_RETURN_IF_ERROR(add_exchange(*rank));
  if (options_.parallel.pp_size > 1) {
    const GroupView stages = topology_.group(GroupKind::kPp, index);
    const std::string name = fmt::format("pipeline from rank {}", stages.ranks.front());
    PLAIT_ASSIGN_OR_RETURN(comm::Communicator group, world_->communicator(name, stages.ranks, index));
    rank->pipeline.emplace(std::move(group));
  }
  PLAIT_RETURN_IF_ERROR(add_attention_ranks(*rank));
  ranks_.push_back(std::move(rank));
  return {};
}

// The rank that has the logits is the first of them.
Status RankTeam::add_attention_ranks(Rank& rank) {
  const ParallelConfig& config = options_.parallel;
  if (config.pp_size > 1) return {};  // no future tokens there
  std::vector<int> members(static_cast<size_t>(config.attn_cp_size * config.attn_tp_size()));
  std::iota(members.begin(), members.end(), logits_rank(rank.at.attn_dp));
  if (std::ranges::all_of(members, [&](int member) { return world_->is_local(member); })) return {};
  const std::string name = fmt::format("attention ranks of data-parallel rank {}", rank.at.attn_dp);
  PLAIT_ASSIGN_OR_RETURN(comm::Communicator group, world_->communicator(name, members, rank.index));
  rank.attention_ranks.emplace(std::move(group));
  return {};
}

Status RankTeam::add_exchange(Rank& rank) {
  const AxisSet experts = plan().axes.experts();
  if (experts.empty() || !uses_exchange(plan().facts, options_.parallel)) return {};
  PLAIT_ASSIGN_OR_RETURN(const comm::ExpertExchangeOptions wanted,
                         exchange_options(plan().facts, options_.parallel, options_.limits, options_.model.activation));
  low_latency_tokens_ = wanted.capacity_tokens;
  PLAIT_ASSIGN_OR_RETURN(rank.exchange, comm::ExpertExchange::make(wanted, rank.groups.at(experts.bits())));
  return {};
}

RankTeam::Program RankTeam::make_program(Plan plan) {
  Program program{std::move(plan), {}};
  for (size_t i = 0; i < program.plan.segments.size(); ++i)
    if (program.plan.segments[i].kind == SegmentKind::kStageBoundary)
      program.boundaries.emplace(static_cast<int>(i), split(program.plan.segments[i]));
  return program;
}

// What stands before the send, and it, is the sender's; what follows is the receiver's.
RankTeam::Boundary RankTeam::split(const Segment& segment) {
  Boundary boundary;
  boundary.sender = boundary.receiver = segment;
  const auto send = std::find_if(segment.steps.begin(), segment.steps.end(), [](const PlanStep& step) {
    const auto* stage = std::get_if<StageStep>(&step);
    return stage && stage->stage.kind == StageKind::kSendReceive;
  });
  PLAIT_ASSERT(send != segment.steps.end(), "pipeline stages meet in a send");
  boundary.send = std::get<StageStep>(*send);
  boundary.sender.steps.assign(segment.steps.begin(), std::next(send));
  boundary.receiver.steps.assign(std::next(send), segment.steps.end());
  return boundary;
}

RankTeam::~RankTeam() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  begin_.notify_all();
  chosen_.notify_all();
  for (const auto& rank : ranks_)
    if (rank->thread.joinable()) rank->thread.join();
}

std::vector<WeightRequest> RankTeam::weight_requests() {
  std::vector<std::vector<WeightRequest>> of_ranks;
  for (const auto& rank : ranks_) of_ranks.push_back(rank->model->weight_requests());
  return merge_requests(std::move(of_ranks));
}

Status RankTeam::finish_loading() {
  for (const auto& rank : ranks_) PLAIT_RETURN_IF_ERROR(rank->model->finish_loading());
  return {};
}

void RankTeam::allocate_kv(int64_t pages, int64_t page_tokens, int64_t sequences) {
  state_slots_ = sequences;
  page_tokens_ = page_tokens;
  for (Launch& launch : launches_)
    launch.chosen.assign(static_cast<size_t>(dp_ranks()), std::vector<int32_t>(static_cast<size_t>(sequences), 0));
  if (options_.keep_routed_experts)
    for (int dp = 0; dp < dp_ranks(); ++dp)
      routed_experts_.push_back(std::make_unique<RoutedExpertPool>(RoutedExpertShape::of(config_), pages, page_tokens));
  for (const auto& rank : ranks_) {
    const KvSpec spec = rank->model->kv_spec();
    const int context_ranks = options_.parallel.prefill_cp_kv_sharded ? options_.parallel.attn_cp_size : 1;
    rank->kv.emplace(spec, pages_per_member(pages, context_ranks), page_tokens, sequences);
    if (context_ranks > 1)
      rank->context_pages.emplace(spec, rank->kv->memory(), shard_of(topology_, plan().facts, rank->index).layers.begin,
                                  context_ranks, rank->at.attn_cp);
    const kernels::Context context{rank->pool.get(), &rank->workspace, options_.model.implementation,
                                   options_.model.activation};
    rank->backend.emplace(RankBackend::Parts{
        .model = rank->model.get(),
        .config = &config_,
        .kv = &rank->kv->memory(),
        .context_pages = rank->context_pages ? &*rank->context_pages : nullptr,
        .context = context,
        .groups = [&rank = *rank](AxisSet axes) -> comm::Communicator& { return rank.groups.at(axes.bits()); },
        .routed_experts = routed_experts_.empty() ? nullptr : routed_experts_[rank->at.attn_dp].get(),
        .exchange = rank->exchange.get(),
        .pipeline = rank->pipeline ? &*rank->pipeline : nullptr,
        .pipeline_stage = rank->at.pp,
        .rank = rank->at.tp});
  }
}

Model& RankTeam::model_of(int rank) {
  return *ranks_[static_cast<size_t>(rank - first_rank())]->model;
}

bool RankTeam::runs_ahead() const {
  return ranks_.front()->thread.joinable();
}

int RankTeam::first_rank() const {
  return ranks_.front()->index;
}

// One rank of each data-parallel rank hands its rows of logits on: the first of its attention ranks in the last stage.
int RankTeam::logits_rank(int dp) const {
  const ParallelConfig& config = options_.parallel;
  return (config.pp_size - 1) * config.tp_size + dp * config.attn_cp_size * config.attn_tp_size();
}

StepTraffic RankTeam::traffic() const {
  StepTraffic all;
  const auto add = [&](const comm::Communicator& group) {
    for (const comm::Traffic& entry : group.traffic())
      all[{entry.operation, entry.name}] += static_cast<double>(entry.bytes);
  };
  for (const auto& rank : ranks_) {
    for (const auto& [axes, group] : rank->groups) add(group);
    if (rank->pipeline) add(*rank->pipeline);
  }
  return all;
}

std::vector<double> RankTeam::busy_seconds() const {
  std::vector<double> seconds;
  for (const auto& rank : ranks_) seconds.push_back(rank->busy_seconds);
  return seconds;
}

std::optional<Error> RankTeam::failure() const {
  const std::optional<comm::Failure> failure = world_->failure();
  if (!failure) return std::nullopt;
  return to_error(*failure);
}

RoutedExpertPool* RankTeam::routed_experts(int dp) const {
  return routed_experts_.empty() ? nullptr : routed_experts_[dp].get();
}

Status RankTeam::run(std::span<const Step* const> of_dp_ranks, const UseLogits& use, TeamObserver* observer) {
  launch(
      of_dp_ranks, [&use](int dp, ThreadPool& pool, Rows logits, const Chosen&) { use(dp, pool, logits); }, observer);
  return collect();
}

void RankTeam::launch(std::span<const Step* const> of_dp_ranks, Choose choose, TeamObserver* observer) {
  PLAIT_ASSERT(std::ssize(of_dp_ranks) == options_.parallel.attn_dp_size(), "a step for each data-parallel rank");
  {
    const std::lock_guard lock(mutex_);
    PLAIT_ASSERT(launched_ - collected_ < kMostStepsUnderWay, "too many steps are under way");
  }
  Launch& next = launch_of(launched_ + 1);
  next.choose = std::move(choose);
  next.observer = observer;
  prepare(next, of_dp_ranks);
  {
    const std::lock_guard lock(mutex_);
    ++launched_;
  }
  begin_.notify_all();
}

// Everything about a step that ranks do not decide: the same on every host.
void RankTeam::prepare(Launch& launch, std::span<const Step* const> of_dp_ranks) {
  std::vector<int64_t> rows, logit_rows;
  bool any_prefill = false;
  launch.needs_chosen = false;
  launch.choosing = 0;
  for (size_t dp = 0; dp < of_dp_ranks.size(); ++dp) {
    const Step& step = *of_dp_ranks[dp];
    rows.push_back(step.rows());
    logit_rows.push_back(std::ssize(step.logit_rows));
    any_prefill |= step.mode == StepMode::kPrefill || step.mode == StepMode::kMixed;
    launch.needs_chosen |= std::any_of(step.token_ids.begin(), step.token_ids.end(), is_future);
    launch.choosing += !step.logit_rows.empty() && world_->is_local(logits_rank(static_cast<int>(dp)));
  }
  const bool empty = std::all_of(rows.begin(), rows.end(), [](int64_t count) { return count == 0; });
  launch.busy = empty ? 0 : static_cast<int>(ranks_.size());
  launch.program = &programs_[plan_of_step(options_.parallel, rows)];
  launch.padded.clear();
  for (const Step* step : of_dp_ranks) launch.padded.push_back(*step);
  AgreedStep& agreed = launch.step;
  agreed.page_tokens = page_tokens_;
  AgreedRows agreed_rows =
      agree_rows(launch.program->plan, std::move(rows), std::move(logit_rows), any_prefill, options_.padding);
  agreed.rows = std::move(agreed_rows.tokens);
  agreed.logit_rows = std::move(agreed_rows.logits);
  for (size_t dp = 0; dp < launch.padded.size(); ++dp) {
    launch.padded[dp].true_rows = agreed.rows.true_rows;
    launch.padded[dp].padded_rows = agreed.rows.padded_rows;
    launch.padded[dp].token_ids.resize(agreed.rows.padded_rows[dp], 0);
    launch.padded[dp].positions.resize(agreed.rows.padded_rows[dp], 0);
  }
  agreed.of_dp_ranks = launch.padded;
  agreed.exchange_form =
      exchange_form(options_.parallel.deepep_mode, low_latency_tokens_, agreed.rows.padded_rows, any_prefill);
}

Status RankTeam::collect() {
  std::unique_lock lock(mutex_);
  PLAIT_ASSERT(collected_ < launched_, "a step that was launched is collected once");
  Launch& oldest = launch_of(collected_ + 1);
  // A single rank without a thread of its own works on the caller's.
  if (!ranks_.front()->thread.joinable() && oldest.busy > 0) {
    const bool failed = failure_.has_value();
    const uint64_t number = collected_ + 1;
    lock.unlock();
    std::optional<Error> failure;
    if (!failed) failure = try_step(*ranks_.front(), number);
    lock.lock();
    if (failure) failure_ = std::move(failure);
    oldest.busy = 0;
  }
  about_to_block("waiting for the ranks");
  end_.wait(lock, [&] { return oldest.busy == 0; });
  ++collected_;
  if (failure_) return *failure_;
  return {};
}

// A rank's thread: step after step.
void RankTeam::work(Rank& rank) {
  uint64_t done = 0;
  std::unique_lock lock(mutex_);
  while (true) {
    begin_.wait(lock, [&] { return stopping_ || launched_ > done; });
    if (stopping_) return;
    Launch& launch = launch_of(++done);
    if (launch.busy == 0) continue;  // nobody has rows
    const bool failed = failure_.has_value();
    lock.unlock();
    std::optional<Error> failure;
    if (!failed) failure = try_step(rank, done);
    lock.lock();
    // The rank that noticed says more than those that were cancelled because of it.
    if (failure && (!failure_ || failure_->kind == ErrorKind::kCancelled)) failure_ = std::move(failure);
    if (failure_) chosen_.notify_all();
    if (--launch.busy == 0) end_.notify_all();
  }
}

std::optional<Error> RankTeam::try_step(Rank& rank, uint64_t number) {
  rank.set_step(static_cast<int64_t>(number));
  std::optional<Error> failure;
  try {
    run_step(rank, number);
  } catch (const RankFailure& why) {
    failure = why.error;
  }
  rank.set_step(std::nullopt);
  return failure;
}

// Until the step has chosen its tokens here, or never will.
void RankTeam::wait_for_chosen(const Launch& launch) {
  std::unique_lock lock(mutex_);
  chosen_.wait(lock, [&] { return launch.choosing == 0 || failure_.has_value() || stopping_; });
  if (launch.choosing > 0) throw RankFailure(failure_.value_or(cancelled("the ranks end")));
}

// What stands for the future tokens of the step. The host that chose them tells the others.
std::span<const int32_t> RankTeam::chosen_before(Rank& rank, uint64_t number) {
  const Launch& launch = launch_of(number);
  const int dp = rank.at.attn_dp;
  const std::span<const int32_t> chosen_here = launch_of(number - 1).chosen[dp];
  if (!launch.needs_chosen) return chosen_here;
  wait_for_chosen(launch_of(number - 1));
  if (!rank.attention_ranks) return chosen_here;
  std::vector<int32_t> slots, ids;
  for (const int32_t id : launch.padded[dp].token_ids)
    if (is_future(id)) slots.push_back(state_slot_of(id));
  if (slots.empty()) return chosen_here;
  for (const int32_t slot : slots) ids.push_back(chosen_here[slot]);
  const Status told = rank.attention_ranks->broadcast(
      "chosen tokens", ids.data(), std::ssize(ids) * int64_t{sizeof(int32_t)}, DType::kU8, /*root=*/0);
  if (told.has_error()) throw RankFailure(told.error());
  rank.chosen.resize(chosen_here.size());
  for (size_t i = 0; i < slots.size(); ++i) rank.chosen[slots[i]] = ids[i];
  return rank.chosen;
}

void RankTeam::run_step(Rank& rank, uint64_t number) {
  Launch& launch = launch_of(number);
  const std::span<const int32_t> before = chosen_before(rank, number);
  Stopwatch busy;
  const LaunchRegion region("launch of a step");
  RankBackend& backend = *rank.backend;
  const Plan& plan = launch.program->plan;
  backend.begin(plan, launch.step, before, launch.observer ? launch.observer->of_rank(rank.index) : nullptr);
  Stream<RowBlock> stream;
  PlanWalker walker(backend);
  for (const ScheduledSegment& at : plan.order) {
    const Segment& segment = plan.segments[at.segment];
    if (segment.kind == SegmentKind::kStageBoundary) {
      const Boundary& boundary = launch.program->boundaries.at(at.segment);
      if (at.pipeline_stage == rank.at.pp) walker.walk(boundary.sender, at.layer, stream);
      if (at.pipeline_stage + 1 != rank.at.pp) continue;
      busy.pause();
      stream.delta = backend.receive(boundary.send);
      busy.go_on();
      walker.walk(boundary.receiver, at.layer, stream);
    } else if (at.pipeline_stage == rank.at.pp) {
      walker.walk(segment, at.layer, stream);
    }
  }
  const int dp = rank.at.attn_dp;
  if (rank.index == logits_rank(dp)) {
    backend.own_logits(stream, [&](Rows logits) {
      launch.choose(dp, *rank.pool, logits, {launch_of(number - 1).chosen[dp], launch.chosen[dp]});
      const std::lock_guard lock(mutex_);
      if (--launch.choosing == 0) chosen_.notify_all();
    });
  }
  rank.busy_seconds += busy.seconds();
}

}  // namespace plait
