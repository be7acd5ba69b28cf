"""Golden files of tiny Qwen2.5-VL, Qwen3-VL and Qwen3-VL-MoE models.

    venv/bin/pip install -r tools/golden/requirements.txt
    venv/bin/python tools/golden/families/vision.py tests/golden/families

tests/golden/families/README.md describes the files.
"""

import os
import sys

import numpy as np
import torch
import transformers
from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor
from transformers.models.qwen2_vl.image_processing_qwen2_vl_fast import Qwen2VLImageProcessorFast

import common
import rope_rules
import routing
import vision_models as models
from text import train20

WORDS = 150  # below: text; above: special tokens


def picture(rng, height, width, frames=None):
    """Stripes, a gradient and noise: nothing a resize could get right by chance. uint8."""
    t = np.arange(frames or 1)[:, None, None, None]
    y, x = np.mgrid[:height, :width][:, None, :, :, None]
    c = np.arange(3)
    phase = rng.uniform(0, 6, 4)
    value = 110 + 60 * np.sin(0.31 * x + phase[0] + c + 0.7 * t) + 40 * np.sin(
        0.23 * y + phase[1] - c - 0.4 * t) + 90 * (x / width - y / height)
    value = value + rng.normal(0, 18, value.shape)
    out = np.clip(np.rint(value), 0, 255).astype(np.uint8)
    return out if frames else out[0]


class Processors:
    """The family's own, read from the folder as a user of the checkpoint would."""

    def __init__(self, folder, video_class):
        self.fast = Qwen2VLImageProcessorFast.from_pretrained(folder)
        # The slow one ignores a `size` in the file, so it is told the bounds.
        self.slow = Qwen2VLImageProcessor.from_pretrained(
            folder, min_pixels=self.fast.size["shortest_edge"],
            max_pixels=self.fast.size["longest_edge"])
        self.video = video_class.from_pretrained(folder)

    def image(self, source):
        out = self.fast(images=[torch.from_numpy(source).permute(2, 0, 1)], return_tensors="pt")
        slow = self.slow(images=[source], return_tensors="pt")
        assert torch.equal(out["image_grid_thw"], slow["image_grid_thw"])
        difference = (out["pixel_values"] - slow["pixel_values"]).abs()
        print(f"    image {source.shape} grid {out['image_grid_thw'].tolist()}; fast against slow: "
              f"max {difference.max():.4f}, differing {(difference > 1e-6).float().mean():.4f}")
        return out["pixel_values"], out["image_grid_thw"]

    def clip(self, source):
        out = self.video(videos=[torch.from_numpy(source).permute(0, 3, 1, 2)],
                         do_sample_frames=False, return_tensors="pt")
        print(f"    video {source.shape} grid {out['video_grid_thw'].tolist()}")
        return out["pixel_values_videos"], out["video_grid_thw"]


def make_sample(family, model, processors, rng, parts, words=4):
    """One conversation: text, then each part followed by text; loss on most of the text.

    A part is ("image", uint8 [H, W, 3]) or ("video", uint8 [frames, H, W, 3], seconds per grid).
    """
    ids, spans = rng.integers(3, WORDS, words).tolist(), []
    media = {name: [] for name in common.MEDIA}
    sources = {"pictures": [], "videos": []}
    config = model.config
    frame_by_frame = family.startswith("qwen3")
    text_from = 0

    def cells(token, *span):
        nonlocal text_from
        ids.append(config.vision_start_token_id)
        spans.extend([["text", len(ids) - text_from], list(span)])
        count = int(np.prod(span[1:4])) if span[0] == "video" else span[1] * span[2]
        ids.extend([token] * count)
        text_from = len(ids)
        ids.append(config.vision_end_token_id)

    for kind, source, *seconds in parts:
        if kind == "image":
            pixels, grid = processors.image(source)
            media["pixel_values"].append(pixels)
            media["image_grid_thw"].append(grid)
            sources["pictures"].append(source)
        else:
            pixels, grid = processors.clip(source)
            media["pixel_values_videos"].append(pixels)
            media["video_grid_thw"].append(grid)
            sources["videos"].append(source)
            if not frame_by_frame:
                media["second_per_grid_ts"].append(torch.tensor(seconds))
        t, h, w = (grid[0] // torch.tensor([1, 2, 2])).tolist()
        if kind == "image":
            cells(config.image_token_id, "image", h, w)
        elif frame_by_frame:  # each pair of frames has a time stamp before it
            for _ in range(t):
                ids.extend(rng.integers(3, WORDS, 2).tolist())
                cells(config.video_token_id, "video", 1, h, w, 0)
        else:
            cells(config.video_token_id, "video", t, h, w, *seconds)
        ids.extend(rng.integers(3, WORDS, words + 2).tolist())
    spans.append(["text", len(ids) - text_from])

    labels = common.make_labels(rng, np.array(ids), 2)
    labels[np.array(ids) >= WORDS] = common.IGNORED
    # All ones: without a mask Qwen3-VL takes jumps in T for the start of another sample.
    out = dict(input_ids=torch.tensor([ids]), labels=torch.tensor(labels)[None],
               attention_mask=torch.ones(1, len(ids), dtype=torch.long))
    out.update({name: torch.cat(found) for name, found in media.items() if found})
    out.update({name: found for name, found in sources.items() if found})
    rope = {k: out[k] for k in ("image_grid_thw", "video_grid_thw", "second_per_grid_ts")
            if k in out}
    out["position_ids"], _ = model.model.get_rope_index(
        out["input_ids"], **rope, attention_mask=out["attention_mask"])
    by_rule = {rule: rope_rules.positions(
        spans, rule, getattr(config.vision_config, "tokens_per_second", 0), frame_by_frame)
        for rule in rope_rules.RULES}
    assert np.array_equal(by_rule["pinned"], out["position_ids"][:, 0].numpy())
    if not frame_by_frame:
        out["stored"] = {f"position_ids_{rule}": by_rule[rule] for rule in ("older", "newer")}
    return out


def add_internals(model, samples, tensors):
    """Rows of the tower, DeepStack rows, windows: of each kind of medium, over the whole case."""
    for suffix, pixels, grid in (("", "pixel_values", "image_grid_thw"),
                                 ("_videos", "pixel_values_videos", "video_grid_thw")):
        if grid not in tensors:
            continue
        with torch.no_grad():
            rows = model.visual(tensors[pixels], grid_thw=tensors[grid])
        if isinstance(rows, tuple):
            rows, deepstack = rows
            for i, extra in enumerate(deepstack):
                tensors[f"deepstack{suffix}.{i}"] = extra
        else:
            index, lengths = model.visual.get_window_index(tensors[grid])
            tensors["window_index" + suffix] = index
            tensors["cu_window_seqlens" + suffix] = torch.unique_consecutive(torch.tensor(lengths))
        tensors["vision_rows" + suffix] = rows


def make_family(root, family, seed):
    print(family)
    folder = os.path.join(root, family)
    rng = np.random.default_rng(seed)
    model = common.randomise(models.make(family), seed)
    common.save_model(model, folder)
    models.write_processors(family, folder)
    if family == "qwen2_5_vl":
        models.write_hub_config(folder)
    names = common.disk_names(model, folder)
    processors = Processors(folder, getattr(transformers, models.VIDEO_PROCESSOR[family]))
    moe = family.endswith("moe")
    options = dict(output_router_logits=True, extra_loss=routing.losses) if moe else {}

    # Sources in pixels; what the processors make of them (patches of 4, windows of 24 pixels):
    image = ("image", picture(rng, 47, 26))       # 48 x 24: whole windows
    ragged = ("image", picture(rng, 30, 43))      # 32 x 40
    small = ("image", picture(rng, 14, 20))       # 24 x 32, enlarged to the least size
    large = ("image", picture(rng, 96, 70))       # 48 x 32, reduced to the greatest size
    clip = ("video", picture(rng, 36, 20, 7), 1.5)  # 8 frames (the last twice) of 32 x 16
    layouts = {
        "text": [[]], "image": [[image]], "image_ragged": [[ragged]], "images_two": [[small, large]],
        "video": [[clip]], "packed": [[], [ragged], [], [small]], "mixed": [[image, clip, small]],
    }
    for name, samples in layouts.items():
        if moe and name in ("image", "packed", "mixed"):
            continue
        print("  " + name)
        made = [routing.clear(model, lambda: make_sample(
            family, model, processors, rng, parts, 4 if parts else 9)) for parts in samples]
        grads = name == "images_two"
        tensors = common.case(model, made, names.__getitem__, with_grads=grads, **options)
        add_internals(model, made, tensors)
        if len(made) == 1 and "video_grid_thw" in made[0] and "stored" in made[0]:
            for rule in ("older", "newer"):  # the losses if the positions were the other rules'
                positions = torch.tensor(made[0]["stored"][f"position_ids_{rule}"])[:, None]
                _, losses, _ = common.run(model, dict(made[0], position_ids=positions))
                tensors[f"losses_{rule}"] = losses
        common.to_file(os.path.join(folder, f"case_{name}.safetensors"), tensors)
    if family == "qwen2_5_vl":
        layouts = [[], [ragged], [small], [], [clip], []]
        samples = [make_sample(family, model, processors, rng, parts) for parts in layouts]
        tensors = train20(model, rng, samples, names.__getitem__)
        common.to_file(os.path.join(folder, "train20.safetensors"), tensors)


def main():
    common.deterministic()
    chosen = sys.argv[2:] or models.FAMILIES
    for seed, name in enumerate(models.FAMILIES):
        if name in chosen:
            make_family(sys.argv[1], name, 200 + seed)


if __name__ == "__main__":
    main()
