// Reading; the writer is in checkpoint_writer.cc.
#include "runtime/checkpoint/checkpoint.h"

#include <algorithm>
#include <cstring>
#include <nlohmann/json.hpp>

#include "absl/strings/str_join.h"
#include "runtime/base/check.h"
#include "runtime/base/config.h"
#include "runtime/base/file.h"
#include "runtime/base/status.h"
#include "runtime/checkpoint/convert.h"
#include "runtime/checkpoint/layout.h"

namespace omni {
namespace {

using Json = nlohmann::json;

// A file that is not there was there once: the checkpoint is torn.
absl::Status Torn(const absl::Status& status) {
  return absl::IsNotFound(status) ? absl::DataLossError(status.message()) : status;
}

checkpoint_layout::Checksum SumOf(const Json& json) {
  return {.num_bytes = json.at("bytes"), .hex = json.at("xxh3")};
}

// False, too, if the manifest is damaged: Checkpoint::Index says how.
bool IsStateOf(const std::string& manifest_text, const std::string& state) {
  const Json manifest = Json::parse(manifest_text, nullptr, /*allow_exceptions=*/false);
  if (!manifest.is_object()) return false;
  checkpoint_layout::Checksummer found;
  found.Add(state);
  try {
    return checkpoint_layout::Compare("", found.Sum(), SumOf(manifest.at("state"))).ok();
  } catch (const Json::exception&) {
    return false;
  }
}

}  // namespace

absl::StatusOr<CheckpointTexts> ReadCheckpointTexts(const std::string& path,
                                                    const OnBlock& on_block,
                                                    const std::string& state) {
  CheckpointTexts texts;
  auto manifest = ReadFile(path + "/manifest.json", on_block);
  if (absl::IsNotFound(manifest.status())) {
    return absl::DataLossError(
        absl::StrCat("not a whole checkpoint: ", manifest.status().message()));
  }
  OMNI_RETURN_IF_ERROR(manifest.status());
  texts.manifest = *std::move(manifest);
  if (!state.empty() && IsStateOf(texts.manifest, state)) {
    texts.state = state;
    return texts;
  }
  auto read = ReadFile(path + "/state.json", on_block);
  if (!read.ok()) return Torn(read.status());
  texts.state = *std::move(read);
  return texts;
}

absl::StatusOr<std::unique_ptr<Checkpoint>> Checkpoint::Open(const std::string& path,
                                                             const OnBlock& on_block) {
  OMNI_ASSIGN_OR_RETURN(const CheckpointTexts texts, ReadCheckpointTexts(path, on_block));
  OMNI_ASSIGN_OR_RETURN(auto checkpoint, Index(path, texts));
  for (const Shard& shard : checkpoint->shards_) {
    const std::string file_path = absl::StrCat(path, "/", shard.file);
    const auto found = checkpoint_layout::ChecksumOf(file_path, on_block);
    if (!found.ok()) return Torn(found.status());
    OMNI_RETURN_IF_ERROR(checkpoint_layout::Compare(file_path, *found, shard.sum));
    auto file = SafetensorsFile::Open(file_path);
    if (absl::IsInvalidArgument(file.status())) {
      return absl::DataLossError(file.status().message());
    }
    if (!file.ok()) return Torn(file.status());
    checkpoint->files_.push_back(*std::move(file));
  }
  return checkpoint;
}

absl::StatusOr<std::unique_ptr<Checkpoint>> Checkpoint::Index(const std::string& path,
                                                              const CheckpointTexts& texts) {
  const std::string manifest_path = path + "/manifest.json";
  auto checkpoint = std::unique_ptr<Checkpoint>(new Checkpoint());
  checkpoint->path_ = path;
  const Json manifest = Json::parse(texts.manifest, nullptr, /*allow_exceptions=*/false);
  if (!manifest.is_object()) return absl::DataLossError(manifest_path + ": is not JSON");
  try {
    const int version = manifest.at("version").get<int>();
    if (version != checkpoint_layout::kVersion && version != checkpoint_layout::kVersionWithRuns) {
      return absl::InvalidArgumentError(absl::StrCat(manifest_path, ": version ", version,
                                                     ", expected ", checkpoint_layout::kVersion,
                                                     " or ", checkpoint_layout::kVersionWithRuns));
    }
    checkpoint->step_ = manifest.at("step").get<int64_t>();
    checkpoint->num_ranks_ = manifest.at("num_ranks").get<int32_t>();
    checkpoint_layout::Checksummer state;
    state.Add(texts.state);
    OMNI_RETURN_IF_ERROR(
        checkpoint_layout::Compare(path + "/state.json", state.Sum(), SumOf(manifest.at("state"))));
    checkpoint->state_ = texts.state;
    for (const Json& shard : manifest.at("shards")) {
      const auto index = static_cast<int32_t>(checkpoint->shards_.size());
      checkpoint->shards_.push_back({shard.at("file"), SumOf(shard)});
      for (const Json& range : shard.at("ranges")) {
        Tensor& tensor = checkpoint->tensors_[range.at("name")];
        tensor.shape = range.at("shape").get<std::vector<int64_t>>();
        Piece piece = {
            {.begin = range.at("begin"), .count = range.at("count")}, index, range.at("key")};
        if (range.contains("runs")) {
          piece.runs.runs = range.at("runs");
          piece.runs.stride = range.at("stride");
          if (piece.runs.count <= 0 || piece.runs.stride < piece.runs.count) {
            return absl::DataLossError(
                absl::StrCat(manifest_path, ": \"", piece.key, "\" has runs of ", piece.runs.count,
                             " elements at a distance of ", piece.runs.stride));
          }
        }
        (piece.runs.runs > 1 ? tensor.columns : tensor.pieces).push_back(std::move(piece));
      }
    }
  } catch (const Json::exception& e) {
    return absl::DataLossError(absl::StrCat(manifest_path, ": ", e.what()));
  }
  for (auto& [name, tensor] : checkpoint->tensors_) {
    std::sort(tensor.pieces.begin(), tensor.pieces.end(),
              [](const Piece& a, const Piece& b) { return a.runs.begin < b.runs.begin; });
  }
  return checkpoint;
}

std::vector<std::string> Checkpoint::names() const {
  std::vector<std::string> names;
  for (const auto& [name, tensor] : tensors_) names.push_back(name);
  return names;
}

absl::StatusOr<std::vector<int64_t>> Checkpoint::Shape(const std::string& name) const {
  const auto it = tensors_.find(name);
  if (it != tensors_.end()) return it->second.shape;
  const std::string nearest = NearestName(name, names());
  return absl::NotFoundError(
      absl::StrCat(path_, ": no tensor \"", name, "\"",
                   nearest.empty() ? "" : absl::StrCat("; the nearest is \"", nearest, "\"")));
}

const Checkpoint::Piece* Checkpoint::FindPiece(const Tensor& tensor, int64_t element) {
  const auto after =
      std::upper_bound(tensor.pieces.begin(), tensor.pieces.end(), element,
                       [](int64_t index, const Piece& piece) { return index < piece.runs.begin; });
  // Empty ones may begin where another does.
  for (auto piece = after; piece != tensor.pieces.begin();) {
    --piece;
    if (piece->runs.Find(element).second > 0) return &*piece;
    if (piece->runs.count > 0) break;
  }
  for (const Piece& piece : tensor.columns) {
    if (piece.runs.Find(element).second > 0) return &piece;
  }
  return nullptr;
}

absl::Status Checkpoint::ForPieces(
    const TensorRange& range,
    const std::function<absl::Status(const Piece&, int64_t, int64_t, int64_t)>& give) const {
  OMNI_ASSIGN_OR_RETURN(const std::vector<int64_t> shape, Shape(range.name));
  if (shape != range.shape) {
    return absl::InvalidArgumentError(
        absl::StrCat(path_, ": tensor \"", range.name, "\" has shape [", absl::StrJoin(shape, ", "),
                     "], the model expects [", absl::StrJoin(range.shape, ", "), "]"));
  }
  OMNI_CHECK(range.data.is_dense());
  const int64_t end = range.begin + range.data.num_elements();
  const Tensor& tensor = tensors_.at(range.name);
  for (int64_t next = range.begin; next < end;) {
    const Piece* piece = FindPiece(tensor, next);
    if (piece == nullptr) {
      return absl::DataLossError(
          absl::StrCat(path_, ": tensor \"", range.name, "\" lacks elements ", next, " to ", end));
    }
    const auto [at, follow] = piece->runs.Find(next);
    const int64_t count = std::min(end - next, follow);
    OMNI_RETURN_IF_ERROR(give(*piece, at, count, next - range.begin));
    next += count;
  }
  return absl::OkStatus();
}

absl::Status Checkpoint::Check(const TensorRange& range) const {
  return ForPieces(range, [](const Piece&, int64_t, int64_t, int64_t) { return absl::OkStatus(); });
}

absl::Status Checkpoint::Read(const TensorRange& range) const {
  OMNI_CHECK_EQ(files_.size(), shards_.size());
  return ForPieces(range, [&](const Piece& piece, int64_t at, int64_t count, int64_t index) {
    const SafetensorsFile& file = *files_[piece.shard];
    OMNI_ASSIGN_OR_RETURN(const TensorView stored, file.Get(piece.key));
    if (at + count > stored.num_elements()) {
      return absl::DataLossError(
          absl::StrCat(file.path(), ": \"", piece.key, "\" has ", stored.num_elements(),
                       " elements, the manifest says ", piece.runs.num_elements()));
    }
    const auto* from = static_cast<const std::byte*>(stored.data) + at * SizeOf(stored.dtype);
    auto* to = static_cast<std::byte*>(range.data.data) + index * SizeOf(range.data.dtype);
    if (!ConvertElements(stored.dtype, from, range.data.dtype, to, count)) {
      return absl::InvalidArgumentError(
          absl::StrCat(path_, ": tensor \"", range.name, "\" is stored as ", Name(stored.dtype),
                       ", which does not convert to ", Name(range.data.dtype)));
    }
    return absl::OkStatus();
  });
}

}  // namespace omni
