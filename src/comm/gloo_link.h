// Messages between processes through Gloo's unbound buffers over TCP.
//
// Only point-to-point: Gloo's own collectives send a dozen messages per call. Gloo throws; here its exceptions end as
// Transfer::End::kLost. Any thread may use the link; tick() must be called every few milliseconds for deadlines to
// hold. Gloo does not authenticate its connections: they are made right after the rendezvous, whose connections are.
#pragma once

#include <memory>

#include "base/error.h"
#include "comm/failure.h"
#include "comm/process_link.h"
#include "comm/rendezvous.h"

namespace plait::comm {

class TickingLink : public ProcessLink {
 public:
  virtual void tick() = 0;  // gives up transfers whose deadline has passed
};

// Connects with every other node of the meeting. The cancellation outlives the link.
Result<std::unique_ptr<TickingLink>> make_gloo_link(Meeting& meeting, Cancellation& cancellation,
                                                    std::chrono::milliseconds limit);

}  // namespace plait::comm
