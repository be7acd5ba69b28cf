"""Golden values of small encoder towers by themselves.

    python3 -m venv venv && venv/bin/pip install torch transformers==4.57.1 safetensors
    venv/bin/python tools/golden/towers.py tests/golden/towers

Writes one file per tower: its weights under omnitrain's names, a pack of several items, the rows
(and DeepStack features) the reference makes of them, a gradient for each, and what that gives for
every parameter. qwen3_vision and qwen2_audio are transformers' modules. seed_vision has no public
code: the reference is the plain PyTorch below, picture by picture, from the report's description
(arXiv 2505.07062). fp32, seed 7.
"""

import math
import sys

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.numpy import save_file
from torch import nn
from transformers.models.qwen2_audio.configuration_qwen2_audio import Qwen2AudioEncoderConfig
from transformers.models.qwen2_audio.modeling_qwen2_audio import Qwen2AudioEncoder
from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLVisionConfig
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionModel

PATCH, MERGE, OUT = 4, 2, 12
GENERATOR = torch.Generator().manual_seed(7)


def randomise(module):
    with torch.no_grad():
        for name, p in module.named_parameters():
            noise = torch.randn(p.shape, generator=GENERATOR)
            if name.endswith("bias"):
                p.copy_(0.1 * noise)
            elif p.dim() == 1:
                p.copy_(1 + 0.1 * noise)
            elif "embed" in name and "patch" not in name:
                p.copy_(0.5 * noise)
            else:
                p.copy_(noise / math.sqrt(p[0].numel()))


def flat(array):
    return array.reshape(array.shape[0], -1) if array.ndim == 5 else array


def finish(path, module, names, outputs, tensors):
    """`names`: omnitrain's name -> the module's. `outputs`: name -> tensor."""
    loss = 0.0
    for name, value in outputs.items():
        grad = torch.randn(value.shape, generator=GENERATOR)
        tensors["expected." + name] = value.detach().numpy()
        tensors["output_grad." + name] = grad.numpy()
        loss = loss + (value * grad).sum()
    loss.backward()
    parameters = dict(module.named_parameters())
    assert sorted(names.values()) == sorted(parameters), set(names.values()) ^ set(parameters)
    for ours, theirs in names.items():
        tensors[ours] = flat(parameters[theirs].detach().numpy())
        if parameters[theirs].requires_grad:
            tensors["grad." + ours] = flat(parameters[theirs].grad.numpy())
    save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, path)


def pixels(grids, temporal, mean, std):
    rows = sum(t * h * w for t, h, w in grids)
    rng = np.random.default_rng(11)
    u8 = rng.integers(0, 256, (rows, 3 * temporal * PATCH * PATCH), dtype=np.uint8)
    x = (u8.reshape(rows, 3, -1) / 255.0 - np.array(mean)[:, None]) / np.array(std)[:, None]
    return u8, torch.tensor(x.reshape(rows, -1), dtype=torch.float32)


def linear_pairs(ours, theirs):
    return {f"{ours}.{k}": f"{theirs}.{k}" for k in ("weight", "bias")}


def qwen3_vision(path):
    config = Qwen3VLVisionConfig(
        depth=3, hidden_size=8, intermediate_size=12, num_heads=2, patch_size=PATCH,
        spatial_merge_size=MERGE, temporal_patch_size=2, out_hidden_size=OUT,
        num_position_embeddings=25, deepstack_visual_indexes=[0, 1])
    config._attn_implementation = "eager"
    model = Qwen3VLVisionModel(config).eval()
    randomise(model)
    # Smaller than the table and larger, one patch thick cells, equal sides, two clips.
    grids = [(1, 4, 6), (2, 2, 10), (1, 2, 2), (3, 4, 4), (1, 8, 6)]
    u8, x = pixels(grids, 2, [0.5] * 3, [0.5] * 3)
    rows, deepstack = model(x, grid_thw=torch.tensor(grids))
    names = linear_pairs("vision.patch_embed", "patch_embed.proj")
    names["vision.position_embed.weight"] = "pos_embed.weight"
    for i in range(3):
        ours, theirs = f"vision.blocks.{i}.", f"blocks.{i}."
        for a, b in (("attention_norm", "norm1"), ("attention.qkv", "attn.qkv"),
                     ("attention.output", "attn.proj"), ("mlp_norm", "norm2"),
                     ("mlp.fc1", "mlp.linear_fc1"), ("mlp.fc2", "mlp.linear_fc2")):
            names |= linear_pairs(ours + a, theirs + b)
    for ours, theirs in (("vision.merger", "merger"),
                         ("vision.merger.deepstack.0", "deepstack_merger_list.0"),
                         ("vision.merger.deepstack.1", "deepstack_merger_list.1")):
        for a, b in (("norm", "norm"), ("fc1", "linear_fc1"), ("fc2", "linear_fc2")):
            names |= linear_pairs(f"{ours}.{a}", f"{theirs}.{b}")
    outputs = {"rows": rows, "deepstack.0": deepstack[0], "deepstack.1": deepstack[1]}
    finish(path, model, names, outputs,
           {"payload": u8, "items": np.array(grids, dtype=np.int32)})


class AudioTower(nn.Module):
    """The encoder and projector of Qwen2-Audio, with the mask its model makes."""

    def __init__(self, window):
        super().__init__()
        config = Qwen2AudioEncoderConfig(
            num_mel_bins=8, d_model=8, encoder_layers=2, encoder_attention_heads=2,
            encoder_ffn_dim=12, max_source_positions=window // 2)
        config._attn_implementation = "eager"
        self.tower = Qwen2AudioEncoder(config)
        self.linear = nn.Linear(8, OUT)

    def forward(self, mel, lengths):
        steps, rows = self.tower._get_feat_extract_output_lengths(lengths)
        size = (mel.shape[-1] - 2) // 2 + 1
        padding = torch.arange(size)[None] >= steps[:, None]
        mask = torch.zeros(len(lengths), 1, size, size)
        mask.masked_fill_(padding[:, None, None, :], float("-inf"))
        out = self.linear(self.tower(mel, attention_mask=mask).last_hidden_state)
        return torch.cat([out[i, :n] for i, n in enumerate(rows.tolist())])


def qwen2_audio(path):
    window = 24
    model = AudioTower(window).eval()
    randomise(model)
    # The whole window and just less, odd and even lengths, one row, none.
    lengths = [24, 9, 23, 22, 3, 1, 4, 12]
    # What lies past a sound's end is noise: the rows must depend on two frames of it only.
    mel = torch.randn(len(lengths), 8, window, generator=GENERATOR)
    rows = model(mel, torch.tensor(lengths))
    payload, items = [], []
    for i, length in enumerate(lengths):
        given = min(length + 2, window)
        payload.append(mel[i, :, :given].T.numpy())
        items.append([length, given, 0])
    names = {"audio.position_embed.weight": "tower.embed_positions.weight"}
    for ours, theirs in (("conv1", "tower.conv1"), ("conv2", "tower.conv2"),
                         ("post_norm", "tower.layer_norm"), ("projector", "linear")):
        names |= linear_pairs("audio." + ours, theirs)
    for i in range(2):
        ours, theirs = f"audio.layers.{i}.", f"tower.layers.{i}."
        for a, b in (("attention_norm", "self_attn_layer_norm"),
                     ("attention.q", "self_attn.q_proj"), ("attention.v", "self_attn.v_proj"),
                     ("attention.output", "self_attn.out_proj"), ("mlp_norm", "final_layer_norm"),
                     ("mlp.fc1", "fc1"), ("mlp.fc2", "fc2")):
            names |= linear_pairs(ours + a, theirs + b)
        names[ours + "attention.k.weight"] = theirs + "self_attn.k_proj.weight"
    tensors = {"payload": np.concatenate(payload), "items": np.array(items, dtype=np.int32)}
    finish(path, model, names, {"rows": rows}, tensors)
    fuse_qv(path)


def fuse_qv(path):
    """q and v are one map in omnitrain."""
    from safetensors.numpy import load_file
    tensors = load_file(path)
    for name in [n for n in tensors if ".attention.q." in n]:
        v = tensors.pop(name.replace(".q.", ".v."))
        tensors[name.replace(".q.", ".qv.")] = np.concatenate([tensors.pop(name), v])
    save_file(tensors, path)


class SeedBlock(nn.Module):
    def __init__(self, width, heads, ffn):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, ffn), nn.Linear(ffn, width)

    def forward(self, x, angles):
        """x [patches, width] of one picture, angles [patches, head size / 2]."""
        def heads(part):
            return part.view(len(x), self.heads, -1).transpose(0, 1)

        def turn(part):
            pairs = torch.complex(*part.chunk(2, -1))
            pairs = pairs * torch.polar(torch.ones_like(angles), angles)
            return torch.cat([pairs.real, pairs.imag], -1)

        q, k, v = (heads(part) for part in self.qkv(self.norm1(x)).chunk(3, -1))
        mixed = F.scaled_dot_product_attention(turn(q), turn(k), v)
        x = x + self.out(mixed.transpose(0, 1).reshape(x.shape))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class SeedTower(nn.Module):
    def __init__(self, width, depth, heads, ffn):
        super().__init__()
        self.head_dim = width // heads
        self.embed = nn.Linear(3 * PATCH * PATCH, width)
        self.blocks = nn.ModuleList(SeedBlock(width, heads, ffn) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.fc1, self.fc2 = nn.Linear(width, OUT), nn.Linear(OUT, OUT)

    def picture(self, x, h, w):
        """x [h, w, values of a patch]: one picture as it is seen."""
        quarter = self.head_dim // 4
        frequencies = 10000.0 ** (-torch.arange(quarter) / quarter)
        rows = torch.arange(h)[:, None, None] * frequencies + torch.zeros(1, w, 1)
        columns = torch.arange(w)[None, :, None] * frequencies + torch.zeros(h, 1, 1)
        angles = torch.cat([rows, columns], -1).view(h * w, -1)
        x = self.embed(x.reshape(h * w, -1))
        for block in self.blocks:
            x = block(x, angles)
        planes = self.norm(x).view(h, w, -1).permute(2, 0, 1)
        pooled = F.avg_pool2d(planes, MERGE).flatten(1).T
        return self.fc2(F.gelu(self.fc1(pooled)))


def seed_vision(path):
    model = SeedTower(width=16, depth=2, heads=2, ffn=24).eval()
    randomise(model)
    grids = [(1, 4, 6), (3, 2, 4), (1, 2, 2), (1, 10, 2)]
    u8, x = pixels(grids, 1, [0.48145466, 0.4578275, 0.40821073],
                   [0.26862954, 0.26130258, 0.27577711])
    rows, begin = [], 0
    for t, h, w in grids:
        for _ in range(t):
            seen = torch.empty(h, w, x.shape[1])
            for i in range(h * w):  # merge order to rows and columns
                cell, inner = divmod(i, MERGE * MERGE)
                row = cell // (w // MERGE) * MERGE + inner // MERGE
                column = cell % (w // MERGE) * MERGE + inner % MERGE
                seen[row, column] = x[begin + i]
            begin += h * w
            rows.append(model.picture(seen, h, w))
    names = linear_pairs("vision.patch_embed", "embed") | linear_pairs("vision.post_norm", "norm")
    for k in ("fc1", "fc2"):
        names |= linear_pairs("vision.projector." + k, k)
    for i in range(2):
        for a, b in (("attention_norm", "norm1"), ("attention.qkv", "qkv"),
                     ("attention.output", "out"), ("mlp_norm", "norm2"), ("mlp.fc1", "fc1"),
                     ("mlp.fc2", "fc2")):
            names |= linear_pairs(f"vision.blocks.{i}.{a}", f"blocks.{i}.{b}")
    finish(path, model, names, {"rows": torch.cat(rows)},
           {"payload": u8, "items": np.array(grids, dtype=np.int32)})


if __name__ == "__main__":
    for tower in (qwen3_vision, qwen2_audio, seed_vision):
        tower(f"{sys.argv[1]}/{tower.__name__}.safetensors")
