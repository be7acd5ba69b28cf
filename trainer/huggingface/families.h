// The families, one function each; see family.h. Private to this folder.
#pragma once

#include "trainer/huggingface/family.h"

namespace omni::trainer {

// family_text.cc
absl::StatusOr<FamilyModel> ReadQwen2(const FamilyInput& input);  // and Qwen2.5
absl::StatusOr<FamilyModel> ReadQwen3(const FamilyInput& input);
absl::StatusOr<FamilyModel> ReadQwen3Moe(const FamilyInput& input);
absl::StatusOr<FamilyModel> ReadLlama(const FamilyInput& input);  // 3 and later

// family_qwen3_vl.cc
absl::StatusOr<FamilyModel> ReadQwen3Vl(const FamilyInput& input);
absl::StatusOr<FamilyModel> ReadQwen3VlMoe(const FamilyInput& input);

// family_qwen2_audio.cc
absl::StatusOr<FamilyModel> ReadQwen2Audio(const FamilyInput& input);

// family_qwen25.cc
absl::StatusOr<FamilyModel> ReadQwen25Vl(const FamilyInput& input);
absl::StatusOr<FamilyModel> ReadQwen25Omni(const FamilyInput& input);  // the thinker

}  // namespace omni::trainer
