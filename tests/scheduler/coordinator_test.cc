#include "scheduler/coordinator.h"

#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <atomic>
#include <csignal>
#include <cstdio>
#include <functional>
#include <mutex>
#include <random>
#include <set>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "proto/omnitrain.grpc.pb.h"
#include "scheduler/coordinator_client.h"
#include "tests/support/manual_clock.h"
#include "tests/support/run_ranks.h"

namespace omni::scheduler {
namespace {

using ::testing::HasSubstr;

JobPlan PlanFor(int32_t workers) {
  return *MakePlan({.num_workers = workers, .num_lanes = 5, .comm_engine = "shm"});
}

std::unique_ptr<Coordinator> Start(int32_t workers, CoordinatorCallbacks callbacks = {},
                                   absl::Duration heartbeat = absl::Seconds(5),
                                   const std::string& saved_state = "{}") {
  auto coordinator = Coordinator::Create({.address = "127.0.0.1:0",
                                          .plan = PlanFor(workers),
                                          .recipe_yaml = "name: x\n",
                                          .run_dir = "/runs/x",
                                          .saved_step = 7,
                                          .saved_state = saved_state,
                                          .heartbeat_deadline = heartbeat},
                                         std::move(callbacks));
  EXPECT_TRUE(coordinator.ok()) << coordinator.status();
  return *std::move(coordinator);
}

TEST(PlanTest, LanesGoRoundTheRanks) {
  const JobPlan plan = PlanFor(2);
  EXPECT_EQ(plan.lanes_of_rank, (std::vector<std::vector<int32_t>>{{0, 2, 4}, {1, 3}}));
  EXPECT_THAT(plan.ToYaml(), HasSubstr("  - [0, 2, 4]\n  - [1, 3]\n"));
  EXPECT_FALSE(MakePlan({.num_workers = 0, .num_lanes = 1}).ok());
  EXPECT_FALSE(MakePlan({.num_workers = 1, .num_lanes = 0}).ok());
}

TEST(CoordinatorTest, WorkersGetRanksPlanAndEachOther) {
  std::mutex mutex;
  std::map<int32_t, double> losses;
  auto coordinator = Start(3, {.on_step =
                                   [&](const StepRecord& record) {
                                     const std::lock_guard<std::mutex> lock(mutex);
                                     losses[record.rank] = record.values.at("loss");
                                     return true;
                                   },
                               .on_notice = {},
                               .on_register = {}});
  std::vector<std::thread> threads;
  std::set<int32_t> ranks;
  for (int i = 0; i < 3; ++i) {
    threads.emplace_back([&, i] {
      auto client = CoordinatorClient::Join(
          {.coordinator = coordinator->address(), .comm_address = "address " + std::to_string(i)});
      ASSERT_TRUE(client.ok()) << client.status();
      EXPECT_EQ((*client)->recipe_yaml(), "name: x\n");
      EXPECT_EQ((*client)->run_dir(), "/runs/x");
      EXPECT_EQ((*client)->saved_state(), (*client)->rank() == 0 ? "{}" : "");
      EXPECT_EQ((*client)->plan().lanes_of_rank, PlanFor(3).lanes_of_rank);
      const auto peers = (*client)->Rendezvous(absl::Seconds(60));
      ASSERT_TRUE(peers.ok()) << peers.status();
      EXPECT_EQ(peers->at((*client)->rank()), "address " + std::to_string(i));
      (*client)->ReportStep(1, {{"loss", (*client)->rank() + 0.5}});
      (*client)->Goodbye(absl::OkStatus());
      const std::lock_guard<std::mutex> lock(mutex);
      ranks.insert((*client)->rank());
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_TRUE(coordinator->Wait().ok());
  EXPECT_EQ(ranks, (std::set<int32_t>{0, 1, 2}));
  EXPECT_EQ(losses, (std::map<int32_t, double>{{0, 0.5}, {1, 1.5}, {2, 2.5}}));
}

// A message of gRPC may hold 4 MiB: a state beyond would keep rank 0 from joining.
TEST(CoordinatorTest, AStateTooLargeForAMessageIsLeftForRank0ToRead) {
  for (const size_t bytes : {size_t{1} << 20, size_t{5} << 20}) {
    const std::string state(bytes, 'x');
    auto coordinator = Start(1, {}, absl::Seconds(5), state);
    auto client = CoordinatorClient::Join({.coordinator = coordinator->address()});
    ASSERT_TRUE(client.ok()) << client.status();
    EXPECT_TRUE((*client)->saved_state() == (bytes > (1 << 20) ? "" : state)) << bytes;
    (*client)->Goodbye(absl::OkStatus());
    EXPECT_TRUE(coordinator->Wait().ok());
  }
}

TEST(CoordinatorTest, AnotherProtocolVersionIsRefusedWithBoth) {
  auto coordinator = Start(1);
  auto stub = omnitrain::Coordinator::NewStub(
      grpc::CreateChannel(coordinator->address(), grpc::InsecureChannelCredentials()));
  omnitrain::RegisterRequest request;
  request.set_protocol_version(99);
  omnitrain::RegisterReply reply;
  grpc::ClientContext context;
  const auto status = stub->Register(&context, request, &reply);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  EXPECT_THAT(status.error_message(), HasSubstr(absl::StrCat("version ", kProtocolVersion)));
  EXPECT_THAT(status.error_message(), HasSubstr("speaks 99"));
}

TEST(CoordinatorTest, OneWorkerTooManyIsRefused) {
  auto coordinator = Start(1);
  const auto first = CoordinatorClient::Join({.coordinator = coordinator->address()});
  ASSERT_TRUE(first.ok());
  const auto second = CoordinatorClient::Join({.coordinator = coordinator->address()});
  EXPECT_EQ(second.status().code(), absl::StatusCode::kFailedPrecondition);
  const auto taken =
      CoordinatorClient::Join({.coordinator = coordinator->address(), .wanted_rank = 0});
  EXPECT_THAT(std::string(taken.status().message()), HasSubstr("rank 0 is already taken"));
  const auto beyond =
      CoordinatorClient::Join({.coordinator = coordinator->address(), .wanted_rank = 7});
  EXPECT_EQ(beyond.status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(CoordinatorTest, AnAbsentCoordinatorIsNamed) {
  const auto client =
      CoordinatorClient::Join({.coordinator = "127.0.0.1:1", .deadline = absl::Milliseconds(300)});
  EXPECT_EQ(client.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(client.status().message()), HasSubstr("127.0.0.1:1"));
}

TEST(CoordinatorTest, ATakenPortIsNamed) {
  auto coordinator = Start(1);
  const auto second = Coordinator::Create(
      {.address = coordinator->address(), .plan = PlanFor(1), .recipe_yaml = "", .run_dir = ""},
      {});
  EXPECT_EQ(second.status().code(), absl::StatusCode::kAlreadyExists);
  for (const char* part : {"coordinator address 127.0.0.1:", " is in use on ", "or 0 for any"}) {
    EXPECT_THAT(std::string(second.status().message()), HasSubstr(part));
  }
}

TEST(CoordinatorTest, ASilentWorkerIsLostAndTheOthersHear) {
  auto coordinator = Start(2, {}, absl::Seconds(3));  // rank 0 beats four times in it
  auto stays = CoordinatorClient::Join({.coordinator = coordinator->address(), .wanted_rank = 0});
  ASSERT_TRUE(stays.ok());
  auto leaves = CoordinatorClient::Join({.coordinator = coordinator->address(), .wanted_rank = 1});
  ASSERT_TRUE(leaves.ok());
  ASSERT_TRUE((*stays)->Rendezvous(absl::Seconds(60)).ok());
  const absl::Status status = coordinator->Wait();  // rank 1 never beats
  EXPECT_EQ(status.code(), absl::StatusCode::kAborted);
  EXPECT_THAT(std::string(status.message()), HasSubstr("rank 1"));
  for (int i = 0; i < 3000 && (*stays)->job_status().ok(); ++i)
    absl::SleepFor(absl::Milliseconds(20));
  EXPECT_THAT(std::string((*stays)->job_status().message()), HasSubstr("rank 1"));
}

// The heartbeat's deadline is a minute, so it is the connection that tells.
TEST(CoordinatorTest, AWorkerWhoseConnectionClosesIsLost) {
  auto coordinator = Start(2, {}, absl::Seconds(60));
  auto stays = CoordinatorClient::Join({.coordinator = coordinator->address(), .wanted_rank = 0});
  auto leaves = CoordinatorClient::Join({.coordinator = coordinator->address(), .wanted_rank = 1});
  ASSERT_TRUE(stays.ok() && leaves.ok());
  ASSERT_TRUE((*stays)->Rendezvous(absl::Seconds(60)).ok());
  const absl::Time start = absl::Now();
  leaves->reset();
  const absl::Status status = coordinator->Wait();
  EXPECT_LT(absl::Now() - start, absl::Seconds(30));
  EXPECT_EQ(status.code(), absl::StatusCode::kAborted);
  EXPECT_THAT(std::string(status.message()), HasSubstr("rank 1"));
  EXPECT_THAT(std::string(status.message()), HasSubstr("connection was closed without a goodbye"));
}

// argument: the coordinator's address.
int WorkerProgram(int32_t rank, int32_t, const std::string& address) {
  auto client = CoordinatorClient::Join({.coordinator = address, .wanted_rank = rank});
  if (!client.ok() || !(*client)->Rendezvous(absl::Seconds(30)).ok()) return 1;
  (*client)->SetProgress(7, "forward-backward");
  absl::SleepFor(absl::Seconds(3));  // some beats
  std::printf("ready\n");
  std::fflush(stdout);
  absl::SleepFor(absl::Seconds(60));
  return 1;
}

TEST(CoordinatorTest, AKilledWorkerIsLostLongBeforeItsHeartbeatIsDue) {
  auto coordinator = Start(2, {}, absl::Seconds(60));
  test::RankProcesses workers("worker", 2, coordinator->address());
  ASSERT_EQ(workers.ReadLine(0), "ready");
  ASSERT_EQ(workers.ReadLine(1), "ready");
  const absl::Time killed = absl::Now();
  workers.Signal(1, SIGKILL);
  const absl::Status status = coordinator->Wait();
  EXPECT_LT(absl::Now() - killed, absl::Seconds(30));
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("rank 1 (pid " + std::to_string(workers.pid(1))));
  EXPECT_THAT(std::string(status.message()), HasSubstr("connection was closed"));
  EXPECT_THAT(std::string(status.message()), HasSubstr("in step 7, forward-backward"));
}

TEST(CoordinatorTest, AGoodbyeIsNoLoss) {
  auto coordinator = Start(2, {}, absl::Seconds(60));
  auto stays = CoordinatorClient::Join({.coordinator = coordinator->address(), .wanted_rank = 0});
  auto leaves = CoordinatorClient::Join({.coordinator = coordinator->address(), .wanted_rank = 1});
  ASSERT_TRUE(stays.ok() && leaves.ok());
  ASSERT_TRUE((*stays)->Rendezvous(absl::Seconds(60)).ok());
  (*leaves)->Goodbye(absl::OkStatus());
  leaves->reset();
  absl::SleepFor(absl::Milliseconds(1500));  // more than a lost one is given
  EXPECT_TRUE((*stays)->job_status().ok()) << (*stays)->job_status();
  (*stays)->Goodbye(absl::OkStatus());
  EXPECT_TRUE(coordinator->Wait().ok());
}

TEST(CoordinatorTest, StopReachesTheWorkers) {
  auto coordinator = Start(1);
  auto client = CoordinatorClient::Join({.coordinator = coordinator->address()});
  ASSERT_TRUE((*client)->Rendezvous(absl::Seconds(60)).ok());
  EXPECT_FALSE((*client)->stop_requested());
  coordinator->RequestStop();
  for (int i = 0; i < 3000 && !(*client)->stop_requested(); ++i)
    absl::SleepFor(absl::Milliseconds(20));
  EXPECT_TRUE((*client)->stop_requested());
}

TEST(CoordinatorTest, AWorkersFailureIsTheJobs) {
  auto coordinator = Start(2);
  auto client = CoordinatorClient::Join({.coordinator = coordinator->address(), .wanted_rank = 1});
  (*client)->Goodbye(absl::DataLossError("shard torn"));
  const absl::Status status = coordinator->Wait();
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(status.message()), HasSubstr("rank 1: shard torn"));
}

// A rank that fell with another may be heard first.
TEST(CoordinatorTest, TheCauseIsTheFailureNotWhatItCaused) {
  auto coordinator = Start(2);
  auto fell = CoordinatorClient::Join({.coordinator = coordinator->address(), .wanted_rank = 0});
  auto failed = CoordinatorClient::Join({.coordinator = coordinator->address(), .wanted_rank = 1});
  EXPECT_TRUE((*fell)->Goodbye(absl::AbortedError("step 3 failed on another rank")));
  std::thread later([&] {
    absl::SleepFor(absl::Milliseconds(200));
    EXPECT_TRUE((*failed)->Goodbye(absl::DataLossError("shard torn")));
  });
  EXPECT_THAT(std::string(coordinator->Wait().message()), HasSubstr("rank 1: shard torn"));
  later.join();
}

TEST(CoordinatorTest, WhatFellAloneIsTheFailureAfterAWhile) {
  auto coordinator = Start(2);
  auto fell = CoordinatorClient::Join({.coordinator = coordinator->address(), .wanted_rank = 0});
  (*fell)->Goodbye(absl::AbortedError("rank 1 is gone"));
  EXPECT_THAT(std::string(coordinator->Wait().message()), HasSubstr("rank 0: rank 1 is gone"));
}

TEST(CoordinatorTest, MissingWorkersAreCounted) {
  auto coordinator = Start(3);
  auto client = CoordinatorClient::Join({.coordinator = coordinator->address()});
  const auto peers = (*client)->Rendezvous(absl::Milliseconds(500));
  EXPECT_EQ(peers.status().code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_THAT(std::string(peers.status().message()), HasSubstr("only 1 of 3 workers"));
}

// What the clock does not count, such as a suspension, is nobody's silence.
TEST(CoordinatorTest, SilenceIsMeasuredOnTheWorkingClock) {
  test::ManualClock clock;
  auto coordinator = Coordinator::Create({.address = "127.0.0.1:0",
                                          .plan = PlanFor(1),
                                          .recipe_yaml = "",
                                          .run_dir = "",
                                          .heartbeat_deadline = absl::Milliseconds(100),
                                          .clock = clock},
                                         {});
  ASSERT_TRUE(coordinator.ok());
  auto client = CoordinatorClient::Join({.coordinator = (*coordinator)->address()});
  ASSERT_TRUE(client.ok());  // it never beats
  std::atomic<bool> has_ended{false};
  std::thread waiting([&] {
    EXPECT_THAT(std::string((*coordinator)->Wait().message()), HasSubstr("rank 0"));
    has_ended = true;
  });
  absl::SleepFor(absl::Seconds(1));
  EXPECT_FALSE(has_ended);
  clock.Advance(absl::Seconds(1));
  waiting.join();
}

// A terminal that is held, a file system that stalls.
TEST(CoordinatorTest, HeartbeatsAreAnsweredWhileACallbackHangs) {
  absl::Notification release, inside;
  auto coordinator = Start(1,
                           {.on_step =
                                [&](const StepRecord&) {
                                  inside.Notify();
                                  release.WaitForNotification();
                                  return true;
                                },
                            .on_notice = {},
                            .on_register = {}},
                           absl::Seconds(1));
  auto client = CoordinatorClient::Join({.coordinator = coordinator->address()});
  ASSERT_TRUE((*client)->Rendezvous(absl::Seconds(60)).ok());
  (*client)->ReportStep(1, {});
  inside.WaitForNotification();
  absl::SleepFor(absl::Seconds(3));  // three deadlines
  EXPECT_TRUE((*client)->job_status().ok()) << (*client)->job_status();
  coordinator->RequestStop();  // nor does it hold up what else is heard
  for (int i = 0; i < 3000 && !(*client)->stop_requested(); ++i)
    absl::SleepFor(absl::Milliseconds(20));
  EXPECT_TRUE((*client)->stop_requested());
  release.Notify();
  EXPECT_TRUE((*client)->Goodbye(absl::OkStatus()));
  EXPECT_TRUE(coordinator->Wait().ok());
}

// It has no room now and then: nothing is lost or comes twice, and a goodbye comes last.
TEST(CoordinatorTest, AllReportsComeOnceInOrderBeforeTheGoodbye) {
  std::mutex mutex;
  std::vector<std::string> heard;
  std::mt19937 random(7);
  auto coordinator = Start(1, {.on_step =
                                   [&](const StepRecord& record) {
                                     const std::lock_guard<std::mutex> lock(mutex);
                                     if (random() % 20 == 0) return false;
                                     heard.push_back(absl::StrCat("step ", record.step));
                                     return true;
                                   },
                               .on_notice =
                                   [&](int32_t, const std::string&, const std::string& text) {
                                     const std::lock_guard<std::mutex> lock(mutex);
                                     heard.push_back(text);
                                   },
                               .on_register = {}});
  auto client = CoordinatorClient::Join({.coordinator = coordinator->address()});
  ASSERT_TRUE((*client)->Rendezvous(absl::Seconds(60)).ok());
  std::vector<std::string> said;
  for (int i = 1; i <= 200; ++i) {
    said.push_back(absl::StrCat("step ", i));
    (*client)->ReportStep(i, {{"loss", i}});
    if (i % 7 != 0) continue;
    said.push_back(absl::StrCat("notice ", i));
    (*client)->Notice("info", said.back());
  }
  EXPECT_TRUE((*client)->Goodbye(absl::OkStatus()));
  const std::lock_guard<std::mutex> lock(mutex);
  EXPECT_EQ(heard, said);
}

TEST(CoordinatorTest, AReportThatComesAgainIsHeardOnce) {
  std::atomic<int> heard = 0;
  auto coordinator = Start(1, {.on_step =
                                   [&](const StepRecord&) {
                                     ++heard;
                                     return true;
                                   },
                               .on_notice = {},
                               .on_register = {}});
  auto stub = omnitrain::Coordinator::NewStub(
      grpc::CreateChannel(coordinator->address(), grpc::InsecureChannelCredentials()));
  omnitrain::RegisterRequest request;
  request.set_protocol_version(kProtocolVersion);
  request.set_instance(77);
  omnitrain::RegisterReply reply;
  for (int i = 0; i < 2; ++i) {  // its first answer may have been lost
    grpc::ClientContext context;
    ASSERT_TRUE(stub->Register(&context, request, &reply).ok());
    EXPECT_EQ(reply.rank(), 0);
  }
  omnitrain::StepReport report;
  report.set_job_id(reply.job_id());
  for (const int sequence : {1, 1, 2, 1, 2}) {
    report.set_sequence(sequence);
    omnitrain::StepReply answer;
    grpc::ClientContext context;
    ASSERT_TRUE(stub->ReportStep(&context, report, &answer).ok());
  }
  EXPECT_EQ(heard, 2);
}

// A bound on what waits: then the step does, says so, and gives up after a while.
TEST(CoordinatorTest, WhoCanKeepNoMoreReportsWaitsAndSaysSo) {
  auto coordinator = Start(
      1, {.on_step = [](const StepRecord&) { return false; }, .on_notice = {}, .on_register = {}});
  test::ManualClock clock;
  auto client = CoordinatorClient::Join(
      {.coordinator = coordinator->address(), .report_bytes_max = 1, .clock = clock});
  ASSERT_TRUE((*client)->Rendezvous(absl::Seconds(60)).ok());
  absl::Notification said;
  (*client)->set_warn([&](const std::string& text) {
    EXPECT_THAT(text, HasSubstr("1 reports wait for the coordinator at 127.0.0.1"));
    if (!said.HasBeenNotified()) said.Notify();
  });
  (*client)->ReportStep(1, {});  // is tried again and again
  std::atomic<bool> is_back{false};
  std::thread training([&] {
    (*client)->ReportStep(2, {});
    is_back = true;
  });
  absl::SleepFor(absl::Milliseconds(300));
  EXPECT_FALSE(is_back);
  clock.Advance(absl::Seconds(11));
  said.WaitForNotification();
  EXPECT_TRUE((*client)->job_status().ok());
  while (!is_back) {
    clock.Advance(absl::Seconds(1));
    absl::SleepFor(absl::Milliseconds(2));
  }
  training.join();
  EXPECT_EQ((*client)->job_status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string((*client)->job_status().message()),
              HasSubstr("has taken no report of a step for 50s; 1 wait"));
}

TEST(CoordinatorTest, WorkersThatDoNotComeAreNotWaitedForForEver) {
  auto coordinator = Coordinator::Create({.address = "127.0.0.1:0",
                                          .plan = PlanFor(3),
                                          .recipe_yaml = "",
                                          .run_dir = "",
                                          .heartbeat_deadline = absl::Seconds(60),
                                          .join_limit = absl::Milliseconds(500)},
                                         {});
  auto client =
      CoordinatorClient::Join({.coordinator = (*coordinator)->address(), .wanted_rank = 1});
  const absl::Status status = (*coordinator)->Wait();
  EXPECT_EQ(status.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_THAT(
      std::string(status.message()),
      HasSubstr(absl::StrCat("only 1 of 3 workers registered at ", (*coordinator)->address(),
                             " within 500ms; not heard of: ranks 0, 2")));
}

TEST(CoordinatorTest, AStopIsObeyedBeforeAnybodyHasCome) {
  auto coordinator = Start(2);
  coordinator->RequestStop();
  EXPECT_TRUE(coordinator->Wait().ok());
}

// The first to leave breaks the others' connections: that is no failure, whoever is heard first.
TEST(CoordinatorTest, WorkersThatStopBeforeTheirFirstStepFailNothing) {
  for (const bool consequence_first : {false, true}) {
    auto coordinator = Start(2);
    auto a = CoordinatorClient::Join({.coordinator = coordinator->address(), .wanted_rank = 0});
    auto b = CoordinatorClient::Join({.coordinator = coordinator->address(), .wanted_rank = 1});
    coordinator->RequestStop();
    std::vector<std::function<void()>> goodbyes = {
        [&] { EXPECT_TRUE((*a)->Goodbye(absl::OkStatus(), /*stopped_early=*/true)); },
        [&] { EXPECT_TRUE((*b)->Goodbye(absl::AbortedError("rank 0 of world died"))); }};
    if (consequence_first) std::swap(goodbyes[0], goodbyes[1]);
    for (const auto& goodbye : goodbyes) goodbye();
    EXPECT_TRUE(coordinator->Wait().ok());
  }
}

TEST(CoordinatorTest, AThousandWorkersRegister) {
  auto coordinator = Start(1000, {}, /*heartbeat=*/absl::Minutes(5));  // nobody beats
  auto channel = grpc::CreateChannel(coordinator->address(), grpc::InsecureChannelCredentials());
  auto stub = omnitrain::Coordinator::NewStub(channel);
  std::set<int32_t> ranks;
  std::string job_id;
  for (int i = 0; i < 1000; ++i) {
    omnitrain::RegisterRequest request;
    request.set_protocol_version(kProtocolVersion);
    request.set_wanted_rank(-1);
    omnitrain::RegisterReply reply;
    grpc::ClientContext context;
    ASSERT_TRUE(stub->Register(&context, request, &reply).ok());
    ranks.insert(reply.rank());
    job_id = reply.job_id();
  }
  EXPECT_EQ(ranks.size(), 1000u);
  omnitrain::RendezvousRequest request;
  request.set_job_id(job_id);
  omnitrain::RendezvousReply reply;
  grpc::ClientContext context;
  ASSERT_TRUE(stub->Rendezvous(&context, request, &reply).ok());
  EXPECT_TRUE(reply.ready());
}

}  // namespace

int RunTests(int argc, char** argv) {
  test::RunAsRankIfSpawned({{"worker", WorkerProgram}});
  ::testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}

}  // namespace omni::scheduler

int main(int argc, char** argv) { return omni::scheduler::RunTests(argc, argv); }
