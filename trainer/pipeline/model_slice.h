// What a rank holds of the model: which chunks of the decoder, and of every parameter which part.
#pragma once

#include <cstdint>
#include <vector>

#include "parallel/parallel_config.h"
#include "parallel/placement.h"
#include "trainer/assemble.h"

namespace omni::trainer {

// For MultimodalModel::Create.
std::vector<backbone::DecoderPart> PartsOf(const parallel::Layout& layout, int32_t rank);

// Of model.Parameters(), in order. Encoders' have the chunk num_chunks + encoder, so that they too
// are reduced apart.
std::vector<parallel::Placement> PlacementsOf(const MultimodalModel& model,
                                              const parallel::Layout& layout, int32_t rank);

}  // namespace omni::trainer
