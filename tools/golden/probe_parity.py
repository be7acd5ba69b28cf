"""`omnitrain probe` against transformers, from files to gradients, on models made for the purpose.

    python3 -m venv venv && venv/bin/pip install -r tools/golden/requirements.txt soundfile
    venv/bin/python tools/golden/probe_parity.py FOLDER

Makes a random model of every family with a real tokenizer file and processor configuration in
FOLDER, conversations with pictures and sounds of awkward sizes, and compares token ids, positions,
processor outputs, logits, loss and the gradient of every parameter. Prints a line a case; exits
with 1 if one is beyond the bounds below.
"""

import json
import math
import os
import shutil
import subprocess
import sys

import numpy as np
import soundfile
import torch
import transformers as hf
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import load_file
from tokenizers import Tokenizer
from transformers.models.qwen2_5_omni import configuration_qwen2_5_omni as omni_config
from transformers.models.qwen2_5_omni import modeling_qwen2_5_omni as omni_model
from transformers.models.qwen2_vl.image_processing_qwen2_vl_fast import Qwen2VLImageProcessorFast

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../..")
OMNITRAIN = os.path.join(ROOT, "build/bin/omnitrain")
TOKENIZER = os.path.join(ROOT, "tests/golden/tokenizers/qwen/tokenizer.json")
LOGITS, GRADIENT, PIXELS, FEATURES = 1e-4, 1e-3, 1 / 128, 1e-4

QUESTION, ANSWER = "What is it, and wheré? 北京 <b>", "A cat of 12 kg; två hundar."
SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
tokenizer = Tokenizer.from_file(TOKENIZER)


def text(**more):
    return dict(vocab_size=3100, hidden_size=64, intermediate_size=80, num_hidden_layers=3,
                num_attention_heads=4, num_key_value_heads=2, head_dim=16, rms_norm_eps=1e-6,
                max_position_embeddings=4096, tie_word_embeddings=False, **more)


def randomise(model):
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            scale = 0.1 if p.dim() == 1 else 0.5 if "embed" in name else 1 / math.sqrt(p[0].numel())
            p.copy_(scale * noise + (p.dim() == 1 and not name.endswith("bias")))
    return model.eval()


def make(folder, cls, config, processor=None):
    for part in [config] + [getattr(config, n, None) for n in
                            ("text_config", "vision_config", "audio_config")]:
        if part is not None:
            part._attn_implementation = "eager"
    model = randomise(cls(config))
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder)
    shutil.copy(TOKENIZER, folder)
    if processor is not None:
        processor.save_pretrained(folder)
    return model


def tokens(before, answer):
    """input_ids [1, T] and labels with loss on the answer and its end."""
    encode = lambda s: tokenizer.encode(s, add_special_tokens=False).ids
    ids = torch.tensor([encode(before + answer + "\n")])
    labels = torch.full_like(ids, -100)
    loss = slice(len(encode(before)), len(encode(before + answer)))
    labels[0, loss] = ids[0, loss]
    return ids, labels


def compare(name, folder, model, media, key=None, files=(), inputs=None, positions=None,
            system=SYSTEM, thought="", features=None):
    """`media`: the placeholders' text; `features`: (tensor's name, values, bound)."""
    conversation = {"messages": [
        {"role": "user", "content": "".join(f"<{key[:-1]}>" for _ in files) + QUESTION},
        {"role": "assistant", "content": ANSWER}]}
    if files:
        conversation[key] = list(files)
    with open("ask.json", "w") as file:
        json.dump(conversation, file, indent=1)
    ids, labels = tokens(system + "<|im_start|>user\n" + media + QUESTION +
                         "<|im_end|>\n<|im_start|>assistant\n" + thought, ANSWER + "<|im_end|>")
    inputs = inputs or {}
    out = model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels, **inputs)
    out.loss.backward()
    subprocess.run([OMNITRAIN, "probe", folder, "--conversation", "ask.json", "--out",
                    "out.safetensors"], check=True)
    p = load_file("out.safetensors")
    if p["input_ids"].tolist() != ids[0].tolist():
        print(f"{name}: token ids differ")
        return False
    if positions is None:
        positions = np.tile(np.arange(ids.shape[1]), (3, 1))
    elif callable(positions):
        positions = positions(ids)
    same_positions = np.array_equal(p["position_ids"], positions)
    logits = np.abs(p["logits"] - out.logits[0].detach().numpy()).max()
    loss = abs(float(p["loss"][0]) - out.loss.item())
    inputs_ok, difference = True, 0.0
    if features is not None:
        tensor, values, bound = features
        difference = np.abs(p[tensor][:len(values)] - values).max()
        inputs_ok = difference <= bound
    with safe_open(os.path.join(folder, "model.safetensors"), "pt") as file:
        on_disk = set(file.keys())
    worst = 0.0
    for memory_name, parameter in model.named_parameters():
        if parameter.grad is None or parameter.grad.norm() == 0:
            continue
        stored = memory_name if memory_name in on_disk else memory_name.replace(
            "model.language_model.", "model.").replace("model.visual.", "visual.")
        grad = torch.tensor(p["grad." + stored])
        worst = max(worst, ((grad - parameter.grad).norm() / parameter.grad.norm()).item())
    model.zero_grad()
    ok = same_positions and inputs_ok and logits <= LOGITS and loss <= LOGITS and worst <= GRADIENT
    print(f"{name}: {'ok' if ok else 'FAILED'}, {ids.shape[1]} tokens, positions "
          f"{'equal' if same_positions else 'differ'}, inputs {difference:.1e}, logits "
          f"{logits:.1e}, loss {loss:.1e}, worst gradient {worst:.1e}")
    return ok


def texts():
    moe = dict(num_experts=8, num_experts_per_tok=2, moe_intermediate_size=24, norm_topk_prob=True)
    no_thought = "<think>\n\n</think>\n\n"
    for name, cls, config, more in [
            ("qwen2", hf.Qwen2ForCausalLM, hf.Qwen2Config(**text(rope_theta=1e6)), {}),
            ("qwen3", hf.Qwen3ForCausalLM, hf.Qwen3Config(**text(rope_theta=1e6)),
             dict(system="", thought=no_thought)),
            ("qwen3_moe", hf.Qwen3MoeForCausalLM, hf.Qwen3MoeConfig(**text(rope_theta=1e6), **moe),
             dict(system="", thought=no_thought)),
            ("qwen3_moe_balanced", hf.Qwen3MoeForCausalLM,
             hf.Qwen3MoeConfig(**text(rope_theta=1e6), **moe, output_router_logits=True,
                               router_aux_loss_coef=0.02),
             dict(system="", thought=no_thought))]:
        yield compare(name, name, make(name, cls, config), "", **more)


def picture(name, width, height, seed):
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    noise = 20 * rng.standard_normal((height, width))
    channels = [127 + 100 * np.sin(x / 9 + seed) + noise, 127 + 90 * np.cos(y / 7),
                (x * 3 + y * 5) % 256]
    Image.fromarray(np.stack(channels, -1).clip(0, 255).astype(np.uint8)).save(name)
    return name


def pictures():
    ids = dict(image_token_id=3012, video_token_id=3013, vision_start_token_id=3009,
               vision_end_token_id=3010)
    vision = dict(depth=4, hidden_size=32, intermediate_size=44, num_heads=2, out_hidden_size=64)
    for name, cls, config, processor, system in [
            ("qwen2_5_vl", hf.Qwen2_5_VLForConditionalGeneration, hf.Qwen2_5_VLConfig(
                text_config=text(rope_theta=1e6,
                                 rope_scaling=dict(type="mrope", mrope_section=[2, 3, 3])),
                vision_config=dict(**vision, patch_size=14, window_size=112,
                                   fullatt_block_indexes=[1, 3]), **ids),
             Qwen2VLImageProcessorFast(min_pixels=56 * 56, max_pixels=28 * 28 * 30), SYSTEM),
            ("qwen3_vl", hf.Qwen3VLForConditionalGeneration, hf.Qwen3VLConfig(
                text_config=text(rope_theta=5e6, rope_scaling=dict(
                    rope_type="default", mrope_section=[4, 2, 2], mrope_interleaved=True)),
                vision_config=dict(**vision, patch_size=16, num_position_embeddings=64,
                                   deepstack_visual_indexes=[0, 2]), **ids),
             Qwen2VLImageProcessorFast(
                 size=dict(shortest_edge=32 * 32 * 4, longest_edge=32 * 32 * 40), patch_size=16,
                 image_mean=[0.5] * 3, image_std=[0.5] * 3), "")]:
        model = make(name, cls, config, processor)
        for seed, sizes in enumerate([[(130, 90)], [(77, 300), (500, 41)], [(640, 480)]]):
            files = [picture(f"{i}.png", *size, seed + i) for i, size in enumerate(sizes)]
            made = processor([Image.open(f) for f in files], return_tensors="pt")
            grids = made["image_grid_thw"]
            media = "".join("<|vision_start|>" + "<|image_pad|>" * (int(g.prod()) // 4) +
                            "<|vision_end|>" for g in grids)
            rope = lambda t: model.model.get_rope_index(
                t, image_grid_thw=grids, attention_mask=torch.ones_like(t))[0][:, 0].numpy()
            yield compare(f"{name} {sizes}", name, model, media, "images", files,
                          dict(pixel_values=made["pixel_values"], image_grid_thw=grids), rope,
                          system, features=("vision.pixel_values",
                                            made["pixel_values"].numpy(), PIXELS))


def sound(name, seconds, seed):
    rng = np.random.default_rng(seed)
    t = np.arange(int(seconds * 16000)) / 16000
    wave = 0.4 * np.sin(2 * np.pi * (300 + 200 * seed) * t) + 0.05 * rng.standard_normal(len(t))
    soundfile.write(name, (wave * 32767).clip(-32768, 32767).astype(np.int16), 16000)
    return name


def sounds():
    audio = dict(num_mel_bins=128, d_model=32, encoder_layers=2, encoder_attention_heads=2,
                 encoder_ffn_dim=48, max_source_positions=1500)
    omni = omni_config.Qwen2_5OmniThinkerConfig(
        text_config=text(rope_theta=1e6, rope_scaling=dict(
            type="default", rope_type="default", mrope_section=[2, 3, 3])),
        vision_config=dict(depth=2, hidden_size=32, intermediate_size=44, num_heads=2,
                           patch_size=14, window_size=112, fullatt_block_indexes=[1],
                           out_hidden_size=64),
        audio_config=dict(**audio, n_window=100, output_dim=64), image_token_index=3020,
        video_token_index=3021, audio_token_index=3017, vision_start_token_id=3022,
        vision_end_token_id=3023, audio_start_token_id=3018, audio_end_token_id=3019)
    qwen2_audio = hf.Qwen2AudioConfig(
        audio_config=dict(**audio, model_type="qwen2_audio_encoder"),
        text_config=dict(**text(rope_theta=1e4), model_type="qwen2"), audio_token_index=3017)
    for name, cls, config, extractor, numbered, cases in [
            ("qwen2_audio", hf.Qwen2AudioForConditionalGeneration, qwen2_audio,
             hf.WhisperFeatureExtractor(feature_size=128), True, [[0.99], [2.01, 1.3], [7.77]]),
            ("qwen2_5_omni", omni_model.Qwen2_5OmniThinkerForConditionalGeneration, omni,
             hf.WhisperFeatureExtractor(feature_size=128, n_samples=4800000, chunk_length=300,
                                        nb_max_frames=30000),
             False, [[0.99], [2.01, 5.5], [31]])]:
        model = make(name, cls, config, extractor)
        for lengths in cases:
            files = [sound(f"{i}.wav", s, i) for i, s in enumerate(lengths)]
            waves = [soundfile.read(f, dtype="float32")[0] for f in files]
            made = extractor(waves, sampling_rate=16000, return_attention_mask=True,
                             padding="max_length", return_tensors="pt")
            frames = made["attention_mask"].sum(-1).tolist()
            media = "".join(
                (f"Audio {i + 1}: " if numbered else "") + "<|audio_bos|>" +
                "<|AUDIO|>" * (((n - 1) // 2 - 1) // 2 + 1) + "<|audio_eos|>" +
                ("\n" if numbered else "") for i, n in enumerate(frames))
            yield compare(f"{name} {lengths} s", name, model, media, "audios", files,
                          dict(input_features=made["input_features"],
                               feature_attention_mask=made["attention_mask"]),
                          features=("audio.input_features",
                                    made["input_features"][0].T.numpy()[:frames[0]], FEATURES))


def main():
    os.makedirs(sys.argv[1], exist_ok=True)
    os.chdir(sys.argv[1])
    results = [ok for family in (texts, pictures, sounds) for ok in family()]
    sys.exit(0 if all(results) else 1)


if __name__ == "__main__":
    main()
