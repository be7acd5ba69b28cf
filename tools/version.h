// What `omnitrain --version` prints: what was built, from what, and what it found on this machine.
#pragma once

#include <string>

namespace omni::tools {

// Lines of "name  value"; the first is "omnitrain 0.1.0".
std::string VersionText();

}  // namespace omni::tools
