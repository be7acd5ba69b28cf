#include "tools/version.h"

#include <cblas.h>
#include <gnu/libc-version.h>
#include <google/protobuf/stubs/common.h>
#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <fstream>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "dataloader/media/video.h"
#include "dataloader/sentencepiece_model.h"
#include "runtime/device/cpu/processor.h"
#include "tools/commit.h"

namespace omni::tools {
namespace {

// "model name : AMD EPYC ..." of the first processor.
std::string ProcessorName() {
  std::ifstream file("/proc/cpuinfo");
  std::string line;
  while (std::getline(file, line)) {
    absl::string_view rest = line;
    if (!absl::ConsumePrefix(&rest, "model name")) continue;
    rest.remove_prefix(std::min(rest.size(), rest.find_first_not_of(" \t:")));
    return std::string(rest);
  }
  return "unknown";
}

// "OpenBLAS 0.3.21" of "OpenBLAS 0.3.21 NO_LAPACKE DYNAMIC_ARCH ...".
std::string OpenBlasVersion() {
  const std::vector<std::string> words = absl::StrSplit(openblas_get_config(), ' ');
  return words.size() < 2 ? words[0] : absl::StrCat(words[0], " ", words[1]);
}

std::string VideoPluginText() {
  const auto plugin = dataloader::VideoPlugin::Load();
  return plugin.ok() ? absl::StrCat("found (", (*plugin)->version(), ")")
                     : absl::StrCat("absent: ", plugin.status().message());
}

std::string SentencePieceText() {
  const std::string error = dataloader::SentencePieceModel::PluginError();
  return error.empty() ? "found" : absl::StrCat("absent: ", error);
}

}  // namespace

std::string VersionText() {
  const std::string sanitizers = OMNI_SANITIZE;
  return absl::StrCat(
      "omnitrain ", OMNI_VERSION,  //
      "\ncommit         ", OMNI_COMMIT, "\nbuild          ", OMNI_BUILD_TYPE, ", ", OMNI_COMPILER,
      sanitizers.empty() ? "" : absl::StrCat(", -fsanitize=", sanitizers),  //
      "\nprocessor      ", ProcessorName(),                                 //
      "\nkernels        ", cpu::HasAvx512() ? "avx512" : "avx2",
      "; OpenBLAS: ", openblas_get_corename(), "\nffmpeg         ", VideoPluginText(),  //
      "\nsentencepiece  ", SentencePieceText(),                                         //
      "\nlibraries      gRPC ", grpc::Version(), ", protobuf ",
      google::protobuf::internal::VersionString(GOOGLE_PROTOBUF_VERSION), ", ", OpenBlasVersion(),
      ", glibc ", gnu_get_libc_version());
}

}  // namespace omni::tools
