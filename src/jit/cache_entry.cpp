#include "jit/cache_entry.h"

#include "base/fields.h"

namespace plait::jit {
namespace {

constexpr std::string_view kMagic = "plaitkrn";

struct Header {
  uint32_t format = kKernelFormat;
  uint64_t body_bytes = 0;

  std::string encode() const {
    FieldWriter writer;
    writer.number(format);
    writer.number(body_bytes);
    return std::string(kMagic).append(std::move(writer).take());
  }
};
constexpr size_t kHeaderBytes = 8 + sizeof(uint32_t) + sizeof(uint64_t);
constexpr size_t kDigestBytes = std::tuple_size_v<Digest>;

std::string_view as_text(const Digest& digest) {
  return {reinterpret_cast<const char*>(digest.data()), digest.size()};
}

// Of the header and the body: there is no byte in an entry that may change unnoticed.
Digest digest_of(std::string_view header, std::string_view body) {
  return sha256(std::string(header).append(body));
}

void write_resources(FieldWriter& writer, const std::optional<KernelResources>& resources) {
  writer.boolean(resources.has_value());
  const KernelResources all = resources.value_or(KernelResources());
  for (const int32_t number :
       {all.registers, all.shared_bytes, all.stack_bytes, all.spill_store_bytes, all.spill_load_bytes})
    writer.number(number);
}

std::optional<KernelResources> read_resources(FieldReader& reader) {
  const bool known = reader.boolean();
  KernelResources all;
  for (int32_t* number :
       {&all.registers, &all.shared_bytes, &all.stack_bytes, &all.spill_store_bytes, &all.spill_load_bytes})
    *number = reader.number<int32_t>();
  return known ? std::optional(all) : std::nullopt;
}

}  // namespace

std::string encode_entry(const Digest& key, const KernelSource& source, const CompilerIdentity& compiler,
                         const CompiledKernel& kernel) {
  FieldWriter writer;
  writer.text(as_text(key));
  writer.text(source.name);
  writer.text(compiler.name);
  writer.text(compiler.version);
  writer.text(source.architecture);
  write_resources(writer, kernel.resources);
  writer.text(kernel.remarks);
  writer.text(kernel.cubin);
  const std::string body = std::move(writer).take();
  Header header;
  header.body_bytes = body.size();
  const std::string head = header.encode();
  return head + std::string(as_text(digest_of(head, body))) + body;
}

Result<CompiledKernel> decode_entry(std::string_view bytes, const Digest& key) {
  if (bytes.size() < kHeaderBytes + kDigestBytes) return corrupt("it is cut short");
  const std::string_view body = bytes.substr(kHeaderBytes + kDigestBytes);
  Header expected;
  expected.body_bytes = body.size();
  if (bytes.substr(0, kHeaderBytes) != expected.encode()) return corrupt("its header is damaged, or it is cut short");
  if (bytes.substr(kHeaderBytes, kDigestBytes) != as_text(digest_of(bytes.substr(0, kHeaderBytes), body)))
    return corrupt("its digest does not fit its contents");

  FieldReader reader(body);
  const std::string its_key = reader.text();
  for (int i = 0; i < 4; ++i) (void)reader.text();  // name, compiler and architecture: for people, and in the key
  CompiledKernel kernel;
  kernel.resources = read_resources(reader);
  kernel.remarks = reader.text();
  kernel.cubin = reader.text();
  PLAIT_RETURN_IF_ERROR(reader.status());
  if (its_key != as_text(key)) return corrupt("it is the entry of another key");
  if (kernel.cubin.empty()) return corrupt("it holds no code");
  return kernel;
}

}  // namespace plait::jit
