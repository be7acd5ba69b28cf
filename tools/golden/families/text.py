"""Golden files of tiny text models: Qwen2, Qwen3, Qwen3-MoE, Llama 3.

    venv/bin/pip install -r tools/golden/requirements.txt
    venv/bin/python tools/golden/families/text.py tests/golden/families

tests/golden/families/README.md describes the files.
"""

import os
import sys

import numpy as np
import torch
import transformers

import common
import routing

VOCAB = 128
TEXT_SIZES = dict(
    vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=2, rms_norm_eps=1e-6, max_position_embeddings=512,
    bos_token_id=1, eos_token_id=2, pad_token_id=0)
LLAMA = dict(
    TEXT_SIZES, rms_norm_eps=1e-5, head_dim=16, rope_theta=500000.0, max_position_embeddings=2048,
    # Wave lengths 6, 32 | 167 | 861 ... of head_dim 16: kept, blended, divided by 8.
    rope_scaling=dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                      original_max_position_embeddings=256))
MOE = dict(
    TEXT_SIZES, head_dim=16, rope_theta=1e6, num_experts=8, num_experts_per_tok=2,
    moe_intermediate_size=16, router_aux_loss_coef=0.02)

FAMILIES = {
    "qwen2": ("Qwen2", dict(TEXT_SIZES, rope_theta=1e6, tie_word_embeddings=False)),
    "qwen2_tied": ("Qwen2", dict(TEXT_SIZES, rope_theta=1e6, tie_word_embeddings=True)),
    "qwen3": ("Qwen3", dict(TEXT_SIZES, rope_theta=1e6, head_dim=16, tie_word_embeddings=False)),
    # Layer 0 is dense; the chosen probabilities are renormalised.
    "qwen3_moe": ("Qwen3Moe", dict(MOE, num_hidden_layers=2, mlp_only_layers=[0],
                                   norm_topk_prob=True, tie_word_embeddings=False)),
    # Layers 1 and 3 are sparse; no renormalisation; written as two shards with an index.
    "qwen3_moe_raw": ("Qwen3Moe", dict(MOE, num_hidden_layers=4, decoder_sparse_step=2, num_experts=6,
                                       moe_intermediate_size=12, num_experts_per_tok=3,
                                       norm_topk_prob=False,
                                       tie_word_embeddings=False)),
    "llama": ("Llama", dict(LLAMA, tie_word_embeddings=False)),
    "llama_tied": ("Llama", dict(LLAMA, num_attention_heads=6, num_key_value_heads=2,
                                 hidden_size=36, tie_word_embeddings=True)),
}


def make_model(name, seed):
    kind, sizes = FAMILIES[name]
    config = common.set_eager(getattr(transformers, f"{kind}Config")(**sizes))
    model = getattr(transformers, f"{kind}ForCausalLM")(config)
    common.randomise(model, seed)
    return model


def sample(rng, length, prompt=2):
    ids = rng.integers(3, VOCAB, length)
    return dict(input_ids=torch.tensor(ids)[None],
                labels=torch.tensor(common.make_labels(rng, ids, prompt))[None],
                position_ids=torch.arange(length)[None])


def train20(model, rng, samples=None, names=lambda n: n):
    """20 steps of AdamW on packs of two samples out of six; matrices decay, vectors don't."""
    samples = samples or [sample(rng, n) for n in (12, 7, 16, 9, 5, 14)]
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    optimizer = torch.optim.AdamW(
        [dict(params=matrices, weight_decay=0.1), dict(params=vectors, weight_decay=0.0)],
        lr=1e-3, betas=(0.9, 0.95), eps=1e-8, foreach=False)
    chosen = [[(2 * i) % len(samples), (2 * i + 1) % len(samples)] for i in range(20)]
    losses, norms = [], []
    for pair in chosen:
        parts = [common.run(model, samples[i]) for i in pair]
        count = sum((common.shifted(samples[i]["labels"][0]) >= 0).sum() for i in pair)
        loss = sum(p[1].sum() for p in parts) / count
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0).item())
        optimizer.step()
        losses.append(loss.item())
    print("  train20", [round(x, 3) for x in losses], "norms", min(norms), max(norms))
    out = {
        "input_ids": torch.cat([s["input_ids"][0] for s in samples]),
        "labels": torch.cat([s["labels"][0] for s in samples]),
        "targets": torch.cat([common.shifted(s["labels"][0]) for s in samples]),
        "position_ids": torch.cat(
            [common.stored_positions(s["position_ids"]) for s in samples], -1),
        "cu_seqlens": np.cumsum([0] + [s["input_ids"].shape[1] for s in samples]),
        "step_samples": np.array(chosen), "losses": np.array(losses), "grad_norms": np.array(norms),
    }
    for name, p in model.named_parameters():
        if p.numel() <= 2048:
            out["final." + names(name)] = p
    out.update(common.joined_media(samples))
    for kind, count in (("image", "images"), ("video", "videos")):
        if f"{kind}_grid_thw" in out:
            out["sample_" + count] = np.array([len(s.get(f"{kind}_grid_thw", ())) for s in samples])
    return out


def make_family(root, name, seed):
    print(name)
    folder = os.path.join(root, name)
    rng = np.random.default_rng(seed)
    model = make_model(name, seed)
    shards = 2 if name == "qwen3_moe_raw" else 1
    common.save_model(model, folder, shards)
    names = common.disk_names(model, folder)
    moe = name.startswith("qwen3_moe")
    options = dict(output_router_logits=True, extra_loss=routing.losses) if moe else {}
    cases = {"text": [routing.clear(model, lambda: sample(rng, 23), all_experts=True)],
             "packed": [routing.clear(model, lambda: sample(rng, n)) for n in (9, 17, 4, 11)]}
    for case_name, samples in cases.items():
        grads = name == "qwen2" or (case_name == "text" and name != "qwen3_moe_raw")
        tensors = common.case(model, samples, names.__getitem__, with_grads=grads, **options)
        common.to_file(os.path.join(folder, f"case_{case_name}.safetensors"), tensors)
    if name == "qwen3_moe_raw":  # the gradient of the loss alone, as a model's default is
        tensors = common.case(model, cases["text"], names.__getitem__)
        common.to_file(os.path.join(folder, "case_text_no_aux.safetensors"), tensors)
    if name == "qwen2":
        common.to_file(os.path.join(folder, "train20.safetensors"), train20(model, rng))


def main():
    common.deterministic()
    chosen = sys.argv[2:] or FAMILIES
    for seed, name in enumerate(FAMILIES):
        if name in chosen:
            make_family(sys.argv[1], name, 100 + seed)


if __name__ == "__main__":
    main()
