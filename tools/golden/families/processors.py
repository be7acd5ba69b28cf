"""Golden sizes, frames and time stamps of the processors.

    venv/bin/pip install -r tools/golden/requirements.txt
    venv/bin/python tools/golden/families/processors.py tests/golden/families

tests/golden/families/README.md describes the file.
"""

import json
import os
import sys

import numpy as np
from transformers import Qwen2VLVideoProcessor, Qwen3VLVideoProcessor
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize
from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor
from transformers.models.qwen3_vl.video_processing_qwen3_vl import smart_resize as resize_video
from transformers.video_utils import VideoMetadata

# factor, least and most pixels: Qwen2.5-VL's file, its class, Qwen3-VL's file, the tiny models'
BOUNDS = ((28, 3136, 12845056), (28, 3136, 1003520), (32, 65536, 16777216), (8, 576, 2048))
VIDEO_BOUNDS = ((32, 4096, 25165824), (32, 131072, 786432), (8, 1024, 8192))


def sizes(rng):
    """[height, width, factor, least, most, new height, new width]"""
    out = []
    for factor, least, most in BOUNDS:
        sides = [(factor * 9 // 2, factor * 5 // 2), (factor * 7 // 2, factor), (1, 150), (2000, 11),
                 (1080, 1920)]
        sides += [tuple(int(x) for x in np.exp(rng.uniform(0, 8.3, 2))) for _ in range(14)]
        for height, width in sides:
            if max(height, width) <= 200 * min(height, width):
                new = smart_resize(height, width, factor, least, most)
                out.append([height, width, factor, least, most, *new])
    return out


def video_sizes(rng):
    """[frames, height, width, factor, least, most, new height, new width]"""
    out = []
    for factor, least, most in VIDEO_BOUNDS:
        shapes = [(7, factor * 9 // 2, factor * 5 // 2), (5, factor, factor)]
        shapes += [(int(rng.integers(2, 90)), *(int(x) for x in factor * np.exp(
            rng.uniform(0, 3.6, 2)))) for _ in range(14)]
        for frames, height, width in shapes:
            new = resize_video(frames, height, width, 2, factor, least, most)
            out.append([frames, height, width, factor, least, most, *new])
    return out


def frames(rng):
    """Frames taken of a video: its number of frames and rate, the rate asked for, the indices."""
    out = {"qwen2_5_vl": [], "qwen3_vl": []}
    cases = [(100, 25.0, 2.0), (90, 29.97, 2.0), (17, 24.0, 2.0), (5, 30.0, 2.0), (4, 10.0, 1.0)]
    cases += [(int(rng.integers(8, 700)), float(rng.choice([10.0, 23.976, 25.0, 29.97, 60.0])),
               float(rng.choice([0.5, 1.0, 2.0, 3.0]))) for _ in range(10)]
    for family, make in (("qwen2_5_vl", Qwen2VLVideoProcessor), ("qwen3_vl", Qwen3VLVideoProcessor)):
        processor = make()
        for total, rate, wanted in cases:
            metadata = VideoMetadata(total_num_frames=total, fps=rate, duration=total / rate)
            indices = [int(i) for i in processor.sample_frames(metadata, fps=wanted)]
            case = dict(total=total, fps=rate, wanted=wanted, indices=indices)
            if family == "qwen3_vl":
                stamps = Qwen3VLProcessor._calculate_timestamps(None, list(indices), rate, 2)
                case["stamps"] = [f"<{stamp:.1f} seconds>" for stamp in stamps]
            out[family].append(case)
    return out


def main():
    rng = np.random.default_rng(600)
    parts = {"smart_resize": sizes(rng), "smart_resize_video": video_sizes(rng)}
    parts.update({f"frames_{family}": cases for family, cases in frames(rng).items()})
    with open(os.path.join(sys.argv[1], "processors.json"), "w") as file:
        blocks = ["\"%s\": [\n%s\n]" % (name, ",\n".join(
            json.dumps(case, separators=(",", ":")) for case in cases))
            for name, cases in parts.items()]
        file.write("{\n" + ",\n".join(blocks) + "\n}\n")


if __name__ == "__main__":
    main()
