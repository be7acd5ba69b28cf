#include "runtime/base/plugin.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>

namespace omni {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr Plugin kPlugin = {
    .file = "no_such_plugin.so", .environment = "OMNI_TEST_PLUGIN_PATH", .entry = "OmniTestEntry"};
constexpr char kLibrary[] = OMNI_TEST_PLUGIN;  // test_plugin.cc

std::string Message(const absl::Status& status) { return std::string(status.message()); }
bool Accept(void* entry) { return reinterpret_cast<int (*)()>(entry)() == 7; }
bool Refuse(void*) { return false; }

TEST(PluginTest, TheOneThatIsNamedIsOpened) {
  EXPECT_TRUE(OpenPlugin(kPlugin, kLibrary, Accept).ok());
  setenv(kPlugin.environment, kLibrary, 1);
  EXPECT_TRUE(OpenPlugin(kPlugin, "", Accept).ok());
  setenv(kPlugin.environment, "", 1);
  EXPECT_FALSE(OpenPlugin(kPlugin, "", Accept).ok());
}

TEST(PluginTest, SaysWhereItLookedAndWhatWasWrong) {
  const absl::Status nowhere = OpenPlugin(kPlugin, "", Accept);
  EXPECT_TRUE(absl::IsFailedPrecondition(nowhere));
  EXPECT_THAT(Message(nowhere), AllOf(HasSubstr("/../lib/no_such_plugin.so (no such file)"),
                                      HasSubstr("/lib/no_such_plugin.so (no such file)")));
  EXPECT_THAT(Message(OpenPlugin(kPlugin, kLibrary, Refuse)),
              HasSubstr("test_plugin.so (made for another version of omnitrain)"));
  EXPECT_THAT(Message(OpenPlugin(kPlugin, OMNI_SOURCE_DIR "/README.md", Accept)),
              HasSubstr("README.md ("));
  Plugin other = kPlugin;
  other.entry = "NoSuchFunction";
  EXPECT_THAT(Message(OpenPlugin(other, kLibrary, Accept)), HasSubstr("another version"));
}

}  // namespace
}  // namespace omni
