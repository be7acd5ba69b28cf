// Routing of tokens to experts: softmax, choice of the best K, and back, a warp for each token; and
// the stable counting sort of the pairs. Nothing beside the experts' products.
#include "runtime/device/args/moe.h"
#include "runtime/device/cuda/math.h"
#include "runtime/device/cuda/reduce.h"
#include "runtime/device/cuda/register.h"

namespace omni::cuda {
namespace {

// As on the CPU: keeps a sum of chosen probabilities that all underflowed from being zero.
constexpr double kTiny = 1e-20;

template <typename C>
struct RouteFields {
  const C *logits, *bias;  // bias null: none
  C *probs, *lse, *weights;
  int32_t* experts;
  int64_t logits_stride, probs_stride, weights_stride, tokens;
  int32_t num_experts, top_k;
  bool normalize;
};

// An expert and its score; the better of two is the higher, or the lower number among equals.
template <typename C>
struct Candidate {
  C score;
  int32_t expert;  // -1: none
};
template <typename C>
__device__ __forceinline__ bool IsBetter(const Candidate<C>& a, const Candidate<C>& b) {
  if (a.expert < 0 || b.expert < 0) return b.expert < 0 && a.expert >= 0;
  return a.score > b.score || (a.score == b.score && a.expert < b.expert);
}

template <typename C>
__global__ void __launch_bounds__(kThreads) RouteForward(const __grid_constant__ RouteFields<C> f) {
  const int64_t token = ThreadNumber() / 32;
  if (token >= f.tokens) return;  // a whole warp
  const int lane = threadIdx.x % 32;
  const C* const logits = f.logits + token * f.logits_stride;
  C* const probs = f.probs + token * f.probs_stride;
  C top = lane < f.num_experts ? logits[lane] : logits[0];
  for (int e = lane; e < f.num_experts; e += 32) top = logits[e] > top ? logits[e] : top;
  top = WarpReduce(top, [](C a, C b) { return b > a ? b : a; });
  C sum{0};
  for (int e = lane; e < f.num_experts; e += 32) sum += Exp(logits[e] - top);
  sum = WarpSum(sum);
  for (int e = lane; e < f.num_experts; e += 32) probs[e] = Exp(logits[e] - top) / sum;
  if (lane == 0) f.lse[token] = Log(sum) + top;
  __syncwarp();  // probabilities are read by other lanes below

  // The k-th best is the best of those behind the one before. Without a bias logits are compared:
  // they are in the order of the probabilities, and tell apart what rounds to one.
  C* const weights = f.weights + token * f.weights_stride;
  Candidate<C> last{C{0}, -1};
  C total = static_cast<C>(kTiny);
  for (int k = 0; k < f.top_k; ++k) {
    Candidate<C> best{C{0}, -1};
    for (int e = lane; e < f.num_experts; e += 32) {
      const Candidate<C> here{f.bias == nullptr ? logits[e] : probs[e] + f.bias[e], e};
      if ((last.expert < 0 || IsBetter(last, here)) && IsBetter(here, best)) best = here;
    }
    last = WarpReduce(
        best, [](const Candidate<C>& a, const Candidate<C>& b) { return IsBetter(b, a) ? b : a; });
    if (last.expert < 0) break;  // not a number
    total += probs[last.expert];
    if (lane == 0) {
      f.experts[token * f.top_k + k] = last.expert;
      weights[k] = probs[last.expert];
    }
  }
  if (f.normalize && lane == 0)
    for (int k = 0; k < f.top_k; ++k) weights[k] /= total;
}

template <typename C>
cudaError_t Forward(const MoeRouteForwardArgs& args, const KernelContext* context) {
  const RouteFields<C> f{.logits = static_cast<const C*>(args.logits_TE.data),
                         .bias = static_cast<const C*>(args.selection_bias_E.data),
                         .probs = static_cast<C*>(args.probs_TE.data),
                         .lse = static_cast<C*>(args.lse_T.data),
                         .weights = static_cast<C*>(args.weights_TK.data),
                         .experts = static_cast<int32_t*>(args.experts_TK.data),
                         .logits_stride = args.logits_TE.strides[0],
                         .probs_stride = args.probs_TE.strides[0],
                         .weights_stride = args.weights_TK.strides[0],
                         .tokens = args.logits_TE.sizes[0],
                         .num_experts = static_cast<int32_t>(args.logits_TE.sizes[1]),
                         .top_k = static_cast<int32_t>(args.experts_TK.sizes[1]),
                         .normalize = args.normalize != 0};
  return Launch(RouteForward<C>, ThreadEach(f.tokens * 32), StreamOf(context), f);
}

template <typename C>
struct RouteBackwardFields {
  Matrix<C> probs, weights, grad_weights, grad_probs, grad_logits;  // of gradients null: zero
  const C* grad_lse;
  const int32_t* experts;
  int64_t tokens;
  int32_t num_experts, top_k;
  bool normalize;
};

template <typename C>
__global__ void __launch_bounds__(kThreads)
    RouteBackward(const __grid_constant__ RouteBackwardFields<C> f) {
  const int64_t token = ThreadNumber() / 32;
  if (token >= f.tokens) return;  // a whole warp
  const int lane = threadIdx.x % 32;
  const C* const probs = f.probs.row(token);
  const int32_t* const chosen = f.experts + token * f.top_k;
  C sum = static_cast<C>(kTiny), chosen_mean{0};
  if (f.grad_weights.data != nullptr && f.normalize) {
    for (int k = 0; k < f.top_k; ++k) {
      sum += probs[chosen[k]];
      chosen_mean += f.grad_weights.row(token)[k] * f.weights.row(token)[k];
    }
  }
  // Of the probability of e.
  const auto grad_of = [&](int e) {
    C grad = f.grad_probs.data == nullptr ? C{0} : f.grad_probs.row(token)[e];
    if (f.grad_weights.data == nullptr) return grad;
    for (int k = 0; k < f.top_k; ++k) {
      if (chosen[k] != e) continue;
      const C of_weight = f.grad_weights.row(token)[k];
      grad += f.normalize ? (of_weight - chosen_mean) / sum : of_weight;
    }
    return grad;
  };
  C mean{0};
  for (int e = lane; e < f.num_experts; e += 32) mean += probs[e] * grad_of(e);
  mean = WarpSum(mean) - (f.grad_lse == nullptr ? C{0} : f.grad_lse[token]);
  for (int e = lane; e < f.num_experts; e += 32)
    f.grad_logits.row(token)[e] = probs[e] * (grad_of(e) - mean);
}

template <typename C>
cudaError_t Backward(const MoeRouteBackwardArgs& args, const KernelContext* context) {
  const RouteBackwardFields<C> f{.probs = MatrixOf<C>(args.probs_TE),
                                 .weights = MatrixOf<C>(args.weights_TK),
                                 .grad_weights = MatrixOf<C>(args.grad_weights_TK),
                                 .grad_probs = MatrixOf<C>(args.grad_probs_TE),
                                 .grad_logits = MatrixOf<C>(args.grad_logits_TE),
                                 .grad_lse = static_cast<const C*>(args.grad_lse_T.data),
                                 .experts = static_cast<const int32_t*>(args.experts_TK.data),
                                 .tokens = args.probs_TE.sizes[0],
                                 .num_experts = static_cast<int32_t>(args.probs_TE.sizes[1]),
                                 .top_k = static_cast<int32_t>(args.experts_TK.sizes[1]),
                                 .normalize = args.normalize != 0};
  return Launch(RouteBackward<C>, ThreadEach(f.tokens * 32), StreamOf(context), f);
}

// --- sort: pairs counted by blocks, the counts added up, and each block writes its own -----------

constexpr int kChunk = 1024;  // pairs of a block
struct Chunk {
  int32_t expert[kChunk];
};

struct SortFields {
  const int32_t* experts;
  int32_t* counts;  // [blocks, E], then where a block's first pair of an expert goes
  int32_t *offsets, *tokens, *rows;
  int64_t pairs;
  int32_t num_experts, top_k, num_chunks;
  int32_t* flags;
};

// The chunk of this block in shared memory; returns how many pairs it has.
__device__ __forceinline__ int LoadChunk(const SortFields& f, Chunk& chunk) {
  const int64_t first = int64_t{blockIdx.x} * kChunk;
  const int count = static_cast<int>(f.pairs - first < kChunk ? f.pairs - first : kChunk);
  for (int i = threadIdx.x; i < count; i += kThreads) chunk.expert[i] = f.experts[first + i];
  __syncthreads();
  return count;
}

__global__ void __launch_bounds__(kThreads) CountPairs(const __grid_constant__ SortFields f) {
  Chunk& chunk = BlockShared<Chunk>();
  const int count = LoadChunk(f, chunk);
  for (int e = threadIdx.x; e < f.num_experts; e += kThreads) {
    int32_t found = 0;
    for (int i = 0; i < count; ++i) found += chunk.expert[i] == e ? 1 : 0;
    f.counts[int64_t{blockIdx.x} * f.num_experts + e] = found;
  }
  for (int i = threadIdx.x; i < count; i += kThreads)
    if (chunk.expert[i] < 0 || chunk.expert[i] >= f.num_experts) Raise(f.flags, kBadExpert);
}

// One block.
__global__ void __launch_bounds__(kThreads) AddCounts(const __grid_constant__ SortFields f) {
  for (int e = threadIdx.x; e < f.num_experts; e += kThreads) {
    int32_t sum = 0;
    for (int c = 0; c < f.num_chunks; ++c) {
      int32_t& here = f.counts[int64_t{c} * f.num_experts + e];
      const int32_t count = here;
      here = sum;
      sum += count;
    }
    f.offsets[e + 1] = sum;
  }
  __syncthreads();
  if (threadIdx.x != 0) return;
  f.offsets[0] = 0;
  for (int e = 0; e < f.num_experts; ++e) f.offsets[e + 1] += f.offsets[e];
}

__global__ void __launch_bounds__(kThreads) WritePairs(const __grid_constant__ SortFields f) {
  Chunk& chunk = BlockShared<Chunk>();
  const int count = LoadChunk(f, chunk);
  const int64_t first = int64_t{blockIdx.x} * kChunk;
  for (int e = threadIdx.x; e < f.num_experts; e += kThreads) {
    int32_t row = f.offsets[e] + f.counts[int64_t{blockIdx.x} * f.num_experts + e];
    for (int i = 0; i < count; ++i) {
      if (chunk.expert[i] != e) continue;
      f.rows[first + i] = row;
      f.tokens[row++] =
          static_cast<int32_t>(static_cast<uint32_t>(first + i) / static_cast<uint32_t>(f.top_k));
    }
  }
}

int32_t NumChunks(const MoeSortArgs& args) {
  return static_cast<int32_t>((args.tokens_R.sizes[0] + kChunk - 1) / kChunk);
}
int64_t SortScratch(const MoeSortArgs& args) {
  return int64_t{NumChunks(args)} * (args.offsets_E1.sizes[0] - 1) *
         static_cast<int64_t>(sizeof(int32_t));
}
cudaError_t Sort(const MoeSortArgs& args, const KernelContext* context) {
  const SortFields f{.experts = static_cast<const int32_t*>(args.experts_TK.data),
                     .counts = static_cast<int32_t*>(context->scratch),
                     .offsets = static_cast<int32_t*>(args.offsets_E1.data),
                     .tokens = static_cast<int32_t*>(args.tokens_R.data),
                     .rows = static_cast<int32_t*>(args.rows_TK.data),
                     .pairs = args.tokens_R.sizes[0],
                     .num_experts = static_cast<int32_t>(args.offsets_E1.sizes[0] - 1),
                     .top_k = static_cast<int32_t>(args.experts_TK.sizes[1]),
                     .num_chunks = NumChunks(args),
                     .flags = context->flags};
  const cudaStream_t stream = StreamOf(context);
  const LaunchShape chunks{static_cast<unsigned>(f.num_chunks), kThreads};
  cudaError_t error = Launch(CountPairs, chunks, stream, f);
  if (error == cudaSuccess) error = Launch(AddCounts, {1, kThreads}, stream, f);
  if (error == cudaSuccess) error = Launch(WritePairs, chunks, stream, f);
  return error;
}

}  // namespace

void RegisterMoeRoute(KernelRegistry& registry) {
  registry.Register(MakeEntry<MoeRouteForwardArgs, Forward<double>>(
      OpId::kMoeRouteForward, DType::kFloat64, "f64_moe_route_fwd_cuda"));
  registry.Register(MakeEntry<MoeRouteBackwardArgs, Backward<double>>(
      OpId::kMoeRouteBackward, DType::kFloat64, "f64_moe_route_bwd_cuda"));
  registry.Register(MakeEntry<MoeRouteForwardArgs, Forward<float>>(
      OpId::kMoeRouteForward, DType::kFloat32, "f32_moe_route_fwd_cuda"));
  registry.Register(MakeEntry<MoeRouteBackwardArgs, Backward<float>>(
      OpId::kMoeRouteBackward, DType::kFloat32, "f32_moe_route_bwd_cuda"));
  registry.Register(MakeEntry<MoeSortArgs, Sort, SortScratch>(OpId::kMoeSort, DType::kInt32,
                                                              "i32_moe_sort_cuda"));
}

}  // namespace omni::cuda
