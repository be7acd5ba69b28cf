#include "trainer/pipeline/rank_groups.h"

#include <algorithm>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "runtime/base/status.h"

namespace omni::trainer {
namespace {

using parallel::Axis;
using parallel::Group;
using parallel::Layout;
using Groups = std::vector<std::vector<int32_t>>;

// First and last stage at each place of a stage that a tensor rank holds: the tied embedding's.
Groups TiedGroups(const Layout& layout, int32_t first_stage, int32_t last_stage) {
  const int32_t stage_ranks = layout.config().stage_ranks(), tensor = layout.config().tensor;
  Groups groups(tensor);
  std::vector<int32_t> stages = {first_stage};
  if (last_stage != first_stage) stages.push_back(last_stage);
  std::sort(stages.begin(), stages.end());
  for (const int32_t stage : stages) {
    for (int32_t i = 0; i < stage_ranks; ++i) {
      groups[i % tensor].push_back(stage * stage_ranks + i);
    }
  }
  return groups;
}

// Tensor ranks are innermost: runs of those that hold the same KV head.
Groups CopyGroups(const Layout& layout, int32_t copies) {
  Groups groups;
  for (int32_t first = 0; first < layout.num_ranks(); first += copies) {
    groups.emplace_back(copies);
    std::iota(groups.back().begin(), groups.back().end(), first);
  }
  return groups;
}

// Of a sequence group's ranks, index = ring * ulysses + place: by heads, and around the ring.
std::pair<Groups, Groups> SplitSequence(const Groups& sequence, int32_t ulysses) {
  Groups by_heads, rings;
  for (const std::vector<int32_t>& ranks : sequence) {
    const auto ring = static_cast<int32_t>(ranks.size()) / ulysses;
    for (int32_t r = 0; r < ring; ++r) {
      by_heads.emplace_back(ranks.begin() + r * ulysses, ranks.begin() + (r + 1) * ulysses);
    }
    for (int32_t u = 0; u < ulysses; ++u) {
      rings.emplace_back();
      for (int32_t r = 0; r < ring; ++r) rings.back().push_back(ranks[r * ulysses + u]);
    }
  }
  return {std::move(by_heads), std::move(rings)};
}

Groups Domains(const parallel::DataLayout& data, int32_t encoder) {
  const int32_t replicas = data.DomainReplicas(encoder);
  Groups groups;
  for (int32_t first = 0; first < data.replicas; first += replicas) {
    groups.emplace_back();
    for (int32_t rank = 0; rank < data.num_ranks(); ++rank) {
      if (data.Replica(rank) / replicas == first / replicas) groups.back().push_back(rank);
    }
  }
  return groups;
}

}  // namespace

absl::Status RankGroups::Split(Communicator* world, const Groups& groups,
                               const std::string& channel, Stream& stream, Group* group) {
  for (const std::vector<int32_t>& ranks : groups) {
    if (ranks.size() == 1) continue;  // alone; so all ranks see it, and none splits
    OMNI_ASSIGN_OR_RETURN(std::unique_ptr<Communicator> comm, world->Split(ranks, channel));
    if (comm == nullptr) continue;
    comm->SetInputStream(&stream);
    group->comm = comm.get();
    owned_.push_back(std::move(comm));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<RankGroups>> RankGroups::Create(Communicator* world,
                                                               const Layout& layout,
                                                               const std::vector<int32_t>& heads,
                                                               Stream& stream) {
  std::unique_ptr<RankGroups> groups(new RankGroups);
  groups->encoders_.resize(layout.num_encoders());
  if (world == nullptr || world->size() == 1) {
    for (EncoderGroups& encoder : groups->encoders_) encoder.domain_ranks = {0};
    return groups;
  }
  const auto split = [&](const Groups& ranks, const std::string& channel, Group* group) {
    return groups->Split(world, ranks, channel, stream, group);
  };
  const auto axes = [&](const parallel::Mesh& mesh, std::vector<Axis> over, const char* channel,
                        Group* group) { return split(mesh.Groups(over), channel, group); };
  const parallel::Mesh& mesh = layout.decoder_mesh();
  OMNI_RETURN_IF_ERROR(axes(mesh, {Axis::kTensor}, "tensor", &groups->decoder_.tensor));
  OMNI_RETURN_IF_ERROR(axes(mesh, {Axis::kUlysses}, "ulysses", &groups->decoder_.ulysses));
  OMNI_RETURN_IF_ERROR(axes(mesh, {Axis::kContext}, "ring", &groups->decoder_.ring));
  OMNI_RETURN_IF_ERROR(axes(mesh, {Axis::kContext, Axis::kUlysses, Axis::kTensor}, "sequence",
                            &groups->decoder_.sequence));
  OMNI_RETURN_IF_ERROR(
      axes(layout.expert_mesh(), {Axis::kExpert}, "expert", &groups->decoder_.expert));
  OMNI_RETURN_IF_ERROR(axes(mesh, {Axis::kPipeline}, "hidden", &groups->hidden_));
  OMNI_RETURN_IF_ERROR(axes(mesh, {Axis::kPipeline}, "hidden_grads", &groups->hidden_grads_));

  using parallel::PlacementClass;
  const auto gradients = [&](PlacementClass placement) {
    return &groups->placement_.of(placement);
  };
  groups->placement_.tensor = groups->decoder_.tensor;
  groups->placement_.world = Group{world};
  const std::vector<Axis> stage = {Axis::kData, Axis::kContext, Axis::kUlysses, Axis::kTensor};
  OMNI_RETURN_IF_ERROR(axes(mesh, stage, "stage_gradients", gradients(PlacementClass::kStage)));
  OMNI_RETURN_IF_ERROR(axes(mesh, {Axis::kData, Axis::kContext, Axis::kUlysses}, "tensor_gradients",
                            gradients(PlacementClass::kTensor)));
  OMNI_RETURN_IF_ERROR(axes(layout.expert_mesh(), {Axis::kData}, "expert_gradients",
                            gradients(PlacementClass::kExpert)));
  const parallel::ScheduleOptions schedule = layout.Schedule(1, {});
  OMNI_RETURN_IF_ERROR(
      split(TiedGroups(layout, schedule.RankOf(0), schedule.RankOf(schedule.num_chunks() - 1)),
            "tied_gradients", gradients(PlacementClass::kTied)));
  std::vector<int32_t> all(layout.num_ranks());
  std::iota(all.begin(), all.end(), 0);
  OMNI_RETURN_IF_ERROR(split({all}, "encoder_gradients", gradients(PlacementClass::kEncoder)));
  if (layout.config().weights != parallel::WeightStorage::kReplicated) {
    // All ranks that have a parameter share it out; a tied embedding, used by two chunks, stays.
    for (const PlacementClass placement :
         {PlacementClass::kStage, PlacementClass::kTensor, PlacementClass::kExpert}) {
      groups->placement_.shardings.push_back({.module = "decoder",
                                              .placement = placement,
                                              .weights = layout.config().weights,
                                              .within = groups->placement_.of(placement),
                                              .across = {}});
    }
  }
  if (const int32_t copies = layout.kv_copies(); copies > 1) {
    OMNI_RETURN_IF_ERROR(
        split(CopyGroups(layout, copies), "kv_copies", &groups->placement_.copies));
  }

  const parallel::DataLayout data = parallel::DataLayout::Of(layout);
  for (int32_t e = 0; e < layout.num_encoders(); ++e) {
    EncoderGroups& own = groups->encoders_[e];
    const std::string& name = layout.encoder_names()[e];
    const std::vector<Axis> over = {Axis::kSequence};
    const auto [by_heads, rings] = SplitSequence(layout.encoder_mesh(e).Groups(over),
                                                 std::gcd(layout.encoder(e).sequence, heads[e]));
    OMNI_RETURN_IF_ERROR(split(by_heads, name + "_ulysses", &own.ulysses));
    OMNI_RETURN_IF_ERROR(split(rings, name + "_ring", &own.ring));
    if (const parallel::EncoderParallel& wishes = layout.encoder(e);
        wishes.sequence > 1 && wishes.weights != parallel::WeightStorage::kReplicated) {
      parallel::WeightSharding sharding{.module = name, .weights = wishes.weights};
      OMNI_RETURN_IF_ERROR(axes(layout.encoder_mesh(e), {Axis::kSequence},
                                (name + "_weights").c_str(), &sharding.within));
      OMNI_RETURN_IF_ERROR(axes(layout.encoder_mesh(e), {Axis::kPipeline, Axis::kInstance},
                                (name + "_gradients").c_str(), &sharding.across));
      groups->placement_.shardings.push_back(std::move(sharding));
    }
    const Groups domains = Domains(data, e);
    OMNI_RETURN_IF_ERROR(split(domains, name + "_rows", &own.rows));
    OMNI_RETURN_IF_ERROR(split(domains, name + "_row_grads", &own.row_grads));
    for (const std::vector<int32_t>& domain : domains) {
      if (std::find(domain.begin(), domain.end(), world->rank()) != domain.end()) {
        own.domain_ranks = domain;
      }
    }
  }
  return groups;
}

int32_t RankGroups::EncoderGroups::RankOf(int32_t job_rank) const {
  const auto found = std::lower_bound(domain_ranks.begin(), domain_ranks.end(), job_rank);
  OMNI_CHECK(found != domain_ranks.end() && *found == job_rank);
  return static_cast<int32_t>(found - domain_ranks.begin());
}

absl::Status RankGroups::status() const {
  for (const auto& comm : owned_) OMNI_RETURN_IF_ERROR(comm->status());
  return absl::OkStatus();
}

void RankGroups::Abort(absl::string_view reason) {
  for (const auto& comm : owned_) comm->Abort(reason);
}

}  // namespace omni::trainer
