// ScanTar on a file already open: for the fuzzer, which has it in memory.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "dataloader/formats/file_reader.h"
#include "dataloader/formats/tar_index.h"

namespace omni::dataloader {

absl::StatusOr<std::vector<IndexedSample>> ScanTarFile(const FileReader& file,
                                                       const VideoPlugin* video,
                                                       std::vector<std::string>* faults = nullptr);

}  // namespace omni::dataloader
