#include "runtime/checkpoint/layout.h"

#include <fcntl.h>
#include <unistd.h>
#include <xxhash.h>

#include <cerrno>
#include <cstring>
#include <memory>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/strip.h"
#include "runtime/base/unique_fd.h"

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

absl::StatusOr<Checksum> ChecksumOf(const std::string& path) {
  const UniqueFd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd.valid()) return absl::DataLossError(absl::StrCat(path, ": ", std::strerror(errno)));
  const std::unique_ptr<XXH3_state_t, XXH_errorcode (*)(XXH3_state_t*)> state(XXH3_createState(),
                                                                              XXH3_freeState);
  XXH3_64bits_reset(state.get());
  std::vector<char> buffer(1 << 20);
  Checksum checksum;
  for (;;) {
    const ssize_t count = read(fd.get(), buffer.data(), buffer.size());
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) {
      return absl::DataLossError(absl::StrCat(path, ": reading failed: ", std::strerror(errno)));
    }
    if (count == 0) break;
    XXH3_64bits_update(state.get(), buffer.data(), count);
    checksum.num_bytes += count;
  }
  checksum.hex = absl::StrFormat("%016x", XXH3_64bits_digest(state.get()));
  return checksum;
}

}  // namespace omni::checkpoint_layout
