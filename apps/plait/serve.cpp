#include "server/serve.h"

#include "command.h"

namespace plait::app {

int run_serve(const Settings& settings) {
  return serve(settings.serve);
}

}  // namespace plait::app
