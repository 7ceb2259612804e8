#include "checkpoint/checkpoint.h"

#include <cstdlib>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "checkpoint/shard_index.h"
#include "tensor/weight_source.h"
#include "tests/checkpoint/checkpoint_files.h"

namespace plait {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing_files::safetensors_file;
using testing_files::TemporaryFolder;
using testing_files::TensorSpec;

const std::filesystem::path kSource = PLAIT_SOURCE_DIR;
constexpr const char* kIndex = "model.safetensors.index.json";

float value_of(const StoredTensor& tensor, int64_t index) {
  const WeightSource source{.dtype = tensor.dtype,
                            .rows = 1,
                            .cols = static_cast<int64_t>(tensor.size_bytes) / size_of(tensor.dtype),
                            .data = tensor.data};
  return source.at(0, index);
}

TEST(Checkpoint, GoldensHoldTheirKnownValues) {
  struct Known {
    const char* folder;
    const char* tensor;
    int64_t index;
    float value;
  };
  // Read from the files by an independent program.
  const Known kKnown[] = {
      {"tests/data/goldens/v2-lite", "model.embed_tokens.weight", 0, -0.51171875F},
      {"tests/data/goldens/v2-lite", "model.embed_tokens.weight", 32767, -1.6640625F},
      {"tests/data/goldens/v2-lite", "model.layers.1.mlp.gate.weight", 1, -0.0022125244140625F},
      {"tests/data/goldens/v2-lite", "model.layers.2.self_attn.kv_a_proj_with_mqa.weight", 1539, -0.16015625F},
      {"tests/data/goldens/v3", "model.norm.weight", 35, 1.1328125F},
      {"tests/data/goldens/v3", "model.layers.1.mlp.gate.e_score_correction_bias", 15, -0.048390697687864304F},
      {"tests/data/goldens/v3", "model.layers.0.mlp.down_proj.weight", 4099, 0.035888671875F},
      {"models/demo-fp8", "model.embed_tokens.weight", 540675, 0.068359375F},
      {"models/demo-fp8", "model.layers.2.self_attn.kv_a_proj_with_mqa.weight_scale_inv", 3, 0.0005514962249435484F},
  };
  for (const Known& known : kKnown) {
    const auto checkpoint = Checkpoint::open(kSource / known.folder);
    ASSERT_TRUE(checkpoint.has_value()) << checkpoint.error().message;
    const StoredTensor* tensor = checkpoint->find(known.tensor);
    ASSERT_NE(tensor, nullptr) << known.tensor;
    EXPECT_EQ(value_of(*tensor, known.index), known.value) << known.tensor;
    EXPECT_EQ(tensor->file, "model.safetensors");
  }
  const auto v3 = Checkpoint::open(kSource / "tests/data/goldens/v3");
  EXPECT_EQ(v3->tensors().size(), 201U);
  EXPECT_EQ(v3->total_bytes(), 1175744U);
  EXPECT_THAT(v3->find("model.layers.2.self_attn.kv_a_proj_with_mqa.weight")->shape, ElementsAre(80, 64));
  EXPECT_EQ(v3->find("model.layers.99.mlp.gate.weight"), nullptr);
}

TEST(Checkpoint, Fp8TimesItsScaleIsTheWeight) {
  const auto fp8 = Checkpoint::open(kSource / "models/demo-fp8");
  ASSERT_TRUE(fp8.has_value()) << fp8.error().message;
  // [144, 256]: the second row of blocks has 16 rows only.
  const StoredTensor& weight = *fp8->find("model.layers.2.self_attn.kv_a_proj_with_mqa.weight");
  const StoredTensor& scales = *fp8->find("model.layers.2.self_attn.kv_a_proj_with_mqa.weight_scale_inv");
  ASSERT_EQ(weight.dtype, DType::kF8E4M3);
  const WeightSource source{DType::kF8E4M3, 144, 256, weight.data, scales.data, 128};
  // By hand: 0x50 = 8 * 2^0, 0xad = -13 * 2^-5 , 0x6b = 11 * 2^3, 0xf6 = -14 * 2^4; scales [[s0, s1], [s2, s3]].
  EXPECT_EQ(source.at(0, 0), 8.0F * 0.000701904296875F);
  EXPECT_EQ(source.at(0, 1), -0.40625F * 0.000701904296875F);
  EXPECT_EQ(source.at(72, 3), 88.0F * 0.000701904296875F);
  EXPECT_EQ(source.at(143, 255), -224.0F * 0.0005514962249435484F);

  // Every value is close to the BF16 model that was quantised: e4m3 has 3 bits after the leading one.
  const auto bf16 = Checkpoint::open(kSource / "models/demo");
  ASSERT_TRUE(bf16.has_value()) << bf16.error().message;
  const StoredTensor& original = *bf16->find("model.layers.2.self_attn.kv_a_proj_with_mqa.weight");
  for (int64_t i = 0; i < 144; ++i) {
    for (int64_t j = 0; j < 256; ++j) {
      const float expected = value_of(original, i * 256 + j);
      ASSERT_NEAR(source.at(i, j), expected, std::fabs(expected) / 16 + 1e-5F) << i << ", " << j;
    }
  }
}

// The tensors of a golden, cut into `shards` files with an index.
void write_sharded(const Checkpoint& checkpoint, int shards, const TemporaryFolder& folder) {
  std::vector<std::vector<TensorSpec>> parts(static_cast<size_t>(shards));
  std::string weight_map;
  size_t next = 0;
  for (const auto& [name, tensor] : checkpoint.tensors()) {
    const size_t part = next++ % parts.size();
    parts[part].push_back({name, std::string(name_of(tensor.dtype)), tensor.shape,
                           std::string(reinterpret_cast<const char*>(tensor.data), tensor.size_bytes)});
    weight_map += fmt::format("{}\"{}\":\"part-{}.safetensors\"", weight_map.empty() ? "" : ",", name, part);
  }
  for (size_t part = 0; part < parts.size(); ++part)
    folder.write(fmt::format("part-{}.safetensors", part), safetensors_file(parts[part]));
  folder.write(kIndex, fmt::format(R"({{"metadata":{{"total_size":{}}},"weight_map":{{{}}}}})",
                                   checkpoint.total_bytes(), weight_map));
}

TEST(Checkpoint, ShardedIsTheSameAsSingle) {
  const auto single = Checkpoint::open(kSource / "tests/data/goldens/v3");
  ASSERT_TRUE(single.has_value()) << single.error().message;
  const TemporaryFolder folder;
  write_sharded(*single, 5, folder);
  const auto sharded = Checkpoint::open(folder.path());
  ASSERT_TRUE(sharded.has_value()) << sharded.error().message;
  ASSERT_EQ(sharded->tensors().size(), single->tensors().size());
  EXPECT_EQ(sharded->total_bytes(), single->total_bytes());
  for (const auto& [name, tensor] : single->tensors()) {
    const StoredTensor* other = sharded->find(name);
    ASSERT_NE(other, nullptr) << name;
    EXPECT_EQ(other->dtype, tensor.dtype);
    EXPECT_EQ(other->shape, tensor.shape);
    ASSERT_EQ(other->size_bytes, tensor.size_bytes);
    EXPECT_EQ(std::memcmp(other->data, tensor.data, tensor.size_bytes), 0) << name;
  }
}

const std::string kOneTensor = safetensors_file({{"a", "U8", {1}, "x"}});

TEST(Checkpoint, RefusesHostileIndexes) {
  struct Hostile {
    std::string index;
    const char* message;
  };
  const auto mapped = [](std::string_view shard) { return fmt::format(R"({{"weight_map":{{"a":"{}"}}}})", shard); };
  const Hostile kHostile[] = {
      {"", "not valid JSON"},
      {"[]", "must be a JSON object"},
      {"{}", "weight_map: is missing"},
      {R"({"weight_map":[]})", "weight_map: must be an object"},
      {R"({"weight_map":{}})", "weight_map: is empty"},
      {R"({"weight_map":{"a":1}})", "weight_map.a: must be a file name, not 1"},
      {R"({"weight_map":{"a":null}})", "must be a file name"},
      {R"({"weight_map":{"a":["x.safetensors"]}})", "must be a file name"},
      {R"({"weight_map":)" + std::string(10'000, '[') + "}", "nested deeper"},
      {mapped("../outside.safetensors"), "is a path"},
      {mapped("/etc/passwd"), "is a path"},
      {mapped("/etc/hosts.safetensors"), "is a path"},
      {mapped("sub/one.safetensors"), "is a path"},
      {mapped("./one.safetensors"), "is a path"},
      {mapped("..\\\\one.safetensors"), "is a path"},
      {mapped(".."), "is not called *.safetensors"},
      {mapped(""), "is not called *.safetensors"},
      {mapped(".safetensors"), "is not called *.safetensors"},
      {mapped("pytorch_model.bin"), "is not called *.safetensors"},
      {mapped(R"(one.safetensors\u0000.safetensors)"), "zero byte"},
      {mapped(std::string(300, 'n') + ".safetensors"), "too long a name"},
      {mapped("missing.safetensors"), "one is missing; download the checkpoint again"},
      {mapped("outside_link.safetensors"), "a symbolic link that leaves the folder"},
      {mapped("system_link.safetensors"), "a symbolic link that leaves the folder"},
      {mapped("dangling_link.safetensors"), "leads nowhere"},
      {mapped("folder.safetensors"), "not a regular file"},
      {mapped("broken.safetensors"), "broken.safetensors: 3 bytes are too few"},
      {R"({"weight_map":{"a":"one.safetensors","b":"one.safetensors"}})",
       R"(tensor "b" should be in one.safetensors, but is not)"},
      {R"({"weight_map":{"b":"one.safetensors"}})", R"(tensor "b" should be in one.safetensors)"},
      {R"({"weight_map":{"a":"one.safetensors","c":"two.safetensors"}})",
       R"(tensor "b" of two.safetensors is not listed)"},
      {R"({"weight_map":{"a":"one.safetensors","b":"twin.safetensors"}})",
       R"(tensor "a" is both in one.safetensors and in twin.safetensors)"},
  };
  const TemporaryFolder outside, folder;
  outside.write("outside.safetensors", kOneTensor);
  folder.write("one.safetensors", kOneTensor);
  folder.write("two.safetensors", safetensors_file({{"b", "U8", {1}, "x"}, {"c", "U8", {1}, "x"}}));
  folder.write("twin.safetensors", safetensors_file({{"a", "U8", {1}, "x"}, {"b", "U8", {1}, "x"}}));
  folder.write("broken.safetensors", "abc");
  std::filesystem::create_directory(folder.path() / "folder.safetensors");
  std::filesystem::create_symlink(outside.path() / "outside.safetensors", folder.path() / "outside_link.safetensors");
  std::filesystem::create_symlink("/etc/passwd", folder.path() / "system_link.safetensors");
  std::filesystem::create_symlink("nothing", folder.path() / "dangling_link.safetensors");
  for (const Hostile& hostile : kHostile) {
    folder.write(kIndex, hostile.index);
    const auto checkpoint = Checkpoint::open(folder.path());
    ASSERT_TRUE(checkpoint.has_error()) << hostile.index.substr(0, 200);
    EXPECT_THAT(checkpoint.error().message, HasSubstr(hostile.message)) << hostile.index.substr(0, 200);
  }
  fmt::print("{} hostile indexes refused\n", std::size(kHostile));
}

TEST(Checkpoint, LinksWithinTheFolderAreFollowed) {
  const TemporaryFolder folder;
  folder.write("one.safetensors", kOneTensor);
  std::filesystem::create_symlink("one.safetensors", folder.path() / "model.safetensors");
  const auto checkpoint = Checkpoint::open(folder.path());
  ASSERT_TRUE(checkpoint.has_value()) << checkpoint.error().message;
  EXPECT_NE(checkpoint->find("a"), nullptr);
}

TEST(Checkpoint, FoldersWithoutSafetensorsSayWhatTheyHave) {
  const TemporaryFolder folder;
  EXPECT_EQ(Checkpoint::open(folder.path() / "nowhere").error().kind, ErrorKind::kNotFound);
  EXPECT_THAT(Checkpoint::open(folder.path()).error().message, HasSubstr("neither model.safetensors nor"));
  folder.write("pytorch_model.bin", "x");
  EXPECT_EQ(Checkpoint::open(folder.path()).error().kind, ErrorKind::kUnsupported);
  EXPECT_THAT(Checkpoint::open(folder.path()).error().message, HasSubstr("pytorch_model.bin"));
}

// Sets environment variables for one test; nullptr unsets.
class Environment {
 public:
  using Values = std::vector<std::pair<const char*, const char*>>;

  explicit Environment(const Values& values) {
    for (const auto& [name, value] : values) {
      const char* old = std::getenv(name);
      before_.emplace_back(name, old ? std::optional<std::string>(old) : std::nullopt);
      set(name, value);
    }
  }
  ~Environment() {
    for (const auto& [name, value] : before_) set(name, value ? value->c_str() : nullptr);
  }

 private:
  static void set(const char* name, const char* value) {
    if (value)
      setenv(name, value, 1);
    else
      unsetenv(name);
  }
  std::vector<std::pair<const char*, std::optional<std::string>>> before_;
};

// What the hub's client makes: blobs, and a snapshot of links to them.
void write_hub_repository(const TemporaryFolder& cache, const std::string& name) {
  cache.write(name + "/blobs/0123abcd", kOneTensor);
  cache.write(name + "/refs/main", "f00d");
  std::filesystem::create_directories(cache.path() / name / "snapshots/f00d");
  std::filesystem::create_symlink("../../blobs/0123abcd", cache.path() / name / "snapshots/f00d/model.safetensors");
}

TEST(ResolveModelPath, FindsSnapshotsInTheHubCache) {
  const TemporaryFolder home;
  const std::string root = home.path().string(), hub = root + "/hub";
  write_hub_repository(home, "hub/models--org--model");
  write_hub_repository(home, ".cache/huggingface/hub/models--org--other");
  const Environment clean(Environment::Values{{"HF_HUB_CACHE", nullptr},
                                              {"HUGGINGFACE_HUB_CACHE", nullptr},
                                              {"HF_HOME", nullptr},
                                              {"XDG_CACHE_HOME", nullptr},
                                              {"HOME", root.c_str()}});
  const auto expected = home.path() / "hub/models--org--model/snapshots/f00d";
  {
    const Environment by_cache(Environment::Values{{"HF_HUB_CACHE", hub.c_str()}});
    EXPECT_EQ(resolve_model_path("org/model").value(), expected);
  }
  {
    const Environment by_home(Environment::Values{{"HF_HOME", root.c_str()}});
    EXPECT_EQ(resolve_model_path("org/model").value(), expected);
    const auto checkpoint = Checkpoint::open(resolve_model_path("org/model").value());
    ASSERT_TRUE(checkpoint.has_value()) << checkpoint.error().message;
    EXPECT_NE(checkpoint->find("a"), nullptr);
  }
  EXPECT_EQ(resolve_model_path("org/other").value(),
            home.path() / ".cache/huggingface/hub/models--org--other/snapshots/f00d");
  const auto missing = resolve_model_path("org/model");
  ASSERT_TRUE(missing.has_error());
  EXPECT_EQ(missing.error().kind, ErrorKind::kNotFound);
  EXPECT_THAT(missing.error().message, HasSubstr("hf download org/model"));
}

TEST(ResolveModelPath, SnapshotLinksMustStayInTheirRepository) {
  const TemporaryFolder cache;
  write_hub_repository(cache, "models--org--model");
  write_hub_repository(cache, "models--org--thief");
  const auto link = cache.path() / "models--org--thief/snapshots/f00d/model.safetensors";
  for (const char* target : {"../../../models--org--model/blobs/0123abcd", "../../refs/main", "/etc/passwd"}) {
    std::filesystem::remove(link);
    std::filesystem::create_symlink(target, link);
    const auto checkpoint = Checkpoint::open(link.parent_path());
    ASSERT_TRUE(checkpoint.has_error()) << target;
    EXPECT_THAT(checkpoint.error().message, HasSubstr("leaves the folder")) << target;
  }
}

TEST(ResolveModelPath, PathsAndStrangeNamesAreNotLookedUp) {
  const TemporaryFolder cache;
  const std::string root = cache.path().string();
  const Environment environment(Environment::Values{{"HF_HUB_CACHE", root.c_str()}});
  EXPECT_EQ(resolve_model_path(root).value(), cache.path());
  const auto file = cache.write("config.json", "{}");
  EXPECT_THAT(resolve_model_path(file.string()).error().message, HasSubstr("give the folder"));
  for (const char* name :
       {"", "/nowhere", "a/b/c", "../org/model", "org/..", "org/.hidden", "a b", "org/mo\ndel", "-x"}) {
    const auto resolved = resolve_model_path(name);
    ASSERT_TRUE(resolved.has_error()) << name;
    EXPECT_EQ(resolved.error().kind, ErrorKind::kNotFound) << name;
    EXPECT_THAT(resolved.error().message, HasSubstr("no such folder")) << name;
  }
  // refs/main may not lead out of the cache either.
  write_hub_repository(cache, "models--org--model");
  cache.write("models--org--model/refs/main", "../../..");
  EXPECT_TRUE(resolve_model_path("org/model").has_error());
}

}  // namespace
}  // namespace plait
