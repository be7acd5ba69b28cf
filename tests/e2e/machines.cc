#include "tests/e2e/machines.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <filesystem>
#include <fstream>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "runtime/base/check.h"

namespace omni::test {
namespace {

namespace fs = std::filesystem;

constexpr char kSwitch[] = "switch";

}  // namespace

Machines::Machines(const std::vector<std::string>& names, Family family)
    : names_(names), family_(family) {
  folder_ = ::testing::TempDir() + "/machines-XXXXXX";
  OMNI_CHECK(mkdtemp(folder_.data()) != nullptr);
  std::vector<std::string> commands = {
      absl::StrCat("netns add ", Space(kSwitch)),
      absl::StrCat("-n ", Space(kSwitch), " link add bridge type bridge"),
      absl::StrCat("-n ", Space(kSwitch), " link set bridge up")};
  for (const std::string& name : names_) {
    const std::string space = Space(name), port = "to-" + name;
    const bool is_v6 = family_ == Family::kV6;
    commands.push_back(absl::StrCat("netns add ", space));
    commands.push_back(absl::StrCat("link add eth0 netns ", space, " type veth peer name ", port,
                                    " netns ", Space(kSwitch)));
    commands.push_back(
        absl::StrCat("-n ", Space(kSwitch), " link set ", port, " master bridge up"));
    commands.push_back(absl::StrCat("-n ", space, " link set lo up"));
    commands.push_back(absl::StrCat("-n ", space, " addr add ", AddressOf(name),
                                    is_v6 ? "/64" : "/24", " dev eth0", is_v6 ? " nodad" : ""));
    commands.push_back(absl::StrCat("-n ", space, " link set eth0 up"));
    std::ofstream hosts(folder_ + "/hosts-" + name);
    hosts << "127.0.0.1 localhost\n127.0.1.1 " << name << "\n";
    hosts << "::1 localhost ip6-localhost ip6-loopback\n";
    for (const std::string& other : names_) {
      if (other != name) hosts << AddressOf(other) << " " << other << "\n";
    }
  }
  for (const std::string& command : commands) {
    if (!Ip(command)) return;
  }
}

Machines::~Machines() {
  for (const std::string& name : names_) Ip("netns del " + Space(name));
  Ip("netns del " + Space(kSwitch));
  fs::remove_all(folder_);
}

// Others may run such a test at the same time.
std::string Machines::Space(const std::string& name) const {
  return absl::StrCat("omni-", getpid(), "-", fs::path(folder_).filename().string(), "-", name);
}

std::string Machines::AddressOf(const std::string& name) const {
  const auto at = std::find(names_.begin(), names_.end(), name) - names_.begin();
  return absl::StrCat(family_ == Family::kV4 ? "10.77.0." : "fd00:77::", 1 + at);
}

bool Machines::Ip(const std::string& arguments) {
  ChildProcess ip("ip", absl::StrSplit(arguments, ' ', absl::SkipEmpty()));
  const int code = ip.Wait();
  if (code != 0 && why_not_.empty()) {
    why_not_ = absl::StrCat("ip ", arguments, ": ",
                            code == 127 ? "no such program (iproute2)" : ip.output());
  }
  return code == 0;
}

std::unique_ptr<ChildProcess> Machines::Run(const std::string& name, const std::string& folder,
                                            const std::string& line) const {
  const std::string script = absl::StrCat(
      "mount --bind ", folder_, "/hosts-", name, " /etc/hosts && hostname ", name, " && cd ",
      folder, " && PATH=", fs::path(OMNI_BINARY).parent_path().string(), ":$PATH && exec ", line);
  return std::make_unique<ChildProcess>(
      "ip", std::vector<std::string>{"netns", "exec", Space(name), "unshare", "--uts", "sh", "-c",
                                     script});
}

}  // namespace omni::test
