// Bad shards: one that is wrong as a whole is one line that names the member, and no run directory;
// of a broken sample the rest of its shard takes no harm.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <utility>

#include "dataloader/formats/tar_writer.h"
#include "runtime/base/check.h"
#include "runtime/base/file.h"
#include "tests/e2e/bad_input.h"
#include "tests/e2e/bad_samples.h"
#include "tests/e2e/process.h"

namespace omni::test {
namespace {

namespace fs = std::filesystem;

struct BadShard {
  const char* name;
  std::vector<std::pair<std::string, std::string>> members;
  const char* place;
  const char* expected;
};

std::string Shard(const std::string& name,
                  const std::vector<std::pair<std::string, std::string>>& members) {
  const std::string path = WriteInput(absl::StrCat(name, ".tar"), "");
  auto tar = dataloader::TarWriter::Create(path).value();
  for (const auto& [member, bytes] : members) OMNI_CHECK_OK(tar->Add(member, bytes));
  OMNI_CHECK_OK(tar->Finish());
  return path;
}

TEST(BadShardTest, AWrongMemberIsNamedAndNothingStarts) {
  const std::string sample = Line("image", "0.jpg");
  const BadShard rows[] = {
      {"NoJson",
       {{"000.0.jpg", Jpeg()}},
       "NoJson.tar:000.0.jpg: there is no 000.json beside it",
       "a sample is a .json member"},
      {"LeadsOut", {{"../000.json", sample}}, "LeadsOut.tar:../000.json", "leads out of the shard"},
      {"Twice",
       {{"000.json", sample}, {"000.json", sample}},
       "Twice.tar:000.json",
       "member appears twice"},
      {"NoMedium",
       {{"000.json", sample}, {"000.1.jpg", Jpeg()}},
       "NoMedium.tar:000: the conversation names \"0.jpg\"",
       "this sample has 1.jpg"}};
  for (const BadShard& row : rows) {
    SCOPED_TRACE(row.name);
    const std::string shard = Shard(row.name, row.members);
    const Bad bad = {row.name, "", row.place, row.expected};
    ExpectOneLine({"data", "index", shard}, bad);
    ExpectOneLine(Over({"data", "inspect"}, shard), bad);
    ExpectTrainRefuses(Over({"train"}, shard), bad);
    EXPECT_FALSE(fs::exists(shard + ".index"));
  }
}

TEST(BadShardTest, ABrokenSampleOfAShardIsNamedByIndexAndInspect) {
  const std::string sample = Line("image", "0.jpg");
  const std::string shard = Shard("mixed", {{"000.json", sample},
                                            {"000.0.jpg", ""},
                                            {"001.json", "{]"},
                                            {"002.json", sample},
                                            {"002.0.jpg", Jpeg()}});
  OmnitrainProcess index({"data", "index", shard});
  EXPECT_EQ(index.Wait(), 0);
  EXPECT_EQ(LinesWith(index.output(), {"mixed.tar: 3 samples"}), 1) << index.output();
  EXPECT_EQ(LinesWith(index.output(), {"warning", "mixed.tar:000.0.jpg: found an empty file"}), 1);
  EXPECT_EQ(LinesWith(index.output(), {"warning", "mixed.tar:001: not JSON"}), 1);
  ExpectOneLine(Over({"data", "inspect"}, shard),
                {"", "", "mixed.tar:000 would be left out as broken", "0.jpg: found an empty"});
  EXPECT_EQ(OmnitrainProcess(Over({"data", "inspect", "--index", "2"}, shard)).Wait(), 0);
}

// An index is made from the shard whenever it is missing or does not fit: no input can be wrong
// there, unless it can't be written.
TEST(BadShardTest, AMissingOrTornIndexIsMadeAnew) {
  const std::string shard =
      Shard("index", {{"000.json", Line("image", "0.jpg")}, {"000.0.jpg", Jpeg()}});
  const auto inspect = Over({"data", "inspect"}, shard);
  EXPECT_EQ(OmnitrainProcess(inspect).Wait(), 0);
  const std::string index = ReadFile(shard + ".index").value();
  for (const std::string& torn : {std::string(), index.substr(0, index.size() / 2)}) {
    OMNI_CHECK_OK(WriteFileAtomically(shard + ".index", torn));
    EXPECT_EQ(OmnitrainProcess(inspect).Wait(), 0);
    EXPECT_EQ(ReadFile(shard + ".index").value(), index);
  }
  fs::remove(shard + ".index");
  fs::create_directory(shard + ".index");
  ExpectOneLine(inspect, {"", "", "index.tar.index", "directory"});
}

}  // namespace
}  // namespace omni::test
