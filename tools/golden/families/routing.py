"""Routing of the mixture-of-experts models: no near ties, and the auxiliary loss."""

import torch
from transformers.models.qwen3_moe.modeling_qwen3_moe import load_balancing_loss_func

import common


def text_config(model):
    return model.config.get_text_config()


def margin(logits, top_k):
    """How far the last chosen expert is from the first that isn't, in probability."""
    ordered = logits.softmax(-1).sort(-1, descending=True).values
    return (ordered[..., top_k - 1] - ordered[..., top_k]).min().item()


def clear(model, make, all_experts=False):
    """A sample without near ties in the routing, and, if asked, with work for every expert."""
    config = text_config(model)
    if not hasattr(config, "num_experts"):
        return make()
    top_k, count = config.num_experts_per_tok, config.num_experts
    for _ in range(500):
        found = make()
        result, _, _ = common.run(model, found, output_router_logits=True)
        logits = torch.stack(result.router_logits)
        used = [len(set(x.topk(top_k, -1).indices.flatten().tolist())) for x in logits]
        if margin(logits, top_k) > 1.5e-3 and (not all_experts or min(used) == count):
            return found
    raise RuntimeError("no sample without ties")


def losses(model, results, loss):
    """HF's auxiliary loss over all tokens of the case (all samples' logits joined per layer)."""
    layers = [torch.cat(parts) for parts in zip(*[r.router_logits for r in results])]
    config = text_config(model)
    top_k = config.num_experts_per_tok
    aux = load_balancing_loss_func(tuple(layers), config.num_experts, top_k)
    if len(results) == 1:
        assert torch.allclose(aux, results[0].aux_loss, rtol=1e-6)
    logits = torch.stack(layers)
    assert margin(logits, top_k) > 1e-3
    more = {"router_logits": logits, "aux_loss": aux.reshape(1),
            "router_experts": logits.softmax(-1).topk(top_k, -1).indices}
    return more, loss + config.router_aux_loss_coef * aux
