#include "server/other_host.h"

#include <boost/asio/io_context.hpp>
#include <boost/asio/signal_set.hpp>
#include <unistd.h>

#include "base/log.h"
#include "server/engine_supervisor.h"
#include "server/event_loop.h"

namespace plait {
namespace {

class OtherHost {
 public:
  explicit OtherHost(const ServeOptions& options)
      : options_(options),
        loop_(/*helpers=*/0),
        signals_(loop_.context(), SIGTERM, SIGINT),
        questions_(loop_.context(), SIGUSR1),
        supervisor_(loop_, options_, /*replica=*/std::nullopt,
                    {.ready = [this](const EngineInfo&) { on_ready(); },
                     .outputs = [](std::vector<RequestOutput>&&) {},
                     .flushed = [](const FlushedMessage&) {},
                     .died = [](const std::string&) {},
                     .gave_up = [this](const Error& why) { on_gave_up(why); },
                     .ended = [this] { on_ended(); }}) {}

  int run() {
    signals_.async_wait([this](const boost::system::error_code& problem, int number) {
      if (problem) return;
      log::warning("{}: this host leaves; the others cannot serve without it", strsignal(number));
      supervisor_.stop([this] { loop_.stop(); });
      signals_.async_wait([](const boost::system::error_code& again, int) {
        if (!again) _exit(130);
      });
    });
    wait_for_question();
    supervisor_.start();
    loop_.run();
    return status_;
  }

 private:
  void wait_for_question() {
    questions_.async_wait([this](const boost::system::error_code& problem, int) {
      if (problem) return;
      supervisor_.log_activity();
      wait_for_question();
    });
  }

  const ParallelConfig& parallel() const { return options_.engine.parallel; }

  void on_ready() {
    log::info("host {} of {} is ready; requests are answered by the first host, {}", parallel().node_rank,
              parallel().nnodes, parallel().dist_init_addr);
  }

  void on_gave_up(const Error& why) {
    log::error("this host ends: {}", why.message);
    status_ = 1;
    loop_.stop();
  }

  void on_ended() {
    log::info("the first host ended, and this one with it");
    loop_.stop();
  }

  const ServeOptions options_;
  EventLoop loop_;
  boost::asio::signal_set signals_;    // to end
  boost::asio::signal_set questions_;  // what everything waits for
  EngineSupervisor supervisor_;
  int status_ = 0;
};

}  // namespace

int serve_with_first_host(const ServeOptions& options) {
  OtherHost host(options);
  return host.run();
}

}  // namespace plait
