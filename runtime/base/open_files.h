// How many files and sockets this process may have open (`ulimit -n`).
#pragma once

#include <cstdint>
#include <string>

namespace omni {

// Raises the soft limit to the hard one, or a million if that is less; returns what holds then.
// A worker has a socket for each peer of each group, which the usual soft 1024 does not allow for.
int64_t RaiseOpenFilesLimit();

int64_t OpenFilesLimit();  // the soft one, as it is

// After an errno: " (this process may have 1024 files open: ulimit -n, LimitNOFILE)" where that is
// the reason, else "".
std::string OpenFilesHint(int error);

}  // namespace omni
