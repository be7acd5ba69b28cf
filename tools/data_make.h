// `omnitrain data make`: the quickstart's data set, made from a seed on this machine.
//
// Pictures of numbers and words, spoken words, clips of moving shapes, sums, a few documents, and
// conversations that mix them: small enough to learn on two CPU cores in minutes, but in the real
// formats (JPEG, PNG, WebP, WAV, FLAC, OGG, MP3, H.264 in MP4) and in WebDataset tar shards. The
// held-out split has fonts, voices, accents, speeds and shapes that training never saw. Equal
// options and equal library versions give equal bytes. docs/quickstart-data.md describes it.
//
//   out/manifest.json   tokenizer.model   {train,heldout}/<source>/<source>-00000.tar[.index]
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "absl/status/status.h"

namespace omni::tools {

struct DataMakeOptions {
  std::string out = "data/quickstart";  // made if absent
  uint64_t seed = 1;
  double scale = 1.0;  // of the number of samples, (0, 10]; every answer occurs at any scale
  std::string font_dir = "/usr/share/fonts/truetype";
  // Called from the calling thread and one more, never at the same time, with lines without an
  // end ("image 4000 of 16000"); may be empty.
  std::function<void(const std::string&)> progress;
};

// Makes everything, or nothing if `out` already holds a complete set made with the same options
// by the same versions. Written beside `out` first and renamed at the end, so a run that was
// stopped leaves no half set; a set of other options is replaced. Uses two threads and, since
// libespeak-ng is not thread-safe, must not run twice at once in a process. InvalidArgument for
// options out of range, FailedPrecondition if `out` is something else than a data set made here
// or the FFmpeg plugin is missing, NotFound naming the Debian package for a missing font.
absl::Status MakeQuickstartData(const DataMakeOptions& options);

}  // namespace omni::tools
