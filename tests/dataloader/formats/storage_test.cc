// An errno is never a sample's fault: storage that fails, shards and folders that go away or change
// under a job. What is wrong in the content still is.
#include "dataloader/formats/storage.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <thread>

#include "absl/strings/match.h"
#include "absl/time/clock.h"
#include "dataloader/formats/sample_store.h"
#include "dataloader/formats/tar_index.h"
#include "runtime/base/file.h"
#include "tests/dataloader/faulty_storage.h"
#include "tests/dataloader/formats/store_fixture.h"

namespace omni::dataloader {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::StartsWith;

class StorageTest : public StoreFixture {
 protected:
  // A shard of one picture, and a list of two beside their folder.
  void WriteSources() {
    WriteTar("s.tar", {{"a.json", ImageOnly()}, {"a.0.png", Png(28, 28)}});
    fs::create_directory(Path("pictures"));
    OMNI_CHECK_OK(WriteFileAtomically(Path("pictures/0.png"), Png(28, 28)));
    OMNI_CHECK_OK(WriteFileAtomically(Path("pictures/1.png"), Png(28, 28)));
    std::string lines;
    for (const char* name : {"0.png", "1.png"}) {
      lines +=
          absl::StrCat(R"({"query":"<image>","response":"y","images":["pictures/)", name, "\"]}\n");
    }
    OMNI_CHECK_OK(WriteFileAtomically(Path("d.jsonl"), lines));
  }
  std::unique_ptr<SampleStore> Open(const std::string& name,
                                    std::shared_ptr<Storage> storage = nullptr) {
    auto store = OpenSource(Path(name), {.storage = std::move(storage)});
    OMNI_CHECK_OK(store.status());
    return *std::move(store);
  }
};

std::string Message(const absl::Status& status) { return std::string(status.message()); }

TEST_F(StorageTest, AnErrnoIsUnavailableAndNamesSampleFileAndReason) {
  WriteSources();
  Open("s.tar");  // makes the index
  for (const int error : {EIO, ESTALE, EMFILE, ENFILE, EACCES, EPERM, ENOMEM, ENODEV, ETIMEDOUT}) {
    for (const Call call : {Call::kOpen, Call::kRead}) {
      SCOPED_TRACE(absl::StrCat(std::strerror(error), " at call ", static_cast<int>(call)));
      std::atomic<bool> fails = false;
      const auto storage = std::make_shared<FaultyStorage>([&](Call of, const std::string& path) {
        return fails && of == call && !absl::EndsWith(path, ".index") ? error : 0;
      });
      const auto shard = Open("s.tar", storage), list = Open("d.jsonl", storage);
      fails = true;
      const auto expect = [&](const absl::Status& status, const std::string& id,
                              const std::string& file) {
        EXPECT_TRUE(absl::IsUnavailable(status)) << status;
        EXPECT_THAT(Message(status),
                    AllOf(StartsWith(id), HasSubstr(file), HasSubstr(std::strerror(error))));
      };
      expect(shard->LoadConversation(0).status(), Path("s.tar:a: "), Path("s.tar: "));
      expect(shard->LoadMedia(0, 0).status(), Path("s.tar:a: "), Path("s.tar: "));
      if (call == Call::kRead) {
        expect(list->LoadConversation(1).status(), Path("d.jsonl:2: "), Path("d.jsonl: "));
        continue;
      }
      expect(list->Metadata(1).status(), Path("d.jsonl:2: pictures/1.png: "),
             Path("pictures/1.png: "));
      expect(list->LoadMedia(1, 0).status(), Path("d.jsonl:2: pictures/1.png: "),
             Path("pictures/1.png: "));
    }
  }
}

TEST_F(StorageTest, AShardThatGoesAwayIsUnavailable) {
  WriteSources();
  const auto store = Open("s.tar");
  fs::rename(Path("s.tar"), Path("elsewhere"));
  for (const absl::Status& status :
       {store->LoadConversation(0).status(), store->LoadMedia(0, 0).status()}) {
    EXPECT_TRUE(absl::IsUnavailable(status)) << status;
    EXPECT_THAT(Message(status), HasSubstr("No such file or directory"));
  }
  fs::rename(Path("elsewhere"), Path("s.tar"));
  EXPECT_TRUE(store->Load(0).ok());
}

TEST_F(StorageTest, AShardThatChangesUnderItsIndexIsUnavailable) {
  WriteSources();
  const auto store = Open("s.tar");
  fs::resize_file(Path("s.tar"), 1024);  // as while it is copied anew
  const absl::Status status = store->LoadMedia(0, 0).status();
  EXPECT_TRUE(absl::IsUnavailable(status)) << status;
  EXPECT_THAT(Message(status), HasSubstr("it has 1024 bytes, it had"));
}

TEST_F(StorageTest, AFolderThatGoesAwayIsUnavailableAndOneMissingFileIsNot) {
  WriteSources();
  const auto store = Open("d.jsonl");
  ASSERT_TRUE(store->Load(0).ok());
  fs::remove(Path("pictures/1.png"));
  const absl::Status missing = store->Metadata(1).status();
  EXPECT_TRUE(absl::IsDataLoss(missing)) << missing;
  EXPECT_THAT(Message(missing), HasSubstr("No such file or directory (missing)"));
  fs::rename(Path("pictures"), Path("gone"));
  for (const absl::Status& status :
       {store->LoadMedia(0, 0).status(), store->Metadata(1).status()}) {
    EXPECT_TRUE(absl::IsUnavailable(status)) << status;
    EXPECT_THAT(Message(status), HasSubstr("its folder can't be found"));
  }
  fs::create_directory(Path("pictures"));  // a file system was mounted there
  EXPECT_TRUE(absl::IsUnavailable(store->LoadMedia(0, 0).status()));
  fs::remove(Path("pictures"));
  fs::rename(Path("gone"), Path("pictures"));
  EXPECT_TRUE(store->LoadMedia(0, 0).ok());
}

TEST_F(StorageTest, NamesThatNoFileCanHaveAreTheSamplesFault) {
  WriteSources();
  std::string lines;
  for (const std::string& name :
       {std::string(5000, 'x'), std::string("pictures/0.png/1"), std::string("a\\u0000b")}) {
    lines += absl::StrCat(R"({"query":"<image>","response":"y","images":[")", name, "\"]}\n");
  }
  OMNI_CHECK_OK(WriteFileAtomically(Path("names.jsonl"), lines));
  const auto store = Open("names.jsonl");
  for (int64_t i = 0; i < 3; ++i) {
    const absl::Status status = store->Metadata(i).status();
    EXPECT_TRUE(absl::IsDataLoss(status) || absl::IsInvalidArgument(status)) << status;
  }
}

TEST_F(StorageTest, APipeNamedAsAPictureHoldsNobody) {
  WriteSources();
  fs::remove(Path("pictures/1.png"));
  ASSERT_EQ(mkfifo(Path("pictures/1.png").c_str(), 0600), 0);
  EXPECT_TRUE(absl::IsInvalidArgument(Open("d.jsonl")->LoadMedia(1, 0).status()));
}

TEST_F(StorageTest, ALargeIndexThatIsCutOffEndsNoProcess) {
  std::vector<std::pair<std::string, std::string>> members;
  for (int i = 0; i < 1500; ++i) {  // more than is kept in memory
    members.emplace_back(absl::StrCat("sample-of-a-long-name-", i, ".json"), R"({"text":"x"})");
  }
  WriteTar("s.tar", members);
  const auto store = Open("s.tar");
  ASSERT_GT(fs::file_size(IndexPath(Path("s.tar"))), 80000u);
  EXPECT_EQ(store->sample_id(1400), Path("s.tar:sample-of-a-long-name-1400"));
  fs::resize_file(IndexPath(Path("s.tar")), 0);  // a mapping would raise SIGBUS
  const absl::Status status = store->LoadConversation(7).status();
  EXPECT_TRUE(absl::IsUnavailable(status)) << status;
  fs::remove(IndexPath(Path("s.tar")));
  EXPECT_TRUE(absl::IsUnavailable(store->LoadConversation(8).status()));
}

TEST_F(StorageTest, AnIndexThatCantBeReadIsNotMadeAnew) {
  WriteSources();
  Open("s.tar");
  const std::string before = ReadFile(IndexPath(Path("s.tar"))).value();
  const auto storage = std::make_shared<FaultyStorage>([](Call call, const std::string& path) {
    return call == Call::kRead && absl::EndsWith(path, ".index") ? EIO : 0;
  });
  const auto store = OpenSource(Path("s.tar"), {.storage = storage});
  EXPECT_TRUE(absl::IsUnavailable(store.status())) << store.status();
  EXPECT_EQ(ReadFile(IndexPath(Path("s.tar"))).value(), before);
}

TEST_F(StorageTest, AShardThatCantBeReadIsNotCalledTorn) {
  WriteSources();
  for (const int fine : {0, 1, 2, 3}) {
    std::atomic<int> reads = 0;
    const auto storage = std::make_shared<FaultyStorage>([&](Call call, const std::string&) {
      return call == Call::kRead && reads++ >= fine ? EIO : 0;
    });
    const absl::Status status = OpenSource(Path("s.tar"), {.storage = storage}).status();
    EXPECT_TRUE(absl::IsUnavailable(status)) << fine << ": " << status;
    EXPECT_FALSE(fs::exists(IndexPath(Path("s.tar"))));
  }
}

TEST_F(StorageTest, ASourceThatCantBeLookedAtIsNotCalledAbsent) {
  WriteSources();
  const auto storage = std::make_shared<FaultyStorage>(
      [](Call call, const std::string&) { return call == Call::kStat ? EIO : 0; });
  const absl::Status status = OpenSource(Path("d.jsonl"), {.storage = storage}).status();
  EXPECT_TRUE(absl::IsUnavailable(status)) << status;
  EXPECT_THAT(Message(status), HasSubstr(std::strerror(EIO)));
}

TEST_F(StorageTest, AFailureThatPassesIsToldOnceAndForgotten) {
  WriteSources();
  std::atomic<int> failures = 0;
  std::vector<std::string> told;
  const auto storage = std::make_shared<FaultyStorage>(
      [&](Call call, const std::string&) {
        return call == Call::kOpen && failures-- > 0 ? EIO : 0;
      },
      absl::Minutes(5), [&](const std::string& text) { told.push_back(text); });
  const auto store = Open("d.jsonl", storage);
  failures = 3;
  EXPECT_TRUE(store->LoadMedia(0, 0).ok());
  failures = 2;
  EXPECT_TRUE(store->LoadMedia(1, 0).ok());
  ASSERT_EQ(told.size(), 1u);
  EXPECT_THAT(told[0], AllOf(HasSubstr(Path("pictures/0.png")), HasSubstr(std::strerror(EIO)),
                             HasSubstr("trying again for up to 5m")));
  EXPECT_EQ(storage->trouble(), "");
}

TEST_F(StorageTest, AStaleHandleIsOpenedAnewAtOnce) {
  WriteSources();
  std::atomic<bool> stale = false;
  std::atomic<int> opened = 0;
  const auto storage = std::make_shared<FaultyStorage>(
      [&](Call call, const std::string&) {
        if (call == Call::kOpen) ++opened;
        if (call == Call::kOpen) stale = false;
        return call == Call::kRead && stale ? ESTALE : 0;
      },
      absl::Minutes(5));
  const auto store = Open("d.jsonl", storage);
  stale = true;
  const int before = opened;
  EXPECT_TRUE(store->LoadConversation(1).ok());
  EXPECT_EQ(opened, before + 1);
}

TEST_F(StorageTest, RetriesAreBoundedAndNotPaidAgainUntilSomethingIsRead) {
  WriteSources();
  std::atomic<int> attempts = 0;
  std::atomic<bool> fails = false;
  const auto storage = std::make_shared<FaultyStorage>(
      [&](Call call, const std::string&) {
        attempts += call == Call::kOpen;
        return fails && call == Call::kOpen ? EIO : 0;
      },
      absl::Milliseconds(300));
  const auto store = Open("s.tar", storage);
  fails = true;
  attempts = 0;
  EXPECT_TRUE(absl::IsUnavailable(store->LoadMedia(0, 0).status()));
  EXPECT_EQ(attempts, 4);  // at once, after nothing, after 100 ms and after the 200 ms left
  attempts = 0;
  EXPECT_TRUE(absl::IsUnavailable(store->LoadMedia(0, 0).status()));
  EXPECT_EQ(attempts, 2);
  fails = false;
  EXPECT_TRUE(store->LoadMedia(0, 0).ok());
  fails = true;
  attempts = 0;
  EXPECT_TRUE(absl::IsUnavailable(store->LoadMedia(0, 0).status()));
  EXPECT_EQ(attempts, 4);
}

TEST_F(StorageTest, AStopEndsAWait) {
  WriteSources();
  std::atomic<bool> fails = false;
  const auto storage = std::make_shared<FaultyStorage>(
      [&](Call call, const std::string&) { return fails && call == Call::kOpen ? EIO : 0; },
      absl::Hours(1));
  const auto store = Open("d.jsonl", storage);
  fails = true;
  absl::Status status;
  std::thread reader([&] { status = store->LoadMedia(0, 0).status(); });
  while (storage->trouble().empty()) absl::SleepFor(absl::Milliseconds(1));
  storage->StopRetries();
  reader.join();
  EXPECT_TRUE(absl::IsUnavailable(status)) << status;
}

}  // namespace
}  // namespace omni::dataloader
