// One client's generation request under way: takes the engine's outputs, writes the answer or the stream.
//
// Kept alive by the routes of its requests in the FrontEnd. Loop thread only.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "server/front_end.h"
#include "server/generation_request.h"
#include "server/http.h"

namespace plait {

class Generation : public OutputReceiver, public std::enable_shared_from_this<Generation> {
 public:
  // Submits the request, or answers why not.
  static void start(FrontEnd& front_end, std::shared_ptr<Exchange> exchange, GenerationRequest request,
                    ClientSequence::Clock::time_point arrived_at);

  void on_output(size_t index, RequestOutput&& output) override;

  Generation(FrontEnd& front_end, std::shared_ptr<Exchange> exchange, GenerationRequest request,
             ClientSequence::Clock::time_point arrived_at);

 private:
  void observe(const ClientSequence& sequence, size_t index);
  void write_stream(size_t index);
  void complete();
  void fail(const ApiError& error);
  void abandon_rest();

  FrontEnd& front_end_;
  std::shared_ptr<Exchange> exchange_;
  std::unique_ptr<ResponseFormat> format_;
  std::vector<std::unique_ptr<ClientSequence>> sequences_;
  std::vector<ClientSequence::Clock::time_point> last_token_at_;
  size_t unfinished_ = 0;
  bool stream_ = false;
  bool stream_begun_ = false;
  bool over_ = false;
  AnswerText events_;
};

}  // namespace plait
