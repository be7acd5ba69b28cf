// Communicators between the ranks of one host: threads of a process, or processes. The code is
// the same for both (shm_transport.h); nothing is left behind in /dev/shm or the file system,
// however the ranks end.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "runtime/comm/communicator.h"
#include "runtime/comm/options.h"

namespace omni {

// For threads: element r is rank r's. Each may be used and destroyed by another thread.
absl::StatusOr<std::vector<std::unique_ptr<Communicator>>> CreateShmCommunicators(
    int32_t size, const CommOptions& options = {});

// For processes of one user on one host (and one network namespace). `name` is the job's, the
// same for all its ranks and no other job's; at most 80 bytes. Waits for all ranks.
//   DeadlineExceeded / Unavailable   a rank did not come within options.connect_deadline; named
//   AlreadyExists                    this rank of this name is taken by another process
//   FailedPrecondition               a rank is of another generation
absl::StatusOr<std::unique_ptr<Communicator>> ConnectShm(const std::string& name, int32_t rank,
                                                         int32_t size,
                                                         const CommOptions& options = {});

}  // namespace omni
