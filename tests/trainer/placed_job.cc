#include "tests/trainer/placed_job.h"

#include <gtest/gtest.h>

#include <cmath>
#include <mutex>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "parallel/lora.h"
#include "parallel/mesh.h"
#include "parallel/parameter_list.h"
#include "parallel/sharded_weights.h"
#include "runtime/base/rng.h"
#include "runtime/base/status.h"
#include "runtime/device/args/elementwise.h"
#include "tests/support/checkpoints.h"
#include "tests/support/run_ranks.h"

namespace omni::trainer {
namespace {

using parallel::Axis;
using parallel::Bucket;
using parallel::Cut;
using parallel::Group;
using parallel::IndexRange;
using parallel::Matrix;
using parallel::Mesh;
using parallel::ParameterSpec;
using parallel::Placement;
using parallel::PlacementClass;
using parallel::PlacementGroups;
using testing::TestDevice;
using Values = std::vector<double>;

constexpr int32_t kLayers = 4, kExperts = 4, kVocab = 13;
constexpr int64_t kHidden = 6, kHeadDim = 3, kFfn = 5;

int32_t LayerOf(const std::string& path) {
  const size_t at = path.find("layers.");
  return at == std::string::npos ? -1 : std::stoi(path.substr(at + 7));
}

// Where a parameter lives and what a rank has of it.
class Map {
 public:
  Map(const PlacedModel& model, const PlacedLayout& layout, int32_t rank)
      : model_(model), layout_(layout), rank_(rank) {}

  int32_t stage() const { return rank_ / (layout_.data * layout_.tensor); }
  int32_t tensor_rank() const { return rank_ % layout_.tensor; }

  // -1: on all stages; else the chunk it belongs to.
  int32_t ChunkOf(const std::string& path) const {
    const int32_t chunks = layout_.pipeline * layout_.chunks_per_rank;
    if (absl::StartsWith(path, "vision") || absl::StartsWith(path, "audio")) return -1;
    if (absl::StrContains(path, "embedding")) return 0;
    const int32_t layer = LayerOf(path);
    if (layer < 0) return chunks - 1;
    for (int32_t chunk = 0; chunk < chunks; ++chunk) {
      if (layer < parallel::EvenPart(kLayers, chunk, chunks).end) return chunk;
    }
    return -1;
  }

  void Split(const std::vector<ParameterSpec>& specs, std::vector<Placement>* here,
             std::vector<ParameterSpec>* elsewhere) const {
    const int32_t last = layout_.pipeline - 1;
    const int32_t stage_rank = rank_ % (layout_.data * layout_.tensor);
    for (const ParameterSpec& spec : specs) {
      const int32_t chunk = ChunkOf(spec.path);
      const bool is_tied = model_.tied && layout_.pipeline > 1 && chunk == 0 &&
                           absl::StrContains(spec.path, "embedding");
      const bool is_here =
          chunk < 0 || chunk % layout_.pipeline == stage() || (is_tied && stage() == last);
      if (!is_here) {
        elsewhere->push_back(spec);
        continue;
      }
      const PlacementClass whole = chunk < 0 ? PlacementClass::kEncoder
                                   : is_tied ? PlacementClass::kTied
                                             : PlacementClass::kStage;
      here->push_back(parallel::Place(spec, whole, tensor_rank(), layout_.tensor,
                                      stage_rank % layout_.expert, layout_.expert));
      if (!is_tied) here->back().chunk = chunk;
    }
  }

  // The ranks of each group this rank is in, and all groups in one order.
  struct Lists {
    std::vector<std::vector<std::vector<int32_t>>> by_class;
    std::vector<std::vector<int32_t>> tensor, copies, sequence, across;
  };
  Lists GroupLists() const {
    const int32_t stage_ranks = layout_.data * layout_.tensor;
    const Mesh mesh = *Mesh::Create({{Axis::kPipeline, layout_.pipeline},
                                     {Axis::kData, layout_.data},
                                     {Axis::kTensor, layout_.tensor}},
                                    layout_.num_ranks());
    const Mesh experts = *Mesh::Create({{Axis::kPipeline, layout_.pipeline},
                                        {Axis::kData, stage_ranks / layout_.expert},
                                        {Axis::kExpert, layout_.expert}},
                                       layout_.num_ranks());
    Lists lists;
    lists.by_class.resize(parallel::kNumPlacementClasses);
    const auto of = [&](PlacementClass c) -> auto& {
      return lists.by_class[static_cast<size_t>(c)];
    };
    of(PlacementClass::kStage) = mesh.Groups({Axis::kData, Axis::kTensor});
    of(PlacementClass::kTensor) = mesh.Groups({Axis::kData});
    of(PlacementClass::kExpert) = experts.Groups({Axis::kData});
    of(PlacementClass::kEncoder) = mesh.Groups({Axis::kPipeline, Axis::kData, Axis::kTensor});
    for (int32_t t = 0; t < layout_.tensor; ++t) {
      std::vector<int32_t> ranks;
      for (int32_t rank = 0; rank < layout_.num_ranks(); ++rank) {
        const int32_t at = rank / stage_ranks;
        const bool is_end = at == 0 || at == layout_.pipeline - 1;
        if (rank % layout_.tensor == t && is_end) ranks.push_back(rank);
      }
      of(PlacementClass::kTied).push_back(ranks);
    }
    lists.tensor = mesh.Groups({Axis::kTensor});
    const Mesh encoders = *Mesh::Create({{Axis::kPipeline, layout_.pipeline},
                                         {Axis::kInstance, stage_ranks / layout_.sequence},
                                         {Axis::kSequence, layout_.sequence}},
                                        layout_.num_ranks());
    lists.sequence = encoders.Groups({Axis::kSequence});
    lists.across = encoders.Groups({Axis::kPipeline, Axis::kInstance});
    const int32_t copies = std::max(1, layout_.tensor / model_.kv_heads);
    for (int32_t first = 0; copies > 1 && first < layout_.num_ranks(); first += copies) {
      lists.copies.emplace_back();
      for (int32_t i = 0; i < copies; ++i) lists.copies.back().push_back(first + i);
    }
    return lists;
  }

 private:
  const PlacedModel& model_;
  const PlacedLayout& layout_;
  const int32_t rank_;
};

// This rank's communicators; `owned` keeps them.
absl::Status Connect(Communicator* world, const Map& map, const PlacedLayout& layout,
                     PlacementGroups* groups, std::vector<std::unique_ptr<Communicator>>* owned) {
  if (world == nullptr) return absl::OkStatus();
  const Map::Lists lists = map.GroupLists();
  const auto split = [&](const std::vector<std::vector<int32_t>>& all, const char* channel,
                         Group* mine) -> absl::Status {
    for (const std::vector<int32_t>& ranks : all) {
      if (ranks.size() == 1) continue;
      OMNI_ASSIGN_OR_RETURN(std::unique_ptr<Communicator> comm, world->Split(ranks, channel));
      if (comm == nullptr) continue;
      mine->comm = comm.get();
      owned->push_back(std::move(comm));
    }
    return absl::OkStatus();
  };
  for (const PlacementClass c : parallel::kPlacementClasses) {
    OMNI_RETURN_IF_ERROR(split(lists.by_class[static_cast<size_t>(c)], std::string(Name(c)).c_str(),
                               &groups->of(c)));
  }
  OMNI_RETURN_IF_ERROR(split(lists.tensor, "matrices", &groups->tensor));
  OMNI_RETURN_IF_ERROR(split(lists.copies, "copies", &groups->copies));
  groups->world = Group{world};
  for (const char* module : {"vision", "audio"}) {
    parallel::WeightSharding sharding = {.module = module, .weights = layout.weights};
    OMNI_RETURN_IF_ERROR(split(lists.sequence, "sequence", &sharding.within));
    OMNI_RETURN_IF_ERROR(split(lists.across, "across", &sharding.across));
    groups->shardings.push_back(sharding);
  }
  for (const PlacementClass c :
       {PlacementClass::kStage, PlacementClass::kTensor, PlacementClass::kExpert}) {
    groups->shardings.push_back({.module = "decoder",
                                 .placement = c,
                                 .weights = layout.decoder_weights,
                                 .within = groups->of(c),
                                 .across = {}});
  }
  return absl::OkStatus();
}

double WholeGradient(const std::string& path, int step, int64_t element) {
  return CounterRng(3, StreamOf(path) + step).Normal(element);
}

// Part `part` of `parts` random ones that sum to the whole.
double PartOfGradient(const std::string& path, int step, int64_t element, int32_t part,
                      int32_t parts) {
  const auto draw = [&](int32_t p) {
    return CounterRng(5 + p, StreamOf(path) + step).Normal(element);
  };
  if (part < parts - 1) return draw(part);
  double rest = WholeGradient(path, step, element);
  for (int32_t p = 0; p < parts - 1; ++p) rest -= draw(p);
  return rest;
}

// What one backward of `num_backwards` adds: buckets that are always there take it all in the
// first.
void SetGradients(TestDevice& device, const parallel::FlatStorage& storage,
                  const PlacementGroups& groups, int step, int backward, int num_backwards) {
  ExecContext ctx = device.ctx();
  for (size_t index = 0; index < storage.buckets().size(); ++index) {
    const Bucket& bucket = storage.buckets()[index];
    if (!storage.has_grads(index)) continue;  // or it is another part's turn
    if (bucket.sharding < 0 && backward > 0) continue;
    const int32_t times = bucket.sharding < 0 ? 1 : num_backwards;
    const Group& group = groups.of(bucket.placement);
    Values grads(bucket.num_elements);
    for (const parallel::PlacedParameter& parameter : bucket.parameters) {
      const Placement& place = parameter.place;
      // Copies lie along whole stacked rows: which stack, by the element's place in the tensor.
      std::vector<int64_t> ends;
      const ParameterSpec local = place.local();
      int64_t end = 0;
      for (const int64_t rows : local.StackRows()) {
        end += rows * (local.num_elements() / local.num_rows());
        ends.push_back(end);
      }
      place.shard.ForEachRun(0, parameter.count, [&](int64_t at, int64_t global, int64_t count) {
        for (int64_t i = 0; i < count; ++i) {
          size_t stack = 0;
          while (at + i >= ends[stack]) ++stack;
          const int32_t copies = place.num_copies(place.copies.size() == 1 ? 0 : stack);
          const int32_t holder = place.tensor_rank % copies;
          grads[parameter.offset + at + i] = PartOfGradient(
              place.spec.path, step, global + i,
              (group.rank() * copies + holder) * times + backward, group.size() * copies * times);
        }
      });
    }
    TensorArena temporary(device.device());
    const TensorView source =
        device.UploadAs(DType::kFloat64, grads, {bucket.num_elements}, temporary);
    Launch(ctx, OpId::kCopyCast, DType::kFloat64, CopyCastArgs{.in = source, .out = bucket.grads});
  }
}

absl::Status Save(ShardedOptimizer& optimizer, ExecContext& ctx, Communicator* comm, int32_t rank,
                  int32_t num_ranks, const std::string& folder, int step) {
  CheckpointWriter writer(folder, rank, num_ranks, /*keep=*/1);
  writer.Begin(step, optimizer.StateRanges(ctx), "{}");
  writer.WaitWritten();
  if (comm != nullptr) OMNI_RETURN_IF_ERROR(comm->Barrier()->WaitHost(absl::Seconds(60)));
  if (rank == 0) OMNI_RETURN_IF_ERROR(writer.Commit());
  return writer.Finish();
}

}  // namespace

std::string PlacedLayout::ToString() const {
  const char* kinds[] = {"replicated", "zero2", "zero3"};
  return absl::StrCat("sequence ", sequence, " ", kinds[static_cast<size_t>(weights)], ", decoder ",
                      kinds[static_cast<size_t>(decoder_weights)], ", pipeline ", pipeline, " (",
                      chunks_per_rank, " chunks), data ", data, ", tensor ", tensor, ", expert ",
                      expert);
}

PlacedLayout RandomLayout(const PlacedModel& model, uint64_t seed, int32_t max_ranks) {
  const CounterRng rng(17, seed);
  for (uint64_t draw = 0;; draw += 8) {
    PlacedLayout layout;
    const auto pick = [&](int i, std::vector<int32_t> from) {
      return from[rng.Below(draw + i, from.size())];
    };
    layout.pipeline = pick(0, {1, 2, 3});
    layout.data = pick(1, {1, 2, 3});
    layout.tensor = pick(2, {1, 2, 3, 4});
    layout.expert = pick(3, {1, 2, 4});
    layout.chunks_per_rank = pick(4, {1, 2});
    layout.sequence = pick(5, {1, 2, 3, 4});
    layout.weights = static_cast<parallel::WeightStorage>(pick(6, {0, 1, 2}));
    layout.decoder_weights = static_cast<parallel::WeightStorage>(pick(7, {0, 1, 2}));
    if (layout.data * layout.tensor % layout.sequence != 0) continue;
    if (layout.num_ranks() > max_ranks || layout.num_ranks() < 2) continue;
    if (layout.data * layout.tensor % layout.expert != 0) continue;
    const int32_t kv_heads = model.kv_heads;
    if (model.heads % layout.tensor != 0) continue;
    if (kv_heads % layout.tensor != 0 && layout.tensor % kv_heads != 0) continue;
    return layout;
  }
}

std::vector<ParameterSpec> PlacedModel::specs() const {
  ParameterSpec fused = Matrix("vision.blocks.0.qkv.weight", 12, 4, 0.3);
  fused.num_stacked = 3;
  std::vector<ParameterSpec> specs = {
      fused, parallel::Scale("vision.norm.weight", 7),
      parallel::Stem("audio.stem.weight", {5, 2, 3}, 0.3),
      Cut(parallel::Stem("decoder.embedding.weight", {kVocab, kHidden}, 0.1), 0, {kVocab})};
  for (int32_t layer = 0; layer < kLayers; ++layer) {
    const std::string prefix = absl::StrCat("decoder.layers.", layer, ".");
    const int64_t q = heads * kHeadDim, kv = kv_heads * kHeadDim;
    ParameterSpec qkv = Matrix(prefix + "attention.qkv.weight", q + 2 * kv, kHidden, 0.3);
    ParameterSpec bias = parallel::Bias(prefix + "attention.qkv.bias", q + 2 * kv);
    qkv.stack_rows = bias.stack_rows = {q, kv, kv};
    specs.push_back(Cut(qkv, 0, {heads, kv_heads, kv_heads}));
    specs.push_back(Cut(bias, 0, {heads, kv_heads, kv_heads}));
    specs.push_back(Cut(Matrix(prefix + "attention.output.weight", kHidden, q, 0.3), 1, {heads}));
    specs.push_back(parallel::Scale(prefix + "mlp_norm.weight", kHidden));
    if (layer % 2 == 0) {
      ParameterSpec gate_up = Matrix(prefix + "mlp.gate_up.weight", 2 * kFfn, kHidden, 0.3);
      gate_up.num_stacked = 2;
      specs.push_back(Cut(gate_up, 0, {kFfn, kFfn}));
      specs.push_back(Cut(Matrix(prefix + "mlp.down.weight", kHidden, kFfn, 0.3), 1, {kFfn}));
      continue;
    }
    specs.push_back(parallel::Stem(prefix + "moe.router.weight", {kExperts, kHidden}, 0.3));
    specs.push_back({.path = prefix + "moe.gate_up.weight",
                     .shape = {kExperts, 2 * 3, kHidden},
                     .num_stacked = 2 * kExperts,
                     .row_dims = 2,
                     .is_expert = true});
    specs.push_back({.path = prefix + "moe.down.weight",
                     .shape = {kExperts, kHidden, 3},
                     .num_stacked = kExperts,
                     .row_dims = 2,
                     .is_expert = true});
  }
  specs.push_back(parallel::Scale("decoder.norm.weight", kHidden));
  if (!tied) {
    specs.push_back(
        Cut(parallel::Stem("decoder.head.weight", {kVocab, kHidden}, 0.1), 0, {kVocab}));
  }
  if (lora) {
    const auto targets = parallel::FindLoraTargets(
        {.rank = 2, .targets = {"attention.k", "attention.v", "attention.output", "mlp.up"}},
        specs);
    for (const parallel::LoraTarget& target : *targets) {
      specs.push_back(target.a);
      specs.push_back(target.b);
    }
  }
  return specs;
}

std::string PlacedModel::ModuleOf(const std::string& path) {
  if (absl::StartsWith(path, "lora.")) return "lora.decoder";
  return path.substr(0, path.find('.'));
}

bool PlacedModel::EverTrained(const std::string& module) const {
  return module != "audio" && !(lora && module == "decoder");
}

PlacedOutcome RunPlaced(const PlacedRun& run) {
  PlacedOutcome outcome;
  std::mutex mutex;
  std::map<std::string, Values> held;  // values
  const int32_t num_ranks = run.layout.num_ranks();
  const auto rank_main = [&](Communicator* comm, int32_t rank) -> absl::Status {
    TestDevice device(run.device, {.reserved_bytes = 16 << 20, .num_threads = 1});
    ExecContext ctx = device.ctx();
    if (comm != nullptr) comm->SetInputStream(&device.stream());
    const Map map(run.model, run.layout, rank);
    PlacementGroups groups;
    std::vector<std::unique_ptr<Communicator>> owned;
    OMNI_RETURN_IF_ERROR(Connect(comm, map, run.layout, &groups, &owned));
    std::vector<Placement> here;
    std::vector<ParameterSpec> elsewhere;
    map.Split(run.model.specs(), &here, &elsewhere);
    const auto storage = parallel::FlatStorage::Create(
        ctx, here,
        {.dtype = run.dtype,
         .num_ranks = groups.ranks(),
         .seed = 2,
         .module_of = PlacedModel::ModuleOf,
         .rule_of = [&](const ParameterSpec& spec) { return run.config.RuleOf(spec); },
         .ever_trained = [&](const std::string& module) { return run.model.EverTrained(module); },
         .elsewhere = elsewhere,
         .shardings = groups.shardings});
    parallel::ShardedWeights weights(*storage, groups);
    std::vector<parallel::WeightPart> parts = {{"vision"}};
    for (int32_t chunk = 0; chunk < run.layout.pipeline * run.layout.chunks_per_rank; ++chunk) {
      parts.push_back({"decoder", chunk});
    }
    ShardedOptimizer optimizer(ctx, *storage, groups, run.config, absl::Seconds(60));
    if (!run.load_from.empty()) {
      OMNI_ASSIGN_OR_RETURN(const auto checkpoint,
                            Checkpoint::Open(CheckpointsIn(run.load_from).back().second));
      OMNI_RETURN_IF_ERROR(optimizer.Load(ctx, *checkpoint));
      optimizer.set_update_counts(run.update_counts);
    }
    for (int step = run.first_step; step < run.end_step; ++step) {
      for (int backward = 0; backward < 2; ++backward) {
        for (const parallel::WeightPart& part : parts) {
          weights.Gather(ctx, part);
          weights.BeginGradients(ctx, part);
          SetGradients(device, *storage, groups, step, backward, 2);
          weights.ReduceGradients(ctx, part);
          weights.Drop(ctx, part);
        }
      }
      optimizer.BeginStep(
          [&](const std::string& module) { return module != "vision" || step != 1; });
      if (run.reduce_early) {
        for (int32_t chunk = run.layout.pipeline * run.layout.chunks_per_rank; chunk-- > 0;) {
          optimizer.BeginReduceChunk(ctx, chunk);
        }
      }
      OMNI_RETURN_IF_ERROR(optimizer.FinishReduce(ctx));
      OMNI_ASSIGN_OR_RETURN(const GradientSummary summary, optimizer.Agree(ctx));
      const auto lr_of = [](const std::string& module) { return module == "vision" ? 0.01 : 0.02; };
      OMNI_RETURN_IF_ERROR(optimizer.Update(ctx, summary, lr_of));
      OMNI_RETURN_IF_ERROR(optimizer.GatherParameters(ctx));
      optimizer.ZeroGradients(ctx);
      const std::lock_guard lock(mutex);
      const size_t index = step - run.first_step;
      if (outcome.norms.size() == index) outcome.norms.push_back(summary.norm);
      EXPECT_EQ(outcome.norms[index], summary.norm) << "rank " << rank;
    }
    if (!run.save_to.empty()) {
      OMNI_RETURN_IF_ERROR(Save(optimizer, ctx, comm, rank, num_ranks, run.save_to, run.end_step));
    }
    const std::vector<TensorRange> saved = optimizer.StateRanges(ctx);
    parts.push_back({"audio"});
    const auto fill = [&](const TensorRange& range, std::map<std::string, Values>* into,
                          bool is_once) {
      int64_t count = 1;
      for (const int64_t size : range.shape) count *= size;
      Values& whole = into->try_emplace(range.name, Values(count, std::nan(""))).first->second;
      const Values piece = device.ReadDoubles(range.data);
      for (size_t i = 0; i < piece.size(); ++i) {
        double& element = whole[range.begin + i];
        if (is_once) {
          EXPECT_TRUE(std::isnan(element)) << range.name << " saved twice, by rank " << rank;
        } else {
          EXPECT_TRUE(std::isnan(element) || element == piece[i])
              << "rank " << rank << " has another value of " << range.name;
        }
        element = piece[i];
      }
    };
    {
      const std::lock_guard lock(mutex);
      for (const TensorRange& range : saved) fill(range, &outcome.state, true);
    }
    for (const parallel::WeightPart& part : parts) {
      weights.Gather(ctx, part);
      OMNI_RETURN_IF_ERROR(ctx.stream.Synchronize());
      std::unique_lock lock(mutex);
      for (const Bucket& bucket : storage->buckets()) {
        const bool is_there = bucket.weights != parallel::WeightStorage::kZero3 ||
                              (groups.shardings[bucket.sharding].module == part.module &&
                               (part.chunk < 0 || bucket.chunk == part.chunk));
        if (!is_there) continue;
        for (const TensorRange& range :
             parallel::FlatStorage::Ranges(bucket, 0, bucket.values, "")) {
          fill(range, &held, false);
        }
      }
      lock.unlock();
      weights.Drop(ctx, part);
    }
    const std::lock_guard lock(mutex);
    if (outcome.update_counts.empty()) outcome.update_counts = optimizer.update_counts();
    EXPECT_EQ(outcome.update_counts, optimizer.update_counts()) << "rank " << rank;
    return absl::OkStatus();
  };
  const absl::Status status =
      num_ranks == 1 ? rank_main(nullptr, 0)
                     : test::RunRanks(num_ranks, "shm", [&](Communicator& comm, int32_t rank) {
                         return rank_main(&comm, rank);
                       });
  EXPECT_TRUE(status.ok()) << status;
  for (const auto& [name, whole] : outcome.state) {
    for (const double v : whole) {
      if (!std::isfinite(v)) ADD_FAILURE() << name << " is not saved whole, or not finite";
    }
  }
  for (const ParameterSpec& spec : run.model.specs()) {
    EXPECT_EQ(held.count(spec.path), 1u) << spec.path;
    if (run.dtype != DType::kBFloat16) {
      EXPECT_EQ(held[spec.path], outcome.state[spec.path]) << spec.path;
    }
  }
  return outcome;
}

}  // namespace omni::trainer
