// Kimi-K2's tokenizer cuts long text before anything else, which moves the borders of tokens; so do we.
// Pure functions.
#pragma once

#include <string_view>
#include <vector>

namespace plait {

// Parts of at most 400,000 characters, without runs of more than 25,000 characters that are all blank or all not.
// Appends to `parts`; together they are `text`, well-formed UTF-8.
void cut_long_text(std::string_view text, std::vector<std::string_view>& parts);

}  // namespace plait
