// Peers that are not there, or of another version: one line that names the address or both
// versions, and no harm to the job.
#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>
#include <sys/socket.h>

#include <atomic>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "proto/omnitrain.grpc.pb.h"
#include "runtime/base/address.h"
#include "runtime/base/unique_fd.h"
#include "scheduler/coordinator.h"
#include "tests/e2e/bad_input.h"
#include "tests/e2e/process.h"
#include "tests/support/tiny_job.h"

namespace omni::test {
namespace {

using scheduler::kProtocolVersion;
using ::testing::HasSubstr;

TEST(WorkerTest, WithoutACoordinatorItNamesTheAddressWithinItsWait) {
  const absl::Time begin = absl::Now();
  ExpectOneLine({"worker", "--coordinator", "127.0.0.1:1", "--wait", "0.5"},
                {"", "", "no coordinator answers at 127.0.0.1:1", "tried for 500ms"});
  EXPECT_LT(absl::Now() - begin, absl::Seconds(25));  // not the default of 30
}

TEST(WorkerTest, WhatIsNoAddressIsRefusedAtOnce) {
  for (const char* address : {"nonsense", "host:", ":80", "host:99999", "::1:80"}) {
    ExpectOneLine(
        {"worker", "--coordinator", address},
        {"", "", absl::StrCat("coordinator \"", address, "\"").c_str(), "expected host:port"});
  }
}

// What a build with the next protocol version answers.
class NextCoordinator final : public omnitrain::Coordinator::Service {
 public:
  grpc::Status Register(grpc::ServerContext*, const omnitrain::RegisterRequest* request,
                        omnitrain::RegisterReply*) override {
    ++calls;
    return grpc::Status(
        grpc::StatusCode::FAILED_PRECONDITION,
        absl::StrCat("this coordinator speaks protocol version ", kProtocolVersion + 1,
                     ", the worker speaks ", request->protocol_version()));
  }
  std::atomic<int> calls{0};
};

TEST(WorkerTest, ACoordinatorOfAnotherVersionIsNotAskedAgain) {
  NextCoordinator service;
  grpc::ServerBuilder builder;
  int port = 0;
  builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
  builder.RegisterService(&service);
  const auto server = builder.BuildAndStart();
  ExpectOneLine({"worker", "--coordinator", absl::StrCat("127.0.0.1:", port)},
                {"", "", absl::StrCat("version ", kProtocolVersion + 1, ",").c_str(),
                 absl::StrCat("the worker speaks ", kProtocolVersion, "\n").c_str()});
  EXPECT_EQ(service.calls, 1);
}

// Out of "coordinator at 127.0.0.1:4711; start 1 workers: ..."; "" if it is not there yet.
std::string AddressIn(const std::string& output) {
  const std::string before = "coordinator at ";
  const size_t at = output.find(before), end = output.find(';');
  if (at == std::string::npos || end == std::string::npos) return "";
  return output.substr(at + before.size(), end - at - before.size());
}

class CoordinatorProcessTest : public ::testing::Test {
 protected:
  void SetUp() override {
    const std::string recipe =
        WriteInput("recipe.yaml", TinyRecipeYaml({.steps = 2, .dtype = "fp32"}));
    coordinator_ = std::make_unique<OmnitrainProcess>(std::vector<std::string>{
        "coordinator", recipe, "--run-dir", TinyData() + "-network-" + TestName()});
    ASSERT_TRUE(WaitFor([&] { return !address().empty(); })) << coordinator_->output();
  }

  static std::string TestName() {
    return ::testing::UnitTest::GetInstance()->current_test_info()->name();
  }
  std::string address() const { return AddressIn(coordinator_->output()); }
  // The job is as good as before: a worker joins it and it ends well.
  void ExpectJobRuns() {
    OmnitrainProcess worker({"worker", "--coordinator", address()});
    EXPECT_EQ(worker.Wait(), 0) << worker.output();
    EXPECT_EQ(coordinator_->Wait(), 0) << coordinator_->output();
    EXPECT_THAT(coordinator_->output(), HasSubstr("finished at step 2"));
  }

  std::unique_ptr<OmnitrainProcess> coordinator_;
};

TEST_F(CoordinatorProcessTest, AWorkerOfAnotherVersionIsToldBoth) {
  const auto stub = omnitrain::Coordinator::NewStub(
      grpc::CreateChannel(address(), grpc::InsecureChannelCredentials()));
  for (const int32_t version : {0, kProtocolVersion + 1}) {
    omnitrain::RegisterRequest request;
    request.set_protocol_version(version);
    request.set_host("elsewhere");
    omnitrain::RegisterReply reply;
    grpc::ClientContext context;
    const grpc::Status status = stub->Register(&context, request, &reply);
    EXPECT_EQ(status.error_code(), grpc::StatusCode::FAILED_PRECONDITION);
    EXPECT_THAT(status.error_message(),
                HasSubstr(absl::StrCat("speaks protocol version ", kProtocolVersion, ", the")));
    EXPECT_THAT(status.error_message(), HasSubstr(absl::StrCat("elsewhere speaks ", version)));
  }
  ExpectJobRuns();
}

TEST_F(CoordinatorProcessTest, AWorkerTooManyAndATakenAddressAreNamed) {
  ExpectOneLine({"worker", "--coordinator", address(), "--rank", "7"},
                {"", "", "rank 7 was asked for", "the job has 1 workers"});
  const std::string recipe =
      WriteInput("recipe.yaml", TinyRecipeYaml({.steps = 2, .dtype = "fp32"}));
  ExpectOneLine(
      {"coordinator", recipe, "--run-dir", TinyData() + "-network-taken", "--address", address()},
      {"", "", absl::StrCat("coordinator address ", address()).c_str(), "is in use on"});
  ExpectJobRuns();
}

// What a port meets on a real network: scanners, health checks, half-open connections.
std::vector<UniqueFd> Strangers(const std::string& address, int count) {
  std::vector<UniqueFd> strangers;
  const SocketAddress to = Resolve(*ParseHostPort(address))->front();
  for (int i = 0; i < count; ++i) {
    UniqueFd fd(socket(to.family(), SOCK_STREAM | SOCK_CLOEXEC, 0));
    EXPECT_EQ(connect(fd.get(), to.get(), to.length()), 0);
    const std::string says[] = {"", "GET / HTTP/1.1\r\nHost: x\r\n\r\n", std::string(300, '\0'),
                                "PRI * HTTP/2.0\r\n"};
    (void)!send(fd.get(), says[i % 4].data(), says[i % 4].size(), MSG_NOSIGNAL);
    strangers.push_back(std::move(fd));
  }
  return strangers;
}

TEST_F(CoordinatorProcessTest, StrangersAtItsPortDoNoHarm) {
  const auto strangers = Strangers(address(), 400);
  ExpectJobRuns();
}

// Fewer descriptors than there are strangers: gRPC by itself would never listen again.
TEST(FewFilesTest, StrangersDoNotUseUpTheCoordinatorsDescriptors) {
  const std::string recipe =
      WriteInput("recipe.yaml", TinyRecipeYaml({.steps = 2, .dtype = "fp32"}));
  ChildProcess coordinator("prlimit", {"--nofile=120:120", OMNI_BINARY, "coordinator", recipe,
                                       "--run-dir", TinyData() + "-network-few"});
  ASSERT_TRUE(WaitFor([&] { return !AddressIn(coordinator.output()).empty(); }))
      << coordinator.output();
  const std::string address = AddressIn(coordinator.output());
  const auto strangers = Strangers(address, 400);
  OmnitrainProcess worker({"worker", "--coordinator", address});
  EXPECT_EQ(worker.Wait(), 0) << worker.output();
  EXPECT_EQ(coordinator.Wait(), 0) << coordinator.output();
}

}  // namespace
}  // namespace omni::test
