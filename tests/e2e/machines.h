// Machines of a small network, made of network name spaces: each has its own addresses, its own
// /etc/hosts as Debian writes it, and its own host name. Wants root and iproute2.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "tests/e2e/process.h"

namespace omni::test {

enum class Family { kV4, kV6 };

class Machines {
 public:
  // Machines that know each other by name over addresses of one family. On each, its own name is
  // 127.0.1.1.
  Machines(const std::vector<std::string>& names, Family family);
  ~Machines();
  Machines(const Machines&) = delete;
  Machines& operator=(const Machines&) = delete;

  // "" or why there can be none here.
  const std::string& why_not() const { return why_not_; }
  std::string AddressOf(const std::string& name) const;  // as others reach it; without brackets

  // Runs a line of a shell on the machine, in `folder`, `omnitrain` being this build's.
  std::unique_ptr<ChildProcess> Run(const std::string& name, const std::string& folder,
                                    const std::string& line) const;

 private:
  std::string Space(const std::string& name) const;
  bool Ip(const std::string& arguments);

  const std::vector<std::string> names_;
  const Family family_;
  std::string why_not_, folder_;
};

}  // namespace omni::test
