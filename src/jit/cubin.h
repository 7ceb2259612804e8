// A look into a cubin, an ELF file for a GPU: which architecture it is for and which functions it offers.
//
// Pure functions, for bytes that a compiler has just made or a digest vouches for; broken ones give empty answers.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace plait::jit {

// 90 for sm_90a; 0 if these bytes are no cubin.
int architecture_of_cubin(std::string_view cubin);

// Names of its global functions, kernels among them.
std::vector<std::string> functions_of_cubin(std::string_view cubin);

}  // namespace plait::jit
