#include <archive.h>
#include <archive_entry.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "dataloader/formats/index_record.h"
#include "dataloader/formats/sample_store.h"
#include "dataloader/formats/tar_index.h"
#include "dataloader/formats/tar_writer.h"
#include "dataloader/media/encode.h"
#include "runtime/base/file.h"
#include "tests/dataloader/formats/store_fixture.h"

namespace omni::dataloader {
namespace {

using ::testing::HasSubstr;

class TarTest : public StoreFixture {};

TEST_F(TarTest, IndexHoldsRangesAndMeasuredSizes) {
  const std::string png = Png(20, 31), wav = Wav(800);
  const std::string tar = WriteTar("a.tar", {{"000.json", ImageAndSound()},
                                             {"000.0.png", png},
                                             {"000.1.wav", wav},
                                             {"000.txt", "ignored"},
                                             {"001.json", R"({"text":"plain"})"}});
  const std::vector<IndexedSample> samples = ScanTar(tar).value();
  ASSERT_EQ(samples.size(), 2u);
  EXPECT_EQ(samples[0].key, "000");
  ASSERT_EQ(samples[0].info.size(), 2u);
  EXPECT_EQ(
      samples[0].info[0],
      (MediaInfo{
          .kind = MediaKind::kImage, .format = MediaFormat::kPng, .height = 20, .width = 31}));
  EXPECT_EQ(samples[0].info[1].num_samples, 800);
  EXPECT_EQ(samples[0].info[1].sample_rate, 16000);
  const std::string bytes = ReadFile(tar).value();
  EXPECT_EQ(bytes.substr(samples[0].media[0].offset, samples[0].media[0].size), png);
  EXPECT_EQ(bytes.substr(samples[0].media[1].offset, samples[0].media[1].size), wav);
  EXPECT_EQ(bytes.substr(samples[1].json.offset, samples[1].json.size), R"({"text":"plain"})");

  EXPECT_EQ(BuildTarIndex(tar).value(), 2);
  const std::unique_ptr<TarIndex> index = TarIndex::Open(tar).value();
  ASSERT_EQ(index->num_samples(), 2);
  EXPECT_EQ(index->Get(0).value(), samples[0]);
  EXPECT_EQ(index->Get(1).value(), samples[1]);
  EXPECT_FALSE(index->Get(2).ok());
  EXPECT_FALSE(index->Get(-1).ok());
}

TEST_F(TarTest, LongAndNestedNamesAndOtherDialects) {
  const std::string folder(120, 'f'), base(150, 'n');
  for (const int format : {ARCHIVE_FORMAT_TAR_GNUTAR, ARCHIVE_FORMAT_TAR_PAX_INTERCHANGE}) {
    const std::string path = Path("long.tar");
    archive* tar = archive_write_new();
    archive_write_set_format(tar, format);
    ASSERT_EQ(archive_write_open_filename(tar, path.c_str()), ARCHIVE_OK);
    for (const auto& [suffix, bytes] : std::vector<std::pair<std::string, std::string>>{
             {".json", ImageOnly()}, {".0.png", Png(3, 4)}}) {
      archive_entry* entry = archive_entry_new();
      archive_entry_set_pathname(entry, ("./" + folder + "/" + base + suffix).c_str());
      archive_entry_set_size(entry, bytes.size());
      archive_entry_set_filetype(entry, AE_IFREG);
      archive_entry_set_perm(entry, 0644);
      ASSERT_EQ(archive_write_header(tar, entry), ARCHIVE_OK);
      archive_write_data(tar, bytes.data(), bytes.size());
      archive_entry_free(entry);
    }
    archive_write_free(tar);
    absl::StatusOr<std::vector<IndexedSample>> samples = ScanTar(path);
    ASSERT_TRUE(samples.ok()) << samples.status();
    EXPECT_EQ(samples->at(0).key, folder + "/" + base);
    const std::string bytes = ReadFile(path).value();
    const MemberRange& png = samples->at(0).media[0];
    EXPECT_EQ(bytes.substr(png.offset, png.size), Png(3, 4));
  }
}

TEST_F(TarTest, AChangedShardMakesItsIndexStaleACopyDoesNot) {
  const std::string tar = WriteTar("a.tar", {{"0.json", R"({"text":"plain"})"}});
  ASSERT_TRUE(BuildTarIndex(tar).ok());
  std::filesystem::copy_file(tar, Path("b.tar"));
  std::filesystem::copy_file(IndexPath(tar), IndexPath(Path("b.tar")));
  EXPECT_TRUE(TarIndex::Open(Path("b.tar")).ok());
  WriteTar("a.tar", {{"0.json", R"({"text":"PLAIN"})"}});  // the same size
  const absl::Status stale = TarIndex::Open(tar).status();
  EXPECT_TRUE(absl::IsFailedPrecondition(stale));
  EXPECT_THAT(std::string(stale.message()), HasSubstr("is stale"));
  EXPECT_TRUE(absl::IsNotFound(TarIndex::Open(Path("none.tar")).status()));
}

TEST_F(TarTest, AnyFlippedByteOfAnIndexIsNoticed) {
  const std::string tar = WriteTar("a.tar", {{"0.json", ImageOnly()}, {"0.0.png", Png(3, 4)}});
  ASSERT_TRUE(BuildTarIndex(tar).ok());
  const std::string whole = ReadFile(IndexPath(tar)).value();
  for (size_t i = 0; i < whole.size(); ++i) {
    std::string bytes = whole;
    bytes[i] = static_cast<char>(bytes[i] ^ 0x10);
    ASSERT_TRUE(WriteFileAtomically(IndexPath(tar), bytes).ok());
    EXPECT_FALSE(TarIndex::Open(tar).ok()) << "byte " << i;
  }
  for (const size_t keep : {size_t{0}, size_t{63}, size_t{64}, whole.size() - 1}) {
    ASSERT_TRUE(WriteFileAtomically(IndexPath(tar), whole.substr(0, keep)).ok());
    EXPECT_TRUE(absl::IsDataLoss(TarIndex::Open(tar).status())) << keep;
  }
}

TEST_F(TarTest, RecordsCutAnywhereAreBroken) {
  IndexedSample sample{.key = "key", .json = {1, 2}, .media = {{3, 4}}, .info = {MediaInfo{}}};
  std::string bytes;
  AppendRecord(sample, &bytes);
  EXPECT_EQ(*ParseRecord(bytes), sample);
  for (size_t keep = 0; keep < bytes.size(); ++keep) {
    EXPECT_FALSE(ParseRecord(bytes.substr(0, keep)).has_value());
  }
}

TEST_F(TarTest, WriterIsRepeatableAndLeavesNothingUnfinished) {
  const std::vector<std::pair<std::string, std::string>> members = {{"0.json", R"({"text":"x"})"}};
  const std::string a = ReadFile(WriteTar("a.tar", members)).value();
  EXPECT_EQ(a, ReadFile(WriteTar("b.tar", members)).value());
  {
    std::unique_ptr<TarWriter> unfinished = TarWriter::Create(Path("c.tar")).value();
    ASSERT_TRUE(unfinished->Add("0.json", "{}").ok());
  }
  EXPECT_FALSE(std::filesystem::exists(Path("c.tar")));
  EXPECT_FALSE(std::filesystem::exists(Path("c.tar.tmp")));
  EXPECT_FALSE(TarWriter::Create(Path("no/such/folder.tar")).ok());
}

TEST_F(TarTest, EveryTruncationIsNoticed) {
  const std::string tar = WriteTar("a.tar", {{"0.json", ImageOnly()}, {"0.0.png", Png(30, 40)}});
  const std::string whole = ReadFile(tar).value();
  const std::vector<IndexedSample> samples = ScanTar(tar).value();
  const int64_t end = samples[0].media[0].offset + samples[0].media[0].size;
  for (int64_t keep = 0; keep < end + 512; keep += 37) {
    ASSERT_TRUE(WriteFileAtomically(tar, absl::string_view(whole).substr(0, keep)).ok());
    const absl::Status status = ScanTar(tar).status();
    EXPECT_TRUE(absl::IsDataLoss(status)) << keep << ": " << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr("a.tar"));
  }
  // At whole blocks too, where only the end mark is missing.
  ASSERT_TRUE(
      WriteFileAtomically(tar, absl::string_view(whole).substr(0, (end + 511) / 512 * 512)).ok());
  EXPECT_THAT(std::string(ScanTar(tar).status().message()), HasSubstr("no end mark"));
}

struct BadShard {
  const char* name;
  std::vector<std::pair<std::string, std::string>> members;
  const char* message;
};
class BadShardTest : public StoreFixture, public testing::WithParamInterface<BadShard> {};

TEST_P(BadShardTest, NamesShardAndMember) {
  const absl::Status status = ScanTar(WriteTar("bad.tar", GetParam().members)).status();
  EXPECT_TRUE(absl::IsDataLoss(status)) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("bad.tar"));
  EXPECT_THAT(std::string(status.message()), HasSubstr(GetParam().message));
}

INSTANTIATE_TEST_SUITE_P(
    All, BadShardTest,
    testing::Values(
        BadShard{"Empty", {}, "no samples"},
        BadShard{"NoJson", {{"0.jpg", "x"}}, "0.jpg: there is no 0.json beside it"},
        BadShard{"NoSuffix", {{"readme", "x"}}, "readme: member has no suffix"},
        BadShard{"LeadsOut", {{"../0.json", "{}"}}, "path leads out of the shard"},
        BadShard{"LeadsOutInside", {{"a/../../0.json", "{}"}}, "path leads out of the shard"},
        BadShard{"Absolute", {{"/etc/0.json", "{}"}}, "absolute path"},
        BadShard{"Twice", {{"0.json", "{}"}, {"0.json", "{}"}}, "0.json: member appears twice"},
        BadShard{"MissingMedium",
                 {{"0.json", R"({"content":[{"type":"image","image":"0.png"}]})"}, {"0.1.png", ""}},
                 R"(:0: the conversation names "0.png", the shard has no such member; this sample )"
                 "has 1.png"}),
    [](const auto& info) { return std::string(info.param.name); });

// A fault of one sample is none of the shard's: it keeps its place, is named, and says again what
// is wrong when it is asked for.
class BadSampleTest : public StoreFixture, public testing::WithParamInterface<BadShard> {};

TEST_P(BadSampleTest, KeepsItsPlaceAndIsNamed) {
  std::vector<std::pair<std::string, std::string>> members = GetParam().members;
  members.insert(members.end(), {{"1.json", ImageOnly()}, {"1.0.png", Png(30, 40)}});
  const std::string tar = WriteTar("bad.tar", members);
  std::vector<std::string> faults;
  EXPECT_EQ(BuildTarIndex(tar, nullptr, &faults).value(), 2);
  ASSERT_EQ(faults.size(), 1u);
  EXPECT_THAT(faults[0], HasSubstr("bad.tar"));
  EXPECT_THAT(faults[0], HasSubstr(GetParam().message));

  const auto store = OpenSource(tar).value();
  ASSERT_EQ(store->num_samples(), 2);
  const absl::Status status = store->Load(0).status();
  EXPECT_TRUE(absl::IsDataLoss(status)) << status;
  EXPECT_THAT(std::string(status.message()), testing::StartsWith(store->sample_id(0) + ": "));
  const std::string reason(GetParam().message);
  EXPECT_THAT(std::string(status.message()), HasSubstr(reason.substr(reason.find(": "))));
  EXPECT_EQ(store->Load(1).value().media_info[0].width, 40);
}

INSTANTIATE_TEST_SUITE_P(
    All, BadSampleTest,
    testing::Values(BadShard{"EmptyMedium",
                             {{"0.json", R"({"content":[{"type":"image","image":"0.png"}]})"},
                              {"0.0.png", ""}},
                             ":0.0.png: found an empty file, expected image"},
                    BadShard{"OtherKind",
                             {{"0.json", R"({"content":[{"type":"audio","audio":"0.wav"}]})"},
                              {"0.0.wav", "\xff\xd8\xff"}},
                             ":0.0.wav: found JPEG, expected audio"},
                    BadShard{"BrokenMedium",
                             {{"0.json", R"({"content":[{"type":"image","image":"0.jpg"}]})"},
                              {"0.0.jpg", "\xff\xd8\xff\xe0garbage"}},
                             ":0.0.jpg: corrupt JPEG"},
                    BadShard{"BadConversation", {{"0.json", "{]"}}, "bad.tar:0: not JSON"}),
    [](const auto& info) { return std::string(info.param.name); });

TEST_F(TarTest, OtherFilesAreRefused) {
  ASSERT_TRUE(WriteFileAtomically(Path("a.tar"), "").ok());
  EXPECT_THAT(std::string(ScanTar(Path("a.tar")).status().message()), HasSubstr("empty file"));
  ASSERT_TRUE(
      WriteFileAtomically(Path("a.tar"), std::string("\x1f\x8b", 2) + std::string(2046, 'x')).ok());
  EXPECT_THAT(std::string(ScanTar(Path("a.tar")).status().message()),
              HasSubstr("found gzip data, expected a plain (uncompressed) tar"));
  ASSERT_TRUE(WriteFileAtomically(Path("a.tar"), Png(64, 64)).ok());
  EXPECT_THAT(std::string(ScanTar(Path("a.tar")).status().message()), HasSubstr("found PNG"));
  EXPECT_TRUE(absl::IsNotFound(ScanTar(Path("none.tar")).status()));
  EXPECT_TRUE(absl::IsInvalidArgument(ScanTar(Path("")).status()));  // a folder
}

TEST_F(TarTest, LinksAreRefused) {
  const std::string path = Path("link.tar");
  archive* tar = archive_write_new();
  archive_write_set_format_ustar(tar);
  ASSERT_EQ(archive_write_open_filename(tar, path.c_str()), ARCHIVE_OK);
  archive_entry* entry = archive_entry_new();
  archive_entry_set_pathname(entry, "0.json");
  archive_entry_set_filetype(entry, AE_IFLNK);
  archive_entry_set_symlink(entry, "/etc/passwd");
  archive_write_header(tar, entry);
  archive_entry_free(entry);
  archive_write_free(tar);
  EXPECT_THAT(std::string(ScanTar(path).status().message()), HasSubstr("0.json: is a link"));
}

}  // namespace
}  // namespace omni::dataloader
