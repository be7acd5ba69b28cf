"""Models and conversations nobody chose, for compare_probe.py.

    venv/bin/python tools/golden/probe_sweep.py FOLDER [--seed 1] [--rounds 3] [FAMILY ...]

Each round makes a tiny random model of every family whose sizes and switches are drawn within what
published ones have (config.json as transformers writes it, or older or newer), and conversations
with media of awkward sizes and forms, and compares. Prints a line a case; exits with 1 if one fails.
"""

import argparse
import json
import math
import os
import shutil
import sys

import av
import numpy as np
import soundfile
import torch
import transformers as hf
from PIL import Image
from tokenizers import Tokenizer
from transformers.models.qwen2_5_omni import configuration_qwen2_5_omni as omni
from transformers.models.qwen2_5_omni.processing_qwen2_5_omni import Qwen2_5OmniProcessor
from transformers.models.qwen2_vl.image_processing_qwen2_vl_fast import Qwen2VLImageProcessorFast
from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor
from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor

import chat_templates as templates
import compare_probe

TOKENIZERS = os.path.join(os.path.dirname(os.path.abspath(__file__)),
                          "../../tests/golden/tokenizers")
CLIP = dict(image_mean=[0.48145466, 0.4578275, 0.40821073],
            image_std=[0.26862954, 0.26130258, 0.27577711])
HALF = dict(image_mean=[0.5] * 3, image_std=[0.5] * 3)
VISION_IDS = dict(image_token_id=3012, video_token_id=3013, vision_start_token_id=3009,
                  vision_end_token_id=3010)
OMNI_IDS = dict(image_token_index=3020, video_token_index=3021, audio_token_index=3017,
                vision_start_token_id=3022, vision_end_token_id=3023, audio_start_token_id=3018,
                audio_end_token_id=3019)


class Draw:
    """What chance decides."""

    def __init__(self, seed):
        self.rng = np.random.default_rng(seed)

    def one(self, *choices):
        return choices[int(self.rng.integers(len(choices)))]

    def coin(self, probability=0.5):
        return bool(self.rng.random() < probability)

    def number(self, low, high):
        return int(self.rng.integers(low, high + 1))


# ---- models

def text_sizes(draw, vocab, biggest_head=32):
    heads, kv_heads = draw.one((4, 1), (4, 2), (4, 4), (6, 2), (7, 1), (6, 3), (5, 5))
    head_dim = draw.one(*[d for d in (8, 12, 16, 24, 32) if d <= biggest_head])
    return dict(
        vocab_size=vocab + draw.one(0, 1, 36, 131), num_hidden_layers=draw.number(1, 4),
        num_attention_heads=heads, num_key_value_heads=kv_heads, head_dim=head_dim,
        hidden_size=draw.one(heads * head_dim, 40, 56, 72), intermediate_size=draw.one(44, 96, 101),
        rms_norm_eps=draw.one(1e-5, 1e-6), rope_theta=draw.one(1e4, 5e5, 1e6, 5e6),
        max_position_embeddings=draw.one(2048, 32768), tie_word_embeddings=draw.coin(),
        initializer_range=0.02)


def halves(sizes):
    """Those of models without a head_dim of their own: hidden / heads, which is even."""
    sizes["hidden_size"] = sizes["num_attention_heads"] * sizes["head_dim"]
    return {k: v for k, v in sizes.items() if k != "head_dim"}


def rope_scaling(draw):
    return draw.one(
        None, dict(rope_type="linear", factor=draw.one(2.0, 3.5)), dict(rope_type="default"),
        dict(rope_type="llama3", factor=draw.one(8.0, 32.0), low_freq_factor=1.0,
             high_freq_factor=draw.one(2.0, 4.0),
             original_max_position_embeddings=draw.one(64, 512, 8192)))


def moe_sizes(draw, layers, may_be_dense=True):
    experts = draw.one(3, 4, 7, 8)
    sizes = dict(num_experts=experts, num_experts_per_tok=draw.number(1, min(experts, 4)),
                 moe_intermediate_size=draw.one(12, 20, 33), norm_topk_prob=draw.coin())
    if may_be_dense:
        sizes.update(decoder_sparse_step=draw.one(1, 1, 2) if layers > 1 else 1,
                     mlp_only_layers=draw.one([], [], [0]) if layers > 2 else [],
                     output_router_logits=draw.coin(),
                     router_aux_loss_coef=draw.one(0.001, 0.05))
    return sizes


def mrope_sections(draw, head_dim, interleaved):
    """t, h and w of half the head; interleaved, h and w can't be more than a third each."""
    half = head_dim // 2
    h = draw.number(1, max(1, half // 3 if interleaved else (half - 1) // 2))
    w = draw.number(1, max(1, half // 3)) if interleaved else draw.number(1, half - h - 1)
    return [half - h - w, h, w]


def text_model(kind):
    def make(draw):
        sizes = text_sizes(draw, 2525 if kind == "Llama" else 3036)
        if kind == "Qwen2":
            sizes = halves(sizes)
        if kind == "Llama":
            sizes["rope_scaling"] = rope_scaling(draw)
        if kind == "Qwen3Moe":
            sizes.update(moe_sizes(draw, sizes["num_hidden_layers"]))
        config = getattr(hf, kind + "Config")(**sizes)
        return getattr(hf, kind + "ForCausalLM")(config), text_processor(draw, kind)
    return make


def qwen25_vision(draw, hidden):
    heads = draw.one(2, 3, 4)
    depth = draw.number(1, 4)
    patch = draw.one(8, 14)
    return dict(depth=depth, hidden_size=heads * draw.one(8, 16, 20), intermediate_size=draw.one(36, 45),
                num_heads=heads, patch_size=patch, window_size=patch * draw.one(4, 6, 8, 16),
                fullatt_block_indexes=sorted({draw.number(0, depth - 1) for _ in range(2)}),
                tokens_per_second=draw.one(2, 4, 25), out_hidden_size=hidden)


def qwen25_vl(draw):
    text = halves(text_sizes(draw, 3036))
    head_dim = text["hidden_size"] // text["num_attention_heads"]
    text["rope_scaling"] = dict(type="mrope", mrope_section=mrope_sections(draw, head_dim, False))
    vision = qwen25_vision(draw, text["hidden_size"])
    tied = text["tie_word_embeddings"]
    config = hf.Qwen2_5_VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=tied,
                                 **VISION_IDS)
    factor = 2 * vision["patch_size"]
    size = dict(patch_size=vision["patch_size"], **draw.one(CLIP, HALF))
    bounds = dict(min_pixels=factor ** 2 * draw.number(1, 9), max_pixels=factor ** 2 * draw.number(20, 60))
    video = dict(min_pixels=factor ** 2 * 4, max_pixels=factor ** 2 * draw.number(6, 12))
    processor = hf.Qwen2_5_VLProcessor(
        Qwen2VLImageProcessorFast(**size, **bounds), tokenizer("qwen"),
        Qwen2VLVideoProcessor(**size, **video), chat_template=templates.QWEN2_VL)
    return hf.Qwen2_5_VLForConditionalGeneration(config), processor


QWEN3_VL = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% if message['content'] is string %}"
    "{{ message['content'] }}{% else %}{% for content in message['content'] %}{% if content['type'] == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% elif content['type'] == 'video' %}<|vision_start|><|video_pad|>"
    "<|vision_end|>{% else %}{{ content['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")


def qwen3_vl(is_moe):
    def make(draw):
        text = text_sizes(draw, 3036)
        text["rope_scaling"] = dict(
            rope_type="default", mrope_interleaved=True,
            mrope_section=mrope_sections(draw, text["head_dim"], True))
        heads, depth = draw.one(2, 3, 4), draw.number(2, 4)
        patch, side = draw.one(8, 16), draw.one(3, 6, 11)
        count = draw.number(1, min(3, text["num_hidden_layers"], depth))
        vision = dict(depth=depth, hidden_size=heads * draw.one(8, 16, 20), intermediate_size=draw.one(36, 45),
                      num_heads=heads, patch_size=patch, num_position_embeddings=side ** 2,
                      deepstack_visual_indexes=sorted(draw.rng.permutation(depth)[:count].tolist()),
                      out_hidden_size=text["hidden_size"])
        tied = text["tie_word_embeddings"]
        if is_moe:
            text.update(moe_sizes(draw, text["num_hidden_layers"], False))
            if text["num_hidden_layers"] > 2:
                text.update(decoder_sparse_step=draw.one(1, 1, 2), mlp_only_layers=draw.one([], [0]))
        kind = "Qwen3VLMoe" if is_moe else "Qwen3VL"
        config = getattr(hf, kind + "Config")(text_config=text, vision_config=vision,
                                              tie_word_embeddings=tied, **VISION_IDS)
        factor = 2 * patch
        size = dict(patch_size=patch, **HALF)
        processor = hf.Qwen3VLProcessor(
            Qwen2VLImageProcessorFast(**size, size=dict(
                shortest_edge=factor ** 2 * draw.number(1, 9),
                longest_edge=factor ** 2 * draw.number(20, 60))),
            tokenizer("qwen"),
            Qwen3VLVideoProcessor(**size, size=dict(
                shortest_edge=factor ** 2 * 8, longest_edge=factor ** 2 * draw.number(40, 90))),
            chat_template=QWEN3_VL)
        return getattr(hf, kind + "ForConditionalGeneration")(config), processor
    return make


def audio_tower(draw):
    heads = draw.one(2, 3, 4)
    return dict(num_mel_bins=draw.one(128, 128, 80), d_model=heads * draw.one(8, 12, 16),
                encoder_layers=draw.number(1, 3), encoder_attention_heads=heads,
                encoder_ffn_dim=draw.one(36, 52), max_source_positions=1500)


def qwen2_audio(draw):
    text, audio = halves(text_sizes(draw, 3036)), audio_tower(draw)
    config = hf.Qwen2AudioConfig(
        audio_config=dict(audio, model_type="qwen2_audio_encoder"),
        text_config=dict(text, model_type="qwen2"), audio_token_index=3017)
    processor = hf.Qwen2AudioProcessor(
        hf.WhisperFeatureExtractor(feature_size=audio["num_mel_bins"]), tokenizer("qwen"),
        chat_template=templates.QWEN2_AUDIO)
    return hf.Qwen2AudioForConditionalGeneration(config), processor


def qwen25_omni(draw):
    text, audio = halves(text_sizes(draw, 3036)), audio_tower(draw)
    head_dim = text["hidden_size"] // text["num_attention_heads"]
    text["rope_scaling"] = dict(type="default", rope_type="default",
                                mrope_section=mrope_sections(draw, head_dim, False))
    vision = qwen25_vision(draw, text["hidden_size"])
    vision.pop("tokens_per_second")
    config = omni.Qwen2_5OmniThinkerConfig(
        text_config=text, vision_config=vision, tie_word_embeddings=text["tie_word_embeddings"],
        audio_config=dict(audio, n_window=draw.one(100, 50, 30), output_dim=text["hidden_size"]),
        position_id_per_seconds=draw.one(25, 10), **OMNI_IDS)
    factor, size = 2 * vision["patch_size"], dict(patch_size=vision["patch_size"], **CLIP)
    bounds = dict(min_pixels=factor ** 2 * 4, max_pixels=factor ** 2 * draw.number(6, 40))
    processor = Qwen2_5OmniProcessor(
        Qwen2VLImageProcessorFast(**size, **bounds), Qwen2VLVideoProcessor(**size, **bounds),
        hf.WhisperFeatureExtractor(
            feature_size=audio["num_mel_bins"], n_samples=4800000, chunk_length=300,
            nb_max_frames=30000, return_attention_mask=True),
        tokenizer("qwen", image_token="<|IMAGE|>", video_token="<|VIDEO|>", audio_token="<|AUDIO|>",
                  vision_bos_token="<|vision_bos|>", vision_eos_token="<|vision_eos|>",
                  audio_bos_token="<|audio_bos|>", audio_eos_token="<|audio_eos|>"),
        chat_template=templates.QWEN25_OMNI)
    return compare_probe.THINKER(config), processor


FAMILIES = {
    "qwen2": text_model("Qwen2"), "qwen3": text_model("Qwen3"), "llama": text_model("Llama"),
    "qwen3_moe": text_model("Qwen3Moe"), "qwen2_5_vl": qwen25_vl, "qwen3_vl": qwen3_vl(False),
    "qwen3_vl_moe": qwen3_vl(True), "qwen2_audio": qwen2_audio, "qwen2_5_omni": qwen25_omni}
KINDS = {"qwen2_5_vl": "iv", "qwen3_vl": "iv", "qwen3_vl_moe": "iv", "qwen2_audio": "a",
         "qwen2_5_omni": "iva"}


def tokenizer(name, **more):
    ends = dict(bos_token="<|begin_of_text|>", eos_token="<|eot_id|>") if name == "llama3" else dict(
        eos_token="<|im_end|>", pad_token="<|endoftext|>")
    return hf.PreTrainedTokenizerFast(
        tokenizer_file=os.path.join(TOKENIZERS, name, "tokenizer.json"), **ends,
        extra_special_tokens=more) if name == "llama3" else hf.Qwen2TokenizerFast(
        tokenizer_file=os.path.join(TOKENIZERS, name, "tokenizer.json"), **ends,
        extra_special_tokens=more)


def text_processor(draw, kind):
    made = tokenizer("llama3" if kind == "Llama" else "qwen")
    made.chat_template = {"Qwen2": draw.one(templates.QWEN2, templates.QWEN25),
                          "Llama": templates.LLAMA3}.get(kind, templates.QWEN3)
    return made


def randomise(model, seed):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            scale = 0.1 if p.dim() == 1 else 0.5 if "embed" in name else 1 / math.sqrt(p[0].numel())
            p.copy_(scale * noise + (p.dim() == 1 and not name.endswith("bias")))


# ---- config.json as others write it

def rewrite_config(draw, folder):
    """One of the layouts that folders have; transformers 4.57 reads all of them but "newer"."""
    path = os.path.join(folder, "config.json")
    with open(path) as file:
        config = json.load(file)
    layout = draw.one("4.57", "older", "hub")
    if layout == "4.57":
        return layout
    if layout == "older":
        for part in [config] + [v for v in config.values() if isinstance(v, dict)]:
            if "dtype" in part:
                part["torch_dtype"] = part.pop("dtype")
            part.pop("layer_types", None)
            scaling = part.get("rope_scaling") or {}
            if "rope_type" in scaling and not scaling.get("mrope_interleaved"):
                kind = part["rope_scaling"].pop("rope_type")
                part["rope_scaling"]["type"] = (
                    "mrope" if config["model_type"] == "qwen2_5_vl" else kind)
    if config["model_type"] == "qwen2_5_vl" and layout == "hub":  # flat
        text = config.pop("text_config")
        for name in ("model_type", "architectures", "layer_types"):
            text.pop(name, None)
        config = dict(text, **{k: v for k, v in config.items() if k not in text},
                      architectures=["Qwen2_5_VLForConditionalGeneration"])
        config["rope_scaling"] = dict(type="mrope", mrope_section=text["rope_scaling"]["mrope_section"])
        vision = config["vision_config"]
        vision["in_chans"] = vision.pop("in_channels", 3)
    with open(path, "w") as file:
        json.dump(config, file, indent=1)
    return layout


def make(family, draw, folder):
    """(model in fp32 as it is on disk, processor, what it is in words)"""
    shutil.rmtree(folder, ignore_errors=True)
    model, processor = FAMILIES[family](draw)
    randomise(model, draw.number(0, 1000))
    dtype = draw.one(torch.float32, torch.float32, torch.bfloat16)
    shard = draw.one("5GB", "300KB")
    model.to(dtype).save_pretrained(folder, max_shard_size=shard)
    processor.save_pretrained(folder)
    if family == "qwen2_5_omni":  # one file for both, as published; save_pretrained keeps the last
        both = dict(processor.image_processor.to_dict(), **processor.feature_extractor.to_dict())
        with open(os.path.join(folder, "preprocessor_config.json"), "w") as file:
            json.dump(both, file, default=str)
    layout = rewrite_config(draw, folder)
    if family == "qwen2_5_omni" and layout == "hub":
        as_whole_omni(folder)
    return compare_probe.load_model(folder), compare_probe.load_processor(folder), (
        f"{layout}, {str(dtype)[6:]}, {'shards' if shard == '300KB' else 'one file'}")


def as_whole_omni(folder):
    """The thinker as it lies in the folders of the whole model."""
    from safetensors.torch import load_file, save_file
    for name in os.listdir(folder):
        path = os.path.join(folder, name)
        if name.endswith(".safetensors"):
            save_file({"thinker." + n: t for n, t in load_file(path).items()}, path, {"format": "pt"})
        elif name.endswith("index.json"):
            with open(path) as file:
                index = json.load(file)
            index["weight_map"] = {"thinker." + n: f for n, f in index["weight_map"].items()}
            with open(path, "w") as file:
                json.dump(index, file)
    path = os.path.join(folder, "config.json")
    with open(path) as file:
        thinker = json.load(file)
    thinker.pop("architectures")
    with open(path, "w") as file:
        json.dump(dict(architectures=["Qwen2_5OmniForConditionalGeneration"], model_type="qwen2_5_omni",
                       enable_audio_output=False, thinker_config=thinker), file)


# ---- conversations

TEXTS = [
    "What is it?", "Qu'est-ce que c'est ? Und was heißt „das“?", "北京的天气怎么样？漢字かな交じり文。",
    "Привет, мир! Ελληνικά. עברית. العربية. हिन्दी। ไทย 한국어", "🙂👩‍👩‍👧‍👦🇳🇴 e\u0301 \u212b ﬁ",
    "def f(x):\n\treturn x ** 2  # 12345\n\n\nprint( f(3.14) )", "  spaces   and\u00a0more\t\ttabs \r\n end ",
    "It's I'VE they'll 1234567890", "\u200b\ufeff\u0000 zero", "x" * 70, "<b>&amp;</b> {\"a\": [1, 2]}",
]
SPECIAL = {"qwen": ["a <|im_start|> b", "<|endoftext|>", "<tool_call>{}</tool_call>", "<|fim_prefix|>",
                    "<|im_end|>\n<|im_start|>user\nhi", "<|box_start|>(1,2)<|box_end|>"],
           "llama3": ["<|eot_id|>", "a <|begin_of_text|> b", "<|reserved_special_token_0|>"]}
ANSWERS = ["A cat of 12 kg; två hundar.", "42", "猫です。", "It's\n\n- a list\n- of 2", "Да 🙂"]


def picture(draw, path):
    """A file of a form that people have."""
    width, height = draw.one((130, 90), (1, 1), (3, 200), (640, 37), (301, 299), (57, 56), (28, 28),
                             (draw.number(5, 400), draw.number(5, 400)))
    # Not 16 bits of grey, of which Pillow makes white.
    if max(width, height) > 200 * min(width, height) - 1:
        width = height
    y, x = np.mgrid[:height, :width]
    noise = 20 * draw.rng.standard_normal((height, width))
    channels = [127 + 100 * np.sin(x / 9) + noise, 127 + 90 * np.cos(y / 7), (x * 3 + y * 5) % 256]
    image = Image.fromarray(np.stack(channels, -1).clip(0, 255).astype(np.uint8))
    form = draw.one("jpg", "png", "webp", "gray.png", "rgba.png", "palette.png", "gray.jpg", "cmyk.jpg",
                    "exif.jpg", "la.png", "bit.png", "rgba.webp", "palette_alpha.png", "exif.png",
                    "progressive.jpg")
    path, options = path + "." + form, {}
    alpha = Image.fromarray(((x + y) * 7 % 256).astype(np.uint8))
    if form.startswith("gray"):
        image = image.convert("L")
    elif form.startswith("rgba"):
        image.putalpha(alpha)
        options = dict(lossless=True) if form.endswith("webp") else {}
    elif form.startswith("palette"):
        image = image.quantize(32)
        options = dict(transparency=3) if form == "palette_alpha.png" else {}
    elif form == "cmyk.jpg":
        image = image.convert("CMYK")
    elif form.startswith("exif"):
        exif = Image.Exif()
        exif[0x0112] = draw.number(1, 8)
        options = dict(exif=exif)
    elif form == "la.png":
        image = image.convert("LA")
    elif form == "bit.png":
        image = image.convert("1")
    elif form == "progressive.jpg":
        options = dict(progressive=True, quality=60, subsampling=0)
    image.save(path, **options)
    return os.path.basename(path)


def clip(draw, path):
    width, height = draw.one((96, 64), (64, 130), (162, 82), (72, 72))
    frames, fps = draw.one((8, 8), (23, 24), (31, 10), (5, 2), (60, 30), (4, 25), (17, 3))
    path += ".mp4"
    with av.open(path, "w") as file:
        stream = file.add_stream("libx264", rate=fps)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        y, x = np.mgrid[:height, :width]
        for i in range(frames):
            rgb = np.stack([127 + 100 * np.sin((x + 5 * i) / 9), 127 + 90 * np.cos((y - 3 * i) / 7),
                            (x * 3 + y * 5 + 11 * i) % 256], -1).clip(0, 255).astype(np.uint8)
            file.mux(stream.encode(av.VideoFrame.from_ndarray(rgb, format="rgb24")))
        file.mux(stream.encode())
    return os.path.basename(path)


def sound(draw, path, rates):
    seconds = draw.one(0.99, 2.01, 0.21, 1.3, 5.37, 0.1, float(draw.rng.random() * 4 + 0.05))
    rate, channels = draw.one(*rates), draw.one(1, 1, 2)
    t = np.arange(int(seconds * rate)) / rate
    wave = np.stack([0.4 * np.sin(2 * np.pi * (300 + 170 * c) * t) +
                     0.05 * draw.rng.standard_normal(len(t)) for c in range(channels)], -1)
    path += draw.one(".wav", ".flac")
    soundfile.write(path, wave, rate, subtype=draw.one("PCM_16", "PCM_24"))
    return os.path.basename(path)


def conversation(draw, folder, kinds, vocabulary, rates=(16000,)):
    """Writes a file and its media; returns (its path, what is in it)."""
    messages, described, number = [], [], 0
    if draw.coin(0.4):
        messages.append({"role": "system", "content": draw.one("Be brief.", "You are a poet. 詩人", "")})
        described.append("system")
    for _ in range(draw.one(1, 1, 2, 3)):
        parts = []
        for kind in kinds:
            for _ in range(draw.one(0, 1, 1, 2)):
                path = os.path.join(folder, f"{number}")
                name, file = {"i": ("image", picture), "v": ("video", clip),
                              "a": ("audio", lambda d, p: sound(d, p, rates))}[kind]
                parts.append({"type": name, name: file(draw, path)})
                described.append(parts[-1][name])
                number += 1
        for _ in range(draw.number(1, 2)):
            text = draw.one(*TEXTS, *SPECIAL[vocabulary], draw.one(*SPECIAL[vocabulary]))
            parts.insert(draw.number(0, len(parts)), {"type": "text", "text": text})
        if all(part["type"] == "text" for part in parts):
            parts = "".join(part["text"] for part in parts)
        messages.append({"role": "user", "content": parts})
        messages.append({"role": "assistant", "content": draw.one(*ANSWERS)})
    path = os.path.join(folder, "conversation.json")
    with open(path, "w") as file:
        json.dump({"messages": messages}, file, ensure_ascii=False, indent=1)
    return path, " ".join(described)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder")
    parser.add_argument("families", nargs="*", default=list(FAMILIES))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--conversations", type=int, default=3)
    parser.add_argument("--any-rate", action="store_true",
                        help="sounds of other rates than 16 kHz: resampled by each side's own filter")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    hf.logging.set_verbosity_error()
    failures = 0
    for family in arguments.families:
        for seed in range(arguments.seed, arguments.seed + arguments.rounds):
            draw = Draw([seed, list(FAMILIES).index(family)])
            folder = os.path.abspath(os.path.join(arguments.folder, f"{family}_{seed}"))
            model, processor, what = make(family, draw, folder)
            print(f"{family} {seed}: {what}", flush=True)
            for i in range(arguments.conversations):
                place = os.path.join(folder, f"conversation_{i}")
                os.makedirs(place)
                path, described = conversation(
                    draw, place, KINDS.get(family, ""), "llama3" if family == "llama" else "qwen",
                    (8000, 44100, 22050, 48000) if arguments.any_rate else (16000,))
                result = compare_probe.compare(folder, path, model, processor)
                failures += bool(result.failed)
                print(f"  {i} [{described}]: {result}", flush=True)
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
