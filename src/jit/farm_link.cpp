#include "jit/farm_link.h"

#include <algorithm>

#include "base/field_lists.h"

namespace plait::jit {
namespace {

constexpr auto kMessage = [](auto& io, auto& m) {
  auto& [kind, key, bytes, cores, compiler, error] = m;
  io.enumerator(kind, FarmMessage::Kind::kFailed);
  for (auto& byte : key) io(byte);
  fields(io, bytes, cores, compiler.name, compiler.version);
  io.enumerator(error.kind, ErrorKind::kInternal);
  io(error.message);
};

}  // namespace

std::string encode(const FarmMessage& message) {
  WriteFields write;
  kMessage(write, message);
  return std::move(write.out).take();
}

Result<FarmMessage> decode_farm_message(std::string_view bytes) {
  if (bytes.size() > kMaxFarmMessageBytes) return corrupt("a message about kernels is longer than any may be");
  return decode_with<FarmMessage>(bytes, kMessage);
}

}  // namespace plait::jit
