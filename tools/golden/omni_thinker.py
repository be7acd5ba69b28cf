"""Golden values of a tiny Qwen2.5-Omni thinker, from Hugging Face transformers.

    python3 -m venv venv && venv/bin/pip install torch transformers==4.57.1 safetensors
    venv/bin/python tools/golden/omni_thinker.py tests/golden/omni_thinker

Writes weights.safetensors and one file per case: the packs a loader would make, what the towers
and the decoder give, and the gradient of every parameter the case reaches. Names are omnitrain's
(fused QKV and gate_up); nothing here knows how omnitrain computes. fp32, seed 7.
"""

import math
import sys

import numpy as np
import torch
from safetensors.numpy import save_file
from transformers.models.qwen2_5_omni.configuration_qwen2_5_omni import Qwen2_5OmniThinkerConfig
from transformers.models.qwen2_5_omni.modeling_qwen2_5_omni import (
    Qwen2_5OmniThinkerForConditionalGeneration)

AUDIO_START, AUDIO_END, VISION_START, VISION_END, IMAGE, VIDEO, AUDIO = 56, 57, 58, 59, 60, 61, 62
PATCH, MERGE, MEL_BANDS = 4, 2, 8
MEAN = np.array([0.48145466, 0.4578275, 0.40821073])
STD = np.array([0.26862954, 0.26130258, 0.27577711])


def make_model():
    config = Qwen2_5OmniThinkerConfig(
        text_config=dict(
            vocab_size=64, hidden_size=24, intermediate_size=40, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, head_dim=8, rms_norm_eps=1e-6,
            rope_theta=10000.0, tie_word_embeddings=False, pad_token_id=0,
            rope_scaling=dict(type="default", rope_type="default", mrope_section=[2, 1, 1])),
        vision_config=dict(
            depth=2, hidden_size=16, intermediate_size=20, num_heads=2, in_channels=3,
            patch_size=PATCH, temporal_patch_size=2, spatial_merge_size=MERGE, window_size=16,
            fullatt_block_indexes=[1], out_hidden_size=24, hidden_act="silu"),
        audio_config=dict(
            num_mel_bins=MEL_BANDS, d_model=16, encoder_layers=2, encoder_attention_heads=2,
            encoder_ffn_dim=40, n_window=100, output_dim=24, max_source_positions=100),
        image_token_index=IMAGE, video_token_index=VIDEO, audio_token_index=AUDIO,
        audio_start_token_id=AUDIO_START, audio_end_token_id=AUDIO_END,
        vision_start_token_id=VISION_START, vision_end_token_id=VISION_END,
        position_id_per_seconds=25, seconds_per_chunk=2)
    config._attn_implementation = "eager"
    for name in ("text_config", "vision_config", "audio_config"):
        getattr(config, name)._attn_implementation = "eager"
    model = Qwen2_5OmniThinkerForConditionalGeneration(config).eval()
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            if name.endswith("bias"):
                p.copy_(0.1 * noise)
            elif p.dim() == 1:
                p.copy_(1 + 0.1 * noise)
            elif "embed_tokens" in name:
                p.copy_(0.5 * noise)
            else:
                p.copy_(noise / math.sqrt(p[0].numel()))
    return model


def canonical(tensors):
    """Hugging Face names to omnitrain's: (name, [parts stacked on dim 0])."""
    out = {}

    def put(name, *parts):
        found = [tensors[p] for p in parts if p in tensors]
        if found:
            assert len(found) == len(parts), name
            out[name] = np.concatenate(found) if len(found) > 1 else found[0]

    put("vision.patch_embed.weight", "visual.patch_embed.proj.weight")
    if "vision.patch_embed.weight" in out:
        w = out["vision.patch_embed.weight"]
        out["vision.patch_embed.weight"] = w.reshape(w.shape[0], -1)
    for i in range(2):
        ours, theirs = f"vision.blocks.{i}.", f"visual.blocks.{i}."
        put(ours + "attention_norm.weight", theirs + "norm1.weight")
        put(ours + "mlp_norm.weight", theirs + "norm2.weight")
        for k in ("weight", "bias"):
            put(ours + f"attention.qkv.{k}", *[theirs + f"attn.{n}.{k}" for n in "qkv"])
            put(ours + f"attention.output.{k}", theirs + f"attn.proj.{k}")
            put(ours + f"mlp.gate_up.{k}", theirs + f"mlp.gate_proj.{k}",
                theirs + f"mlp.up_proj.{k}")
            put(ours + f"mlp.down.{k}", theirs + f"mlp.down_proj.{k}")
    put("vision.merger.norm.weight", "visual.merger.ln_q.weight")
    for k in ("weight", "bias"):
        put(f"vision.merger.fc1.{k}", f"visual.merger.mlp.0.{k}")
        put(f"vision.merger.fc2.{k}", f"visual.merger.mlp.2.{k}")
        put(f"audio.conv1.{k}", f"audio_tower.conv1.{k}")
        put(f"audio.conv2.{k}", f"audio_tower.conv2.{k}")
        put(f"audio.post_norm.{k}", f"audio_tower.ln_post.{k}")
        put(f"audio.projector.{k}", f"audio_tower.proj.{k}")
        for i in range(2):
            ours, theirs = f"audio.layers.{i}.", f"audio_tower.layers.{i}."
            put(ours + f"attention_norm.{k}", theirs + f"self_attn_layer_norm.{k}")
            put(ours + f"attention.qv.{k}", theirs + f"self_attn.q_proj.{k}",
                theirs + f"self_attn.v_proj.{k}")
            put(ours + f"attention.k.{k}", theirs + f"self_attn.k_proj.{k}")
            put(ours + f"attention.output.{k}", theirs + f"self_attn.out_proj.{k}")
            put(ours + f"mlp_norm.{k}", theirs + f"final_layer_norm.{k}")
            put(ours + f"mlp.fc1.{k}", theirs + f"fc1.{k}")
            put(ours + f"mlp.fc2.{k}", theirs + f"fc2.{k}")
    put("decoder.embedding.weight", "model.embed_tokens.weight")
    for i in range(2):
        ours, theirs = f"decoder.layers.{i}.", f"model.layers.{i}."
        put(ours + "input_norm.weight", theirs + "input_layernorm.weight")
        put(ours + "mlp_norm.weight", theirs + "post_attention_layernorm.weight")
        for k in ("weight", "bias"):
            put(ours + f"attention.qkv.{k}", *[theirs + f"self_attn.{n}_proj.{k}" for n in "qkv"])
        put(ours + "attention.output.weight", theirs + "self_attn.o_proj.weight")
        put(ours + "mlp.gate_up.weight", theirs + "mlp.gate_proj.weight",
            theirs + "mlp.up_proj.weight")
        put(ours + "mlp.down.weight", theirs + "mlp.down_proj.weight")
    put("decoder.norm.weight", "model.norm.weight")
    put("decoder.head.weight", "lm_head.weight")
    unused = ("audio_tower.audio_bos_eos_token.weight",)
    count = sum(v.size for k, v in tensors.items() if k not in unused)
    assert count == sum(v.size for v in out.values())
    return out


def media_pixels(rng, grids):
    rows = sum(t * h * w for t, h, w in grids)
    u8 = rng.integers(0, 256, (rows, 3 * 2 * PATCH * PATCH), dtype=np.uint8)
    x = u8.reshape(rows, 3, -1) / 255.0
    x = (x - MEAN[:, None]) / STD[:, None]
    return u8, torch.tensor(x.reshape(rows, -1), dtype=torch.float32)


def run_case(model, rng, images=(), videos=(), audio_frames=()):
    """One conversation: text, then each medium followed by text; loss on most text."""
    def text(n):
        return rng.integers(1, 50, n).tolist()

    ids = text(3)
    rows = {IMAGE: [], VIDEO: [], AUDIO: []}

    def medium(start, token, count, end):
        ids.append(start)
        rows[token].extend(range(len(ids), len(ids) + count))
        ids.extend([token] * count)
        ids.append(end)
        ids.extend(text(4))

    for t, h, w in images:
        medium(VISION_START, IMAGE, t * h * w // 4, VISION_END)
    for frames in audio_frames:
        steps = (frames - 1) // 2 + 1
        medium(AUDIO_START, AUDIO, (steps - 2) // 2 + 1, AUDIO_END)
    for t, h, w in videos:
        medium(VISION_START, VIDEO, t * h * w // 4, VISION_END)
    targets = [-1] * len(ids)
    for i in range(1, len(ids) - 1):
        if ids[i] < 50 and ids[i + 1] < 50:
            targets[i] = ids[i + 1]

    out = {"token_ids": np.array(ids, np.int32), "targets": np.array(targets, np.int32)}
    kwargs = {}
    if images:
        image_u8, kwargs["pixel_values"] = media_pixels(rng, images)
        kwargs["image_grid_thw"] = torch.tensor(images)
    if videos:
        video_u8, kwargs["pixel_values_videos"] = media_pixels(rng, videos)
        kwargs["video_grid_thw"] = torch.tensor(videos)
        kwargs["video_second_per_grid"] = torch.full((len(videos),), 0.5)
    if images or videos:
        out["vision.payload"] = np.concatenate(
            ([image_u8] if images else []) + ([video_u8] if videos else []))
        out["vision.items"] = np.array(list(images) + list(videos), np.int32)
        out["vision.token_rows"] = np.array(rows[IMAGE] + rows[VIDEO], np.int32)
    if audio_frames:
        mel = [rng.standard_normal((f, MEL_BANDS)).astype(np.float32) for f in audio_frames]
        longest = max(audio_frames)
        features = torch.zeros(len(mel), MEL_BANDS, longest)
        mask = torch.zeros(len(mel), longest, dtype=torch.long)
        for i, m in enumerate(mel):
            features[i, :, :len(m)] = torch.tensor(m.T)
            mask[i, :len(m)] = 1
        kwargs["input_features"], kwargs["feature_attention_mask"] = features, mask
        out["audio.payload"] = np.concatenate(mel)
        out["audio.items"] = np.array([[f, 0, 0] for f in audio_frames], np.int32)
        out["audio.token_rows"] = np.array(rows[AUDIO], np.int32)

    input_ids = torch.tensor([ids])
    attention_mask = torch.ones_like(input_ids)
    positions, _ = model.get_rope_index(
        input_ids, kwargs.get("image_grid_thw"), kwargs.get("video_grid_thw"), attention_mask,
        False, torch.tensor(audio_frames) if audio_frames else None,
        kwargs.get("video_second_per_grid"))
    out["positions"] = positions[:, 0].numpy().astype(np.float32)

    captured = {}
    hooks = [model.visual.register_forward_hook(
        lambda m, i, o: captured.setdefault("vision", []).append(o)),
        model.audio_tower.register_forward_hook(
        lambda m, i, o: captured.setdefault("audio", []).append(o.last_hidden_state)),
        model.model.register_forward_hook(
        lambda m, i, o: captured.setdefault("hidden", []).append(o.last_hidden_state[0]))]
    model.zero_grad(set_to_none=True)
    result = model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False, **kwargs)
    for hook in hooks:
        hook.remove()
    if images and videos:  # audio, image, video is the order of the calls
        assert len(captured["vision"]) == 2
    labels = torch.tensor(targets)
    losses = torch.nn.functional.cross_entropy(
        result.logits[0], labels, ignore_index=-1, reduction="none")
    loss = losses.sum() / (labels >= 0).sum()
    loss.backward()
    out["expected.loss"] = loss.detach().numpy().reshape(1)
    out["expected.losses"] = losses.detach().numpy()
    out["expected.argmax"] = np.where(
        labels >= 0, result.logits[0].argmax(-1).numpy(), -1).astype(np.int32)
    for name, parts in captured.items():
        out[f"expected.{name}"] = torch.cat(parts).detach().numpy()
    grads = {n: p.grad.numpy() for n, p in model.named_parameters() if p.grad is not None}
    for name, grad in canonical(grads).items():
        out["grad." + name] = grad
    return {k: np.ascontiguousarray(v) for k, v in out.items()}


def main():
    folder = sys.argv[1]
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)
    model = make_model()
    weights = canonical({n: p.detach().numpy() for n, p in model.named_parameters()})
    save_file({k: np.ascontiguousarray(v) for k, v in weights.items()},
              f"{folder}/weights.safetensors")
    cases = {
        "text": {},
        "image_divisible": dict(images=[(1, 8, 4)]),          # windows of 4 x 4 patches
        "image_ragged": dict(images=[(1, 6, 10)]),
        "images_two": dict(images=[(1, 6, 6), (1, 4, 14)]),
        "video": dict(videos=[(3, 6, 4)]),
        "audio_099": dict(audio_frames=[99]),
        "audio_201": dict(audio_frames=[201]),
        "mixed": dict(images=[(1, 2, 2), (1, 10, 6)], audio_frames=[31, 403],
                      videos=[(2, 4, 6)]),
    }
    for seed, (name, case) in enumerate(cases.items()):
        save_file(run_case(model, np.random.default_rng(seed), **case),
                  f"{folder}/{name}.safetensors")


if __name__ == "__main__":
    main()
