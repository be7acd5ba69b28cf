// The tensors of a tape: whose pages they are and what still needs them. Private to the tape.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <vector>

#include "absl/types/span.h"
#include "runtime/device/device.h"
#include "runtime/tensor/view.h"

namespace omni {

class TapeMemory {
 public:
  // One tensor's pages. Freed when the last reason is gone.
  struct Block {
    PageRun run;
    bool recording = true;     // an op may still read it: until its stretch or recording ends
    bool needed_by_b = false;  // until BackwardInput ends
    bool needed_by_w = false;  // until WeightGrad ends
    bool is_output = false;    // until Clear
  };

  explicit TapeMemory(Device& device) : device_(device) {}

  bool is_recording() const { return recording_; }
  TensorView New(DType dtype, absl::Span<const int64_t> sizes);
  void Own(PageRun run);  // as if New had made it
  // The block that holds this address; null for memory that is not the tape's.
  Block* Find(const void* address);

  // See Tape.
  size_t Mark() const { return made_.size(); }
  void EndStretch(size_t mark, absl::Span<const TensorView> outputs);
  void EndRecording();

  void EndPhases(bool b, bool w);  // of the backward

  // Gradients: a slot holds a view; several may lie in one block (columns of one gradient).
  void Hold(const TensorView& grad);
  void Drop(const TensorView& grad);
  // What New and Own gave while going backwards belongs to the running op until here.
  void DropTemporaries();
  // Gives up the block of a gradient that one slot holds; an empty run where more needs it.
  PageRun Disown(const TensorView& grad);

  void Clear();  // frees everything; recording begins again

 private:
  using Blocks = std::map<std::byte*, Block>;  // by first byte
  Blocks::iterator FindBlock(const void* address);
  void FreeIfUnneeded(Blocks::iterator it);
  template <typename Change>
  void ForAllBlocks(Change change);

  Device& device_;
  Blocks blocks_;
  std::map<std::byte*, int32_t> grad_uses_;  // blocks of gradients: how many slots hold them
  std::vector<TensorView> temporaries_;      // of the op running backwards
  std::vector<std::byte*> made_;             // blocks made while recording, in order
  bool recording_ = true;
};

}  // namespace omni
