// Checks that a pipeline's programs can run, before a step of that shape first does.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "parallel/schedule/build.h"
#include "parallel/schedule/program.h"

namespace omni::parallel {

struct VerifyLimits {
  // Most (chunk, microbatch) forwards of a rank whose backward is yet to end, and most (encoder,
  // group) encodings likewise; by rank; empty: no limit.
  std::vector<int32_t> live_activations;
  std::vector<int32_t> live_encodings;
};

// FailedPrecondition, naming rank, action (with its index) and what is wrong, unless
//  - actions have what belongs to their kind, and nothing else (-1, kNone)
//  - every (chunk, microbatch) goes forward once and backward once (both halves), on the rank that
//    holds it, every (encoder, group) likewise where it trains; the ends of the step come once
//    each, last, in order
//  - every transfer has its counterpart, in the same order on both sides of each channel and pair
//  - nothing is used before it is there: within a rank in program order, across ranks by transfers
//  - the programs come to their end when transfers complete only when both sides have posted them
//  and
//    those before them are complete (rendezvous), with a queue per channel and peer, and again with
//    all of a rank's transfers in one queue (slots progress as one). With one queue nothing that a
//    rank posts later is over before what it has posted, so it might as well stand still until
//    then: as it does at rows that travel in rounds, which have slots of their own for that
//  - no rank ever holds more than `limits` allow
absl::Status Verify(const ScheduleOptions& options, const std::vector<Program>& programs,
                    const VerifyLimits& limits = {});

}  // namespace omni::parallel
