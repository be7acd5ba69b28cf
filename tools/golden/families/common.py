"""What the scripts of all families share: weights, samples, packs, gradients, files.

A sample is a dict of the model's own keyword arguments (input_ids [1, T], labels [1, T], ...) plus
whatever the case wants stored. Everything is fp32, eager attention, one thread, seeded.
"""

import json
import math
import os

import numpy as np
import torch
from safetensors.torch import save_file

IGNORED = -100


def deterministic():
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)


def set_eager(config):
    config._attn_implementation = "eager"
    for name in ("text_config", "vision_config", "audio_config", "thinker_config"):
        if getattr(config, name, None) is not None:
            set_eager(getattr(config, name))
    return config


def randomise(model, seed, router_scale=1.5):
    """Weights that make every path matter: no norm of ones, no bias of zeros."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            if name.endswith("bias"):
                p.copy_(0.2 * noise)
            elif p.dim() == 1:
                p.copy_(1 + 0.2 * noise)
            elif "embed" in name and "patch_embed" not in name:
                p.copy_(0.5 * noise)
            elif name.endswith("mlp.gate.weight"):
                p.copy_(router_scale * noise / math.sqrt(p.shape[1]))
            elif p.dim() == 3 and "experts" in name:  # [experts, in, out]
                p.copy_(noise / math.sqrt(p.shape[1]))
            else:
                p.copy_(noise / math.sqrt(p[0].numel()))
    return model.eval()


def save_model(model, folder, shards=1):
    """config.json, generation_config.json and the weights as save_pretrained writes them."""
    os.makedirs(folder, exist_ok=True)
    size = sum(p.numel() * 4 for p in model.parameters())
    limit = size if shards == 1 else int(size / shards * 1.05)
    model.save_pretrained(folder, max_shard_size=limit + 4096, safe_serialization=True)
    found = [f for f in os.listdir(folder) if f.startswith("model") and f.endswith(".safetensors")]
    assert len(found) == shards, found


def make_labels(rng, ids, prompt):
    """The first `prompt` tokens and about one in six of the rest carry no loss."""
    labels = np.array(ids, np.int64)
    labels[:prompt] = IGNORED
    labels[prompt:][rng.random(len(ids) - prompt) < 1 / 6] = IGNORED
    labels[-1] = ids[-1]
    return labels


def shifted(labels):
    """What position i has to predict, -1 for nothing; labels [T]."""
    targets = torch.full_like(labels, -1)
    targets[:-1] = labels[1:]
    targets[targets == IGNORED] = -1
    return targets


def to_file(path, tensors):
    out = {}
    for name, value in tensors.items():
        t = torch.as_tensor(np.ascontiguousarray(value) if isinstance(value, np.ndarray) else value)
        if t.dtype in (torch.int64, torch.bool):
            t = t.to(torch.int32)
        if t.dtype == torch.float64:
            t = t.to(torch.float32)
        out[name] = t.detach().clone().contiguous()
    save_file(out, path)


def stored_positions(positions):
    """[T] or [3, T] int32; the reference's may be float, but its values are whole numbers."""
    positions = positions.squeeze(1) if positions.dim() == 3 else positions.squeeze(0)
    whole = positions.to(torch.int64)
    assert torch.equal(whole.to(positions.dtype), positions)
    return whole


def run(model, sample, **extra):
    """Output of the model, per-token losses [T] (0 where there is none), their mean."""
    kwargs = {k: v for k, v in sample.items() if k not in ("stored", "pictures", "videos")}
    result = model(**kwargs, use_cache=False, **extra)
    targets = shifted(sample["labels"][0])
    losses = torch.nn.functional.cross_entropy(
        result.logits[0], targets, ignore_index=-1, reduction="none")
    count = (targets >= 0).sum()
    assert count > 0
    return result, losses, losses.sum() / count


def gradients(model, loss):
    model.zero_grad(set_to_none=True)
    loss.backward()
    return {f"grad.{n}": p.grad for n, p in model.named_parameters() if p.grad is not None}


def case(model, samples, names=lambda n: n, with_grads=True, extra_loss=None, **extra):
    """The tensors of one case: the samples one after the other, each run alone.

    loss = mean over all tokens of the case that carry one; sample_losses = each sample's own mean.
    """
    out = {"cu_seqlens": np.cumsum([0] + [s["input_ids"].shape[1] for s in samples])}
    parts, means, results = [], [], []
    for sample in samples:
        result, losses, mean = run(model, sample, **extra)
        reported = result.loss
        if reported is not None and extra_loss is None:
            assert torch.allclose(reported, mean, rtol=1e-6), (reported, mean)
        results.append(result)
        means.append(mean)
        parts.append(dict(
            input_ids=sample["input_ids"][0], labels=sample["labels"][0],
            targets=shifted(sample["labels"][0]), logits=result.logits[0], losses=losses,
            position_ids=stored_positions(sample["position_ids"])))
    for name in parts[0]:
        out[name] = torch.cat([p[name] for p in parts], dim=-1 if name != "logits" else 0)
    count = (out["targets"] >= 0).sum()
    loss = out["losses"].sum() / count
    out["loss"] = loss.reshape(1)
    out["sample_losses"] = torch.stack(means)
    total = loss
    if extra_loss is not None:
        more, total = extra_loss(model, results, loss)
        out.update(more)
        out["total_loss"] = total.reshape(1)
    if with_grads:
        grads = gradients(model, total)
        unreached = [n for n, p in model.named_parameters() if p.grad is None]
        if unreached:
            print("  no gradient:", len(unreached), unreached[:3])
        out.update({"grad." + names(n[5:]): g for n, g in grads.items()})
    out.update(joined_media(samples))
    return out


# Keyword arguments of the models that hold one row or entry per patch, picture or clip.
MEDIA = ("pixel_values", "image_grid_thw", "pixel_values_videos", "video_grid_thw",
         "second_per_grid_ts", "video_second_per_grid")


def joined_media(samples):
    """What the samples' media are, in their order: joined rows, and numbered sources."""
    out = {}
    for name in MEDIA:
        found = [s[name] for s in samples if name in s]
        if found:
            out[name.replace("video_second_per_grid", "second_per_grid_ts")] = torch.cat(found)
    for name in {n for s in samples for n in s.get("stored", {})}:
        found = [torch.as_tensor(s["stored"][name]) for s in samples if name in s.get("stored", {})]
        out[name] = torch.cat(found, dim=-1 if name.startswith("position") else 0)
    for kind in ("pictures", "videos"):
        sources = [x for s in samples for x in s.get(kind, [])]
        for i, source in enumerate(sources):
            out[f"{kind[:-1]}.{i}"] = torch.as_tensor(source)
    return out


def disk_names(model, folder):
    """model.named_parameters() name -> name in the files save_model wrote, matched by contents."""
    from safetensors.torch import load_file
    on_disk = {}
    for f in sorted(os.listdir(folder)):
        if f.startswith("model") and f.endswith(".safetensors"):
            on_disk.update(load_file(os.path.join(folder, f)))
    names = {}
    for name, p in model.named_parameters():
        same = [d for d, t in on_disk.items() if t.shape == p.shape and torch.equal(t, p)]
        assert len(same) == 1, (name, same)
        names[name] = same[0]
    return names


def write_json(path, value):
    with open(path, "w") as file:
        json.dump(value, file, indent=2)
        file.write("\n")
