"""Prints the golden values of tests/trainer/optimizer_test.cc: PyTorch's AdamW, in fp64, and its
Muon, whose orthogonalisation runs in bf16."""

import torch


def adamw() -> None:
    weight = torch.tensor([0.5, -1.25, 2.0, 0.0, -0.03125], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.AdamW(
        [weight], lr=0.01, betas=(0.9, 0.98), eps=1e-8, weight_decay=0.05)
    for t in range(1, 6):
        weight.grad = torch.tensor(
            [0.1 * t, -0.2, 0.3 / t, (-1.0) ** t * 1e-3, 4.0], dtype=torch.float64)
        optimizer.step()
    print("adamw", [float(v) for v in weight.detach()])


def muon() -> None:
    weight = torch.nn.Parameter(torch.tensor([[(3 * i + 2 * j) % 7 - 3.0 for j in range(5)]
                                              for i in range(3)]) / 4)
    optimizer = torch.optim.Muon([weight], lr=0.02, weight_decay=0.05, momentum=0.95,
                                 nesterov=True, ns_steps=5, adjust_lr_fn="match_rms_adamw")
    for t in range(1, 4):
        weight.grad = torch.tensor([[((i * 5 + j) * (t + 2)) % 11 - 5.0 for j in range(5)]
                                    for i in range(3)]) / 8
        optimizer.step()
    print("muon", [float(v) for v in weight.detach().flatten()])


if __name__ == "__main__":
    adamw()
    muon()
    print("torch", torch.__version__)
