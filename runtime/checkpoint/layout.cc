#include "runtime/checkpoint/layout.h"

#include <xxhash.h>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/strip.h"
#include "runtime/base/status.h"

namespace omni::checkpoint_layout {

std::pair<int64_t, int64_t> Runs::Find(int64_t index) const {
  const int64_t offset = index - begin;
  if (offset < 0) return {-1, 0};
  const int64_t run = runs == 1 ? 0 : offset / stride;
  const int64_t within = offset - run * stride;
  if (run >= runs || within >= count) return {-1, 0};
  return {run * count + within, count - within};
}

bool Runs::Extend(int64_t next, int64_t next_count) {
  if (count == 0 || next_count != count) return false;
  const int64_t distance = next - (begin + (runs - 1) * stride);
  if (runs == 1 ? distance <= count : distance != stride) return false;
  stride = distance;
  ++runs;
  return true;
}

std::string Folder(const std::string& folder, int64_t step) {
  return absl::StrFormat("%s/step-%08d", folder, step);
}

std::string PartialFolder(const std::string& folder, int64_t step) {
  return Folder(folder, step) + ".partial";
}

std::string ShardName(int32_t rank) { return absl::StrFormat("rank-%05d.safetensors", rank); }

std::optional<int64_t> StepOfFolder(const std::string& name) {
  absl::string_view digits = name;
  int64_t step;
  if (!absl::ConsumePrefix(&digits, "step-") || !absl::SimpleAtoi(digits, &step)) {
    return std::nullopt;
  }
  return step;
}

Checksummer::Checksummer()
    : state_(XXH3_createState(), [](XXH3_state_s* state) { XXH3_freeState(state); }) {
  XXH3_64bits_reset(state_.get());
}

void Checksummer::Add(absl::string_view bytes) {
  XXH3_64bits_update(state_.get(), bytes.data(), bytes.size());
  num_bytes_ += static_cast<int64_t>(bytes.size());
}

Checksum Checksummer::Sum() const {
  return {num_bytes_, absl::StrFormat("%016x", XXH3_64bits_digest(state_.get()))};
}

absl::StatusOr<Checksum> ChecksumOf(const std::string& path, const OnBlock& on_block) {
  Checksummer sum;
  const auto add = [&](absl::string_view name, absl::string_view block) {
    sum.Add(block);
    return on_block ? on_block(name, block) : absl::OkStatus();
  };
  OMNI_RETURN_IF_ERROR(ReadBlocks(path, add).status());
  return sum.Sum();
}

absl::Status Compare(const std::string& path, const Checksum& found, const Checksum& manifest) {
  if (found.num_bytes != manifest.num_bytes) {
    return absl::DataLossError(absl::StrCat(path, ": holds ", found.num_bytes,
                                            " bytes, the manifest says ", manifest.num_bytes));
  }
  if (found.hex != manifest.hex) {
    return absl::DataLossError(
        absl::StrCat(path, ": checksum ", found.hex, ", the manifest says ", manifest.hex));
  }
  return absl::OkStatus();
}

}  // namespace omni::checkpoint_layout
