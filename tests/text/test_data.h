// Files of the repository that the text tests read.
#pragma once

#include <fstream>
#include <iterator>
#include <string>

#include <boost/json/parse.hpp>
#include <gtest/gtest.h>

#include "text/tokenizer.h"

namespace plait {

inline std::string read_repository_file(const std::string& path) {
  std::ifstream file(std::string(PLAIT_SOURCE_DIR) + "/" + path, std::ios::binary);
  EXPECT_TRUE(file) << path;
  return {std::istreambuf_iterator<char>(file), {}};
}

// The tokenizer of models/demo, loaded once.
inline const Tokenizer& demo_tokenizer() {
  static const Tokenizer tokenizer = Tokenizer::load(std::string(PLAIT_SOURCE_DIR) + "/models/demo").value();
  return tokenizer;
}

}  // namespace plait
