// The command line; kExitCodes says what the process ends with.
#include <sys/stat.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "absl/strings/str_join.h"
#include "runtime/base/config.h"
#include "runtime/base/open_files.h"
#include "runtime/base/process.h"
#include "runtime/base/writer_thread.h"
#include "runtime/device/cpu/processor.h"
#include "tools/bench_model.h"
#include "tools/commands.h"
#include "tools/data_inspect.h"
#include "tools/data_make.h"
#include "tools/generate.h"
#include "tools/probe.h"
#include "tools/replay.h"
#include "tools/version.h"

namespace omni::tools {
namespace {

constexpr int kDone = 0, kError = 1, kWrongUsage = 2, kStopped = 3;
constexpr char kExitCodes[] =
    "Exit codes: 0 done; 1 an error, said in one line on stderr; 2 wrong usage; 3 training was\n"
    "stopped (SIGTERM, SIGINT, SIGHUP) before its end: the same command goes on from where it was.";

int Report(const absl::Status& status) {
  if (status.ok()) return kDone;
  if (status.message().empty()) return kError;  // said elsewhere
  // A terminal that is held does not hold up the end.
  WriteWithin(STDERR_FILENO, absl::StrCat("omnitrain: ", status.message(), "\n"),
              absl::Seconds(10));
  return kError;
}

int Report(const absl::StatusOr<trainer::JobEnd>& end) {
  if (!end.ok()) return Report(end.status());
  return *end == trainer::JobEnd::kStopped ? kStopped : kDone;
}

// For commands whose product is what they print: an error if it was not all written. Who closes the
// pipe early (`| head`) has what he wants.
int AllWritten(int exit_code) {
  if (std::fflush(stdout) == 0 && std::ferror(stdout) == 0) return exit_code;
  const std::string reason = std::strerror(errno);
  struct stat info {};
  const bool is_file = fstat(STDOUT_FILENO, &info) != 0 || !S_ISFIFO(info.st_mode);
  if (exit_code != kDone || !is_file) return exit_code;
  std::fprintf(stderr, "omnitrain: standard output: %s\n", reason.c_str());
  return kError;
}

// `no command "trian"; did you mean "train"?`, likewise for options; "" if every word is known.
// CLI11 knows no nearest names, and of an unknown command says that one is required.
std::string UnknownWord(const CLI::App& app, const std::string& path) {
  std::vector<std::string> commands, options;
  for (const CLI::App* command : app.get_subcommands([](const CLI::App*) { return true; })) {
    commands.push_back(command->get_name());
  }
  for (const CLI::Option* option : app.get_options()) {
    if (option->get_group().empty()) continue;  // hidden
    for (const std::string& name : option->get_lnames()) options.push_back("--" + name);
  }
  for (const std::string& word : app.remaining()) {
    const bool is_option = word[0] == '-';
    if (!is_option && commands.empty()) continue;  // one argument too many, which CLI11 says
    const std::string name = word.substr(0, word.find('='));
    const std::string nearest = NearestName(name, is_option ? options : commands);
    const std::string known = absl::StrJoin(is_option ? options : commands, ", ");
    return absl::StrCat(path, ": no ", is_option ? "option" : "command", " \"", name, "\"; ",
                        nearest.empty() ? absl::StrCat("there are ", known)
                                        : absl::StrCat("did you mean \"", nearest, "\"?"));
  }
  for (const CLI::App* command : app.get_subcommands()) {
    const std::string unknown = UnknownWord(*command, path + " " + command->get_name());
    if (!unknown.empty()) return unknown;
  }
  return "";
}

// "omnitrain: worker 3"; in the 15 bytes that `top` shows, as much of it as leaves the rank whole.
void NameWorker(int32_t rank, ProcessTitle* title) {
  std::string name;
  for (const char* before : {"omnitrain: w", "omnitrain:w", "omni:w"}) {
    name = absl::StrCat(before, rank);
    if (name.size() <= 15) break;
  }
  title->Set(absl::StrCat("omnitrain: worker ", rank), name);
}

void AddTrain(CLI::App& app, TrainCommand& command, int64_t& steps, int32_t& workers) {
  app.add_option("recipe", command.recipe, "Recipe (YAML)")->required();
  app.add_option("--set", command.overrides, "Override a key of the recipe: training.steps=100")
      ->take_all()
      ->allow_extra_args(false);
  app.add_option("--workers", workers, "Same as --set parallel.workers=N");
  app.add_option("--steps", steps, "Same as --set training.steps=N");
  app.add_option("--allow", command.allow,
                 "A key that may differ from the run's where it goes on: docs/resuming.md")
      ->take_all()
      ->allow_extra_args(false);
  app.add_option("--run-dir", command.run_dir,
                 "Default: runs/<name of the recipe>; resumes what is there");
}

void ApplyShortcuts(TrainCommand& command, int64_t steps, int32_t workers) {
  if (steps > 0) command.overrides.push_back("training.steps=" + std::to_string(steps));
  if (workers > 0) command.overrides.push_back("parallel.workers=" + std::to_string(workers));
}

void AddReplay(CLI::App& app, ReplayCommand& command) {
  app.add_option("--schedule", command.schedule, "gpipe, 1f1b, interleaved, zb_h1 or zb_v");
  app.add_option("--ranks", command.ranks, "Pipeline ranks (4)");
  app.add_option("--chunks-per-rank", command.chunks_per_rank, "Default: as few as possible");
  app.add_option("--microbatches", command.microbatches, "Of a step (8)");
  app.add_option("--joint", command.joint,
                 "uniform, upfront, recompute, first_stage, aggressive or disaggregated");
  app.add_option("--encoders", command.encoders, "How many (1)");
  app.add_option("--frozen", command.frozen, "How many of them, from the last, do not train (0)");
  app.add_option("--q", command.q, "A group has q microbatches for each rank (1)");
  app.add_option("--groups-ahead", command.groups_ahead, "Groups encoded before needed (1)");
  app.add_option("--encoder-ranks", command.encoder_ranks, "Of a disaggregated pipeline (1)");
  app.add_option("--costs", command.costs,
                 "Of a microbatch: forward, input backward, weight gradient of a stage, encode, "
                 "encoder backward (1,1,1,0.5,1)")
      ->delimiter(',');
  app.add_option("--times", command.times, "Table of times (YAML) instead of costs");
  app.add_option("--from-trace", command.traces, "Traces of a run instead (may be repeated)")
      ->take_all()
      ->allow_extra_args(false);
  app.add_option("--ranks-per-stage", command.ranks_per_stage, "Of the recorded run (1)");
  app.add_option("--trace", command.trace_out, "Write the timeline for ui.perfetto.dev (JSON)");
  app.add_option("--svg", command.svg_out, "Write the timeline as a drawing");
}

int Main(int argc, char** argv) {
  PrepareProcess();
  ProcessTitle title(argc, argv);
  // gRPC's own log would stand beside our one line; a verbosity that is set stays.
  setenv("GRPC_VERBOSITY", "NONE", /*overwrite=*/0);
  RaiseOpenFilesLimit();
  if (const auto processor = cpu::ChosenProcessor(); !processor.ok()) {
    return Report(processor.status());
  }
  CLI::App app{"omnitrain: distributed training of multimodal language models"};
  app.require_subcommand(1);
  app.set_version_flag("--version", VersionText, "What was built, and what it finds here");
  app.footer(kExitCodes);
  int exit_code = kDone;

  TrainCommand train;
  int64_t steps = 0;
  int32_t num_workers = 0;
  CLI::App* train_app =
      app.add_subcommand("train", "Train on this machine: coordinator and workers");
  AddTrain(*train_app, train, steps, num_workers);
  train_app->callback([&] {
    ApplyShortcuts(train, steps, num_workers);
    exit_code = Report(Train(train));
  });

  CLI::App* coordinator_app =
      app.add_subcommand("coordinator", "Only the coordinator; workers are started by hand");
  AddTrain(*coordinator_app, train, steps, num_workers);
  coordinator_app->add_option("--address", train.address,
                              "host:port or [v6]:port to listen on; port 0: any free one");
  coordinator_app->add_option("--address-file", train.address_file,
                              "File to write the address into, with the real port");
  coordinator_app->callback([&] {
    ApplyShortcuts(train, steps, num_workers);
    train.start_workers = false;
    exit_code = Report(Train(train));
  });

  WorkerCommand worker;
  worker.on_rank = [&title](int32_t rank) { NameWorker(rank, &title); };
  CLI::App* worker_app = app.add_subcommand("worker", "One worker of a job");
  worker_app->add_option("--coordinator", worker.coordinator, "host:port or [v6]:port")->required();
  worker_app->add_option("--rank", worker.rank, "Default: any that is free");
  worker_app
      ->add_option("--local-rank", worker.local_rank,
                   "Which of this machine's GPUs it takes (default: $SLURM_LOCALID, or 0)")
      ->envname("SLURM_LOCALID")
      ->check(CLI::NonNegativeNumber);
  worker_app->add_option("--host", worker.host,
                         "This machine, as the other workers and Prometheus reach it (default: the "
                         "address that the route to the coordinator leaves from)");
  worker_app->add_option("--wait", worker.wait_s, "Seconds to wait for the coordinator (30)")
      ->check(CLI::PositiveNumber);
  worker_app->add_option("--parent", worker.parent, "Die with this process")->group("");
  worker_app->callback([&] { exit_code = Report(Worker(worker)); });

  EvalCommand eval;
  CLI::App* eval_app =
      app.add_subcommand("eval", "Exact-match accuracy of a run's newest checkpoint");
  eval_app->add_option("run_dir", eval.run_dir, "Run directory")->required();
  eval_app->add_option("--set", eval.overrides, "Override a key of the recipe")
      ->take_all()
      ->allow_extra_args(false);
  eval_app->add_flag("--blind", eval.blind, "With media swapped between samples, and blanked");
  eval_app->add_flag("--json", eval.json, "One JSON object instead of tables");
  eval_app->callback([&] { exit_code = Report(Eval(eval)); });

  ConvertCommand convert;
  CLI::App* convert_app =
      app.add_subcommand("convert", "Write a checkpoint as a folder that transformers loads");
  convert_app
      ->add_option("checkpoint", convert.checkpoint, "Run directory (its newest) or checkpoint")
      ->required();
  convert_app->add_option("out", convert.out, "New folder")->required();
  convert_app->add_option("--dtype", convert.dtype, "fp32 or bf16; default: as config.json says")
      ->check(CLI::IsMember({"fp32", "bf16"}));
  convert_app->add_flag("--adapter", convert.adapter,
                        "Write LoRA adapters alone, as PEFT loads them, instead of merging them");
  convert_app->callback([&] { exit_code = Report(Convert(convert)); });

  ProbeOptions probe;
  bool no_gradients = false;
  CLI::App* probe_app = app.add_subcommand(
      "probe", "One conversation through a model: logits, loss and gradients into a file");
  probe_app->add_option("model", probe.model, "Hugging Face folder, run directory or checkpoint")
      ->required();
  probe_app->add_option("--conversation", probe.conversation, "JSON file, media beside it")
      ->required();
  probe_app->add_option("--out", probe.out, "safetensors file")->required();
  probe_app->add_option("--set", probe.overrides, "Override a key of the recipe")
      ->take_all()
      ->allow_extra_args(false);
  probe_app->add_flag("--no-gradients", no_gradients, "Forward only");
  probe_app->callback([&] {
    probe.gradients = !no_gradients;
    exit_code = Report(Probe(probe));
  });

  GenerateCommand generate;
  CLI::App* generate_app =
      app.add_subcommand("generate", "Ask a model about text, a picture, a clip or a sound");
  generate_app
      ->add_option("model", generate.model, "Hugging Face folder, run directory or checkpoint")
      ->required();
  generate_app->add_option("prompt", generate.prompt, "The question");
  generate_app->add_option("--image", generate.images, "Picture (may be repeated)")
      ->take_all()
      ->allow_extra_args(false);
  generate_app->add_option("--audio", generate.audios, "Sound (may be repeated)")
      ->take_all()
      ->allow_extra_args(false);
  generate_app->add_option("--video", generate.videos, "Clip (may be repeated)")
      ->take_all()
      ->allow_extra_args(false);
  generate_app->add_option("--system", generate.system, "System prompt");
  generate_app->add_option("--conversation", generate.conversation,
                           "JSON file instead of a prompt, as training data have it");
  generate_app->add_option("--max-tokens", generate.max_tokens, "Longest answer")
      ->check(CLI::PositiveNumber);
  generate_app->add_option("--temperature", generate.sampling.temperature, "0: greedy")
      ->check(CLI::NonNegativeNumber);
  generate_app->add_option("--top-k", generate.sampling.top_k, "0: all")
      ->check(CLI::NonNegativeNumber);
  generate_app->add_option("--top-p", generate.sampling.top_p, "1: all")
      ->check(CLI::Range(0.0, 1.0));
  generate_app->add_option("--seed", generate.sampling.seed, "Of sampling");
  generate_app->add_option("--set", generate.overrides, "Override a key of the recipe")
      ->take_all()
      ->allow_extra_args(false);
  generate_app->callback([&] {
    const auto answer = GenerateAnswer(generate, [](const std::string& text) {
      std::printf("%s", text.c_str());
      std::fflush(stdout);
    });
    if (answer.ok()) std::printf("\n");
    exit_code = Report(answer.status());
  });

  CLI::App* data_app = app.add_subcommand("data", "Make, index and inspect data");
  data_app->require_subcommand(1);
  DataMakeOptions make;
  CLI::App* make_app = data_app->add_subcommand("make", "Make the quickstart's data set");
  make_app->add_option("--out", make.out, "Folder");
  make_app->add_option("--seed", make.seed, "Seed");
  make_app->add_option("--scale", make.scale, "Factor on the number of samples");
  make_app->callback([&] {
    make.progress = [](const std::string& line) {
      std::printf("%s\n", line.c_str());
      std::fflush(stdout);
    };
    exit_code = Report(MakeQuickstartData(make));
  });
  std::vector<std::string> shards;
  CLI::App* index_app =
      data_app->add_subcommand("index", "Index tar shards (folders, globs, files)");
  index_app->add_option("paths", shards, "Shards")->required();
  index_app->callback([&] { exit_code = Report(DataIndex(shards)); });

  DataInspectOptions inspect;
  CLI::App* inspect_app =
      data_app->add_subcommand("inspect", "Show one sample as the trainer sees it");
  inspect_app->add_option("recipe", inspect.recipe, "Recipe")->required();
  inspect_app->add_option("--set", inspect.overrides, "Override a key of the recipe")
      ->take_all()
      ->allow_extra_args(false);
  inspect_app->add_option("--source", inspect.source, "Name in data.sources (the first)");
  inspect_app->add_flag("--heldout", inspect.heldout, "Look in data.eval instead");
  inspect_app->add_option("--index", inspect.index, "Sample in the source");
  inspect_app->add_option("--out", inspect.out, "Folder for pictures of its media");
  inspect_app->callback([&] {
    const auto report = InspectSample(inspect);
    exit_code = Report(report.status());
    if (report.ok()) std::printf("%s", report->c_str());
  });

  BenchModelOptions bench;
  bool bench_json = false;
  CLI::App* bench_app = app.add_subcommand("bench", "Time training steps of a fixed model");
  bench_app->add_option("model", bench.model, "gpt or vit")->required();
  bench_app->add_option("--threads", bench.threads, "Threads");
  bench_app->add_option("--steps", bench.steps, "Timed steps");
  bench_app->add_flag("--json", bench_json, "One line of JSON");
  bench_app->callback([&] {
    const auto result = BenchModel(bench);
    exit_code = Report(result.status());
    if (result.ok()) {
      std::printf("%s\n", (bench_json ? result->ToJson() : result->ToText()).c_str());
    }
  });

  ReplayCommand replay;
  CLI::App* replay_app = app.add_subcommand(
      "replay", "Run a pipeline schedule on a clock: step time, bubbles, memory");
  AddReplay(*replay_app, replay);
  replay_app->callback([&] {
    const auto report = ReplaySchedule(replay);
    exit_code = Report(report.status());
    if (report.ok()) std::printf("%s", report->c_str());
  });

  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& e) {
    const std::string unknown = e.get_exit_code() == 0 ? "" : UnknownWord(app, "omnitrain");
    if (!unknown.empty()) {
      std::fprintf(stderr, "%s\n", unknown.c_str());
      return kWrongUsage;
    }
    return app.exit(e) == 0 ? AllWritten(kDone) : kWrongUsage;
  } catch (const std::exception& e) {
    // Our code throws nothing; the system's limits on threads and memory do.
    return Report(absl::ResourceExhaustedError(e.what()));
  }
  return train_app->parsed() || coordinator_app->parsed() || worker_app->parsed()
             ? exit_code
             : AllWritten(exit_code);
}

}  // namespace
}  // namespace omni::tools

int main(int argc, char** argv) { omni::EndProcess(omni::tools::Main(argc, argv)); }
