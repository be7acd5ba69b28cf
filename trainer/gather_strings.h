// Strings between ranks: each with its length before it, so whatever bytes are in one are its own.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "runtime/comm/communicator.h"
#include "runtime/device/exec_context.h"

namespace omni::trainer {

// [rank][i]: what each rank gave. Collective over `comm` (null: alone); errors as its calls, or
// DataLoss if what came is not what was sent.
absl::StatusOr<std::vector<std::vector<std::string>>> GatherStrings(
    ExecContext& ctx, Communicator* comm, absl::Duration deadline,
    const std::vector<std::string>& mine);

// The bytes that travel: of each string its length as 8 bytes, little endian, then itself.
std::string PackStrings(const std::vector<std::string>& strings);
absl::StatusOr<std::vector<std::string>> UnpackStrings(absl::string_view bytes);  // DataLoss

}  // namespace omni::trainer
