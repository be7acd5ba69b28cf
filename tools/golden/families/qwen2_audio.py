"""Golden files of a tiny Qwen2-Audio model.

    venv/bin/pip install -r tools/golden/requirements.txt
    venv/bin/python tools/golden/families/qwen2_audio.py tests/golden/families

tests/golden/families/README.md describes the files.
"""

import os
import sys

import numpy as np
import torch
import transformers

import common
import sound
from vision_models import TEXT

WORDS, BANDS, SECONDS = 140, 8, 3  # the real window is 30 s, of 128 bands
AUDIO, AUDIO_START, AUDIO_END = 158, 152, 153


def make_model():
    config = transformers.Qwen2AudioConfig(
        audio_config=dict(num_mel_bins=BANDS, d_model=16, encoder_layers=2,
                          encoder_attention_heads=2, encoder_ffn_dim=24,
                          max_source_positions=50 * SECONDS),
        text_config=dict(TEXT, num_hidden_layers=2, rope_theta=1e4, tie_word_embeddings=False),
        audio_token_index=AUDIO)
    return common.randomise(
        transformers.Qwen2AudioForConditionalGeneration(common.set_eager(config)), 400)


def make_sample(extractor, rng, sounds, words=4):
    ids = rng.integers(3, WORDS, words).tolist()
    out = {}
    if sounds:
        features, mask = extractor(sounds)
        for frames in mask.sum(1).tolist():
            ids += [AUDIO_START] + [AUDIO] * sound.num_tokens(frames) + [AUDIO_END]
            ids += rng.integers(3, WORDS, words + 1).tolist()
        out.update(input_features=features, feature_attention_mask=mask, stored=dict(
            input_features=features.transpose(1, 2).flatten(0, 1), feature_lengths=mask.sum(1),
            audio_sources=sound.source_rows(sounds)))
    labels = common.make_labels(rng, np.array(ids), 2)
    labels[np.array(ids) >= WORDS] = common.IGNORED
    out.update(input_ids=torch.tensor([ids]), labels=torch.tensor(labels)[None],
               attention_mask=torch.ones(1, len(ids), dtype=torch.long),
               position_ids=torch.arange(len(ids))[None])
    return out


def audio_rows(model, samples):
    """What the forward pass puts in place of the placeholders."""
    seen = []
    hook = model.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["inputs_embeds"]), with_kwargs=True)
    with torch.no_grad():
        for sample in samples:
            common.run(model, sample)
    hook.remove()
    return torch.cat([x[s["input_ids"] == AUDIO] for x, s in zip(seen, samples)])


def main():
    common.deterministic()
    folder = os.path.join(sys.argv[1], "qwen2_audio")
    rng = np.random.default_rng(400)
    model = make_model()
    common.save_model(model, folder)
    common.write_json(os.path.join(folder, "preprocessor_config.json"), dict(
        sound.extractor_config(BANDS, SECONDS), processor_class="Qwen2AudioProcessor"))
    names = common.disk_names(model, folder)
    extractor = sound.Extractor(folder)
    short, long, odd, cut = ("mix", 15840), ("mix", 32160), ("tone", 4900), ("mix", 56000)
    layouts = {"text": [[]], "audio_099": [[short]], "audio_201": [[long]], "audio_cut": [[cut]],
               "audio_two": [[long, odd]], "packed": [[odd], [], [cut, short]]}
    for name, samples in layouts.items():
        print(name)
        made = [make_sample(extractor, rng, sounds, 4 if sounds else 9) for sounds in samples]
        tensors = common.case(model, made, names.__getitem__, with_grads=name == "audio_two")
        if any(samples):
            tensors["audio_rows"] = audio_rows(model, made)
        common.to_file(os.path.join(folder, f"case_{name}.safetensors"), tensors)


if __name__ == "__main__":
    main()
