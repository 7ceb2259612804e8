#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include <fmt/ranges.h>

#include "base/log.h"
#include "base/version.h"
#include "command.h"
#include "command_line.h"
#include "foreign_flags.h"
#include "server/serve.h"

namespace plait::app {
namespace {

struct CommandInfo {
  Command command;
  const char* name;
  const char* summary;
  const char* example;
  int (*run)(const Settings&);
};

constexpr CommandInfo kCommands[] = {
    {kServe, "serve", "serve a checkpoint over HTTP (OpenAI's API and SGLang's)",
     "plait serve --model-path models/demo-fp8 --port 30000", run_serve},
    {kGenerate, "generate", "continue a prompt on the terminal, without a server",
     "plait generate --model-path models/demo-fp8 --chat --prompt \"What is 40 + 2?\"", run_generate},
    {kBench, "bench", "measure this machine, and a model against it", "plait bench --weights fp8 --batch 1,16",
     run_bench},
    {kCheck, "check", "say what a checkpoint is, and whether it runs here", "plait check --model-path models/demo-fp8",
     run_check},
    {kPlan, "plan", "say where tokens are and what moves between parallel ranks, layer by layer",
     "plait plan --model-path models/demo --tp-size 4 --dp-size 2 --enable-dp-attention --svg plan.svg", run_plan},
    {kCompile, "compile",
     "build the GPU kernels that a model needs into a cache; needs config.json, no weights, no GPU",
     "plait compile --model-path DIR --arch sm_90a --tp-size 8 --ep-size 8 --kernel-cache-dir /var/cache/plait",
     run_compile},
};

std::string overview() {
  std::string text =
      fmt::format("plait {}: inference engine for DeepSeek-class mixture-of-experts models\n\n", version());
  text += "usage: plait <command> [flags]\n\n";
  for (const CommandInfo& info : kCommands) text += fmt::format("  {:<10} {}\n", info.name, info.summary);
  text += "\n`plait <command> --help` lists its flags; `plait --version` prints the version.\n";
  return text;
}

int usage_error(const std::string& message) {
  fmt::print(stderr, "plait: {}\n", message);
  return kExitUsage;
}

int run_command(const CommandInfo& info, const std::vector<std::string>& arguments) {
  auto parsed = parse_command_line(info.command, arguments);
  if (parsed.has_error()) return usage_error(parsed.error().message);
  if (parsed->wants_help) {
    fmt::print("plait {}: {}\n\nusage: plait {} [flags]\n  {}\n{}", info.name, info.summary, info.name, info.example,
               parsed->help);
    return kExitSuccess;
  }
  log::Level level = log::Level::kInfo;
  log::parse_level(parsed->settings.serve.log_level, level);
  log::initialise(level, "");
  for (const std::string& note : parsed->notes) log::warning("{}", note);
  if (info.command == kServe) {
    log::info("plait {} {}: {}", version(), info.name,
              parsed->non_default.empty() ? "all settings have their defaults"
                                          : fmt::format("{}", fmt::join(parsed->non_default, " ")));
  }
  return info.run(parsed->settings);
}

int run(const std::vector<std::string>& words) {
  if (words.empty()) {
    fmt::print(stderr, "{}", overview());
    return kExitUsage;
  }
  const std::string& name = words[0];
  if (name == "--help" || name == "-h" || name == "help") {
    fmt::print("{}", overview());
    return kExitSuccess;
  }
  if (name == "--version" || name == "-V" || name == "version") {
    fmt::print("plait {}\n", version());
    return kExitSuccess;
  }
  const std::vector<std::string> arguments(words.begin() + 1, words.end());
  // Started by `serve`, never by people: the engine process on an inherited socket.
  if (name == "engine" && arguments.size() == 1) return run_engine_process(std::atoi(arguments[0].c_str()));

  std::vector<std::string> names;
  for (const CommandInfo& info : kCommands) {
    if (name == info.name) return run_command(info, arguments);
    names.emplace_back(info.name);
  }
  const std::string nearest = nearest_name(name, names);
  return usage_error(
      fmt::format("unknown command '{}'; {}", name,
                  nearest.empty() ? std::string("plait --help lists them") : fmt::format("did you mean {}?", nearest)));
}

}  // namespace
}  // namespace plait::app

int main(int argc, char** argv) {
  // A closed pipe or socket is an error value where it is written to, not the end of the process.
  std::signal(SIGPIPE, SIG_IGN);
  return plait::app::run(std::vector<std::string>(argv + 1, argv + argc));
}
