// The stores OpenSource puts together.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "dataloader/formats/measured_media.h"
#include "dataloader/formats/sample_store.h"

namespace omni::dataloader {

absl::StatusOr<std::unique_ptr<SampleStore>> OpenTarStore(const std::string& tar_path,
                                                          const OpenOptions& options);
// `measured`: shared by the files of a source, however many they are.
absl::StatusOr<std::unique_ptr<SampleStore>> OpenJsonStore(const std::string& json_path,
                                                           const OpenOptions& options,
                                                           std::shared_ptr<MeasuredMedia> measured);

// Several stores one after another.
std::unique_ptr<SampleStore> Concatenate(std::vector<std::unique_ptr<SampleStore>> stores);

}  // namespace omni::dataloader
