#include "engine/kernel_build.h"

#include <algorithm>
#include <charconv>
#include <map>
#include <set>
#include <span>

#include <fmt/ranges.h>

#include "base/environment.h"
#include "base/log.h"
#include "base/sha256.h"
#include "base/units.h"
#include "engine/kernel_link.h"
#include "engine/kernel_manifest.h"
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

Result<ManifestOfRank> manifests_of_file(const std::filesystem::path& file, DisaggregationMode role) {
  PLAIT_ASSIGN_OR_RETURN(KernelRehearsal rehearsal, KernelRehearsal::read(file));
  return ManifestOfRank([rehearsal = std::move(rehearsal), role](int rank) {
    return std::make_shared<const jit::KernelManifest>(rehearsal.manifest_of(rank, role));
  });
}

Result<ManifestOfRank> manifests_of_device(const std::string& name, const KernelUser& user) {
  auto device = cuda::find_device(name);
  if (device.has_error()) return std::move(device).error().within("neither a file *.json nor a known GPU");
  log::info(
      "PLAIT_REHEARSE_KERNELS={}: ranks build the kernels that they would run on such a GPU, and run none of them.",
      name);
  PLAIT_RETURN_IF_ERROR(choose_kernels_by(user.options, *device));
  return manifests_on(*device, user);
}

}  // namespace

Result<ManifestOfRank> manifests_on(const cuda::DeviceModel& device, const KernelUser& user) {
  PLAIT_ASSIGN_OR_RETURN(const std::vector<RankKernels> all,
                         kernels_of_ranks(user.config, manifest_question(user.options, user.parallel, device)));
  std::map<int, std::shared_ptr<const jit::KernelManifest>> of_ranks;
  for (const RankKernels& each : all) {
    const auto manifest = std::make_shared<const jit::KernelManifest>(each.manifest);
    for (const int rank : each.ranks) of_ranks[rank] = manifest;
  }
  return ManifestOfRank([of_ranks = std::move(of_ranks)](int rank) { return of_ranks.at(rank); });
}

Result<ManifestOfRank> rehearsed_manifests(const KernelUser& user) {
  const auto asked = environment(Variable::kRehearseKernels);
  if (!asked) return ManifestOfRank();
  auto manifests = asked->ends_with(".json") ? manifests_of_file(*asked, user.options.disaggregation)
                                             : manifests_of_device(*asked, user);
  if (manifests.has_error()) return std::move(manifests).error().within("PLAIT_REHEARSE_KERNELS");
  return manifests;
}

std::filesystem::path kernel_cache_directory(const EngineOptions& options) {
  return options.kernel_cache_dir.empty() ? jit::default_cache_directory()
                                          : std::filesystem::path(options.kernel_cache_dir);
}

KernelBuild::KernelBuild(int hosts, int ranks_per_host, const ManifestOfRank& manifest_of,
                         std::filesystem::path directory)
    : ranks_per_host_(ranks_per_host), directory_(std::move(directory)) {
  if (!manifest_of) return;
  for (int rank = 0; rank < hosts * ranks_per_host; ++rank) {
    of_ranks_.push_back(manifest_of(rank));
    kernels_ += of_ranks_.back()->kernels.size();
  }
}

KernelBuild::~KernelBuild() = default;

std::string KernelBuild::digest() const {
  std::map<const jit::KernelManifest*, std::string> known;
  std::string all;
  for (const auto& manifest : of_ranks_) {
    std::string& digest = known[manifest.get()];
    if (digest.empty()) {
      // For which rows a kernel is called, too: ranks that put one result together must not choose differently.
      for (const jit::ManifestEntry& entry : manifest->kernels)
        digest += fmt::format("{} {}\n", to_hex(kernel_key(entry.source, {})), fmt::join(entry.calls, ", "));
      digest = to_hex(sha256(digest));
    }
    all += digest;
  }
  return fmt::format("{} {}", kernels_, to_hex(sha256(all)).substr(0, 16));
}

// [hosts] the different manifests of its ranks.
std::vector<std::vector<jit::KernelManifest>> KernelBuild::of_hosts() const {
  std::vector<std::vector<jit::KernelManifest>> hosts;
  for (size_t first = 0; first < of_ranks_.size(); first += static_cast<size_t>(ranks_per_host_)) {
    const std::span ranks = std::span(of_ranks_).subspan(first, static_cast<size_t>(ranks_per_host_));
    std::set<const jit::KernelManifest*> seen;
    hosts.emplace_back();
    for (const auto& manifest : ranks)
      if (seen.insert(manifest.get()).second) hosts.back().push_back(*manifest);
  }
  return hosts;
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
  compiler_ = delay_compiles(std::move(compiler_), delay, of_ranks_);
  return {};
}

Status KernelBuild::build(int cores, const Progress& progress) {
  if (empty()) return {};
  if (const Status loaded = load_compiler(); loaded.has_error()) {
    refuse(loaded.error());
    return loaded;
  }
  took_part_ = true;
  cache_ = std::make_unique<jit::KernelCache>(jit::CacheOptions{.directory = directory_});
  {
    const std::lock_guard lock(mutex_);
    farm_ = std::make_unique<jit::BuildFarm>(*cache_, *compiler_, link_.get(),
                                             jit::FarmOptions{.cores = cores, .progress = progress});
    if (stopped_) farm_->fail(*stopped_);
  }
  const Result<jit::FarmReport> report = farm_->build(of_hosts());
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
