// Keeps the layer table: a folder includes only what lies on its own floor's folder or below,
// and the four folders of floor 4 never include each other.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <map>
#include <regex>
#include <string>
#include <vector>

namespace {

namespace fs = std::filesystem;

// The floor of each folder, as in ARCHITECTURE.md.
const std::map<std::string, int> kFloors = {
    {"runtime/base", 0}, {"proto", 0},        {"runtime/tensor", 1},     {"runtime/device", 1},
    {"runtime/ops", 2},  {"runtime/comm", 2}, {"runtime/checkpoint", 2}, {"parallel", 3},
    {"encoders", 4},     {"backbone", 4},     {"dataloader", 4},         {"scheduler", 4},
    {"trainer", 5},      {"tools", 6},        {"tools/bench", 7},        {"tests", 7}};
// Neighbours that may be used on the same floor: the device's memory is described by views, and
// benchmarks start ranks as the tests do.
const std::vector<std::pair<std::string, std::string>> kSameFloor = {
    {"runtime/device", "runtime/tensor"}, {"tools/bench", "tests"}};

// The innermost folder of the table that `path` lies in.
std::string FolderOf(const std::string& path) {
  std::string found;
  for (const auto& [folder, floor] : kFloors) {
    if (path.rfind(folder + "/", 0) == 0 && folder.size() > found.size()) found = folder;
  }
  return found;
}

bool Allowed(const std::string& from, const std::string& to) {
  if (from == to || kFloors.at(to) < kFloors.at(from)) return true;
  return std::find(kSameFloor.begin(), kSameFloor.end(), std::pair(from, to)) != kSameFloor.end();
}

// "path:line includes what" for every include that goes up or sideways.
std::vector<std::string> Violations(const fs::path& root) {
  std::vector<std::string> violations;
  const std::regex include(R"(^\s*#\s*include\s+"([^"]+)\")");
  for (const auto& [top, floor] : kFloors) {
    if (!fs::exists(root / top)) continue;
    for (const auto& entry : fs::recursive_directory_iterator(root / top)) {
      const std::string extension = entry.path().extension().string();
      if (extension != ".h" && extension != ".cc" && extension != ".cu") continue;
      const std::string folder = FolderOf(fs::relative(entry.path(), root).string());
      if (folder != top) continue;  // has an entry of its own
      std::ifstream file(entry.path());
      std::string line;
      for (int number = 1; std::getline(file, line); ++number) {
        std::smatch match;
        if (!std::regex_search(line, match, include)) continue;
        const std::string to = FolderOf(match[1]);
        if (to.empty() || Allowed(folder, to)) continue;
        violations.push_back(fs::relative(entry.path(), root).string() + ":" +
                             std::to_string(number) + " includes " + match[1].str());
      }
    }
  }
  return violations;
}

TEST(LayersTest, NoFolderIncludesAHigherOne) {
  for (const std::string& violation : Violations(OMNI_SOURCE_DIR)) ADD_FAILURE() << violation;
}

TEST(LayersTest, NoCudaOrNcclHeaderOutsideTheirFolders) {
  const std::regex include(R"(^\s*#\s*include\s+[<"](cuda|cublas|cudnn|nccl)[a-zA-Z_]*\.h)");
  for (const auto& [folder, floor] : kFloors) {
    if (!fs::exists(fs::path(OMNI_SOURCE_DIR) / folder)) continue;
    for (const auto& entry : fs::recursive_directory_iterator(fs::path(OMNI_SOURCE_DIR) / folder)) {
      const std::string path = entry.path().string(), extension = entry.path().extension().string();
      if (extension != ".h" && extension != ".cc") continue;
      bool is_theirs = false;
      for (const char* part : {"/cuda/", "/cuda_emulated/", "/nccl/"})
        is_theirs = is_theirs || path.find(part) != std::string::npos;
      if (is_theirs) continue;
      std::ifstream file(entry.path());
      std::string line;
      while (std::getline(file, line)) EXPECT_FALSE(std::regex_search(line, include)) << path;
    }
  }
}

TEST(LayersTest, AnUpwardIncludeIsSeen) {
  const fs::path root = fs::path(::testing::TempDir()) / "layers";
  fs::create_directories(root / "parallel");
  std::ofstream(root / "parallel/a.h")
      << "#include \"runtime/base/check.h\"\n#include \"trainer/b.h\"\n";
  fs::create_directories(root / "encoders");
  std::ofstream(root / "encoders/c.h") << "#include \"backbone/d.h\"\n";
  EXPECT_EQ(Violations(root), (std::vector<std::string>{"encoders/c.h:1 includes backbone/d.h",
                                                        "parallel/a.h:2 includes trainer/b.h"}));
}

}  // namespace
