// Short forms for passing a Status up. Which code to return is decided by what the caller
// should do about it:
//
//   InvalidArgument     fix the configuration        Unavailable        retry this call
//   Aborted             drop the communicator, rejoin, replay from the last committed step
//   FailedPrecondition  stale membership, re-register ResourceExhausted smaller batch, other plan
//   DataLoss            skip the sample, count it    DeadlineExceeded   the watchdog fired
//   Unimplemented       no such kernel on this device
//   Internal            this process must exit
#pragma once

#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace omni {

// The same code with "context: " put before the message; OK stays OK.
inline absl::Status Annotate(const absl::Status& status, absl::string_view context) {
  if (status.ok()) return status;
  return absl::Status(status.code(), absl::StrCat(context, ": ", status.message()));
}

}  // namespace omni

#define OMNI_RETURN_IF_ERROR(expression)                                                \
  do {                                                                                  \
    if (absl::Status omni_status = (expression); !omni_status.ok()) return omni_status; \
  } while (false)

#define OMNI_CONCAT_(a, b) a##b
#define OMNI_CONCAT(a, b) OMNI_CONCAT_(a, b)

// OMNI_ASSIGN_OR_RETURN(auto mesh, Mesh::Create(...));
#define OMNI_ASSIGN_OR_RETURN(target, expression) \
  OMNI_ASSIGN_OR_RETURN_(OMNI_CONCAT(omni_result_, __LINE__), target, expression)
#define OMNI_ASSIGN_OR_RETURN_(result, target, expression) \
  auto result = (expression);                              \
  if (!result.ok()) return std::move(result).status();     \
  target = *std::move(result)
