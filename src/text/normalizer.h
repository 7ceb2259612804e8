// Unicode normal forms, as tokenizer.json's normalizer asks for. Const once made; safe from any thread.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace plait {

enum class NormalForm { kNfc, kNfd, kNfkc, kNfkd };

// `text` is well-formed UTF-8; the forms are applied in order.
std::string normalize(std::string_view text, const std::vector<NormalForm>& forms);

}  // namespace plait
