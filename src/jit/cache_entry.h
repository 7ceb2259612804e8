// One kernel in a file: what the cache writes, and what hosts that share no directory may send each other.
//
// An entry carries a SHA-256 of all its other bytes, so that whatever an accident does to it is found. A digest is no
// signature: whoever can write the file can make it right. Who may do so is judged by its owner (cache.h). Pure
// functions; safe from any thread.
#pragma once

#include <string>
#include <string_view>

#include "base/error.h"
#include "jit/compiler.h"

namespace plait::jit {

// Larger than any kernel, small enough to read a file of that size by mistake.
inline constexpr size_t kMaxEntryBytes = size_t{64} << 20;

// Magic, format, length, digest; then key, name, compiler, architecture, resources, remarks, cubin.
std::string encode_entry(const Digest& key, const KernelSource& source, const CompilerIdentity& compiler,
                         const CompiledKernel& kernel);

// kCorrupt, saying what is wrong, unless `bytes` are a whole entry for `key`.
Result<CompiledKernel> decode_entry(std::string_view bytes, const Digest& key);

}  // namespace plait::jit
