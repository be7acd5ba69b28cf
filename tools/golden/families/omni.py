"""Golden files of a tiny Qwen2.5-Omni thinker, in the form of the hub's files.

    venv/bin/pip install -r tools/golden/requirements.txt
    venv/bin/python tools/golden/families/omni.py tests/golden/families

tests/golden/families/README.md describes the files.
"""

import os
import sys

import numpy as np
import torch
import transformers
from safetensors.torch import save_file
from transformers.models.qwen2_5_omni.configuration_qwen2_5_omni import Qwen2_5OmniThinkerConfig
from transformers.models.qwen2_5_omni.modeling_qwen2_5_omni import (
    Qwen2_5OmniThinkerForConditionalGeneration as Thinker)

import common
import sound
from vision import Processors, picture
from vision_models import CLIP, TEXT, VISION

WORDS, BANDS = 140, 8
TOKENS = dict(audio_start_token_id=152, audio_end_token_id=153, vision_start_token_id=154,
              vision_end_token_id=155, image_token_index=156, video_token_index=157,
              audio_token_index=158)
PER_SECOND, CHUNK = 25, 2


def make_model():
    config = Qwen2_5OmniThinkerConfig(
        text_config=dict(TEXT, num_hidden_layers=2, rope_theta=1e6, tie_word_embeddings=False,
                         rope_scaling=dict(type="default", rope_type="default",
                                           mrope_section=[2, 1, 1])),
        vision_config=dict(VISION, hidden_act="silu", window_size=24, fullatt_block_indexes=[1],
                           tokens_per_second=PER_SECOND),
        audio_config=dict(num_mel_bins=BANDS, d_model=16, encoder_layers=2,
                          encoder_attention_heads=2, encoder_ffn_dim=24, n_window=100,
                          output_dim=32, max_source_positions=100),
        position_id_per_seconds=PER_SECOND, seconds_per_chunk=CHUNK, pad_token_id=0, **TOKENS)
    return common.randomise(Thinker(common.set_eager(config)), 300)


def save(model, folder):
    """As on the hub: `thinker.` before every name, the thinker's config inside the whole model's."""
    os.makedirs(folder, exist_ok=True)
    thinker = model.config.to_dict()
    thinker["architectures"] = ["Qwen2_5OmniThinkerForConditionalGeneration"]
    common.write_json(os.path.join(folder, "config.json"), dict(
        architectures=["Qwen2_5OmniModel"], enable_audio_output=True, enable_talker=True,
        model_type="qwen2_5_omni", thinker_config=thinker, torch_dtype="float32",
        transformers_version="4.57.1"))
    state = {"thinker." + n: p.detach().contiguous() for n, p in model.named_parameters()}
    # The other parts of the file on the hub, which a thinker leaves aside.
    state["talker.model.norm.weight"] = torch.ones(4)
    state["token2wav.code2wav_bigvgan_model.conv_pre.bias"] = torch.ones(4)
    save_file(state, os.path.join(folder, "model.safetensors"), metadata={"format": "pt"})
    common.write_json(os.path.join(folder, "generation_config.json"), dict(
        _from_model_config=True, eos_token_id=2, transformers_version="4.57.1"))
    sizes = dict(patch_size=4, temporal_patch_size=2, merge_size=2)
    common.write_json(os.path.join(folder, "preprocessor_config.json"), dict(
        sound.extractor_config(BANDS, 300), min_pixels=24 * 24, max_pixels=2048, **sizes, **CLIP,
        image_processor_type="Qwen2VLImageProcessor", processor_class="Qwen2_5OmniProcessor"))
    common.write_json(os.path.join(folder, "video_preprocessor_config.json"), dict(
        min_pixels=16 * 16, max_pixels=1024, **sizes, **CLIP,
        video_processor_type="Qwen2VLVideoProcessor", processor_class="Qwen2_5OmniProcessor"))
    again = Thinker.from_pretrained(folder)
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), model.parameters()))


def interleaved(config, grid, seconds, audio_tokens):
    """Placeholders of a video with its sound: per 2 s first the cells, then the sound."""
    t, h, w = (grid[0] // torch.tensor([1, 2, 2])).tolist()
    times = np.repeat(np.arange(t), h * w) * seconds * PER_SECOND // (PER_SECOND * CHUNK)
    sounds = np.arange(audio_tokens) // (PER_SECOND * CHUNK)
    ids = []
    for chunk in range(int(max(times.max(), sounds.max())) + 1):
        ids += [config.video_token_index] * int((times == chunk).sum())
        ids += [config.audio_token_index] * int((sounds == chunk).sum())
    return ids


def make_sample(model, processors, extractor, rng, parts, words=4):
    """A part: ("image", uint8), ("video", uint8, seconds), ("audio", kind, samples) or
    ("video_with_audio", uint8, seconds, kind, samples)."""
    config = model.config
    ids = rng.integers(3, WORDS, words).tolist()
    media = {name: [] for name in common.MEDIA}
    sources = {"pictures": [], "videos": []}
    sounds = [part[-2:] for part in parts if "audio" in part[0]]
    if sounds:
        features, mask = extractor(sounds)
        tokens = iter([sound.num_tokens(n) for n in mask.sum(1).tolist()])
    for kind, *what in parts:
        if kind == "audio":
            ids += [config.audio_start_token_id] + [config.audio_token_index] * next(tokens)
            ids += [config.audio_end_token_id]
        elif kind == "image":
            pixels, grid = processors.image(what[0])
            media["pixel_values"].append(pixels)
            media["image_grid_thw"].append(grid)
            sources["pictures"].append(what[0])
            ids += [config.vision_start_token_id]
            ids += [config.image_token_index] * (int(grid.prod()) // 4)
            ids += [config.vision_end_token_id]
        else:
            pixels, grid = processors.clip(what[0])
            media["pixel_values_videos"].append(pixels)
            media["video_grid_thw"].append(grid)
            media["video_second_per_grid"].append(torch.tensor([what[1]]))
            sources["videos"].append(what[0])
            ids += [config.vision_start_token_id]
            if kind == "video":
                ids += [config.video_token_index] * (int(grid.prod()) // 4)
            else:
                ids += [config.audio_start_token_id]
                ids += interleaved(config, grid, what[1], next(tokens))
                ids += [config.audio_end_token_id]
            ids += [config.vision_end_token_id]
        ids += rng.integers(3, WORDS, words + 1).tolist()

    labels = common.make_labels(rng, np.array(ids), 2)
    labels[np.array(ids) >= WORDS] = common.IGNORED
    out = dict(input_ids=torch.tensor([ids]), labels=torch.tensor(labels)[None],
               attention_mask=torch.ones(1, len(ids), dtype=torch.long))
    out.update({name: torch.cat(found) for name, found in media.items() if found})
    out.update({name: found for name, found in sources.items() if found})
    if sounds:
        out.update(input_features=features, feature_attention_mask=mask)
        out["stored"] = dict(
            input_features=features.transpose(1, 2)[mask.bool()], feature_lengths=mask.sum(1),
            audio_sources=sound.source_rows(sounds))
    out["position_ids"], _ = model.get_rope_index(
        out["input_ids"], out.get("image_grid_thw"), out.get("video_grid_thw"),
        out["attention_mask"], any(p[0] == "video_with_audio" for p in parts),
        mask.sum(1) if sounds else None, out.get("video_second_per_grid"))
    return out


def add_internals(model, samples, tensors):
    with torch.no_grad():
        for suffix, pixels, grid in (("", "pixel_values", "image_grid_thw"),
                                     ("_videos", "pixel_values_videos", "video_grid_thw")):
            if grid in tensors:
                tensors["vision_rows" + suffix] = model.visual(
                    tensors[pixels], grid_thw=tensors[grid])
                index, lengths = model.visual.get_window_index(tensors[grid])
                tensors["window_index" + suffix] = index
                tensors["cu_window_seqlens" + suffix] = torch.unique_consecutive(
                    torch.tensor(lengths))
        rows = [model.get_audio_features(s["input_features"], s["feature_attention_mask"])
                for s in samples if "input_features" in s]
    if rows:
        tensors["audio_rows"] = torch.cat(rows)


def keep_loss_rows(tensors):
    """Of a long case: logits of the positions with a target only, and no rows of the tower."""
    tensors["logits"] = tensors["logits"][tensors["targets"] >= 0]
    tensors["audio_rows"] = tensors["audio_rows"][::25]
    tensors["audio_rows_every"] = torch.tensor([25])


def main():
    common.deterministic()
    folder = os.path.join(sys.argv[1], "qwen2_5_omni")
    rng = np.random.default_rng(300)
    model = make_model()
    save(model, folder)
    processors = Processors(folder, transformers.Qwen2VLVideoProcessor)
    extractor = sound.Extractor(folder)
    ragged = ("image", picture(rng, 30, 43))
    frames = picture(rng, 36, 20, 7)
    short, long = ("audio", "mix", 15840), ("audio", "mix", 32160)
    layouts = {
        "text": [[]], "image_ragged": [[ragged]], "video": [[("video", frames, 0.5)]],
        "audio_099": [[short]], "audio_201": [[long]], "audio_31": [[("audio", "mix", 496000)]],
        "audio_odd": [[("audio", "tone", 4900)]],  # 31 frames: the length is no multiple of the hop
        "audio_video": [[short, ("video", frames, 0.5), ragged, ("audio", "tone", 4900)]],
        # 4 pairs of frames in 4 s; 3.3 s of sound: two chunks of 2 s, then the video's rest
        "audio_in_video": [[("video_with_audio", frames, 1.0, "mix", 52800)]],
        "packed": [[long], [], [ragged], [("audio", "tone", 4900)]],
    }
    for name, samples in layouts.items():
        print(name)
        made = [make_sample(model, processors, extractor, rng, parts, 4 if parts else 9)
                for parts in samples]
        tensors = common.case(model, made, lambda n: "thinker." + n,
                              with_grads=name == "audio_video")
        add_internals(model, made, tensors)
        if name == "audio_31":
            keep_loss_rows(tensors)
        common.to_file(os.path.join(folder, f"case_{name}.safetensors"), tensors)


if __name__ == "__main__":
    main()
