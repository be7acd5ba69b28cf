#!/usr/bin/env python3
"""Reference values for backbone/moe.h: transformers' Qwen2-MoE layer, with its shared expert and
gate, forward and backward in fp64.

usage: moe.py OUT_DIR     writes moe.safetensors

Needs torch and transformers (tools/golden/requirements.txt). Weights are stored stacked, [E, out, in],
gate rows before up rows; what is given in fp32, which holds it exactly, what is computed in fp64.
"""
import sys

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from transformers.models.qwen2_moe.configuration_qwen2_moe import Qwen2MoeConfig
from transformers.models.qwen2_moe.modeling_qwen2_moe import Qwen2MoeSparseMoeBlock

HIDDEN, FFN, SHARED_FFN, EXPERTS, TOP_K, TOKENS = 10, 6, 7, 5, 2, 13


# Routers there round their probabilities to fp32 in a model of any dtype; here they are to be fp64's.
softmax = F.softmax
F.softmax = lambda x, dim, dtype=None: softmax(x, dim=dim)


def stacked(block, of):
    """[E, ...]: `of` a parameter, or its gradient (zero where no token went)."""
    gate_up, down = [], []
    for expert in block.experts:
        gate_up.append(torch.cat([of(expert.gate_proj.weight), of(expert.up_proj.weight)]))
        down.append(of(expert.down_proj.weight))
    shared = block.shared_expert
    return {
        "router": of(block.gate.weight),
        "gate_up": torch.stack(gate_up),
        "down": torch.stack(down),
        "shared.gate_up": torch.cat([of(shared.gate_proj.weight), of(shared.up_proj.weight)]),
        "shared.down": of(shared.down_proj.weight),
        "shared_gate": of(block.shared_expert_gate.weight),
    }


def main(out_dir):
    torch.manual_seed(11)
    torch.set_default_dtype(torch.float64)
    tensors = {}
    for name, normalize in (("normalized", True), ("raw", False)):
        config = Qwen2MoeConfig(
            hidden_size=HIDDEN, moe_intermediate_size=FFN, num_experts=EXPERTS,
            shared_expert_intermediate_size=SHARED_FFN, num_experts_per_tok=TOP_K,
            norm_topk_prob=normalize)
        block = Qwen2MoeSparseMoeBlock(config)
        with torch.no_grad():
            for parameter in block.parameters():
                parameter.copy_((0.6 * torch.randn_like(parameter)).float())
        x = torch.randn(1, TOKENS, HIDDEN).float().double().requires_grad_(True)
        grad_y = torch.randn(1, TOKENS, HIDDEN).float().double()
        y, _ = block(x)
        (y * grad_y).sum().backward()
        tensors[f"{name}.x"] = x[0].detach().float()
        tensors[f"{name}.grad_y"] = grad_y[0].float()
        tensors[f"{name}.y"] = y[0].detach()
        tensors[f"{name}.grad_x"] = x.grad[0]
        for key, value in stacked(block, lambda p: p.detach().float()).items():
            tensors[f"{name}.{key}"] = value
        zero = torch.zeros_like
        for key, value in stacked(block, lambda p: zero(p) if p.grad is None else p.grad).items():
            tensors[f"{name}.grad_{key}"] = value
    save_file({k: v.contiguous() for k, v in tensors.items()}, f"{out_dir}/moe.safetensors")


main(sys.argv[1])
