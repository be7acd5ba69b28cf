#!/usr/bin/env python3
"""Reference values for runtime/ops/attention and rope, from PyTorch and transformers.

usage: attention.py OUT_DIR     writes attention.safetensors and rope.safetensors

Attention: scaled_dot_product_attention in fp64 with the mask written out, one packed batch with
segments of odd length; gradients by autograd. RoPE: transformers' own rotary classes in fp32.
"""
import sys

import torch
import torch.nn.functional as F
from safetensors.torch import save_file


def attention_case(generator, lengths, heads, kv_heads, dim, causal, window):
    tokens = sum(lengths)
    q, k, v = (torch.randn(tokens, n, dim, generator=generator, dtype=torch.float64)
               for n in (heads, kv_heads, kv_heads))
    grad = torch.randn(tokens, heads, dim, generator=generator, dtype=torch.float64)
    for x in (q, k, v):
        x.requires_grad_(True)
    segment = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    place = torch.arange(tokens)
    sees = segment[:, None] == segment[None, :]
    distance = place[:, None] - place[None, :]
    if causal:
        sees &= distance >= 0
    if window > 0:
        sees &= distance.abs() < window
    wide = [x.transpose(0, 1).repeat_interleave(heads // x.shape[1], dim=0)[None]
            for x in (q, k, v)]
    out = F.scaled_dot_product_attention(*wide, attn_mask=sees)[0].transpose(0, 1)
    out.backward(grad)
    cu = torch.tensor([0] + lengths).cumsum(0).to(torch.int32)
    return {"q": q.detach(), "k": k.detach(), "v": v.detach(), "grad_out": grad, "cu_seqlens": cu,
            "mask": torch.tensor([int(causal), window], dtype=torch.int32),
            "out": out.detach().contiguous(), "grad_q": q.grad, "grad_k": k.grad, "grad_v": v.grad}


def rope_tables():
    tensors = {}
    positions = torch.tensor([[0, 1, 2, 2, 2, 2, 5, 1000], [0, 1, 2, 2, 3, 3, 5, 31],
                              [0, 1, 2, 3, 2, 3, 5, 77]])
    tensors["positions"] = positions.float()

    from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl as qwen2
    from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLTextConfig
    sections = [4, 6, 6]
    config = Qwen2_5_VLTextConfig(hidden_size=64, num_attention_heads=2, num_key_value_heads=1,
                                  rope_theta=10000.0,
                                  rope_scaling={"type": "mrope", "mrope_section": sections,
                                                "rope_type": "default"})
    rotary = qwen2.Qwen2_5_VLRotaryEmbedding(config)
    x = torch.randn(1, 2, positions.shape[1], 32, generator=torch.Generator().manual_seed(3))
    cos, sin = rotary(x, positions[:, None, :])
    turned, _ = qwen2.apply_multimodal_rotary_pos_emb(x, x, cos, sin, sections)
    tensors["x"] = x[0].transpose(0, 1).contiguous()
    tensors["chunked_y"] = turned[0].transpose(0, 1).contiguous()
    split = [part[i % 3] for i, part in enumerate(cos.split(sections * 2, dim=-1))]
    tensors["chunked_cos"] = torch.cat(split, -1)[0, :, :16].contiguous()

    from transformers.models.qwen3_vl import modeling_qwen3_vl as qwen3
    from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLTextConfig
    config = Qwen3VLTextConfig(hidden_size=64, num_attention_heads=2, num_key_value_heads=1,
                               head_dim=32, rope_theta=5e6,
                               rope_scaling={"mrope_section": [6, 5, 5], "rope_type": "default"})
    cos, sin = qwen3.Qwen3VLTextRotaryEmbedding(config)(x, positions[:, None, :])
    tensors["interleaved_cos"] = cos[0, :, :16].contiguous()
    tensors["interleaved_sin"] = sin[0, :, :16].contiguous()

    vision = qwen2.Qwen2_5_VisionRotaryEmbedding(16)  # head dim 32
    angles = vision(80)
    places = positions[1:].T
    both = angles[places].flatten(1)
    tensors["per_axis_cos"], tensors["per_axis_sin"] = both.cos(), both.sin()
    return tensors


def main():
    out_dir = sys.argv[1]
    generator = torch.Generator().manual_seed(1)
    cases = [([5, 0, 1, 7], 4, 1, 4, True, 0), ([5, 0, 1, 7], 3, 3, 5, False, 0),
             ([9, 4], 6, 2, 8, True, 5), ([9, 4], 2, 1, 6, False, 3)]
    tensors = {}
    for index, case in enumerate(cases):
        for name, value in attention_case(generator, *case).items():
            tensors[f"{index}.{name}"] = value
    save_file(tensors, f"{out_dir}/attention.safetensors")
    save_file(rope_tables(), f"{out_dir}/rope.safetensors")


if __name__ == "__main__":
    main()
