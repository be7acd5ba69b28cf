// One step: its program executed, and what it measured.
#include <algorithm>
#include <cmath>
#include <limits>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "parallel/schedule/build.h"
#include "parallel/schedule/closed_forms.h"
#include "parallel/schedule/verify.h"
#include "runtime/base/status.h"
#include "runtime/base/text.h"
#include "runtime/device/work_count.h"
#include "trainer/step_state.h"
#include "trainer/trainer.h"

namespace omni::trainer {
namespace {

using dataloader::SampleFault;
constexpr SampleFault kFaults[] = {SampleFault::kBroken, SampleFault::kOverlong,
                                   SampleFault::kNoLoss, SampleFault::kCut, SampleFault::kBlanked};

double MsSince(int64_t begin_us) {
  return static_cast<double>(TraceRecorder::NowUs() - begin_us) / 1e3;
}

}  // namespace

absl::StatusOr<const parallel::Program*> Trainer::ProgramFor(int32_t microbatches,
                                                             const std::vector<bool>& trains) {
  const auto found = programs_.find({microbatches, trains});
  if (found != programs_.end()) return &found->second;
  const parallel::ScheduleOptions options = layout_->Schedule(microbatches, trains);
  std::vector<parallel::Program> all = BuildPrograms(options);
  parallel::VerifyLimits limits;  // no more than the schedule promises to keep
  for (int32_t r = 0; r < options.ranks; ++r) {
    limits.live_activations.push_back(
        LiveActivationsBound(options, r).value_or(options.microbatches * options.chunks_per_rank));
  }
  OMNI_RETURN_IF_ERROR(Verify(options, all, limits));
  const int32_t own = layout_->PipelineRank(rank());
  return &programs_.emplace(std::pair(microbatches, trains), std::move(all[own])).first->second;
}

TrainedParts Trainer::TrainedNow() const {
  const auto trains = [&](const std::string& name) {
    const std::vector<std::string>& modules = model_->Modules();
    return std::any_of(modules.begin(), modules.end(), [&](const std::string& module) {
      absl::string_view own = module;
      absl::ConsumePrefix(&own, "lora.");
      return (own == name || absl::StartsWith(own, name + ".")) &&
             !modules_.At(module, step_).frozen;
    });
  };
  TrainedParts trained;
  for (const auto& [name, encoder] : model_->encoders()) trained.encoders.push_back(trains(name));
  trained.embedding = !modules_.At("decoder.embedding", step_).frozen;
  trained.decoder = trains("decoder");
  return trained;
}

void Trainer::AddLosses(const dataloader::Microbatch& microbatch, absl::Span<const int32_t> tokens,
                        const std::vector<double>& losses, StepState* state) const {
  size_t row = 0;
  for (const dataloader::SampleRef& sample : microbatch.samples) {  // in the order of the pack
    double sum = 0;
    for (; row < tokens.size() && tokens[row] < sample.token_end; ++row) {
      sum += losses[row];
      state->source_tokens[sample.source] += microbatch.tokens.targets[tokens[row]] >= 0;
    }
    state->loss_sum += sum;
    state->source_loss[sample.source] += sum;
  }
}

absl::Status Trainer::AgreeOnStep(StepState* state) {
  std::vector<double> sums = {state->failure.ok() ? 0.0 : 1.0,
                              options_.link->stop_requested() ? 1.0 : 0.0,
                              state->loss_sum,
                              state->encoder_flops,
                              state->decoder_flops,
                              state->forward_backward_ms};
  const size_t num_sources = state->source_loss.size();
  sums.insert(sums.end(), state->source_loss.begin(), state->source_loss.end());
  sums.insert(sums.end(), state->source_tokens.begin(), state->source_tokens.end());
  for (const SampleFault fault : kFaults) {
    sums.push_back(static_cast<double>(state->faults[fault]));
  }
  sums.insert(sums.end(), state->router_sums.begin(), state->router_sums.end());
  OMNI_RETURN_IF_ERROR(AllReduce(&sums, ReduceOp::kSum));
  std::vector<double> maxima = {state->forward_backward_ms,
                                static_cast<double>(device_->pool().stats().high_water_bytes)};
  OMNI_RETURN_IF_ERROR(AllReduce(&maxima, ReduceOp::kMax));

  state->failures = sums[0];
  state->stops = sums[1];
  state->loss_sum = sums[2];
  state->encoder_flops = sums[3];
  state->decoder_flops = sums[4];
  state->mean_ms = sums[5] / world();
  const auto sources = sums.begin() + 6;
  std::copy_n(sources, num_sources, state->source_loss.begin());
  std::copy_n(sources + num_sources, num_sources, state->source_tokens.begin());
  auto next = sources + 2 * num_sources;
  for (const SampleFault fault : kFaults) state->faults[fault] = static_cast<int64_t>(*next++);
  std::copy_n(next, state->router_sums.size(), state->router_sums.begin());
  state->slowest_ms = maxima[0];
  state->memory_bytes_max = maxima[1];
  return absl::OkStatus();
}

bool Trainer::LoaderHasMedia(const std::string& module,
                             const dataloader::SampleCounts& counts) const {
  absl::string_view own = module;
  absl::ConsumePrefix(&own, "lora.");
  const std::string top(own.substr(0, own.find('.')));
  if (counts.loss_tokens == 0 || model_->encoder(top) == nullptr) return counts.loss_tokens > 0;
  const auto items = counts.items.find(top);
  return items != counts.items.end() && items->second > 0;
}

absl::StatusOr<std::map<std::string, double>> Trainer::RunStep() {
  const WorkCount count(progress_);
  // The ranks among themselves know more of a failure than the coordinator, which hears of it
  // later.
  if (options_.comm != nullptr) OMNI_RETURN_IF_ERROR(options_.comm->status());
  OMNI_RETURN_IF_ERROR(options_.link->job_status());
  const auto& trace_steps = options_.recipe.observe.trace_steps;
  trace_.Enable(std::find(trace_steps.begin(), trace_steps.end(), step_ + 1) != trace_steps.end());
  if (modules_.ChangesAt(step_)) Bind();
  StepState state;
  state.begin_us = TraceRecorder::NowUs();
  const size_t num_sources = options_.recipe.data.sources.size();
  state.source_loss.resize(num_sources);
  state.source_tokens.resize(num_sources);
  state.router_sums = routers_->NoSums();

  SetPhase("waiting for data");
  {
    const TraceSpan span(&trace_, "data", "loader");
    auto batch = loader_->Next(limits().data, [this] { return options_.link->stop_requested(); });
    if (batch.ok()) {
      state.batch = *std::move(batch);
    } else {
      state.gave_up = absl::IsCancelled(batch.status());
      if (!state.gave_up) state.failure = batch.status();
    }
  }
  OMNI_RETURN_IF_ERROR(AgreeOnData(&state));
  state.data_wait_ms = MsSince(state.begin_us);
  for (const dataloader::FaultEvent& fault : state.batch.faults) {
    ++state.faults[fault.fault];
    ++fault_counts_[dataloader::Name(fault.fault)];
  }
  const auto inverse = [](int64_t count) {
    return count == 0 ? 0.0 : 1.0 / static_cast<double>(count);
  };
  const parallel::LossScales scales = {.loss_token = inverse(state.batch.global_loss_tokens),
                                       .token = inverse(state.batch.global.tokens),
                                       .lane = inverse(options_.recipe.data.LanesAt(step_))};

  SetPhase("forward-backward");
  state.compute_begin_us = TraceRecorder::NowUs();
  optimizer_->BeginStep([&](const std::string& module) {
    return !modules_.At(module, step_).frozen && LoaderHasMedia(module, state.batch.global);
  });
  const TrainedParts trained = TrainedNow();
  OMNI_ASSIGN_OR_RETURN(
      const parallel::Program* program,
      ProgramFor(static_cast<int32_t>(state.batch.microbatches.size()), trained.encoders));
  const ExecutorStep step{
      .batch = state.batch,
      .scales = scales,
      .trained = trained,
      .on_losses =
          [&](int32_t microbatch, absl::Span<const int32_t> tokens,
              const std::vector<double>& losses, const std::vector<int32_t>&) {
            AddLosses(state.batch.microbatches[microbatch], tokens, losses, &state);
          },
      .on_routing =
          [&](ExecContext& context, const std::vector<backbone::AuxiliaryLoss>& losses,
              const std::vector<TensorView>& expert_offsets, int32_t first_layer) {
            routers_->Add(context, losses, expert_offsets, first_layer, &state.router_sums);
          },
      .on_end = [&](const parallel::Action& action) { return EndStep(action, &state); },
      .on_action =
          [&](const parallel::Action& action) {
            BeginActivity(ToString(action));
            if (options_.on_action) options_.on_action(action);
          }};
  OMNI_RETURN_IF_ERROR(executor_->Run(*program, step));
  arena_->Release();
  skipped_steps_ += state.skipped;
  skipped_in_a_row_ = state.skipped ? skipped_in_a_row_ + 1 : 0;
  loader_state_ = state.batch.state_after;
  tokens_done_ += state.batch.global.tokens;
  const std::map<std::string, double> values = Measure(state);
  ++step_;
  stopping_ = state.stops > 0;
  if (options_.metrics != nullptr) ExportMetrics(values, state);
  loader_->Recycle(std::move(state.batch));
  if (trace_.enabled() && !options_.run_dir.empty()) WriteTrace();
  if (skipped_in_a_row_ > options_.recipe.training.optimizer.max_skipped_steps) {
    return absl::DataLossError(absl::StrCat("gradients were not finite in ", skipped_in_a_row_,
                                            " steps in a row, up to step ", step_));
  }
  return values;
}

// A trace is for looking at: a disk that does not take it is said once, and training goes on.
void Trainer::WriteTrace() {
  const absl::Status status = trace_.WriteFile(
      absl::StrCat(options_.run_dir, "/traces/step-", step_, "-rank-", rank(), ".json"));
  if (status.ok() || trace_failed_) return;
  trace_failed_ = true;
  options_.link->Notice("warning", absl::StrCat("no trace of step ", step_,
                                                " (others are not mentioned): ", status.message()));
}

absl::Status Trainer::EndStep(const parallel::Action& action, StepState* state) {
  ExecContext ctx{.device = *device_, .stream = *stream_, .tape = nullptr, .arena = arena_.get()};
  const int64_t begin = TraceRecorder::NowUs();
  switch (action.kind) {
    case parallel::ActionKind::kReduceGradients:
      if (action.encoder >= 0 || action.chunk >= 0) {
        optimizer_->BeginReduceChunk(
            ctx, action.encoder >= 0 ? layout_->num_chunks() + action.encoder : action.chunk);
      }
      return absl::OkStatus();
    case parallel::ActionKind::kAgree: {
      OMNI_RETURN_IF_ERROR(stream_->Synchronize());
      state->forward_backward_ms = MsSince(state->compute_begin_us);
      SetPhase("agreeing");
      state->encoder_flops = static_cast<double>(executor_->flops().encoders.total());
      state->decoder_flops = static_cast<double>(executor_->flops().decoder.total());
      return AgreeOnStep(state);
    }
    case parallel::ActionKind::kUpdate: {
      SetPhase("reducing gradients");
      OMNI_RETURN_IF_ERROR(optimizer_->FinishReduce(ctx));
      OMNI_ASSIGN_OR_RETURN(state->gradients, optimizer_->Agree(ctx));
      state->skipped = !state->gradients.finite;
      state->reduce_ms = MsSince(begin);
      SetPhase("updating");
      const int64_t update_begin = TraceRecorder::NowUs();
      if (state->skipped) return absl::OkStatus();
      const double lr = options_.recipe.training.LearningRate(step_);
      OMNI_RETURN_IF_ERROR(optimizer_->Update(
          ctx, state->gradients,
          [&](const std::string& module) { return lr * modules_.At(module, step_).lr_scale; }));
      if (!modules_.At("decoder", step_).frozen && state->batch.global_loss_tokens > 0) {
        routers_->Update(ctx, state->router_sums);
      }
      OMNI_RETURN_IF_ERROR(stream_->Synchronize());
      state->update_ms = MsSince(update_begin);
      return absl::OkStatus();
    }
    case parallel::ActionKind::kGatherParameters:
      SetPhase("gathering parameters");
      if (!state->skipped) OMNI_RETURN_IF_ERROR(optimizer_->GatherParameters(ctx));
      optimizer_->ZeroGradients(ctx);
      state->gather_ms = MsSince(begin);
      return absl::OkStatus();
    default:
      return absl::InternalError(absl::StrCat("no end of a step: ", ToString(action)));
  }
}

std::map<std::string, double> Trainer::Measure(const StepState& state) {
  const dataloader::StepBatch& batch = state.batch;
  const double step_ms = MsSince(state.begin_us);
  const double seconds = step_ms / 1e3;
  const TrainingConfig& training = options_.recipe.training;
  constexpr double kAbsent = std::numeric_limits<double>::quiet_NaN();
  const bool has_loss = batch.global_loss_tokens > 0;
  std::map<std::string, double> values = {
      {"loss", has_loss ? state.loss_sum / static_cast<double>(batch.global_loss_tokens) : kAbsent},
      {"tokens", static_cast<double>(batch.global.tokens)},
      {"loss_tokens", static_cast<double>(batch.global_loss_tokens)},
      {"tokens_total", static_cast<double>(tokens_done_)},
      {"tokens_per_s", static_cast<double>(batch.global.tokens) / seconds},
      {"samples/text", static_cast<double>(batch.global.text)},
      {"samples/image", static_cast<double>(batch.global.image)},
      {"samples/audio", static_cast<double>(batch.global.audio)},
      {"samples/video", static_cast<double>(batch.global.video)},
      {"step_ms", step_ms},
      {"data_wait_ms", state.data_wait_ms},
      {"forward_backward_ms", state.forward_backward_ms},
      {"reduce_ms", state.reduce_ms},
      {"update_ms", state.update_ms},
      {"gather_ms", state.gather_ms},
      {"grad_norm", has_loss ? state.gradients.norm : kAbsent},
      {"lr", training.LearningRate(step_)},
      {"encoder_gflop", state.encoder_flops / 1e9},
      {"decoder_gflop", state.decoder_flops / 1e9},
      {"gflops", (state.encoder_flops + state.decoder_flops) / 1e9 / seconds},
      {"imbalance", state.mean_ms == 0 ? 1.0 : state.slowest_ms / state.mean_ms},
      {"memory_high_water_bytes", state.memory_bytes_max},
      {"skipped_steps", static_cast<double>(skipped_steps_)}};
  for (size_t i = 0; i < state.source_loss.size(); ++i) {
    if (state.source_tokens[i] == 0) continue;
    values[absl::StrCat("loss/", MetricPart(options_.recipe.data.sources[i].name))] =
        state.source_loss[i] / state.source_tokens[i];
  }
  if (!has_loss) values["no_loss_tokens"] = 1;
  if (!state.gradients.finite) values["grad_not_finite"] = 1;
  routers_->Measure(state.router_sums, &values);
  for (const auto& [fault, count] : state.faults) {
    if (count > 0)
      values[absl::StrCat("skipped/", dataloader::Name(fault))] = static_cast<double>(count);
  }
  return values;
}

void Trainer::ExportMetrics(const std::map<std::string, double>& values, const StepState& state) {
  MetricsServer& metrics = *options_.metrics;
  const auto phase = [&](const char* name, double ms) {
    metrics.Observe("omnitrain_phase_seconds", "Time of one step by phase, on this worker",
                    {{"phase", name}}, ms / 1e3);
  };
  phase("data_wait", state.data_wait_ms);
  phase("forward_backward", state.forward_backward_ms);
  phase("reduce", state.reduce_ms);
  phase("update", state.update_ms);
  phase("gather", state.gather_ms);
  metrics.Observe("omnitrain_step_seconds", "Time of one step", {}, values.at("step_ms") / 1e3);
  metrics.Set("omnitrain_step", "Steps done", {}, static_cast<double>(step_));
  metrics.Set("omnitrain_loss", "Loss of the last step, over all workers", {}, values.at("loss"));
  metrics.Set("omnitrain_grad_norm", "Gradient norm of the last step", {}, values.at("grad_norm"));
  // All ranks of a replica share its tokens.
  metrics.Add("omnitrain_tokens_total", "Tokens this worker trained on, or its share of them", {},
              static_cast<double>(state.batch.local.tokens) / layout_->config().replica_ranks());
  metrics.Set("omnitrain_loader_queue_steps", "Steps the loader has ready or in work", {},
              static_cast<double>(loader_->queue_depth()));
  metrics.Set("omnitrain_loader_buffered_bytes", "Decoded media waiting", {},
              static_cast<double>(loader_->buffered_bytes()));
  for (const auto& [fault, count] : fault_counts_) {
    metrics.Set("omnitrain_samples_faulty",
                "Samples of this worker's lanes not trained on as they are", {{"reason", fault}},
                static_cast<double>(count));
  }
  const PagePool::Stats& pool = device_->pool().stats();
  metrics.Set("omnitrain_memory_reserved_bytes", "Page pool reserved by the plan", {},
              static_cast<double>(pool.reserved_bytes));
  metrics.Set("omnitrain_memory_high_water_bytes", "Most of it ever in use", {},
              static_cast<double>(pool.high_water_bytes));
  ExportMemory();
  if (values.count("moe/load_max_over_mean") > 0) {
    metrics.Set("omnitrain_moe_load_ratio", "Load of the busiest expert over its layer's mean", {},
                values.at("moe/load_max_over_mean"));
    metrics.Set("omnitrain_moe_balance_loss", "Load-balance loss of the last step", {},
                values.at("moe/balance_loss"));
  }
  metrics.Set("omnitrain_imbalance_ratio", "Slowest worker's compute time over the mean", {},
              values.at("imbalance"));
}

}  // namespace omni::trainer
