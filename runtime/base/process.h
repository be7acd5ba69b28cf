// A process as the system around it sees it: its standard files, its signals, its terminal, its
// names in `ps` and `top`. Whoever starts a process or waits for a stop does it through this file.
#pragma once

#include <cstdint>
#include <string>

#include "absl/strings/string_view.h"

namespace omni {

// First in main. A write to a pipe that nobody reads, or beyond `ulimit -f`, is an error of that
// write and no signal. Standard files that came closed are /dev/null: else the next file or socket
// would get their number, and every printed line.
void PrepareProcess();

// From now on SIGTERM, SIGINT, and SIGHUP (a terminal that goes away) are counted as requests to
// stop in good order. A SIGHUP that is ignored stays so, which is what nohup does.
void CatchStopSignals();
// How often a stop was asked for. What comes within two seconds of a request is part of it: a
// scheduler signals every process of a job, and those around it pass on what they got.
int32_t NumStopRequests();

// Of the calling thread, in `top -H` and debuggers; the system keeps 15 bytes.
void NameThread(const std::string& name);

// True if `fd` is a terminal on which lines can be rewritten: not with TERM=dumb, nor without TERM.
bool CanRewriteLines(int fd);
// Columns of the terminal at `fd` as it is now, else what COLUMNS says, else 80; 0 if it is none.
int32_t TerminalColumns(int fd);
// False if `fd` is no such terminal, or the environment has NO_COLOR.
bool WantsColor(int fd);

// What `ps` and `top` show of this process in place of its command line. Writes over argv: what
// points into it must be copied before.
class ProcessTitle {
 public:
  ProcessTitle(int argc, char** argv);
  // `title` for `ps`, cut to the length of the command line; `name` for `top`, cut to 15 bytes.
  // From the main thread.
  void Set(absl::string_view title, const std::string& name);

 private:
  char* begin_ = nullptr;
  size_t size_ = 0;  // of the command line, with its ends of strings
};

}  // namespace omni
