// NCCL for ranks that are threads of one process: calls meet in stream order, as its kernels would.
// What would hang there waits here too, until the communicator is aborted. Stricter than NCCL:
// ranks that make different calls, counts that differ, a group on several streams and a
// communicator that is destroyed with work under way end the program.
#include <cuda_bf16.h>
#include <nccl.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdio>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "runtime/device/cuda_emulated/block.h"
#include "runtime/device/cuda_emulated/runtime.h"

namespace omni::emulated {
namespace {

// One call of all ranks of a communicator. The last to come does it.
struct Meeting {
  int arrived = 0, left = 0;
  bool is_done = false;
  std::string what;
  std::vector<const void*> in;
  std::vector<void*> out;
};
struct Message {
  const void* data;
  size_t bytes;
  bool is_taken = false;
};
struct World {
  int size = 0, joined = 0;
  bool is_aborted = false;
  std::mutex mutex;
  std::condition_variable changed;
  std::map<uint64_t, Meeting> meetings;  // by the number of the call
  std::map<std::pair<int, int>, std::deque<Message*>> messages;
};

std::mutex worlds_mutex;
std::map<uint64_t, std::shared_ptr<World>> worlds;
uint64_t next_id = 1;

// Of nothing, from and to nowhere, as well.
void CopyBytes(void* to, const void* from, size_t bytes) {
  if (bytes > 0) std::memcpy(to, from, bytes);
}

size_t BytesOf(ncclDataType_t type) {
  switch (type) {
    case ncclUint8:
      return 1;
    case ncclBfloat16:
      return 2;
    case ncclFloat64:
    case ncclInt64:
      return 8;
    default:
      return 4;
  }
}

template <typename T, typename C>
void ReduceAs(const std::vector<const void*>& in, void* out, size_t count, ncclRedOp_t op) {
  std::vector<T> result(count);  // as `out` may be one of `in`
  for (size_t i = 0; i < count; ++i) {
    C value = static_cast<C>(static_cast<const T*>(in[0])[i]);
    for (size_t rank = 1; rank < in.size(); ++rank) {
      const C x = static_cast<C>(static_cast<const T*>(in[rank])[i]);
      value = op == ncclSum ? value + x : op == ncclMax ? std::max(value, x) : std::min(value, x);
    }
    result[i] = static_cast<T>(value);
  }
  CopyBytes(out, result.data(), count * sizeof(T));
}
void Reduce(const std::vector<const void*>& in, void* out, size_t count, ncclDataType_t type,
            ncclRedOp_t op) {
  switch (type) {
    case ncclFloat64:
      return ReduceAs<double, double>(in, out, count, op);
    case ncclFloat32:
      return ReduceAs<float, float>(in, out, count, op);
    case ncclBfloat16:
      return ReduceAs<__nv_bfloat16, float>(in, out, count, op);
    case ncclInt32:
      return ReduceAs<int32_t, int32_t>(in, out, count, op);
    case ncclInt64:
      return ReduceAs<int64_t, int64_t>(in, out, count, op);
    default:
      Fault("a reduction of a type that is not emulated");
  }
}

// False if it was aborted.
template <typename Ready>
bool Await(World& world, std::unique_lock<std::mutex>& lock, const Ready& ready) {
  world.changed.wait(lock, [&] { return world.is_aborted || ready(); });
  return !world.is_aborted;
}

}  // namespace
}  // namespace omni::emulated

struct ncclComm {
  std::shared_ptr<omni::emulated::World> world;
  int rank = 0;
  uint64_t sequence = 0;
  std::shared_ptr<std::atomic<int>> under_way = std::make_shared<std::atomic<int>>(0);
  // A call that is not on its stream yet: it comes there when who made it asks a second time.
  std::function<void()> pending;
  std::thread::id issuer;
  int times_asked = 0;
};

namespace omni::emulated {
namespace {

using Finish =
    std::function<void(const std::vector<const void*>& in, const std::vector<void*>& out)>;

struct Collective {
  ncclComm* comm;
  std::string what;
  const void* in;
  size_t in_bytes;
  void* out;
  size_t out_bytes;
  cudaStream_t stream;
  Finish finish;  // by the last to come, for all
};
struct PeerCall {
  ncclComm* comm;
  bool sends;
  void* data;
  size_t bytes;
  int peer;
  cudaStream_t stream;
};
thread_local int group_depth = 0;
thread_local std::vector<Collective> group_collectives;
thread_local std::vector<PeerCall> group_messages;

void Meet(const Collective& call, uint64_t sequence, World& world, int rank) {
  if (call.in_bytes > 0) AccessRange(call.in, call.in_bytes, false);
  if (call.out_bytes > 0) AccessRange(call.out, call.out_bytes, true);
  std::unique_lock lock(world.mutex);
  Meeting& meeting = world.meetings[sequence];
  if (meeting.arrived == 0) {
    meeting.what = call.what;
    meeting.in.resize(world.size);
    meeting.out.resize(world.size);
  } else if (meeting.what != call.what) {
    std::fprintf(stderr, "emulated NCCL: call #%llu is %s on rank %d, %s on others\n",
                 static_cast<unsigned long long>(sequence), call.what.c_str(), rank,
                 meeting.what.c_str());
    Fault("ranks make different calls");
  }
  meeting.in[rank] = call.in;
  meeting.out[rank] = call.out;
  if (++meeting.arrived == world.size) {
    call.finish(meeting.in, meeting.out);
    meeting.is_done = true;
    world.changed.notify_all();
  } else if (!Await(world, lock, [&] { return meeting.is_done; })) {
    return;
  }
  if (++meeting.left == world.size) world.meetings.erase(sequence);
}

ncclResult_t Begin(ncclComm* comm, std::function<void()> enqueue) {
  if (comm->pending) Fault("a call of a communicator whose last one is still in progress");
  comm->pending = std::move(enqueue);
  comm->issuer = std::this_thread::get_id();
  comm->times_asked = 0;
  return ncclInProgress;
}

void Enqueue(const Collective& call) {
  ncclComm* const comm = call.comm;
  if (comm->world->size == 1) {
    EnqueueWork(call.stream, "nccl", [call] { call.finish({call.in}, {call.out}); });
    return;
  }
  const uint64_t sequence = comm->sequence++;
  ++*comm->under_way;
  EnqueueWork(call.stream, "nccl",
              [call, sequence, world = comm->world, rank = comm->rank, count = comm->under_way] {
                Meet(call, sequence, *world, rank);
                --*count;
              });
}
ncclResult_t Issue(Collective call) {
  if (group_depth > 0) {
    group_collectives.push_back(std::move(call));
    return ncclSuccess;
  }
  ncclComm* const comm = call.comm;
  return Begin(comm, [call = std::move(call)] { Enqueue(call); });
}

void Exchange(std::vector<PeerCall> calls) {
  const cudaStream_t stream = calls[0].stream;
  ncclComm* const comm = calls[0].comm;
  for (const PeerCall& call : calls)
    if (call.stream != stream || call.comm != comm) Fault("a group on several streams");
  ++*comm->under_way;
  const auto run = [calls = std::move(calls), world = comm->world, rank = comm->rank] {
    std::vector<Message> mine(calls.size());
    std::unique_lock lock(world->mutex);
    for (size_t i = 0; i < calls.size(); ++i) {
      if (!calls[i].sends) continue;
      if (calls[i].bytes > 0) AccessRange(calls[i].data, calls[i].bytes, false);
      mine[i] = {calls[i].data, calls[i].bytes};
      world->messages[{rank, calls[i].peer}].push_back(&mine[i]);
    }
    world->changed.notify_all();
    const auto forget = [&] {  // they lie on this stack
      for (auto& [way, queue] : world->messages)
        std::erase_if(queue, [&](const Message* message) {
          return message >= mine.data() && message < mine.data() + mine.size();
        });
    };
    for (const PeerCall& call : calls) {
      if (call.sends) continue;
      auto& queue = world->messages[{call.peer, rank}];
      if (!Await(*world, lock, [&] { return !queue.empty(); })) return forget();
      Message* const message = queue.front();
      queue.pop_front();
      if (message->bytes != call.bytes) Fault("a message of another length than its receiver has");
      if (call.bytes > 0) AccessRange(call.data, call.bytes, true);
      CopyBytes(call.data, message->data, call.bytes);
      message->is_taken = true;
      world->changed.notify_all();
    }
    const bool all_taken = Await(*world, lock, [&] {
      for (size_t i = 0; i < calls.size(); ++i)
        if (calls[i].sends && !mine[i].is_taken) return false;
      return true;
    });
    if (!all_taken) forget();
  };
  EnqueueWork(stream, "nccl messages", [run, count = comm->under_way] {
    run();
    --*count;
  });
}
ncclResult_t IssueMessages() {
  if (group_depth > 0) return ncclSuccess;
  std::vector<PeerCall> calls = std::exchange(group_messages, {});
  ncclComm* const comm = calls[0].comm;
  return Begin(comm, [calls = std::move(calls)] { Exchange(calls); });
}

std::string Named(const char* verb, size_t count, ncclDataType_t type, int more) {
  return std::string(verb) + " of " + std::to_string(count) + ", type " +
         std::to_string(static_cast<int>(type)) + ", " + std::to_string(more);
}

}  // namespace
}  // namespace omni::emulated

using namespace omni::emulated;

extern "C" {

const char* ncclGetErrorString(ncclResult_t result) {
  return result == ncclSuccess ? "no error" : "emulated NCCL error";
}
ncclResult_t ncclGetUniqueId(ncclUniqueId* id) {
  const std::lock_guard lock(worlds_mutex);
  std::memset(id, 0, sizeof(*id));
  std::memcpy(id, &next_id, sizeof(next_id));
  worlds[next_id++] = std::make_shared<World>();
  return ncclSuccess;
}
ncclResult_t ncclCommInitRankConfig(ncclComm_t* result, int size, ncclUniqueId id, int rank,
                                    ncclConfig_t* config) {
  if (config == nullptr || config->blocking != 0) Fault("communicators must be non-blocking");
  uint64_t number;
  std::memcpy(&number, &id, sizeof(number));
  auto* comm = new ncclComm;
  {
    const std::lock_guard lock(worlds_mutex);
    const auto found = worlds.find(number);
    if (found == worlds.end()) {  // of another process: NCCL would find it, this does not
      delete comm;
      return ncclInvalidUsage;
    }
    comm->world = found->second;
  }
  comm->rank = rank;
  const std::lock_guard lock(comm->world->mutex);
  if (comm->world->size != 0 && comm->world->size != size) Fault("ranks join with different sizes");
  comm->world->size = size;
  ++comm->world->joined;
  *result = comm;
  return ncclInProgress;
}
ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t* state) {
  if (comm->pending) {
    if (std::this_thread::get_id() != comm->issuer || ++comm->times_asked < 2) {
      *state = ncclInProgress;
      return ncclSuccess;
    }
    std::exchange(comm->pending, nullptr)();
  }
  const std::lock_guard lock(comm->world->mutex);
  *state = comm->world->is_aborted                   ? ncclRemoteError
           : comm->world->joined < comm->world->size ? ncclInProgress
                                                     : ncclSuccess;
  return ncclSuccess;
}
ncclResult_t ncclCommAbort(ncclComm_t comm) {
  {
    const std::lock_guard lock(comm->world->mutex);
    comm->world->is_aborted = true;
    comm->world->changed.notify_all();
  }
  delete comm;
  return ncclSuccess;
}
ncclResult_t ncclCommDestroy(ncclComm_t comm) {
  if (*comm->under_way != 0) Fault("a communicator is destroyed while it is at work");
  delete comm;
  return ncclSuccess;
}

ncclResult_t ncclAllReduce(const void* in, void* out, size_t count, ncclDataType_t type,
                           ncclRedOp_t op, ncclComm_t comm, cudaStream_t stream) {
  const size_t bytes = count * BytesOf(type);
  return Issue({comm, Named("all-reduce", count, type, op), in, bytes, out, bytes, stream,
                [=](const auto& ins, const auto& outs) {
                  std::vector<std::byte> sum(bytes);
                  Reduce(ins, sum.data(), count, type, op);
                  for (void* to : outs) CopyBytes(to, sum.data(), bytes);
                }});
}
ncclResult_t ncclReduce(const void* in, void* out, size_t count, ncclDataType_t type,
                        ncclRedOp_t op, int root, ncclComm_t comm, cudaStream_t stream) {
  const size_t bytes = count * BytesOf(type);
  return Issue({comm, Named("reduce", count, type, op * 1000 + root), in, bytes, out,
                comm->rank == root ? bytes : 0, stream, [=](const auto& ins, const auto& outs) {
                  Reduce(ins, outs[root], count, type, op);
                }});
}
ncclResult_t ncclReduceScatter(const void* in, void* out, size_t count, ncclDataType_t type,
                               ncclRedOp_t op, ncclComm_t comm, cudaStream_t stream) {
  const size_t bytes = count * BytesOf(type);
  return Issue({comm, Named("reduce-scatter", count, type, op), in, bytes * comm->world->size, out,
                bytes, stream, [=](const auto& ins, const auto& outs) {
                  std::vector<std::byte> sum(bytes * outs.size());
                  Reduce(ins, sum.data(), count * outs.size(), type, op);
                  for (size_t r = 0; r < outs.size(); ++r)
                    CopyBytes(outs[r], sum.data() + r * bytes, bytes);
                }});
}
ncclResult_t ncclAllGather(const void* in, void* out, size_t count, ncclDataType_t type,
                           ncclComm_t comm, cudaStream_t stream) {
  const size_t bytes = count * BytesOf(type);
  return Issue({comm, Named("all-gather", count, type, 0), in, bytes, out,
                bytes * comm->world->size, stream, [=](const auto& ins, const auto& outs) {
                  std::vector<std::byte> all(bytes * ins.size());
                  for (size_t r = 0; r < ins.size(); ++r)
                    CopyBytes(all.data() + r * bytes, ins[r], bytes);
                  for (void* to : outs) CopyBytes(to, all.data(), all.size());
                }});
}
ncclResult_t ncclBroadcast(const void* in, void* out, size_t count, ncclDataType_t type, int root,
                           ncclComm_t comm, cudaStream_t stream) {
  const size_t bytes = count * BytesOf(type);
  return Issue({comm, Named("broadcast", count, type, root), in, comm->rank == root ? bytes : 0,
                out, bytes, stream, [=](const auto& ins, const auto& outs) {
                  for (void* to : outs)
                    if (to != ins[root]) CopyBytes(to, ins[root], bytes);
                }});
}
ncclResult_t ncclSend(const void* data, size_t count, ncclDataType_t type, int peer,
                      ncclComm_t comm, cudaStream_t stream) {
  group_messages.push_back(
      {comm, true, const_cast<void*>(data), count * BytesOf(type), peer, stream});
  return IssueMessages();
}
ncclResult_t ncclRecv(void* data, size_t count, ncclDataType_t type, int peer, ncclComm_t comm,
                      cudaStream_t stream) {
  group_messages.push_back({comm, false, data, count * BytesOf(type), peer, stream});
  return IssueMessages();
}
ncclResult_t ncclGroupStart() { return ++group_depth, ncclSuccess; }
ncclResult_t ncclGroupEnd() {
  if (--group_depth > 0) return ncclSuccess;
  std::vector<Collective> collectives = std::exchange(group_collectives, {});
  std::vector<PeerCall> messages = std::exchange(group_messages, {});
  if (collectives.empty() && messages.empty()) return ncclSuccess;
  ncclComm* const comm = collectives.empty() ? messages[0].comm : collectives[0].comm;
  return Begin(comm, [collectives = std::move(collectives), messages = std::move(messages)] {
    for (const Collective& call : collectives) Enqueue(call);
    if (!messages.empty()) Exchange(messages);
  });
}

}  // extern "C"
