// Every differentiable op, by name; include this or the single headers.
//
// Shape letters used throughout:
//   T tokens or rows of a pack   H hidden   O out features   I in features   V vocabulary
//   N query heads   K key/value heads   D head dim   F frames   M mel bands   P patches
//   with experts: E experts   K experts of a token   R rows, one for each token and expert
//
// Every op: enqueues on ctx.stream and returns; records on ctx.tape if there is one; outputs
// have the dtype of the inputs; parameter gradients accumulate.
#pragma once

#include "runtime/ops/activation.h"
#include "runtime/ops/attention.h"
#include "runtime/ops/conv.h"
#include "runtime/ops/cross_entropy.h"
#include "runtime/ops/embedding.h"
#include "runtime/ops/grouped_linear.h"
#include "runtime/ops/linear.h"
#include "runtime/ops/lora.h"
#include "runtime/ops/moe.h"
#include "runtime/ops/norm.h"
#include "runtime/ops/recompute.h"
#include "runtime/ops/rope.h"
#include "runtime/ops/router_losses.h"
#include "runtime/ops/rows.h"
#include "runtime/ops/tape.h"
