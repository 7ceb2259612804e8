// `plait serve` on a host other than the first: no HTTP, an engine that follows the first host's, and its supervisor.
#pragma once

#include "server/serve.h"

namespace plait {

// Blocks until the first host ends, a signal comes, or the engine failed for good. Returns the process' exit status.
int serve_with_first_host(const ServeOptions& options);

}  // namespace plait
