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

absl::Status Verify(const std::string& path, int64_t num_bytes, const std::string& hex) {
  OMNI_ASSIGN_OR_RETURN(const checkpoint_layout::Checksum found,
                        checkpoint_layout::ChecksumOf(path));
  if (found.num_bytes != num_bytes) {
    return absl::DataLossError(
        absl::StrCat(path, ": holds ", found.num_bytes, " bytes, the manifest says ", num_bytes));
  }
  if (found.hex != hex) {
    return absl::DataLossError(
        absl::StrCat(path, ": checksum ", found.hex, ", the manifest says ", hex));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<Checkpoint>> Checkpoint::Open(const std::string& path) {
  const std::string manifest_path = path + "/manifest.json";
  auto text = ReadFile(manifest_path);
  if (!text.ok()) {
    return absl::DataLossError(absl::StrCat("not a whole checkpoint: ", text.status().message()));
  }
  auto checkpoint = std::unique_ptr<Checkpoint>(new Checkpoint());
  checkpoint->path_ = path;
  const Json manifest = Json::parse(*text, nullptr, /*allow_exceptions=*/false);
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
    OMNI_RETURN_IF_ERROR(Verify(path + "/state.json", manifest.at("state").at("bytes"),
                                manifest.at("state").at("xxh3")));
    OMNI_ASSIGN_OR_RETURN(checkpoint->state_, ReadFile(path + "/state.json"));
    for (const Json& shard : manifest.at("shards")) {
      const std::string file_path = absl::StrCat(path, "/", shard.at("file").get<std::string>());
      OMNI_RETURN_IF_ERROR(Verify(file_path, shard.at("bytes"), shard.at("xxh3")));
      auto file = SafetensorsFile::Open(file_path);
      if (!file.ok()) return absl::DataLossError(file.status().message());
      for (const Json& range : shard.at("ranges")) {
        Tensor& tensor = checkpoint->tensors_[range.at("name")];
        tensor.shape = range.at("shape").get<std::vector<int64_t>>();
        Piece piece = {
            {.begin = range.at("begin"), .count = range.at("count")}, file->get(), range.at("key")};
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
      checkpoint->files_.push_back(*std::move(file));
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

absl::Status Checkpoint::Read(const TensorRange& range) const {
  OMNI_ASSIGN_OR_RETURN(const std::vector<int64_t> shape, Shape(range.name));
  if (shape != range.shape) {
    return absl::InvalidArgumentError(
        absl::StrCat(path_, ": tensor \"", range.name, "\" has shape [", absl::StrJoin(shape, ", "),
                     "], the model expects [", absl::StrJoin(range.shape, ", "), "]"));
  }
  OMNI_CHECK(range.data.is_dense());
  const int64_t end = range.begin + range.data.num_elements();
  int64_t next = range.begin;
  const Tensor& tensor = tensors_.at(range.name);
  while (next < end) {
    const Piece* piece = FindPiece(tensor, next);
    if (piece == nullptr) break;
    OMNI_ASSIGN_OR_RETURN(const TensorView stored, piece->file->Get(piece->key));
    const auto [at, follow] = piece->runs.Find(next);
    const int64_t count = std::min(end - next, follow);
    if (at + count > stored.num_elements()) {
      return absl::DataLossError(
          absl::StrCat(piece->file->path(), ": \"", piece->key, "\" has ", stored.num_elements(),
                       " elements, the manifest says ", piece->runs.num_elements()));
    }
    const auto* from = static_cast<const std::byte*>(stored.data) + at * SizeOf(stored.dtype);
    auto* to =
        static_cast<std::byte*>(range.data.data) + (next - range.begin) * SizeOf(range.data.dtype);
    if (!ConvertElements(stored.dtype, from, range.data.dtype, to, count)) {
      return absl::InvalidArgumentError(
          absl::StrCat(path_, ": tensor \"", range.name, "\" is stored as ", Name(stored.dtype),
                       ", which does not convert to ", Name(range.data.dtype)));
    }
    next += count;
  }
  if (next < end) {
    return absl::DataLossError(
        absl::StrCat(path_, ": tensor \"", range.name, "\" lacks elements ", next, " to ", end));
  }
  return absl::OkStatus();
}

}  // namespace omni
