#!/usr/bin/env python3
"""What media_bench measures, done with Pillow and numpy as transformers' Qwen2-VL processor does.

  build/bin/media_bench --dump_dir=DIR && python3 tools/bench/pillow_baseline.py DIR

File names say the size and the budget: 480x640_336.jpg is resized to at most 336 * 336 pixels.
One thread; medians over at least 20 runs after a warm-up.
"""
import io
import math
import os
import statistics
import sys
import time

import numpy as np
from PIL import Image


def smart_resize(h, w, budget, factor=28):
    oh, ow = round(h / factor) * factor, round(w / factor) * factor
    if oh * ow > budget:
        beta = math.sqrt(h * w / budget)
        oh, ow = math.floor(h / beta / factor) * factor, math.floor(w / beta / factor) * factor
    return oh, ow


def to_patches(data, budget):
    image = Image.open(io.BytesIO(data)).convert("RGB")
    h, w = smart_resize(image.height, image.width, budget)
    if (w, h) != image.size:
        image = image.resize((w, h), Image.BICUBIC)
    x = np.asarray(image).transpose(2, 0, 1)
    x = np.tile(x[None], (2, 1, 1, 1)).reshape(1, 2, 3, h // 28, 2, 14, w // 28, 2, 14)
    return np.ascontiguousarray(x.transpose(0, 3, 6, 4, 7, 2, 1, 5, 8)).reshape(-1, 1176)


for name in sorted(os.listdir(sys.argv[1])):
    with open(os.path.join(sys.argv[1], name), "rb") as file:
        data = file.read()
    budget = int(name.split("_")[1].split(".")[0]) ** 2
    to_patches(data, budget)
    times = []
    while len(times) < 20 or sum(times) < 2:
        start = time.process_time()
        to_patches(data, budget)
        times.append(time.process_time() - start)
    print(f"{name:22s} median {1e3 * statistics.median(times):8.3f} ms  best {1e3 * min(times):8.3f} ms  "
          f"{1 / statistics.median(times):8.1f} pictures/s")
