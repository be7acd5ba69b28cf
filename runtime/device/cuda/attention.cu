// Attention over packs, exact in every type and for every width of a head up to 256, with the same
// bits each time: no atomics. A warp works for one query and head (forward, gradient of q) or for
// one key and head (gradients of k and v) and goes over what it sees in tiles of 32, a lane for
// each: bound by L1, some tens of times slower than the tensor cores.
#include "runtime/device/args/attention.h"
#include "runtime/device/cuda/math.h"
#include "runtime/device/cuda/reduce.h"
#include "runtime/device/cuda/register.h"

namespace omni::cuda {
namespace {

constexpr int kMostHeadDim = 256, kWarps = kThreads / 32;

template <typename T>
struct Heads {  // [rows, heads, D], D contiguous; null: none
  T* data = nullptr;
  int64_t stride = 0, head_stride = 0;
  __device__ T* at(int64_t row, int64_t head) const {
    return data + row * stride + head * head_stride;
  }
};
template <typename T>
Heads<T> HeadsOf(const TensorView& view) {
  if (view.data == nullptr) return {};
  return {static_cast<T*>(view.data), view.strides[0], view.strides[1]};
}

// Rows of q that see rows of k and v. Query i counts as position i + shift among the keys.
struct Segment {
  int32_t first_query, num_queries, first_key, num_keys;
  __device__ int32_t shift() const { return num_keys - num_queries; }
};

// Who sees whom. Owners are the segments of rows, -1 for rows in none.
struct Sight {
  const Segment* listed = nullptr;      // or
  const int32_t* cu_seqlens = nullptr;  // or all rows are one segment
  int32_t num_segments = 0;
  int64_t num_queries = 0, num_keys = 0;  // rows
  int32_t *query_owners = nullptr, *key_owners = nullptr;
  int32_t causal = 0, window = 0;

  __device__ Segment segment(int32_t s) const {
    if (listed != nullptr) return listed[s];
    if (cu_seqlens == nullptr)
      return {0, static_cast<int32_t>(num_queries), 0, static_cast<int32_t>(num_keys)};
    const int32_t first = cu_seqlens[s], count = cu_seqlens[s + 1] - first;
    return {first, count, first, count};
  }
  // Keys of a segment that position p sees.
  __device__ int32_t FirstKey(int32_t p) const {
    return window > 0 && p >= window ? p - window + 1 : 0;
  }
  __device__ int32_t EndKey(int32_t p, int32_t keys) const {
    const int32_t end = causal != 0 ? p + 1 : window > 0 ? p + window : keys;
    return end < keys ? end : keys;
  }
  // Positions that see key j; the caller cuts them to those there are.
  __device__ int32_t FirstPosition(int32_t j) const {
    return causal != 0 ? j : window > 0 ? j - window + 1 : -0x40000000;
  }
  __device__ int32_t EndPosition(int32_t j) const { return window > 0 ? j + window : 0x40000000; }
};

__global__ void __launch_bounds__(kThreads) NameOwners(const __grid_constant__ Sight sight) {
  const auto s = static_cast<int32_t>(blockIdx.x);
  const Segment segment = sight.segment(s);
  for (int32_t i = threadIdx.x; i < segment.num_queries; i += kThreads)
    sight.query_owners[segment.first_query + i] = s;
  for (int32_t i = threadIdx.x; i < segment.num_keys; i += kThreads)
    sight.key_owners[segment.first_key + i] = s;
}

int64_t OwnersBytes(const TensorView& q, const TensorView& k) {
  return (q.sizes[0] + k.sizes[0] + 15) / 16 * 16 * static_cast<int64_t>(sizeof(int32_t));
}
cudaError_t FindOwners(Sight* sight, const KernelContext* context) {
  sight->query_owners = static_cast<int32_t*>(context->scratch);
  sight->key_owners = sight->query_owners + sight->num_queries;
  const size_t rows = sight->num_queries + sight->num_keys;
  if (rows == 0) return cudaSuccess;
  const cudaError_t error =
      cudaMemsetAsync(sight->query_owners, 0xff, rows * sizeof(int32_t), StreamOf(context));
  if (error != cudaSuccess) return error;
  return Launch(NameOwners, {static_cast<unsigned>(sight->num_segments), kThreads},
                StreamOf(context), *sight);
}

template <typename Args>
inline constexpr bool kIsPartial = false;
template <>
inline constexpr bool kIsPartial<AttentionPartialForwardArgs> = true;
template <>
inline constexpr bool kIsPartial<AttentionPartialBackwardArgs> = true;

template <typename Args>
Sight SightOf(const Args& args) {
  Sight sight{.num_queries = args.q_TND.sizes[0],
              .num_keys = args.k_TKD.sizes[0],
              .causal = args.mask.causal,
              .window = args.mask.window};
  if constexpr (kIsPartial<Args>) {
    sight.listed = static_cast<const Segment*>(args.segments.data);
    sight.num_segments = static_cast<int32_t>(args.segments.sizes[0]);
  } else {
    sight.cu_seqlens = static_cast<const int32_t*>(args.cu_seqlens.data);
    sight.num_segments =
        args.cu_seqlens.sizes[0] > 1 ? static_cast<int32_t>(args.cu_seqlens.sizes[0] - 1) : 0;
  }
  return sight;
}

// The row of a warp: `row` of `num_rows`, one of `num_heads` heads.
struct WarpPlace {
  int64_t row;
  int32_t head;
  bool is_there;
};
__device__ __forceinline__ WarpPlace PlaceOfWarp(int64_t num_rows, int32_t num_heads) {
  const int64_t warp = int64_t{blockIdx.x} * kWarps + threadIdx.x / 32;
  const int64_t row = warp / num_heads;
  return {row, static_cast<int32_t>(warp - row * num_heads), row < num_rows};
}
LaunchShape WarpEach(int64_t warps) {
  return {static_cast<unsigned>((warps + kWarps - 1) / kWarps), kThreads};
}

template <typename C, typename T>
__device__ __forceinline__ void StageRow(const T* from, int32_t dim, C* to) {
  for (int32_t d = threadIdx.x % 32; d < dim; d += 32) to[d] = Wide(from[d]);
}
template <typename C, typename T>
__device__ __forceinline__ C Dot(const C* staged, const T* row, int32_t dim) {
  C sum{0};
  for (int32_t d = 0; d < dim; ++d) sum += staged[d] * Wide(row[d]);
  return sum;
}
// sums[i] += of the `count` rows from `first`: weights[j] * row[d], d = lane + 32 i.
template <int kDims, typename C, typename T>
__device__ __forceinline__ void AddRows(const C* weights, const T* first, int64_t stride,
                                        int32_t count, int32_t dim, C (&sums)[kDims]) {
  const int lane = threadIdx.x % 32;
  for (int32_t j = 0; j < count; ++j) {
    const C weight = weights[j];
    const T* const row = first + j * stride;
#pragma unroll
    for (int i = 0; i < kDims; ++i)
      if (lane + 32 * i < dim) sums[i] += weight * Wide(row[lane + 32 * i]);
  }
}

template <typename C>
struct ForwardShared {
  C query[kWarps][kMostHeadDim];
  C weights[kWarps][32];
};

template <typename T, typename Out>
struct ForwardFields {
  using C = ComputeOf<T>;
  Heads<const T> q, k, v;
  Heads<Out> out;
  C* lse = nullptr;  // [T, N]; null: not wanted
  C scale;
  int32_t num_heads, group, dim;
  int32_t continues = 0;
  Sight sight;
};

template <typename T, typename Out, int kDims>
__global__ void __launch_bounds__(kThreads)
    ForwardKernel(const __grid_constant__ ForwardFields<T, Out> f) {
  using C = ComputeOf<T>;
  const auto [t, head, is_there] = PlaceOfWarp(f.sight.num_queries, f.num_heads);
  if (!is_there) return;
  const int32_t owner = f.sight.query_owners == nullptr ? 0 : f.sight.query_owners[t];
  if (owner < 0) return;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const Segment segment = f.sight.segment(owner);
  const int32_t position = static_cast<int32_t>(t) - segment.first_query + segment.shift();
  const int32_t end = f.sight.EndKey(position, segment.num_keys);
  ForwardShared<C>& shared = BlockShared<ForwardShared<C>>();
  C* const query = shared.query[warp];
  C* const weights = shared.weights[warp];
  StageRow(f.q.at(t, head), f.dim, query);
  __syncwarp();

  C top = -INFINITY, sum{0};
  C sums[kDims] = {};
  Out* const out = f.out.at(t, head);
  C* const lse = f.lse == nullptr ? nullptr : f.lse + t * f.num_heads + head;
  if (f.continues != 0) {  // a result over other keys: exponentials divided by their sum
    top = *lse;
    sum = C{1};
#pragma unroll
    for (int i = 0; i < kDims; ++i)
      if (lane + 32 * i < f.dim) sums[i] = Wide(out[lane + 32 * i]);
  }
  const int32_t kv_head = head / f.group;
  for (int32_t j = f.sight.FirstKey(position); j < end; j += 32) {
    const int32_t count = end - j < 32 ? end - j : 32;
    const int64_t row = segment.first_key + j;
    const C score =
        lane < count ? f.scale * Dot(query, f.k.at(row + lane, kv_head), f.dim) : C(-INFINITY);
    const C tile_top = WarpReduce(score, [](C a, C b) { return a > b ? a : b; });
    const C before = top;
    top = tile_top > top ? tile_top : top;
    const C weight = lane < count ? Exp(score - top) : C{0};
    const C rescale = before > C(-INFINITY) ? Exp(before - top) : C{0};
    weights[lane] = weight;
    sum = sum * rescale + WarpSum(weight);  // and all weights are there
    __syncwarp();
#pragma unroll
    for (int i = 0; i < kDims; ++i) sums[i] *= rescale;
    AddRows(weights, f.v.at(row, kv_head), f.v.stride, count, f.dim, sums);
    __syncwarp();
  }
  const C inverse = sum > C{0} ? C{1} / sum : C{0};
#pragma unroll
  for (int i = 0; i < kDims; ++i)
    if (lane + 32 * i < f.dim) out[lane + 32 * i] = Narrow<Out>(sums[i] * inverse);
  if (lse != nullptr && lane == 0) *lse = sum > C{0} ? top + Log(sum) : C(-INFINITY);
}

// launch(std::integral_constant: elements of a head's row for each lane).
template <typename Body>
cudaError_t ForDims(int64_t dim, const Body& launch) {
  if (dim <= 64) return launch(std::integral_constant<int, 2>());
  if (dim <= 128) return launch(std::integral_constant<int, 4>());
  return launch(std::integral_constant<int, 8>());
}

template <typename T, typename Out>
cudaError_t RunForward(const ForwardFields<T, Out>& f, cudaStream_t stream) {
  return ForDims(f.dim, [&](auto dims) {
    return Launch(ForwardKernel<T, Out, decltype(dims)::value>,
                  WarpEach(f.sight.num_queries * f.num_heads), stream, f);
  });
}
template <typename T, typename Out, typename Args>
ForwardFields<T, Out> ForwardFieldsOf(const Args& args, const TensorView& k, const TensorView& v) {
  const int64_t kv_heads = k.sizes[1] > 0 ? k.sizes[1] : 1;
  return {.q = HeadsOf<const T>(args.q_TND),
          .k = HeadsOf<const T>(k),
          .v = HeadsOf<const T>(v),
          .out = HeadsOf<Out>(args.out_TND),
          .scale = static_cast<ComputeOf<T>>(args.scale),
          .num_heads = static_cast<int32_t>(args.q_TND.sizes[1]),
          .group = static_cast<int32_t>(args.q_TND.sizes[1] / kv_heads),
          .dim = static_cast<int32_t>(args.q_TND.sizes[2])};
}

// Of both AttentionForwardArgs and AttentionPartialForwardArgs, whose results are sums.
template <typename T, typename Args>
cudaError_t Forward(const Args& args, const KernelContext* context) {
  using C = ComputeOf<T>;
  using Out = std::conditional_t<kIsPartial<Args>, C, T>;
  auto f = ForwardFieldsOf<T, Out>(args, args.k_TKD, args.v_TKD);
  f.lse = static_cast<C*>(args.lse_TN.data);
  f.sight = SightOf(args);
  if constexpr (kIsPartial<Args>) f.continues = args.continues;
  const cudaError_t error = FindOwners(&f.sight, context);
  return error != cudaSuccess ? error : RunForward(f, StreamOf(context));
}
template <typename Args>
int64_t ForwardScratch(const Args& args) {
  return OwnersBytes(args.q_TND, args.k_TKD);
}

// All of the keys are the past of the last queries.
template <typename T>
cudaError_t Cached(const AttentionCachedArgs& args, const KernelContext* context) {
  auto f = ForwardFieldsOf<T, T>(args, args.k_LKD, args.v_LKD);
  f.sight = Sight{.num_segments = 1,
                  .num_queries = args.q_TND.sizes[0],
                  .num_keys = args.k_LKD.sizes[0],
                  .causal = 1};
  return RunForward(f, StreamOf(context));
}

// --- backward ------------------------------------------------------------------------------------

template <typename T, typename Out>
struct BackwardFields {
  using C = ComputeOf<T>;
  Heads<const T> q, k, v, out, grad_out;
  const C* lse;  // [T, N]
  C* delta;      // [T, N]: sum of out * grad_out
  Heads<Out> grad_q, grad_k, grad_v;
  C scale;
  int32_t num_heads, num_kv_heads, group, dim;
  Sight sight;
};

template <typename C>
struct BackwardShared {
  C a[kWarps][kMostHeadDim], b[kWarps][kMostHeadDim];  // the warp's own rows
  C weights_a[kWarps][32], weights_b[kWarps][32];
};

template <bool kAdd, int kDims, typename C, typename Out>
__device__ __forceinline__ void StoreSums(const C (&sums)[kDims], Out* to, int32_t dim) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int i = 0; i < kDims; ++i) {
    if (lane + 32 * i >= dim) continue;
    if constexpr (kAdd)
      to[lane + 32 * i] += sums[i];
    else
      to[lane + 32 * i] = Narrow<Out>(sums[i]);
  }
}

// delta, and the gradient of q.
template <typename T, typename Out, bool kAdd, int kDims>
__global__ void __launch_bounds__(kThreads)
    QueryGradients(const __grid_constant__ BackwardFields<T, Out> f) {
  using C = ComputeOf<T>;
  const auto [t, head, is_there] = PlaceOfWarp(f.sight.num_queries, f.num_heads);
  if (!is_there) return;
  const int32_t owner = f.sight.query_owners[t];
  if (owner < 0) return;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const Segment segment = f.sight.segment(owner);
  const int32_t position = static_cast<int32_t>(t) - segment.first_query + segment.shift();
  const int32_t end = f.sight.EndKey(position, segment.num_keys);
  BackwardShared<C>& shared = BlockShared<BackwardShared<C>>();
  C* const query = shared.a[warp];
  C* const grad_out = shared.b[warp];
  C* const weights = shared.weights_a[warp];
  StageRow(f.q.at(t, head), f.dim, query);
  StageRow(f.grad_out.at(t, head), f.dim, grad_out);
  __syncwarp();
  C delta{0};
  for (int32_t d = lane; d < f.dim; d += 32) delta += grad_out[d] * Wide(f.out.at(t, head)[d]);
  delta = WarpSum(delta);
  const int64_t at = t * f.num_heads + head;
  if (lane == 0) f.delta[at] = delta;
  if (f.grad_q.data == nullptr) return;

  const C lse = f.lse[at];
  const int32_t kv_head = head / f.group;
  C sums[kDims] = {};
  for (int32_t j = f.sight.FirstKey(position); j < end; j += 32) {
    const int32_t count = end - j < 32 ? end - j : 32;
    const int64_t row = segment.first_key + j;
    C weight{0};
    if (lane < count) {
      const C score = f.scale * Dot(query, f.k.at(row + lane, kv_head), f.dim);
      const C grad = Dot(grad_out, f.v.at(row + lane, kv_head), f.dim);
      weight = Exp(score - lse) * (grad - delta) * f.scale;
    }
    weights[lane] = weight;
    __syncwarp();
    AddRows(weights, f.k.at(row, kv_head), f.k.stride, count, f.dim, sums);
    __syncwarp();
  }
  StoreSums<kAdd>(sums, f.grad_q.at(t, head), f.dim);
}

template <typename T, typename Out, bool kAdd, int kDims>
__global__ void __launch_bounds__(kThreads)
    KeyGradients(const __grid_constant__ BackwardFields<T, Out> f) {
  using C = ComputeOf<T>;
  const auto [row, kv_head, is_there] = PlaceOfWarp(f.sight.num_keys, f.num_kv_heads);
  if (!is_there) return;
  const int32_t owner = f.sight.key_owners[row];
  if (owner < 0) return;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const Segment segment = f.sight.segment(owner);
  const int32_t j = static_cast<int32_t>(row) - segment.first_key;
  int32_t first = f.sight.FirstPosition(j) - segment.shift();
  int32_t end = f.sight.EndPosition(j) - segment.shift();
  first = first > 0 ? first : 0;
  end = end < segment.num_queries ? end : segment.num_queries;
  BackwardShared<C>& shared = BlockShared<BackwardShared<C>>();
  C* const key = shared.a[warp];
  C* const value = shared.b[warp];
  C* const probabilities = shared.weights_a[warp];
  C* const weights = shared.weights_b[warp];
  StageRow(f.k.at(row, kv_head), f.dim, key);
  StageRow(f.v.at(row, kv_head), f.dim, value);
  __syncwarp();
  C key_sums[kDims] = {}, value_sums[kDims] = {};
  for (int32_t head = kv_head * f.group; head < (kv_head + 1) * f.group; ++head) {
    for (int32_t i = first; i < end; i += 32) {
      const int32_t count = end - i < 32 ? end - i : 32;
      const int64_t t = segment.first_query + i;
      C probability{0}, weight{0};
      if (lane < count) {
        const int64_t at = (t + lane) * f.num_heads + head;
        const C score = f.scale * Dot(key, f.q.at(t + lane, head), f.dim);
        const C grad = Dot(value, f.grad_out.at(t + lane, head), f.dim);
        probability = Exp(score - f.lse[at]);
        weight = probability * (grad - f.delta[at]) * f.scale;
      }
      probabilities[lane] = probability;
      weights[lane] = weight;
      __syncwarp();
      AddRows(weights, f.q.at(t, head), f.q.stride, count, f.dim, key_sums);
      AddRows(probabilities, f.grad_out.at(t, head), f.grad_out.stride, count, f.dim, value_sums);
      __syncwarp();
    }
  }
  if (f.grad_k.data != nullptr) StoreSums<kAdd>(key_sums, f.grad_k.at(row, kv_head), f.dim);
  if (f.grad_v.data != nullptr) StoreSums<kAdd>(value_sums, f.grad_v.at(row, kv_head), f.dim);
}

template <typename T, typename Args>
cudaError_t Backward(const Args& args, const KernelContext* context) {
  using C = ComputeOf<T>;
  using Out = std::conditional_t<kIsPartial<Args>, C, T>;
  constexpr bool kAdd = kIsPartial<Args>;
  const int64_t kv_heads = args.k_TKD.sizes[1] > 0 ? args.k_TKD.sizes[1] : 1;
  BackwardFields<T, Out> f{.q = HeadsOf<const T>(args.q_TND),
                           .k = HeadsOf<const T>(args.k_TKD),
                           .v = HeadsOf<const T>(args.v_TKD),
                           .out = HeadsOf<const T>(args.out_TND),
                           .grad_out = HeadsOf<const T>(args.grad_out_TND),
                           .lse = static_cast<const C*>(args.lse_TN.data),
                           .delta = nullptr,
                           .grad_q = HeadsOf<Out>(args.grad_q_TND),
                           .grad_k = HeadsOf<Out>(args.grad_k_TKD),
                           .grad_v = HeadsOf<Out>(args.grad_v_TKD),
                           .scale = static_cast<C>(args.scale),
                           .num_heads = static_cast<int32_t>(args.q_TND.sizes[1]),
                           .num_kv_heads = static_cast<int32_t>(kv_heads),
                           .group = static_cast<int32_t>(args.q_TND.sizes[1] / kv_heads),
                           .dim = static_cast<int32_t>(args.q_TND.sizes[2]),
                           .sight = SightOf(args)};
  cudaError_t error = FindOwners(&f.sight, context);
  if (error != cudaSuccess) return error;
  f.delta = reinterpret_cast<C*>(static_cast<std::byte*>(context->scratch) +
                                 OwnersBytes(args.q_TND, args.k_TKD));
  return ForDims(f.dim, [&](auto dims) {
    constexpr int kDims = decltype(dims)::value;
    error = Launch(QueryGradients<T, Out, kAdd, kDims>, WarpEach(f.sight.num_queries * f.num_heads),
                   StreamOf(context), f);
    if (error != cudaSuccess || (f.grad_k.data == nullptr && f.grad_v.data == nullptr))
      return error;
    return Launch(KeyGradients<T, Out, kAdd, kDims>, WarpEach(f.sight.num_keys * f.num_kv_heads),
                  StreamOf(context), f);
  });
}
template <typename T, typename Args>
int64_t BackwardScratch(const Args& args) {
  return OwnersBytes(args.q_TND, args.k_TKD) +
         args.q_TND.sizes[0] * args.q_TND.sizes[1] * static_cast<int64_t>(sizeof(ComputeOf<T>));
}

template <typename Args, cudaError_t (*kRun)(const Args&, const KernelContext*),
          int64_t (*kScratch)(const Args&) = nullptr>
void Add(KernelRegistry& registry, OpId op, DType dtype, const char* name) {
  KernelEntry entry = MakeEntry<Args, kRun, kScratch>(op, dtype, name);
  entry.supports = [](const void* args) {
    return static_cast<const Args*>(args)->q_TND.sizes[2] <= kMostHeadDim;
  };
  registry.Register(entry);
}

struct Names {
  const char *forward, *backward, *partial_forward, *partial_backward, *cached;
};
template <typename T>
void Register(KernelRegistry& registry, DType dtype, const Names& names) {
  Add<AttentionForwardArgs, Forward<T>, ForwardScratch>(registry, OpId::kAttentionForward, dtype,
                                                        names.forward);
  Add<AttentionBackwardArgs, Backward<T>, BackwardScratch<T>>(registry, OpId::kAttentionBackward,
                                                              dtype, names.backward);
  Add<AttentionPartialForwardArgs, Forward<T>, ForwardScratch>(
      registry, OpId::kAttentionPartialForward, dtype, names.partial_forward);
  Add<AttentionPartialBackwardArgs, Backward<T>, BackwardScratch<T>>(
      registry, OpId::kAttentionPartialBackward, dtype, names.partial_backward);
  Add<AttentionCachedArgs, Cached<T>>(registry, OpId::kAttentionCached, dtype, names.cached);
}

}  // namespace

void RegisterAttention(KernelRegistry& registry) {
  Register<double>(
      registry, DType::kFloat64,
      {"f64_attention_fwd_cuda", "f64_attention_bwd_cuda", "f64_attention_partial_fwd_cuda",
       "f64_attention_partial_bwd_cuda", "f64_attention_cached_cuda"});
  Register<float>(
      registry, DType::kFloat32,
      {"f32_attention_fwd_cuda", "f32_attention_bwd_cuda", "f32_attention_partial_fwd_cuda",
       "f32_attention_partial_bwd_cuda", "f32_attention_cached_cuda"});
  Register<__nv_bfloat16>(
      registry, DType::kBFloat16,
      {"bf16_attention_fwd_cuda", "bf16_attention_bwd_cuda", "bf16_attention_partial_fwd_cuda",
       "bf16_attention_partial_bwd_cuda", "bf16_attention_cached_cuda"});
}

}  // namespace omni::cuda
