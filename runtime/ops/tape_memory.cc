#include "runtime/ops/tape_memory.h"

#include <algorithm>
#include <iterator>

#include "runtime/base/check.h"

namespace omni {

TensorView TapeMemory::New(DType dtype, absl::Span<const int64_t> sizes) {
  TensorView view = TensorView::Dense(nullptr, dtype, device_.kind(), sizes);
  auto run = device_.pool().Allocate(view.num_bytes());
  OMNI_CHECK_OK(run.status());
  view.data = run->data;
  Own(*run);
  return view;
}

void TapeMemory::Own(PageRun run) {
  blocks_.emplace(run.data, Block{.run = run, .recording = recording_});
  if (recording_) {
    made_.push_back(run.data);
    return;
  }
  // Going backwards: a temporary of the running op, unless it becomes somebody's gradient.
  temporaries_.push_back(
      TensorView::Dense(run.data, DType::kUInt8, device_.kind(), {run.num_bytes}));
  Hold(temporaries_.back());
}

TapeMemory::Blocks::iterator TapeMemory::FindBlock(const void* address) {
  auto* byte = static_cast<std::byte*>(const_cast<void*>(address));
  auto it = blocks_.upper_bound(byte);
  if (it == blocks_.begin()) return blocks_.end();
  --it;
  return byte < it->first + it->second.run.num_bytes ? it : blocks_.end();
}

TapeMemory::Block* TapeMemory::Find(const void* address) {
  const auto it = FindBlock(address);
  return it == blocks_.end() ? nullptr : &it->second;
}

void TapeMemory::FreeIfUnneeded(Blocks::iterator it) {
  const Block& block = it->second;
  if (block.recording || block.needed_by_b || block.needed_by_w || block.is_output) return;
  if (grad_uses_.count(it->first) > 0) return;
  device_.pool().Free(block.run);
  blocks_.erase(it);
}

template <typename Change>
void TapeMemory::ForAllBlocks(Change change) {
  for (auto it = blocks_.begin(); it != blocks_.end();) {
    auto next = std::next(it);
    change(it->second);
    FreeIfUnneeded(it);
    it = next;
  }
}

void TapeMemory::EndStretch(size_t mark, absl::Span<const TensorView> outputs) {
  OMNI_CHECK(recording_);
  OMNI_CHECK_LE(mark, made_.size());
  const std::vector<std::byte*> own(made_.begin() + mark, made_.end());
  made_.resize(mark);
  for (std::byte* const made : own) {
    const auto block = blocks_.find(made);
    const bool is_output =
        std::any_of(outputs.begin(), outputs.end(),
                    [&](const TensorView& output) { return FindBlock(output.data) == block; });
    if (is_output) {
      made_.push_back(made);  // the stretch around this one may end it
    } else {
      block->second.recording = false;
      FreeIfUnneeded(block);
    }
  }
}

void TapeMemory::EndRecording() {
  recording_ = false;
  made_.clear();
  ForAllBlocks([](Block& block) { block.recording = false; });
}

void TapeMemory::EndPhases(bool b, bool w) {
  ForAllBlocks([&](Block& block) {
    if (b) block.needed_by_b = false;
    if (w) block.needed_by_w = false;
  });
}

void TapeMemory::Hold(const TensorView& grad) {
  const auto block = FindBlock(grad.data);
  if (block != blocks_.end()) ++grad_uses_[block->first];
}

void TapeMemory::Drop(const TensorView& grad) {
  if (grad.empty()) return;
  const auto block = FindBlock(grad.data);
  if (block == blocks_.end()) return;
  const auto uses = grad_uses_.find(block->first);
  if (uses == grad_uses_.end()) return;
  if (--uses->second == 0) grad_uses_.erase(uses);
  FreeIfUnneeded(block);
}

void TapeMemory::DropTemporaries() {
  for (const TensorView& temporary : temporaries_) Drop(temporary);
  temporaries_.clear();
}

PageRun TapeMemory::Disown(const TensorView& grad) {
  const auto it = FindBlock(grad.data);
  if (it == blocks_.end()) return {};
  const Block& block = it->second;
  if (block.recording || block.needed_by_b || block.needed_by_w || block.is_output) return {};
  if (grad_uses_.at(it->first) > 1) return {};
  const PageRun run = block.run;
  grad_uses_.erase(it->first);
  blocks_.erase(it);
  return run;
}

void TapeMemory::Clear() {
  grad_uses_.clear();
  temporaries_.clear();
  made_.clear();
  for (const auto& [data, block] : blocks_) device_.pool().Free(block.run);
  blocks_.clear();
  recording_ = true;
}

}  // namespace omni
