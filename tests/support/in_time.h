// Limits of time on machines that may have something else to do.
#pragma once

#include <functional>
#include <string>

namespace omni::test {

// Runs `attempt`, which returns what of it took too long, or "". Then it is run again, twice at
// most, which is printed: what keeps its limit only on a quiet machine has been seen to keep it,
// what does not fails three times. All else an attempt checks, it expects every time.
void ExpectInTime(const std::function<std::string()>& attempt);

}  // namespace omni::test
