"""Golden positions and windows: get_rope_index and get_window_index on random layouts.

    venv/bin/pip install -r tools/golden/requirements.txt
    venv/bin/python tools/golden/families/positions.py tests/golden/families

tests/golden/families/README.md describes the files.
"""

import json
import os
import sys

import numpy as np
import torch

import omni
import rope_rules
import sound
import vision_models as models

LAYOUTS = 30
SECONDS = (0.08, 0.3337, 0.5, 2 / 3, 1.0, 1.5, 2.0, 3.25)
STAMP = 2  # text tokens of a time stamp before each frame of Qwen3-VL


def random_layout(rng, family):
    even = lambda most: 2 * int(rng.integers(1, most // 2 + 1))
    spans = [["text", int(rng.integers(1, 6))]]
    kinds = ["image", "video"] + (["audio", "audio"] if family == "qwen2_5_omni" else [])
    with_audio = family == "qwen2_5_omni" and rng.random() < 0.4
    for _ in range(int(rng.integers(1, 4))):
        kind = kinds[rng.integers(len(kinds))]
        if kind == "image":
            spans.append(["image", even(14), even(14)])
        elif kind == "audio":
            spans.append(["audio", int(rng.integers(3, 90))])
        else:
            seconds = float(np.float32(rng.choice(SECONDS)))
            span = ["video", int(rng.integers(1, 7)), even(8), even(8), seconds]
            if with_audio:
                span[0] = "video_with_audio"
                span.append(int(rng.integers(40, 400)))
            spans.append(span)
        if rng.random() < 0.8:
            spans.append(["text", int(rng.integers(1, 6))])
    return spans


def expand(spans, config, family):
    """Token ids, and the same layout as rope_rules counts it (no sound there)."""
    ids, plain, grids, seconds, frames = [], [], dict(image=[], video=[]), [], []
    for kind, *size in spans:
        if kind == "text":
            ids += [1] * size[0]
            plain.append(["text", size[0]])
        elif kind == "audio":
            count = sound.num_tokens(size[0])
            ids += [config.audio_start_token_id] + [config.audio_token_id] * count
            ids += [config.audio_end_token_id]
            frames.append(size[0])
        elif kind == "video_with_audio":
            grid = torch.tensor([size[:3]])
            ids += [config.vision_start_token_id, config.audio_start_token_id]
            ids += omni.interleaved(config, grid, size[3], sound.num_tokens(size[4]))
            ids += [config.audio_end_token_id, config.vision_end_token_id]
            grids["video"].append(size[:3])
            seconds.append(size[3])
            frames.append(size[4])
        else:
            t, h, w = (1, *size) if kind == "image" else size[:3]
            grids[kind].append([t, h, w])
            if kind == "video":
                seconds.append(size[3])
            pad = config.image_token_id if kind == "image" else config.video_token_id
            own = kind == "video" and family.startswith("qwen3")  # a picture per frame
            for _ in range(t if own else 1):
                ids += [1] * (STAMP if own else 0) + [config.vision_start_token_id]
                ids += [pad] * (h * w // 4 * (1 if own else t)) + [config.vision_end_token_id]
                cells = ["image", h // 2, w // 2] if kind == "image" else \
                    ["video", 1 if own else t, h // 2, w // 2, size[3]]
                plain += [["text", 1 + (STAMP if own else 0)], cells, ["text", 1]]
    return ids, plain, grids, seconds, frames


def layout_case(family, model, spans):
    config = model.config
    ids, plain, grids, seconds, frames = expand(spans, config, family)
    images = torch.tensor(grids["image"], dtype=torch.long).reshape(-1, 3)
    videos = torch.tensor(grids["video"], dtype=torch.long).reshape(-1, 3)
    tokens, mask = torch.tensor([ids]), torch.ones(1, len(ids), dtype=torch.long)
    out = {"spans": spans}
    if family == "qwen2_5_omni":
        together = any(s[0] == "video_with_audio" for s in spans)
        found, _ = model.get_rope_index(tokens, images, videos, mask, together,
                                        torch.tensor(frames), torch.tensor(seconds))
    elif family == "qwen2_5_vl":
        found, _ = model.model.get_rope_index(tokens, images, videos, torch.tensor(seconds), mask)
    else:
        found, _ = model.model.get_rope_index(tokens, images, videos, mask)
    out["position_ids"] = found[:, 0].long().tolist()
    if family != "qwen2_5_omni":
        per_second = getattr(config.vision_config, "tokens_per_second", 0)
        rule = {r: rope_rules.positions(plain, r, per_second, family == "qwen3_vl").tolist()
                for r in rope_rules.RULES}
        assert rule["pinned"] == out["position_ids"], spans
        if family == "qwen2_5_vl":
            out.update(older=rule["older"], newer=rule["newer"])
    return out


def window_cases(rng, visual):
    """Grids of one call each; the tower's window is 3 cells, or 4 as in the real models."""
    fixed = [[[1, 8, 8]], [[1, 16, 8]], [[1, 6, 6]], [[2, 10, 14]], [[1, 2, 2], [1, 24, 2]]]
    drawn = [[[int(rng.choice([1, 1, 1, 3])), 2 * int(rng.integers(1, 15)),
               2 * int(rng.integers(1, 15))] for _ in range(int(rng.integers(1, 4)))]
             for _ in range(15)]
    out = []
    for cells in (3, 4):
        visual.window_size = cells * visual.patch_size * 2
        for grids in fixed + drawn:
            index, lengths = visual.get_window_index(torch.tensor(grids))
            lengths = torch.unique_consecutive(torch.tensor(lengths))
            out.append(dict(window_cells=cells, grid_thw=grids, window_index=index.tolist(),
                            cu_window_seqlens=lengths.tolist()))
    return out


def write(path, cases):
    with open(path, "w") as file:
        lines = [json.dumps(case, separators=(",", ":")) for case in cases]
        file.write("[\n" + ",\n".join(lines) + "\n]\n")


def main():
    for seed, family in enumerate(("qwen2_5_vl", "qwen3_vl", "qwen2_5_omni")):
        model = omni.make_model() if family == "qwen2_5_omni" else models.make(family)
        rng = np.random.default_rng(500 + seed)
        cases = [layout_case(family, model, random_layout(rng, family)) for _ in range(LAYOUTS)]
        if family == "qwen2_5_omni":  # sound that ends in the middle of the last cells' chunk
            cases.append(layout_case(family, model, [
                ["text", 2], ["video_with_audio", 4, 4, 4, 0.9, 240], ["text", 3]]))
        write(os.path.join(sys.argv[1], f"positions_{family}.json"), cases)
        if family == "qwen2_5_vl":
            write(os.path.join(sys.argv[1], "windows.json"), window_cases(rng, model.visual))


if __name__ == "__main__":
    main()
