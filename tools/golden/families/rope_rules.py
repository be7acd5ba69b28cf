"""The three rules for M-RoPE positions of Qwen2.5-VL, in plain numpy.

A layout is a list of spans: ["text", n], ["image", h, w], ["video", t, h, w, seconds per grid], with
grids in merged cells. Every span starts where the one before it ends.

  older   T = floor(i * seconds * tokens per second); the next span starts at max over the axes + 1
          (earlier transformers 4.x)
  pinned  as older, with the seconds cut to a whole number first (transformers 4.57)
  newer   seconds cut too; the next span starts at + max(h, w), whatever T is (transformers 5)
"""

import numpy as np

RULES = ("older", "pinned", "newer")


def positions(spans, rule, tokens_per_second, frame_by_frame=False):
    """[3, tokens]. frame_by_frame: Qwen3-VL's, where each video frame is an image of its own."""
    parts, start = [], 0
    for kind, *size in spans:
        if kind == "text":
            parts.append(np.tile(np.arange(size[0]), (3, 1)) + start)
            start += size[0]
            continue
        t, h, w = (1, *size) if kind == "image" else size[:3]
        if kind == "image" or frame_by_frame:
            assert t == 1
            step = 0.0
        else:
            step = np.float32(size[3]) if rule == "older" else np.float32(int(size[3]))
        time = np.floor(np.arange(t, dtype=np.float32) * step * np.float32(tokens_per_second))
        grid = np.stack(np.meshgrid(time, np.arange(h), np.arange(w), indexing="ij"))
        parts.append(grid.reshape(3, -1).astype(np.int64) + start)
        start = start + max(h, w) if rule == "newer" else int(parts[-1].max()) + 1
    return np.concatenate(parts, axis=1)
