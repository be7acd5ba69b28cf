#include "tools/data_make.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "dataloader/media/video.h"
#include "runtime/base/file.h"
#include "runtime/base/status.h"
#include "tools/data_make_manifest.h"
#include "tools/data_make_sources.h"
#include "tools/data_make_text.h"

namespace omni::tools {
namespace {

namespace fs = std::filesystem;

absl::Status CheckOptions(const DataMakeOptions& options) {
  if (!(options.scale > 0 && options.scale <= 10)) {
    return absl::InvalidArgumentError(
        absl::StrCat("scale is ", options.scale, ", expected more than 0 and at most 10"));
  }
  if (options.out.empty()) return absl::InvalidArgumentError("no output folder given");
  return absl::OkStatus();
}

// The trailing slash would hide the name that ".making" is added to.
std::string WithoutSlash(std::string path) {
  while (path.size() > 1 && path.back() == '/') path.pop_back();
  return path;
}

absl::Status MakeAll(const DataMakeOptions& options, const std::string& folder,
                     std::shared_ptr<const dataloader::VideoPlugin> plugin,
                     std::vector<std::string>* shards) {
  SourceMaker maker({.folder = folder,
                     .seed = options.seed,
                     .scale = options.scale,
                     .font_dir = options.font_dir,
                     .plugin = std::move(plugin),
                     .progress = options.progress});
  // The synthesizer can't be shared, so everything with speech is one thread's and takes about
  // as long as the rest.
  absl::Status silent_status;
  std::thread silent([&] {
    silent_status = maker.MakeImages();
    if (silent_status.ok()) silent_status = maker.MakeClips();
    if (silent_status.ok()) silent_status = maker.MakeText();
  });
  const absl::Status speech_status = maker.MakeSpeechAndMixed();
  silent.join();
  OMNI_RETURN_IF_ERROR(silent_status);
  OMNI_RETURN_IF_ERROR(speech_status);
  OMNI_ASSIGN_OR_RETURN(const std::string tokenizer, TrainTokenizer());
  OMNI_RETURN_IF_ERROR(WriteFileAtomically(folder + "/tokenizer.model", tokenizer));
  *shards = maker.shards();
  return absl::OkStatus();
}

}  // namespace

absl::Status MakeQuickstartData(const DataMakeOptions& options) {
  OMNI_RETURN_IF_ERROR(CheckOptions(options));
  const std::string out = WithoutSlash(options.out);
  OMNI_ASSIGN_OR_RETURN(auto plugin, dataloader::VideoPlugin::Load());
  OMNI_ASSIGN_OR_RETURN(const Manifest wanted, Manifest::For(options, *plugin));

  std::error_code error;
  const bool exists =
      fs::exists(out, error) && !(fs::is_directory(out, error) && fs::is_empty(out, error));
  if (exists) {
    const auto found = Manifest::Load(out);
    if (!found.ok()) {
      return absl::FailedPreconditionError(
          absl::StrCat(out, " holds something that `data make` has not made (",
                       found.status().message(), "); choose another folder or remove it"));
    }
    if (found->IsSameRecipe(wanted) && found->IsComplete(out)) {
      if (options.progress) options.progress(absl::StrCat(out, " is complete, nothing to do"));
      return absl::OkStatus();
    }
  }

  const std::string making = out + ".making";
  fs::remove_all(making, error);
  fs::create_directories(making, error);
  if (error) {
    return absl::PermissionDeniedError(
        absl::StrCat("can't make folder ", making, ": ", error.message()));
  }
  std::vector<std::string> shards;
  absl::Status status = MakeAll(options, making, std::move(plugin), &shards);
  if (status.ok()) status = wanted.Write(making, shards);
  if (status.ok()) {
    if (exists) fs::remove_all(out, error);
    fs::rename(making, out, error);
    if (error) {
      status = absl::InternalError(
          absl::StrCat("can't rename ", making, " to ", out, ": ", error.message()));
    }
  }
  if (!status.ok()) fs::remove_all(making, error);
  return status;
}

}  // namespace omni::tools
