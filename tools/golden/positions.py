"""Golden M-RoPE positions: transformers' get_rope_index of the Qwen2.5-Omni thinker.

    python3 -m venv venv && venv/bin/pip install torch transformers
    venv/bin/python tools/golden/positions.py tests/golden/positions.json

Each case is a list of spans (text, image [h, w], video [t, h, w, seconds per grid], audio [mel
frames]; grids in patches before the 2 x 2 merge) and the positions of all its tokens by axis.
"""

import json
import sys
import types

import torch
from transformers.models.qwen2_5_omni.modeling_qwen2_5_omni import (
    Qwen2_5OmniPreTrainedModelForConditionalGeneration as Thinker,
)

IMAGE, VIDEO, AUDIO, VISION_START, VISION_END, AUDIO_START, AUDIO_END, TEXT = range(8)

CASES = {
    "text": [["text", 5]],
    "image": [["text", 3], ["image", 4, 6], ["text", 2]],
    "images_of_two_sizes": [["text", 1], ["image", 2, 12], ["text", 4], ["image", 8, 2], ["text", 1]],
    "adjacent_images": [["image", 4, 4], ["image", 2, 2], ["text", 3]],
    "short_video": [["text", 2], ["video", 2, 8, 8, 0.08], ["text", 2]],
    "long_video": [["text", 2], ["video", 6, 4, 4, 1.0], ["text", 3]],
    "video_of_fractional_seconds": [["video", 9, 4, 6, 0.3337], ["text", 3]],
    "video_of_thirds": [["text", 1], ["video", 7, 2, 2, 2.0 / 3.0], ["text", 1]],
    "audio": [["text", 2], ["audio", 96], ["text", 2]],
    "odd_audio": [["audio", 97], ["audio", 5], ["text", 1]],
    "all": [["text", 4], ["image", 4, 4], ["text", 2], ["audio", 50], ["video", 3, 4, 8, 0.5],
            ["text", 5], ["image", 2, 6], ["text", 1]],
}


def positions_of(spans):
    ids, images, videos, seconds, audios = [], [], [], [], []
    for kind, *shape in spans:
        if kind == "text":
            ids += [TEXT] * shape[0]
        elif kind == "audio":
            rows = ((shape[0] - 1) // 2 + 1 - 2) // 2 + 1
            ids += [AUDIO_START] + [AUDIO] * rows + [AUDIO_END]
            audios.append(shape[0])
        else:
            t, h, w = (1, *shape) if kind == "image" else shape[:3]
            pad = IMAGE if kind == "image" else VIDEO
            ids += [VISION_START] + [pad] * (t * h * w // 4) + [VISION_END]
            (images if kind == "image" else videos).append([t, h, w])
            if kind == "video":
                seconds.append(shape[3])
    # A grid that is not there makes the function take its general path.
    thinker = types.SimpleNamespace(
        spatial_merge_size=2,
        config=types.SimpleNamespace(
            image_token_id=IMAGE, video_token_id=VIDEO, audio_token_id=AUDIO,
            vision_start_token_id=VISION_START, audio_start_token_id=AUDIO_START,
            position_id_per_seconds=25, seconds_per_chunk=2,
        ),
    )
    for name in ("get_llm_pos_ids_for_vision", "get_chunked_index"):
        setattr(thinker, name, types.MethodType(getattr(Thinker, name), thinker))
    positions, _ = Thinker.get_rope_index(
        thinker,
        torch.tensor([ids]),
        image_grid_thw=torch.tensor(images, dtype=torch.long).reshape(-1, 3),
        video_grid_thw=torch.tensor(videos, dtype=torch.long).reshape(-1, 3),
        attention_mask=torch.ones(1, len(ids), dtype=torch.long),
        audio_seqlens=torch.tensor(audios, dtype=torch.long),
        second_per_grids=torch.tensor(seconds),
    )
    return positions[:, 0].tolist()


if __name__ == "__main__":
    result = [{"name": name, "spans": spans, "positions": positions_of(spans)}
              for name, spans in CASES.items()]
    with open(sys.argv[1], "w") as file:
        json.dump(result, file, separators=(",", ":"))
        file.write("\n")
