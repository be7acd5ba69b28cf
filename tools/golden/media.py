#!/usr/bin/env python3
"""Makes tests/golden/media: what Pillow and transformers give for inputs both sides generate.

Resizing (Pillow's bicubic and torchvision's), Qwen2-VL's smart_resize and patch order, Whisper's log-mel. Inputs
come from integer formulas repeated in tests/dataloader/media/golden_inputs.h. Run with Pillow,
torch, torchvision, transformers and av (PyAV 18) installed:
    python3 tools/golden/media.py [FUNCTION ...]      all of those in main, or only some
"""
import io
import math
import pathlib
import sys

import av
import numpy as np
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2.functional import resize as torchvision_resize
from transformers import WhisperFeatureExtractor
from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor, smart_resize

OUT = pathlib.Path(__file__).resolve().parents[2] / "tests" / "golden" / "media"


def lcg(n, seed):
    """Numerical Recipes' generator, upper 16 bits."""
    out = np.empty(n, np.uint32)
    x = seed
    for i in range(n):
        x = (x * 1664525 + 1013904223) & 0xFFFFFFFF
        out[i] = x >> 16
    return out


def picture(h, w, seed):
    """Smooth waves under noise: h x w x 3."""
    noise = lcg(h * w * 3, seed).reshape(h, w, 3) % 64
    y, x, c = np.meshgrid(np.arange(h), np.arange(w), np.arange(3), indexing="ij")
    return ((x * (3 + c) + y * (5 - c)) % 192 + noise).astype(np.uint8)


def resize():
    cases = [(64, 48, 28, 28), (37, 53, 56, 84), (101, 67, 28, 56), (1, 1, 28, 28), (200, 30, 28, 28),
             (56, 100, 56, 28), (100, 56, 28, 56), (3, 400, 28, 56)]
    for i, (h, w, oh, ow) in enumerate(cases):
        out = Image.fromarray(picture(h, w, i + 1)).resize((ow, oh), Image.BICUBIC)
        (OUT / f"resize_{h}x{w}_{oh}x{ow}.u8").write_bytes(np.asarray(out).tobytes())


def by_torchvision(image, h, w):
    out = torchvision_resize(torch.from_numpy(image).permute(2, 0, 1), [h, w],
                             interpolation=InterpolationMode.BICUBIC, antialias=True)
    return out.permute(1, 2, 0).contiguous().numpy().tobytes()


def resize_torchvision():
    """All results end to end; the sizes [height, width, new height, new width] of one a line."""
    cases = [(1, 1, 3, 5), (2, 3, 9, 8), (5, 7, 13, 12), (37, 53, 20, 29), (64, 48, 16, 12), (64, 48, 31, 24),
             (53, 19, 53, 28), (19, 53, 28, 53), (240, 21, 24, 20), (21, 240, 20, 24), (400, 3, 7, 5), (3, 700, 28, 6),
             (128, 128, 2, 2), (97, 131, 33, 41), (150, 100, 30, 20), (28, 28, 56, 56), (301, 17, 1, 1),
             (1100, 5, 14, 4)]
    results = [by_torchvision(picture(h, w, 40 + i), oh, ow) for i, (h, w, oh, ow) in enumerate(cases)]
    (OUT / "resize_torchvision.u8").write_bytes(b"".join(results))
    (OUT / "resize_torchvision.txt").write_text("".join("%d %d %d %d\n" % case for case in cases))


def jpeg():
    """A file, and the picture that the fast image processor makes patches of."""
    file = io.BytesIO()
    y, x, c = np.meshgrid(np.arange(130), np.arange(180), np.arange(3), indexing="ij")
    waves = 120 + 70 * np.sin(0.09 * x + c) + 60 * np.sin(0.13 * y - c)
    Image.fromarray(waves.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=70, subsampling="4:2:0")
    (OUT / "waves_130x180.jpg").write_bytes(file.getvalue())
    decoded = np.asarray(Image.open(io.BytesIO(file.getvalue())).convert("RGB"))
    h, w = smart_resize(130, 180, factor=28, min_pixels=1, max_pixels=3136)
    (OUT / f"waves_130x180_{h}x{w}.u8").write_bytes(by_torchvision(decoded, h, w))


def alpha():
    """picture(7, 9, 5) under an alpha that hides some of it."""
    image = Image.fromarray(picture(7, 9, 5))
    y, x = np.mgrid[:7, :9]
    image.putalpha(Image.fromarray((x * 31 + y * 40 & 0xFF).astype(np.uint8)))
    image.save(OUT / "alpha_7x9.png")
    image.save(OUT / "alpha_7x9.webp", lossless=True, exact=True)
    grey = Image.merge("LA", (image.getchannel("R"), image.getchannel("A")))
    grey.save(OUT / "grey_alpha_7x9.png")


def clip():
    """Three frames of strong colours, 50 wide, as PyAV decodes them: most readers do, and so what
    transformers' video processors are given."""
    y, x = np.mgrid[:34, :50]
    with av.open(str(OUT / "clip_34x50.mp4"), "w") as file:
        stream = file.add_stream("libx264", rate=5)
        stream.width, stream.height, stream.pix_fmt = 50, 34, "yuv420p"
        for i in range(3):
            rgb = np.stack([(x // 3 + i) % 2 * 200 + 30, (y // 5) % 3 * 90, (x + 7 * i + y) % 40 * 6],
                           -1).astype(np.uint8)
            file.mux(stream.encode(av.VideoFrame.from_ndarray(rgb, format="rgb24")))
        file.mux(stream.encode())
    with av.open(str(OUT / "clip_34x50.mp4")) as file:
        frames = [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]
    assert len(frames) == 3
    (OUT / "clip_34x50.u8").write_bytes(np.stack(frames).tobytes())


def sizes():
    lines = []
    for h, w in [(224, 224), (1, 1), (1, 150), (13, 29), (14, 14), (42, 70), (1080, 1920), (28, 28), (5000, 40),
                 (3024, 4032), (100, 333), (27, 5000), (55, 57), (70, 42), (896, 1204)]:
        for lo, hi in [(56 * 56, 28 * 28 * 1280), (4 * 28 * 28, 64 * 28 * 28), (1, 10**7)]:
            a, b = smart_resize(h, w, factor=28, min_pixels=lo, max_pixels=hi)
            lines.append(f"{h} {w} {lo} {hi} {a} {b}\n")
    (OUT / "smart_resize.txt").write_text("".join(lines))


def patches():
    image = picture(56, 84, 9)
    processor = Qwen2VLImageProcessor(do_resize=False, do_rescale=False, do_normalize=False)
    rows = processor(Image.fromarray(image), return_tensors="np")["pixel_values"]
    assert rows.shape == (24, 1176), rows.shape
    (OUT / "patches_56x84.u8").write_bytes(rows.astype(np.uint8).tobytes())


def wave(kind, n):
    t = np.arange(n, dtype=np.float64)
    if kind == "silence":
        return np.zeros(n, np.float32)
    if kind == "tone":
        return (0.5 * np.sin(2 * math.pi * 1000 * t / 16000)).astype(np.float32)
    noise = (lcg(n, 77).astype(np.float64) - 32768) / 32768
    fade = 0.1 + 0.9 * (t % 8000) / 8000
    return (0.05 * noise * fade + 0.3 * np.sin(2 * math.pi * 220 * t / 16000) * fade).astype(np.float32)


def mel():
    for bands in (80, 128):
        extractor = WhisperFeatureExtractor(feature_size=bands)
        for kind, n, every in [("tone", 15840, 6), ("mix", 15840, 6), ("mix", 32160, 12), ("silence", 8000, 10),
                               ("mix", 496000, 150), ("mix", 700, 1)]:
            samples = wave(kind, n)
            features = extractor._np_extract_fbank_features(samples[None], "cpu")[0].T
            torch_features = extractor._torch_extract_fbank_features(samples[None], "cpu")[0].T
            assert features.shape == (n // 160, bands), features.shape
            print(kind, n, bands, "float64 against float32:", np.abs(features - torch_features).max())
            (OUT / f"mel{bands}_{kind}_{n}_every{every}.f32").write_bytes(
                np.ascontiguousarray(features[::every], np.float32).tobytes())


def windowed_mel():
    """The last rows of sounds in a silent window of 30 s, and two frames past them."""
    extractor = WhisperFeatureExtractor(feature_size=80)
    for n in (15840, 15841, 15999, 479700, 479900):
        samples = wave("mix", n)
        padded = np.zeros(480000, np.float32)
        padded[:n] = samples
        features = extractor._np_extract_fbank_features(padded[None], "cpu")[0].T
        mask = extractor(samples, sampling_rate=16000, padding="max_length",
                         return_attention_mask=True, return_tensors="np")["attention_mask"][0]
        frames = int(mask.sum())
        rows = min(frames + 2, 3000)
        (OUT / f"mel80_window_{n}_{frames}.f32").write_bytes(
            np.ascontiguousarray(features[rows - 6:rows], np.float32).tobytes())


if __name__ == "__main__":
    OUT.mkdir(parents=True, exist_ok=True)
    for make in (resize, resize_torchvision, jpeg, alpha, clip, sizes, patches, mel, windowed_mel):
        if not sys.argv[1:] or make.__name__ in sys.argv[1:]:
            make()
