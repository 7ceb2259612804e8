// From the words of the command line to Settings.
#pragma once

#include <string>
#include <vector>

#include "base/error.h"
#include "flags.h"
#include "settings.h"

namespace plait::app {

struct ParsedCommandLine {
  Settings settings;
  bool wants_help = false;
  std::string help;
  std::vector<std::string> non_default;  // "--port 30001", in the registry's order; secrets are masked
  std::vector<std::string> notes;        // SGLang's flags that were accepted and change nothing
};

// `arguments` are those after the subcommand. Errors: kInvalid or kUnsupported, one line that names the flag and what
// it takes.
Result<ParsedCommandLine> parse_command_line(Command command, const std::vector<std::string>& arguments);

}  // namespace plait::app
