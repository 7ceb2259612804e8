#include "engine/kernel_build.h"

#include <algorithm>
#include <charconv>

#include "base/environment.h"
#include "base/log.h"
#include "base/sha256.h"
#include "base/units.h"
#include "engine/kernel_link.h"
#include "engine/kernel_rehearsal.h"
#include "jit/nvrtc.h"

namespace plait {
namespace {

// 0: none.
Result<double> rehearsed_delay() {
  const auto text = environment(Variable::kRehearseDelay);
  if (!text) return 0.0;
  double factor = 0;
  const auto [end, problem] = std::from_chars(text->data(), text->data() + text->size(), factor);
  if (problem != std::errc() || end != text->data() + text->size() || !(factor >= 0 && factor <= 1e6))
    return invalid(fmt::format("PLAIT_REHEARSE_DELAY={}: must be a number from 0 to 1000000", *text));
  return factor;
}

void log_report(const jit::FarmReport& report, const jit::KernelCache& cache) {
  log::info(
      "Kernels are ready after {}: {} needed here of {} in all; {} from {}, {} built here ({} in the place of "
      "another host), {} received.",
      format_seconds(report.seconds), report.needed, report.kernels, report.from_cache,
      cache.directory().empty() ? std::string("memory") : cache.directory().string(), report.built, report.helped,
      report.received);
  if (report.built > 0)
    log::info("The slowest kernel to build was '{}', {}; all together took {}.", report.slowest,
              format_seconds(report.slowest_seconds), format_seconds(report.compile_seconds));
}

}  // namespace

Result<ManifestOfRank> rehearsed_manifests(DisaggregationMode role) {
  const auto file = environment(Variable::kRehearseKernels);
  if (!file) return ManifestOfRank();
  auto rehearsal = KernelRehearsal::read(*file);
  if (rehearsal.has_error()) return std::move(rehearsal).error().within("PLAIT_REHEARSE_KERNELS");
  return ManifestOfRank(
      [rehearsal = std::move(rehearsal).value(), role](int rank) { return rehearsal.manifest_of(rank, role); });
}

KernelBuild::KernelBuild(int hosts, int ranks_per_host, const ManifestOfRank& manifest_of)
    : of_hosts_(static_cast<size_t>(hosts)) {
  if (!manifest_of) return;
  for (int rank = 0; rank < hosts * ranks_per_host; ++rank) {
    jit::KernelManifest manifest = manifest_of(rank);
    kernels_ += manifest.kernels.size();
    of_hosts_[static_cast<size_t>(rank / ranks_per_host)].push_back(std::move(manifest));
  }
}

KernelBuild::~KernelBuild() = default;

std::string KernelBuild::digest() const {
  std::string all;
  for (const auto& ranks : of_hosts_) {
    for (const jit::KernelManifest& manifest : ranks) {
      all += fmt::format("{} kernels:", manifest.kernels.size());
      for (const jit::ManifestEntry& entry : manifest.kernels) all += to_hex(kernel_key(entry.source, {}));
    }
  }
  return fmt::format("{} {}", kernels_, to_hex(sha256(all)).substr(0, 16));
}

void KernelBuild::begin() {
  if (!empty()) loading_ = std::async(std::launch::async, [] { return jit::load_nvrtc(); });
}

Status KernelBuild::open(std::shared_ptr<comm::World> world) {
  if (empty() || world->nodes().size() == 1) return {};
  world_ = world;
  PLAIT_ASSIGN_OR_RETURN(link_, KernelLink::open(std::move(world)));
  return {};
}

Status KernelBuild::load_compiler() {
  PLAIT_ASSIGN_OR_RETURN(const double delay, rehearsed_delay());
  PLAIT_ASSIGN_OR_RETURN(compiler_, loading_.get());
  if (delay == 0) return {};
  std::vector<jit::KernelManifest> all;
  for (const auto& ranks : of_hosts_) all.insert(all.end(), ranks.begin(), ranks.end());
  compiler_ = delay_compiles(std::move(compiler_), delay, all);
  return {};
}

Status KernelBuild::build(int cores, const Progress& progress) {
  if (empty()) return {};
  if (const Status loaded = load_compiler(); loaded.has_error()) {
    refuse(loaded.error());
    return loaded;
  }
  took_part_ = true;
  cache_ = std::make_unique<jit::KernelCache>(jit::CacheOptions{.directory = jit::default_cache_directory()});
  {
    const std::lock_guard lock(mutex_);
    farm_ = std::make_unique<jit::BuildFarm>(*cache_, *compiler_, link_.get(),
                                             jit::FarmOptions{.cores = cores, .progress = progress});
    if (stopped_) farm_->fail(*stopped_);
  }
  const Result<jit::FarmReport> report = farm_->build(of_hosts_);
  if (link_) link_->close();
  if (report.has_error()) return report.error();
  log_report(*report, *cache_);
  return {};
}

void KernelBuild::stop(const Error& why) {
  const std::lock_guard lock(mutex_);
  stopped_ = why;
  if (farm_) farm_->fail(why);
}

void KernelBuild::refuse(const Error& why) {
  if (!link_ || std::exchange(took_part_, true)) return;
  refuse_to_build(*link_, why);
  link_->close();
}

void KernelBuild::expect_no_builds() {
  if (cache_) cache_->expect_no_builds();
}

}  // namespace plait
