#include "server/serve.h"

#include <boost/asio/io_context.hpp>
#include <boost/asio/signal_set.hpp>
#include <signal.h>

#include "base/log.h"
#include "base/process.h"
#include "base/units.h"
#include "checkpoint/checkpoint.h"
#include "model/model_facts.h"
#include "server/api.h"
#include "server/http_server.h"
#include "server/other_host.h"
#include "topology/rules.h"

namespace plait {
namespace {

// Descriptors that are not client connections: listener, epoll, logs, and those of each engine.
constexpr size_t kReservedDescriptors = 64;
constexpr size_t kDescriptorsOfEngine = 4;
constexpr std::chrono::milliseconds kLastAnswers{2'000};
constexpr std::chrono::milliseconds kLastAnswersPoll{20};
constexpr int kHelperThreads = 1;

struct Model {
  std::optional<Tokenizer> tokenizer;
  ApiContext context;
};

Result<Model> read_model(const ServeOptions& options) {
  PLAIT_ASSIGN_OR_RETURN(const std::filesystem::path folder, resolve_model_path(options.engine.model_path));
  Model model;
  ApiContext& context = model.context;
  PLAIT_ASSIGN_OR_RETURN(context.config, read_model_config(folder, options.engine.config_overrides));
  // Replicas are started with what is left of the flags: nobody but us sees them all.
  const ModelFacts facts = model_facts(context.config);
  PLAIT_RETURN_IF_ERROR(judge(options.engine.parallel, &facts).status());
  if (!options.skip_tokenizer_init) {
    PLAIT_ASSIGN_OR_RETURN(model.tokenizer, Tokenizer::load(folder));
    if (options.chat_template.empty()) {
      context.chat_format = detect_chat_format(context.config, *model.tokenizer);
    } else {
      PLAIT_ASSIGN_OR_RETURN(context.chat_format, parse_chat_format(options.chat_template));
    }
  }
  context.model_path = options.engine.model_path;
  context.served_model_name = options.served_model_name.empty() ? options.engine.model_path : options.served_model_name;
  context.stream_output = options.stream_output;
  if (options.engine.keep_routed_experts) context.routed_experts = RoutedExpertShape::of(context.config);
  if (options.default_request_timeout.count() > 0) context.time_limit = options.default_request_timeout;
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  context.started_at = std::chrono::duration_cast<std::chrono::seconds>(now).count();
  return model;
}

class Server {
 public:
  Server(const ServeOptions& options, Model model)
      : options_(options),
        model_(std::move(model)),
        loop_(kHelperThreads),
        signals_(loop_.context(), SIGTERM, SIGINT),
        questions_(loop_.context(), SIGUSR1),
        exit_timer_(loop_),
        front_end_(loop_, options_, model_.context,
                   {.ready = [this] { on_ready(); }, .ended = [this](int status) { on_ended(status); }}),
        api_(front_end_) {
    if (model_.tokenizer) model_.context.tokenizer = &*model_.tokenizer;
  }

  Status run() {
    HttpLimits limits{.header_bytes = options_.max_header_bytes,
                      .body_bytes = options_.max_body_bytes,
                      .read_timeout = options_.request_read_timeout};
    const size_t reserved = kReservedDescriptors + kDescriptorsOfEngine * front_end_.replicas().size();
    limits.connections = std::max(raise_open_file_limit(), reserved + 1) - reserved;
    PLAIT_ASSIGN_OR_RETURN(
        http_, HttpServer::listen(
                   loop_, options_.host, options_.port, limits,
                   {.check_head = [this](const HttpRequest& head) { return api_.check_head(head); },
                    .handle = [this](std::shared_ptr<Exchange> exchange) { api_.handle(std::move(exchange)); }}));
    log::info("listening on http://{}:{}", options_.host, http_->port());
    wait_for_signal();
    wait_for_question();
    front_end_.start();
    loop_.run();
    return {};
  }

  int status() const { return status_; }

 private:
  void on_ready() {
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - started_).count();
    log::info("ready after {}: {} on http://{}:{}", format_seconds(seconds), model_.context.served_model_name,
              options_.host, http_->port());
    log::info("The server is fired up and ready to roll!");
  }

  void wait_for_signal() {
    signals_.async_wait([this](const boost::system::error_code& problem, int number) {
      if (problem) return;
      log::info("{}: the server stops accepting requests and shuts down", strsignal(number));
      front_end_.drain([this] { return http_->unanswered(); });
      // A second signal means now. PR_SET_PDEATHSIG takes the engine along.
      signals_.async_wait([](const boost::system::error_code& again, int) {
        if (!again) _exit(130);
      });
    });
  }

  void wait_for_question() {
    questions_.async_wait([this](const boost::system::error_code& problem, int) {
      if (problem) return;
      log::warning("SIGUSR1: {} requests are not answered yet", front_end_.unfinished());
      for (const auto& replica : front_end_.replicas()) replica->log_activity();
      wait_for_question();
    });
  }

  void on_ended(int status) {
    status_ = status;
    exit_until_ = std::chrono::steady_clock::now() + kLastAnswers;
    exit_when_answered();
  }

  // The last answers are still on their way out.
  void exit_when_answered() {
    if (http_->unanswered() == 0 || std::chrono::steady_clock::now() >= exit_until_) {
      loop_.stop();
      return;
    }
    exit_timer_.set(kLastAnswersPoll, [this] { exit_when_answered(); });
  }

  const ServeOptions options_;
  const std::chrono::steady_clock::time_point started_ = std::chrono::steady_clock::now();
  Model model_;
  EventLoop loop_;
  boost::asio::signal_set signals_;    // to end
  boost::asio::signal_set questions_;  // what everything waits for
  EventLoop::Timer exit_timer_;
  FrontEnd front_end_;
  Api api_;
  std::unique_ptr<HttpServer> http_;
  std::chrono::steady_clock::time_point exit_until_;
  int status_ = 0;
};

}  // namespace

int serve(const ServeOptions& options) {
  ::signal(SIGPIPE, SIG_IGN);
  ::signal(SIGUSR1, SIG_IGN);  // until it is answered
  if (options.engine.parallel.node_rank > 0) return serve_with_first_host(options);
  auto model = read_model(options);
  if (model.has_error()) {
    log::error("{}", model.error().message);
    return 1;
  }
  Server server(options, std::move(model).value());
  if (const Status status = server.run(); status.has_error()) {
    log::error("{}", status.error().message);
    return 1;
  }
  return server.status();
}

}  // namespace plait
