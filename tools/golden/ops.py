#!/usr/bin/env python3
"""Reference values for runtime/ops, from PyTorch in fp64 with autograd.

usage: ops.py OUT_DIR     writes ops.safetensors

Each case is a set of tensors CASE.x, CASE.w, CASE.b, ..., CASE.y and, for a random CASE.grad_y, the
gradients CASE.grad_x and so on. Packed inputs carry CASE.cu_seqlens. What is given is stored in
fp32, which holds it exactly, what is computed in fp64.
"""
import sys

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

generator = torch.Generator().manual_seed(7)
tensors = {}


def randn(*sizes, scale=1.0):
    # Exactly representable in fp32, so that every dtype starts from the same numbers.
    return (scale * torch.randn(*sizes, generator=generator)).double()


def case(name, function, outputs=("y",), extra=None, **inputs):
    leaves = {k: v.clone().requires_grad_(True) for k, v in inputs.items()}
    results = function(**leaves)
    results = results if isinstance(results, tuple) else (results,)
    loss = 0.0
    for key, result in zip(outputs, results):
        grad = randn(*result.shape)
        tensors[f"{name}.{key}"] = result.detach().contiguous()
        tensors[f"{name}.grad_{key}"] = grad.float()
        loss = loss + (result * grad).sum()
    loss.backward()
    for key, leaf in leaves.items():
        tensors[f"{name}.{key}"] = leaf.detach().float()
        tensors[f"{name}.grad_{key}"] = leaf.grad
    for key, value in (extra or {}).items():
        tensors[f"{name}.{key}"] = value


def per_segment(function, lengths):
    def run(x, **others):
        parts = [function(part.T[None], **others)[0].T for part in x.split(lengths)]
        return torch.cat(parts)
    return run


def cu(lengths):
    return torch.tensor([0] + lengths).cumsum(0).to(torch.int32)


def rms_norm(x, w):
    return F.rms_norm(x, (x.shape[-1],), w, eps=1e-6)


def main(out_dir):
    case("linear", F.linear, ("y",), input=randn(11, 37), weight=randn(19, 37), bias=randn(19))
    ids = torch.tensor([3, 0, 3, 6, 3, 1], dtype=torch.int32)
    case("embedding", lambda weight: F.embedding(ids.long(), weight), extra={"ids": ids},
         weight=randn(7, 21))
    case("rms_norm", rms_norm, x=randn(6, 45, scale=3), w=randn(45))
    case("add_rms_norm", lambda x, branch, w: (x + branch, rms_norm(x + branch, w)), ("sum", "y"),
         x=randn(5, 40), branch=randn(5, 40), w=randn(40))
    case("layer_norm", lambda x, w, b: F.layer_norm(x, (45,), w, b, eps=1e-5),
         x=(randn(6, 45, scale=3) + 1).float().double(), w=randn(45), b=randn(45))
    case("swiglu", lambda x: F.silu(x[:, :33]) * x[:, 33:], x=randn(5, 66, scale=4))
    # Well into both tails.
    sweep = torch.cat([torch.linspace(-12, 12, 97), torch.tensor([0.0, 1e-4, -1e-4])])
    sweep = sweep.float().double()[None]
    case("gelu_erf", lambda x: F.gelu(x), x=sweep)
    case("gelu_tanh", lambda x: F.gelu(x, approximate="tanh"), x=sweep)

    lengths = [6, 1, 9]
    for stride in (1, 2):
        conv = per_segment(lambda x, w, b, s=stride: F.conv1d(x, w, b, stride=s, padding=1),
                           lengths)
        case(f"conv1d_stride{stride}", conv, extra={"cu_seqlens": cu(lengths)}, x=randn(16, 5),
             w=randn(7, 5, 3), b=randn(7))
    case("avg_pool1d", per_segment(lambda x: F.avg_pool1d(x, 2, 2), [6, 2, 9]),
         extra={"cu_seqlens": cu([6, 2, 9])}, x=randn(17, 5))
    case("patch_embed",
         lambda x, w, b: F.conv3d(x, w, b, stride=(2, 4, 4)).flatten(1), x=randn(5, 3, 2, 4, 4),
         w=randn(9, 3, 2, 4, 4), b=randn(9))

    targets = torch.tensor([4, -1, 0, 22, -1, 4, 9], dtype=torch.int32)

    def loss(x, w):
        logits = x @ w.T
        return F.cross_entropy(logits, targets.long(), ignore_index=-1, reduction="sum")[None] / 5

    hidden, head = randn(7, 16), randn(23, 16)
    logits = hidden @ head.T
    argmax = torch.where(targets >= 0, logits.argmax(-1), -1).to(torch.int32)
    losses = F.cross_entropy(logits, targets.long(), ignore_index=-1, reduction="none")
    case("cross_entropy", loss, extra={"targets": targets, "argmax": argmax, "losses": losses},
         x=hidden, w=head)

    pixels = torch.randint(0, 256, (4, 3 * 10), generator=generator, dtype=torch.uint8)
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073])
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711])
    scaled = pixels.view(4, 3, 10).double() / 255
    tensors.update({"normalize.x": pixels, "normalize.mean": mean, "normalize.std": std,
                    "normalize.y": ((scaled - mean.double()[:, None]) / std.double()[:, None]
                                    ).reshape(4, 30)})
    save_file(tensors, f"{out_dir}/ops.safetensors")


main(sys.argv[1])
