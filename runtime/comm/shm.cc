#include "runtime/comm/shm.h"

#include <utility>

#include "runtime/base/check.h"
#include "runtime/base/status.h"
#include "runtime/comm/engine.h"
#include "runtime/comm/peer_links.h"
#include "runtime/comm/shm_transport.h"
#include "runtime/comm/sockets.h"

namespace omni {

absl::StatusOr<std::vector<std::unique_ptr<Communicator>>> CreateShmCommunicators(
    int32_t size, const CommOptions& options) {
  OMNI_CHECK_GE(size, 1);
  std::vector<std::shared_ptr<comm::PeerLinks>> links;
  for (int32_t rank = 0; rank < size; ++rank) {
    links.push_back(std::make_shared<comm::PeerLinks>(rank, size, UniqueFd(),
                                                      std::vector<std::string>(), options));
  }
  for (int32_t low = 0; low < size; ++low) {
    for (int32_t high = low + 1; high < size; ++high) {
      OMNI_ASSIGN_OR_RETURN(auto pair, comm::SocketPair());
      links[low]->AddPeer(high, std::move(pair.first));
      links[high]->AddPeer(low, std::move(pair.second));
    }
  }
  std::vector<std::unique_ptr<Communicator>> result;
  for (int32_t rank = 0; rank < size; ++rank) {  // rank 0 first: it makes the memory
    OMNI_ASSIGN_OR_RETURN(
        auto communicator,
        comm::MakeWorld(std::move(links[rank]), comm::MakeShmTransportFactory(), options));
    result.push_back(std::move(communicator));
  }
  return result;
}

absl::StatusOr<std::unique_ptr<Communicator>> ConnectShm(const std::string& name, int32_t rank,
                                                         int32_t size, const CommOptions& options) {
  OMNI_CHECK(rank >= 0 && rank < size);
  std::vector<std::string> addresses;
  for (int32_t r = 0; r < size; ++r) {
    addresses.push_back(absl::StrCat("@omnitrain/", name, "/", options.generation, "/", r));
  }
  OMNI_ASSIGN_OR_RETURN(UniqueFd listener, comm::Listen(addresses[rank]));
  auto links = std::make_shared<comm::PeerLinks>(rank, size, std::move(listener),
                                                 std::move(addresses), options);
  OMNI_RETURN_IF_ERROR(links->ConnectAll());
  return comm::MakeWorld(std::move(links), comm::MakeShmTransportFactory(), options);
}

}  // namespace omni
