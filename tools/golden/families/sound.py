"""Waves that tests make again, and the log-mel the families' feature extractor gives for them."""

import math

import numpy as np
import torch
from transformers import WhisperFeatureExtractor

KINDS = ("silence", "tone", "mix")  # as GoldenWave of tests/dataloader/media/golden_inputs.h


def wave(kind, n):
    """Same as tools/golden/media.py: 16 kHz, float32."""
    t = np.arange(n, dtype=np.float64)
    if kind == "silence":
        return np.zeros(n, np.float32)
    if kind == "tone":
        return (0.5 * np.sin(2 * math.pi * 1000 * t / 16000)).astype(np.float32)
    noise, x = np.empty(n), 77
    for i in range(n):
        x = (x * 1664525 + 1013904223) & 0xFFFFFFFF
        noise[i] = ((x >> 16) - 32768) / 32768
    fade = 0.1 + 0.9 * (t % 8000) / 8000
    return (0.05 * noise * fade + 0.3 * np.sin(2 * math.pi * 220 * t / 16000) * fade).astype(
        np.float32)


class Extractor:
    def __init__(self, folder):
        self.extract = WhisperFeatureExtractor.from_pretrained(folder)

    def __call__(self, sources):
        """(features [clips, bands, window], mask [clips, window]) as the family's processor does."""
        out = self.extract([wave(kind, n) for kind, n in sources], sampling_rate=16000,
                           padding="max_length", return_attention_mask=True, return_tensors="pt")
        return out["input_features"], out["attention_mask"]


def source_rows(sources):
    """[clips, 2]: the index of the kind, the number of samples."""
    return torch.tensor([[KINDS.index(kind), n] for kind, n in sources])


def num_tokens(frames):
    return ((frames - 1) // 2 + 1 - 2) // 2 + 1


def extractor_config(bands, seconds):
    return dict(chunk_length=seconds, dither=0.0, feature_extractor_type="WhisperFeatureExtractor",
                feature_size=bands, hop_length=160, n_fft=400, n_samples=16000 * seconds,
                nb_max_frames=100 * seconds, padding_side="right", padding_value=0.0,
                return_attention_mask=True, sampling_rate=16000)
