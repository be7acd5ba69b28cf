// Text that others wrote (names of files and samples, questions, messages of libraries) where it
// must not be taken for structure: a line of a log, a part of a metric's name.
#pragma once

#include <string>

#include "absl/strings/string_view.h"

namespace omni {

// One line of valid UTF-8 that leaves a terminal alone: control characters and bytes that are no
// UTF-8 become "\\n", "\\x1b" and the like; everything else stays.
std::string Printable(absl::string_view text);
// The same with line breaks left as they are, for text of several lines.
std::string PrintableLines(absl::string_view text);

// One part of a metric's name, whose parts are joined by "/": Printable, with "/" and "%" as "%2F"
// and "%25". Names without them stay as they are.
std::string MetricPart(absl::string_view name);

}  // namespace omni
