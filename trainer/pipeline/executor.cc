#include "trainer/pipeline/executor.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "runtime/base/status.h"
#include "runtime/ops/copy.h"
#include "runtime/ops/rows.h"

namespace omni::trainer {

using parallel::Action;
using parallel::ActionKind;
using parallel::Payload;

namespace {

TensorView Scalar(ExecContext& ctx, DType dtype, double value) {
  if (dtype == DType::kFloat64) return UploadNew<double>(ctx, {&value, 1}, {1});
  const auto narrow = static_cast<float>(value);
  return UploadNew<float>(ctx, {&narrow, 1}, {1});
}

std::vector<double> ReadWide(ExecContext& ctx, const TensorView& view) {
  if (view.dtype == DType::kFloat64) return HostRead<double>(ctx, view);
  const std::vector<float> narrow = HostRead<float>(ctx, view);
  return {narrow.begin(), narrow.end()};
}

// `from` without memory: zeros.
void CopyOrZero(ExecContext& ctx, const TensorView& from, const TensorView& to) {
  if (to.num_elements() == 0) return;
  if (from.empty()) {
    FillWith(ctx, 0.0, to);
  } else {
    CopyTo(ctx, from, to);
  }
}

bool IsTransfer(const Action& action) {
  return action.kind == ActionKind::kSend || action.kind == ActionKind::kRecv;
}

}  // namespace

bool TrainedParts::before_chunk(int32_t chunk) const {
  const bool any_encoder = std::find(encoders.begin(), encoders.end(), true) != encoders.end();
  return any_encoder || embedding || (chunk > 0 && decoder);
}

// What the forward of a (chunk, microbatch) leaves for its backward.
struct Executor::Segment {
  Segment(Device& device, int32_t c, int32_t m)
      : chunk(c), microbatch(m), tape(device), scratch(device) {}

  const int32_t chunk, microbatch;
  std::unique_ptr<Message> input;         // the input's memory
  std::unique_ptr<Message> output_grads;  // which weight gradients read as well
  Tape tape;
  TensorArena scratch;  // instead of the tape where nothing is recorded; root gradients
  bool recorded = false;

  Var hidden_in;
  std::vector<Var> features_in;           // as CrossingInto
  std::vector<std::vector<Var>> rows_in;  // chunk 0: by encoder, its features
  backbone::StageBoundary out;
  CrossEntropyResult loss;
  std::vector<backbone::AuxiliaryLoss> auxiliary;
  std::vector<TensorView> expert_offsets;
};

struct Executor::Encoding {
  Encoding(Device& device, int32_t e, int32_t g)
      : encoder(e), group(g), tape(device), scratch(device) {}

  const int32_t encoder, group;
  Tape tape;
  TensorArena scratch;
  bool keeps = false;  // for its backward
  bool recorded = false;
  encoders::EncoderOutput whole, shard;  // without rows: views without memory
};

Executor::Executor(ExecutorOptions options)
    : options_(std::move(options)),
      schedule_(options_.layout.Schedule(1, {})),
      rows_({.device = options_.device,
             .groups = options_.groups,
             .data = options_.data,
             .rank = options_.rank,
             .hidden = options_.model.decoder().config().hidden,
             .dtype = options_.dtype,
             .num_deepstack =
                 [&] {
                   std::vector<int32_t> counts;
                   for (const auto& [name, encoder] : options_.model.encoders()) {
                     counts.push_back(encoder->num_deepstack());
                   }
                   return counts;
                 }(),
             .staging = options_.layout.config().staging,
             .whole_mib = options_.layout.config().staged_whole_mib,
             .deadline = options_.deadline,
             .trace = options_.trace}) {}

Executor::~Executor() = default;

const backbone::Decoder& Executor::decoder(int32_t chunk) const {
  const std::vector<int32_t> own = schedule_.ChunksOf(options_.layout.PipelineRank(options_.rank));
  const auto found = std::find(own.begin(), own.end(), chunk);
  OMNI_CHECK(found != own.end());
  return *options_.model.chunks()[found - own.begin()];
}

// Where experts are shared between replicas all of them run every microbatch, also an empty one.
bool Executor::IsEmpty(int32_t microbatch) const {
  return sequences_[microbatch].pack().num_tokens() == 0 &&
         options_.groups.decoder().expert.is_alone();
}

absl::Status Executor::Run(const parallel::Program& program, const ExecutorStep& step) {
  step_ = &step;
  flops_ = {};
  sequences_.clear();
  sequences_.reserve(step.batch.microbatches.size());  // ops may keep pointers to them
  for (const dataloader::Microbatch& microbatch : step.batch.microbatches) {
    sequences_.emplace_back(microbatch.tokens, options_.groups.decoder(),
                            options_.data.ring_threshold);
    sequences_.back().set_recomputes_parts(step.with_gradients &&
                                           options_.layout.config().recompute ==
                                               parallel::Recompute::kSelective);
  }
  if (step.plan != nullptr) {
    plan_ = first_stage_plan_ = *step.plan;
  } else {
    plan_ = parallel::PlanReshard(step.batch.layout, options_.data, options_.rank);
    const int32_t first = options_.data.RankAt(0, options_.data.Replica(options_.rank),
                                               options_.data.SequenceIndex(options_.rank));
    first_stage_plan_ = first == options_.rank
                            ? plan_
                            : parallel::PlanReshard(step.batch.layout, options_.data, first);
  }
  rows_.Begin(plan_);
  schedule_.microbatches = static_cast<int32_t>(step.batch.microbatches.size());
  backwards_.clear();
  for (size_t i = 0; i < program.size();) {
    // Transfers of one slot are posted together.
    size_t end = i + 1;
    while (IsTransfer(program[i]) && end < program.size() && IsTransfer(program[end]) &&
           program[i].slot >= 0 && program[end].slot == program[i].slot) {
      ++end;
    }
    TransferBatch batch;
    for (; i < end; ++i) {
      if (step.on_action) step.on_action(program[i]);
      const TraceSpan span(options_.trace, ToString(program[i]), "action");
      OMNI_RETURN_IF_ERROR(RunAction(program[i], &batch));
    }
    batch.Post();
    outbox_.Sweep();
    rows_.Sweep();
    OMNI_RETURN_IF_ERROR(options_.groups.status());
  }
  OMNI_RETURN_IF_ERROR(outbox_.Drain(options_.deadline));
  OMNI_RETURN_IF_ERROR(rows_.Drain());
  OMNI_CHECK(segments_.empty() && encodings_.empty());
  return absl::OkStatus();
}

absl::Status Executor::RunAction(const Action& action, TransferBatch* batch) {
  switch (action.kind) {
    case ActionKind::kForward:
    case ActionKind::kBackward:
    case ActionKind::kBackwardInput:
    case ActionKind::kWeightGrad:
      return RunChunk(action);
    case ActionKind::kEncodeForward:
      return Encode(action.encoder, action.microbatch, /*keeps=*/true);
    case ActionKind::kEncodeOnly:
      return Encode(action.encoder, action.microbatch, /*keeps=*/false);
    case ActionKind::kEncodeBackward:
      return EncodeBackward(action.encoder, action.microbatch);
    case ActionKind::kSend:
    case ActionKind::kRecv:
      return PostTransfer(action, batch);
    case ActionKind::kForwardBackward:
      break;
    case ActionKind::kReduceGradients:
    case ActionKind::kAgree:
    case ActionKind::kUpdate:
    case ActionKind::kGatherParameters:
      return step_->on_end(action);
  }
  return absl::InternalError(absl::StrCat("a pipeline has no action ", ToString(action)));
}

absl::Status Executor::RunChunk(const Action& action) {
  const int32_t chunk = action.chunk, microbatch = action.microbatch;
  const bool is_forward = action.kind == ActionKind::kForward;
  const bool inputs_only = action.kind == ActionKind::kBackwardInput;
  // Also for a microbatch that is empty here: other replicas have theirs.
  ExecContext ctx{.device = options_.device, .stream = options_.stream};
  const parallel::WeightPart part{.module = "decoder", .chunk = chunk};
  parallel::ShardedWeights* const weights = options_.weights;
  if (weights != nullptr) weights->Gather(ctx, part);
  if (weights != nullptr && !is_forward) weights->BeginGradients(ctx, part);
  absl::Status status;
  if (is_forward) {
    status = Forward(chunk, microbatch);
  } else if (action.kind == ActionKind::kWeightGrad) {
    WeightGrad(chunk, microbatch);
  } else {
    status = Backward(chunk, microbatch, inputs_only);
  }
  if (weights == nullptr || !status.ok()) return status;
  if (!is_forward && !inputs_only) weights->ReduceGradients(ctx, part);
  weights->Drop(ctx, part);
  return absl::OkStatus();
}

absl::Status Executor::PostTransfer(const Action& action, TransferBatch* batch) {
  switch (action.payload) {
    case Payload::kRows:
    case Payload::kRowGrads:
      return PostRows(action, batch);
    case Payload::kHidden:
    case Payload::kHiddenGrad:
      PostHidden(action, batch);
      return absl::OkStatus();
    case Payload::kNone:
      break;
  }
  return absl::InternalError(absl::StrCat("nothing to carry: ", ToString(action)));
}

absl::Status Executor::PostRows(const Action& action, TransferBatch* batch) {
  const bool is_grad = action.payload == Payload::kRowGrads;
  const int32_t encoder = action.encoder, group = action.microbatch;
  if ((action.kind == ActionKind::kSend) == is_grad) {  // on the first stage
    is_grad ? rows_.SendGrads(encoder, group, action.peer, batch)
            : rows_.ReceiveRows(encoder, group, action.peer, batch);
    return absl::OkStatus();
  }
  ExecContext ctx{.device = options_.device, .stream = options_.stream};
  if (is_grad) return rows_.ReceiveGrads(ctx, encoder, group, batch);
  OMNI_RETURN_IF_ERROR(rows_.SendRows(ctx, encoder, group, batch));
  DropIfUnkept(encoder, group);
  return absl::OkStatus();
}

// What was encoded without recording had to stay until its rows had been packed.
void Executor::DropIfUnkept(int32_t encoder, int32_t group) {
  const auto found = encodings_.find({encoder, group});
  if (found != encodings_.end() && !found->second->keeps) encodings_.erase(found);
}

void Executor::PostHidden(const Action& action, TransferBatch* batch) {
  const bool is_send = action.kind == ActionKind::kSend;
  const bool is_grad = action.payload == Payload::kHiddenGrad;
  // A gradient crosses the boundary of the chunk after the one that consumes it.
  const int32_t boundary = is_grad ? action.chunk + 1 : action.chunk;
  if (IsEmpty(action.microbatch)) return;
  if (is_grad && !step_->trained.before_chunk(boundary)) return;
  const int64_t num_rows = CrossingInto(boundary, action.microbatch).total();
  if (num_rows == 0) return;
  auto& messages = is_grad ? grads_ : inputs_;
  const Key key(action.chunk, action.microbatch);
  Communicator* const comm =
      (is_grad ? options_.groups.hidden_grads() : options_.groups.hidden()).comm;
  if (is_send) {
    auto node = messages.extract(key);
    OMNI_CHECK(!node.empty());
    batch->Send(comm, node.mapped()->rows, action.peer, node.mapped().get());
    outbox_.Keep(std::move(node.mapped()));
  } else {
    auto message = NewMessage(num_rows);
    batch->Recv(comm, message->rows, action.peer, message.get());
    messages[key] = std::move(message);
  }
}

int64_t Executor::Crossing::total() const {
  int64_t sum = hidden;
  for (const Feature& feature : features) sum += feature.rows;
  return sum;
}

Executor::Crossing Executor::CrossingInto(int32_t chunk, int32_t microbatch) const {
  Crossing crossing{.hidden = sequences_[microbatch].num_rows()};
  const int32_t first_layer = options_.layout.LayersOf(chunk).first;
  const int32_t group = microbatch / options_.data.group_size;
  for (size_t e = 0; e < options_.model.encoders().size(); ++e) {
    const int32_t depth = options_.model.encoders()[e].second->num_deepstack();
    if (depth <= first_layer) continue;
    const auto rows = static_cast<int64_t>(
        RowExchange::TokenRows(first_stage_plan_.groups[e][group], microbatch).size());
    for (int32_t layer = first_layer; rows > 0 && layer < depth; ++layer) {
      crossing.features.push_back({static_cast<int32_t>(e), layer, rows});
    }
  }
  return crossing;
}

absl::Status Executor::TakeInput(ExecContext& ctx, Segment& segment, backbone::StageBoundary* in) {
  const parallel::SequenceContext& sequence = sequences_[segment.microbatch];
  const int32_t group = segment.microbatch / options_.data.group_size;
  const auto input = [&](const TensorView& view, bool wants_grad) {
    return ctx.tape == nullptr ? Var{.value = view} : ctx.tape->Input(view, wants_grad);
  };
  const auto token_rows = [&](int32_t encoder) {
    const std::vector<int32_t> rows =
        RowExchange::TokenRows(first_stage_plan_.groups[encoder][group], segment.microbatch);
    return UploadNew<int32_t>(ctx, rows, {static_cast<int64_t>(rows.size())});
  };
  const bool wants_grad = step_->trained.before_chunk(segment.chunk);
  if (segment.chunk > 0) {
    int64_t row = 0;
    const Crossing crossing = CrossingInto(segment.chunk, segment.microbatch);
    segment.hidden_in = input(segment.input->rows.Rows(row, crossing.hidden), wants_grad);
    in->hidden_TH = segment.hidden_in;
    row += crossing.hidden;
    segment.features_in.clear();
    for (const Crossing::Feature& feature : crossing.features) {
      segment.features_in.push_back(input(segment.input->rows.Rows(row, feature.rows),
                                          step_->trained.encoders[feature.encoder]));
      in->deepstack.push_back({.layer = feature.layer,
                               .rows_RH = segment.features_in.back(),
                               .token_rows_R = token_rows(feature.encoder)});
      row += feature.rows;
    }
    return absl::OkStatus();
  }
  in->hidden_TH = decoder(0).Embed(ctx, sequence);
  // Whether it has a gradient must not depend on which rank has rows of encoders.
  if (wants_grad && ctx.tape != nullptr && !in->hidden_TH.needs_grad()) {
    in->hidden_TH = ctx.tape->Input(in->hidden_TH.value, true);
  }
  segment.rows_in.assign(options_.model.encoders().size(), {});
  for (size_t i = 0; i < segment.rows_in.size(); ++i) {
    const auto encoder = static_cast<int32_t>(i);
    std::vector<TensorView> features;
    OMNI_RETURN_IF_ERROR(rows_.TakeRows(encoder, group, segment.microbatch, &features));
    if (features.empty()) continue;
    const TensorView token_rows_R = token_rows(encoder);
    for (const TensorView& rows_RH : features) {
      const Var rows = input(rows_RH, step_->trained.encoders[encoder]);
      segment.rows_in[i].push_back(rows);
      if (segment.rows_in[i].size() == 1) {
        in->hidden_TH = ScatterRows(ctx, in->hidden_TH, rows, token_rows_R);
      } else {
        in->deepstack.push_back({.layer = static_cast<int32_t>(segment.rows_in[i].size()) - 2,
                                 .rows_RH = rows,
                                 .token_rows_R = token_rows_R});
      }
    }
  }
  return absl::OkStatus();
}

absl::Status Executor::Record(Segment& segment, bool records) {
  ExecContext ctx{.device = options_.device,
                  .stream = options_.stream,
                  .tape = records ? &segment.tape : nullptr,
                  .arena = &segment.scratch};
  const backbone::Decoder& chunk = decoder(segment.chunk);
  const parallel::SequenceContext& sequence = sequences_[segment.microbatch];
  backbone::StageBoundary in;
  OMNI_RETURN_IF_ERROR(TakeInput(ctx, segment, &in));
  backbone::RoutingRecord record;
  segment.out = chunk.Forward(ctx, in, sequence, &record);
  segment.expert_offsets = record.offsets_E1;
  const backbone::DecoderConfig& config = chunk.config();
  segment.auxiliary =
      RouterLosses(ctx, config.moe, config.num_moe_layers(), record, sequence, step_->scales);
  std::vector<Var> outputs;
  if (chunk.part().has_head) {
    segment.loss = chunk.Loss(ctx, segment.out, sequence, step_->scales.loss_token);
    outputs = {
        segment.loss.loss, {.value = segment.loss.losses_T}, {.value = segment.loss.argmax_T}};
  } else {
    outputs.push_back(segment.out.hidden_TH);
    for (const backbone::DeepstackRows& rows : segment.out.deepstack) {
      outputs.push_back(rows.rows_RH);
    }
  }
  for (const backbone::AuxiliaryLoss& loss : segment.auxiliary) outputs.push_back(loss.value);
  for (const TensorView& offsets_E1 : segment.expert_offsets) outputs.push_back({offsets_E1});
  if (records) segment.tape.EndForward(outputs);
  segment.recorded = records;
  return absl::OkStatus();
}

absl::Status Executor::Forward(int32_t chunk, int32_t microbatch) {
  if (IsEmpty(microbatch)) return absl::OkStatus();
  auto owned = std::make_unique<Segment>(options_.device, chunk, microbatch);
  Segment& segment = *owned;
  if (chunk > 0) {
    auto input = inputs_.extract({chunk, microbatch});
    if (!input.empty()) {
      OMNI_RETURN_IF_ERROR(input.mapped()->Await(options_.deadline, options_.trace));
      segment.input = std::move(input.mapped());
    } else {
      segment.input = NewMessage(0);
    }
  }
  const bool keeps =
      step_->with_gradients && options_.layout.config().recompute != parallel::Recompute::kFull;
  OMNI_RETURN_IF_ERROR(Record(segment, keeps));
  ExecContext ctx{.device = options_.device, .stream = options_.stream, .arena = &segment.scratch};
  Report(ctx, segment);
  if (chunk + 1 < num_chunks()) {
    // As it travels; to a chunk on this rank it does not.
    const Crossing crossing = CrossingInto(chunk + 1, microbatch);
    auto output = NewMessage(crossing.total());
    CopyOrZero(ctx, segment.out.hidden_TH.value, output->rows.Rows(0, crossing.hidden));
    int64_t row = crossing.hidden;
    OMNI_CHECK_EQ(crossing.features.size(), segment.out.deepstack.size());
    for (const backbone::DeepstackRows& rows : segment.out.deepstack) {
      const int64_t count = rows.rows_RH.value.size(0);
      CopyOrZero(ctx, rows.rows_RH.value, output->rows.Rows(row, count));
      row += count;
    }
    inputs_[{chunk + 1, microbatch}] = std::move(output);
  }
  if (!keeps) segment.scratch.Release();
  if (step_->with_gradients) segments_[{chunk, microbatch}] = std::move(owned);
  return absl::OkStatus();
}

void Executor::Report(ExecContext& ctx, Segment& segment) {
  const backbone::Decoder& chunk = decoder(segment.chunk);
  const parallel::SequenceContext& sequence = sequences_[segment.microbatch];
  flops_.decoder += chunk.Flops(sequence, step_->trained.before_chunk(segment.chunk));
  if (step_->on_routing && !segment.expert_offsets.empty()) {
    step_->on_routing(ctx, segment.auxiliary, segment.expert_offsets, chunk.part().first_layer);
  }
  if (!chunk.part().has_head || !step_->on_losses || sequence.num_rows() == 0) return;
  step_->on_losses(segment.microbatch, sequence.own_tokens(), ReadWide(ctx, segment.loss.losses_T),
                   HostRead<int32_t>(ctx, segment.loss.argmax_T));
}

// What a group's microbatches read of towers that do not train is not needed after their last
// backward of chunk 0. Those that are empty here count as well.
void Executor::CountBackward(int32_t microbatch) {
  const int32_t group = schedule_.GroupOf(microbatch);
  // The last group may have fewer microbatches than others.
  const int32_t size = schedule_.LastOf(group) - schedule_.FirstOf(group) + 1;
  if (++backwards_[group] < size) return;
  for (size_t e = 0; e < step_->trained.encoders.size(); ++e) {
    if (!step_->trained.encoders[e]) rows_.ReleaseRows(static_cast<int32_t>(e), group);
  }
}

absl::Status Executor::Backward(int32_t chunk, int32_t microbatch, bool inputs_only) {
  if (IsEmpty(microbatch)) {
    if (chunk == 0) CountBackward(microbatch);
    return absl::OkStatus();
  }
  Segment& segment = *segments_.at({chunk, microbatch});
  if (!segment.recorded) OMNI_RETURN_IF_ERROR(Record(segment, /*records=*/true));
  ExecContext ctx{.device = options_.device, .stream = options_.stream, .arena = &segment.scratch};
  std::vector<Tape::RootGrad> roots;
  const auto add_loss = [&](const Var& loss, double coefficient) {
    if (!loss.needs_grad() || coefficient == 0.0) return;
    roots.push_back({.output = loss, .grad = Scalar(ctx, loss.value.dtype, coefficient)});
  };
  if (chunk + 1 == num_chunks()) {
    add_loss(segment.loss.loss, 1.0);
  } else if (step_->trained.before_chunk(chunk + 1)) {
    auto grads = grads_.extract({chunk, microbatch});
    if (!grads.empty()) {
      segment.output_grads = std::move(grads.mapped());
      OMNI_RETURN_IF_ERROR(segment.output_grads->Await(options_.deadline, options_.trace));
      int64_t row = 0;
      const auto add_rows = [&](const Var& rows) {
        const int64_t count = rows.value.size(0);
        if (rows.needs_grad()) roots.push_back({rows, segment.output_grads->rows.Rows(row, count)});
        row += count;
      };
      add_rows(segment.out.hidden_TH);
      for (const backbone::DeepstackRows& rows : segment.out.deepstack) add_rows(rows.rows_RH);
    } else if (segment.out.hidden_TH.needs_grad()) {
      // Without rows here others that share experts or sequences may have some, and wait for us.
      roots.push_back({segment.out.hidden_TH, segment.out.hidden_TH.value});
    }
  }
  for (const backbone::AuxiliaryLoss& loss : segment.auxiliary) {
    add_loss(loss.value, loss.coefficient);
  }
  ExecContext backward{.device = options_.device, .stream = options_.stream, .tape = &segment.tape};
  const bool has_gradient = !roots.empty();
  if (has_gradient) {
    inputs_only ? segment.tape.BackwardInput(backward, roots)
                : segment.tape.Backward(backward, roots);
  }
  const auto grad_of = [&](const Var& input) {
    return has_gradient && input.needs_grad() ? segment.tape.GradOf(input) : TensorView{};
  };
  if (chunk == 0) {
    const int32_t group = microbatch / options_.data.group_size;
    for (size_t e = 0; e < segment.rows_in.size(); ++e) {
      if (segment.rows_in[e].empty() || !step_->trained.encoders[e]) continue;
      std::vector<TensorView> features;
      for (const Var& rows : segment.rows_in[e]) features.push_back(grad_of(rows));
      rows_.GiveGrads(ctx, static_cast<int32_t>(e), group, microbatch, features);
    }
    CountBackward(microbatch);
  } else if (step_->trained.before_chunk(chunk)) {
    const Crossing crossing = CrossingInto(chunk, microbatch);
    auto grads = NewMessage(crossing.total());
    CopyOrZero(ctx, grad_of(segment.hidden_in), grads->rows.Rows(0, crossing.hidden));
    int64_t row = crossing.hidden;
    for (size_t i = 0; i < crossing.features.size(); ++i) {
      const int64_t count = crossing.features[i].rows;
      CopyOrZero(ctx, grad_of(segment.features_in[i]), grads->rows.Rows(row, count));
      row += count;
    }
    grads_[{chunk - 1, microbatch}] = std::move(grads);
  }
  if (!inputs_only || !has_gradient) segments_.erase({chunk, microbatch});
  return absl::OkStatus();
}

void Executor::WeightGrad(int32_t chunk, int32_t microbatch) {
  const auto found = segments_.find({chunk, microbatch});
  if (found == segments_.end()) return;  // empty, or nothing had a gradient
  ExecContext ctx{
      .device = options_.device, .stream = options_.stream, .tape = &found->second->tape};
  found->second->tape.WeightGrad(ctx);
  segments_.erase(found);
}

void Executor::RunEncoder(ExecContext& ctx, Encoding& encoding) {
  const encoders::Encoder& encoder = *options_.model.encoders()[encoding.encoder].second;
  const dataloader::EncodeBatch& batch = step_->batch.encodes[encoding.encoder][encoding.group];
  encoders::EncodeOptions options{.recompute = options_.layout.encoder(encoding.encoder).recompute};
  if (!batch.whole.items.empty()) encoding.whole = encoder.Encode(ctx, batch.whole, options);
  if (!batch.shard.items.empty()) {
    const RankGroups::EncoderGroups& groups = options_.groups.encoders()[encoding.encoder];
    options.shard = {.ulysses = groups.ulysses, .ring = groups.ring};
    encoding.shard = encoder.Encode(ctx, batch.shard, options);
  }
  if (ctx.tape == nullptr) return;
  std::vector<Var> outputs;
  for (const encoders::EncoderOutput* output : {&encoding.whole, &encoding.shard}) {
    if (!output->rows_RH.value.empty()) outputs.push_back(output->rows_RH);
    outputs.insert(outputs.end(), output->deepstack_RH.begin(), output->deepstack_RH.end());
  }
  ctx.tape->EndForward(outputs);
  encoding.recorded = true;
}

absl::Status Executor::Encode(int32_t encoder, int32_t group, bool keeps) {
  auto owned = std::make_unique<Encoding>(options_.device, encoder, group);
  Encoding& encoding = *owned;
  encoding.keeps = keeps;
  ExecContext ctx{.device = options_.device,
                  .stream = options_.stream,
                  .tape = keeps ? &encoding.tape : nullptr,
                  .arena = &encoding.scratch};
  const std::string& name = options_.model.encoders()[encoder].first;
  if (options_.weights != nullptr) options_.weights->Gather(ctx, {name});
  RunEncoder(ctx, encoding);
  if (options_.weights != nullptr) options_.weights->Drop(ctx, {name});
  // Feature by feature, whole samples' rows before shards'.
  std::vector<std::vector<TensorView>> features = {
      {encoding.whole.rows_RH.value, encoding.shard.rows_RH.value}};
  const int32_t depth = options_.model.encoders()[encoder].second->num_deepstack();
  for (int32_t i = 0; i < depth; ++i) {
    features.emplace_back();
    for (const encoders::EncoderOutput* output : {&encoding.whole, &encoding.shard}) {
      if (!output->deepstack_RH.empty()) features.back().push_back(output->deepstack_RH[i].value);
    }
  }
  rows_.SetEncoded(encoder, group, std::move(features));
  const dataloader::EncodeBatch& batch = step_->batch.encodes[encoder][group];
  const encoders::Encoder& tower = *options_.model.encoders()[encoder].second;
  flops_.encoders += tower.Flops(batch.whole.items);
  FlopCount shared = tower.Flops(batch.shard.items);
  const int64_t sequence = options_.layout.encoder(encoder).sequence;
  flops_.encoders += {.forward = shared.forward / sequence, .backward = shared.backward / sequence};
  encodings_[{encoder, group}] = std::move(owned);
  if (options_.layout.PipelineRank(options_.rank) != 0)
    return absl::OkStatus();  // SendRows is next
  OMNI_RETURN_IF_ERROR(rows_.ExchangeRows(ctx, encoder, group));
  DropIfUnkept(encoder, group);
  return absl::OkStatus();
}

absl::Status Executor::EncodeBackward(int32_t encoder, int32_t group) {
  auto kept = encodings_.extract({encoder, group});
  std::unique_ptr<Encoding> owned =
      kept.empty() ? std::make_unique<Encoding>(options_.device, encoder, group)
                   : std::move(kept.mapped());
  Encoding& encoding = *owned;
  ExecContext ctx{.device = options_.device,
                  .stream = options_.stream,
                  .tape = &encoding.tape,
                  .arena = &encoding.scratch};
  ExecContext untaped{
      .device = options_.device, .stream = options_.stream, .arena = &encoding.scratch};
  if (options_.layout.PipelineRank(options_.rank) == 0) {
    OMNI_RETURN_IF_ERROR(rows_.ExchangeGrads(untaped, encoder, group));
  }
  const std::string& name = options_.model.encoders()[encoder].first;
  if (options_.weights != nullptr) {
    options_.weights->Gather(ctx, {name});
    options_.weights->BeginGradients(ctx, {name});
  }
  if (!encoding.recorded) RunEncoder(ctx, encoding);
  std::vector<TensorView> features;
  OMNI_RETURN_IF_ERROR(rows_.TakeGrads(untaped, encoder, group, &features));
  std::vector<Tape::RootGrad> roots;
  int64_t first = 0;
  for (const encoders::EncoderOutput* output : {&encoding.whole, &encoding.shard}) {
    const bool is_shard = output == &encoding.shard;
    const dataloader::EncodeBatch& batch = step_->batch.encodes[encoder][group];
    if ((is_shard ? batch.shard : batch.whole).items.empty()) continue;
    const int64_t count = output->rows_RH.value.size(0);
    const auto add = [&](const Var& rows, size_t feature) {
      if (!rows.needs_grad()) return;
      // Without rows here there may still be collectives to take part in.
      roots.push_back({rows, features.empty() ? rows.value : features[feature].Rows(first, count)});
    };
    add(output->rows_RH, 0);
    for (size_t i = 0; i < output->deepstack_RH.size(); ++i) add(output->deepstack_RH[i], i + 1);
    first += count;
  }
  if (!roots.empty()) encoding.tape.Backward(ctx, roots);
  if (options_.weights != nullptr) {
    options_.weights->ReduceGradients(ctx, {name});
    options_.weights->Drop(ctx, {name});
  }
  return absl::OkStatus();
}

}  // namespace omni::trainer
