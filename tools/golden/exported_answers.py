"""Does a run's exported model give in transformers the answers it gives here?

    omnitrain convert runs/quickstart /tmp/exported
    venv/bin/pip install -r tools/golden/requirements.txt
    venv/bin/python tools/golden/exported_answers.py /tmp/exported data/quickstart/heldout 40

For the first samples of every held-out source: `omnitrain probe` of the folder, then
Qwen2.5-Omni's thinker from transformers on the same inputs. Prints, by source, on how many samples
the arg-max at every answer token agrees, how many both answer right, and the largest difference of
a logit. Exits with 1 on any disagreement.
"""

import glob
import json
import os
import subprocess
import sys
import tarfile
import tempfile

import numpy as np
import torch
from safetensors.numpy import load_file
from transformers.models.qwen2_5_omni.modeling_qwen2_5_omni import (
    Qwen2_5OmniThinkerForConditionalGeneration)

OMNITRAIN = os.path.join(os.path.dirname(__file__), "../../build/bin/omnitrain")


def samples(shards, count):
    """(key, json, {member: bytes}) of the first samples of some tar shards."""
    found = {}
    for shard in sorted(glob.glob(shards + "/*.tar")):
        with tarfile.open(shard) as tar:
            for member in tar:
                key, extension = member.name.split(".", 1)
                found.setdefault(key, {})[extension] = tar.extractfile(member).read()
                if len(found) > count:
                    found.pop(key)
                    return list(found.values())
    return list(found.values())


def probe(folder, sample, scratch):
    for name, data in sample.items():
        if name != "json":
            with open(os.path.join(scratch, name), "wb") as file:
                file.write(data)
    conversation = os.path.join(scratch, "ask.json")
    with open(conversation, "w") as file:
        json.dump(json.loads(sample["json"]), file)
    out = os.path.join(scratch, "out.safetensors")
    subprocess.run([OMNITRAIN, "probe", folder, "--conversation", conversation, "--out", out,
                    "--no-gradients"], check=True)
    return load_file(out)


def reference_logits(model, p):
    ids = torch.tensor(p["input_ids"])[None].long()
    inputs = {}
    if "vision.pixel_values" in p:
        pixels, grids = torch.tensor(p["vision.pixel_values"]), torch.tensor(p["vision.grid_thw"])
        if (ids == model.config.image_token_index).any():
            inputs.update(pixel_values=pixels, image_grid_thw=grids.long())
        else:
            inputs.update(pixel_values_videos=pixels, video_grid_thw=grids.long())
    if "audio.input_features" in p:
        frames, lengths = torch.tensor(p["audio.input_features"]), p["audio.feature_lengths"]
        features = torch.zeros(len(lengths), frames.shape[1], int(lengths.max()))
        mask = torch.zeros(len(lengths), int(lengths.max())).long()
        at = 0
        for i, n in enumerate(lengths):
            features[i, :, :n] = frames[at:at + n].T
            mask[i, :n] = 1
            at += n
        inputs.update(input_features=features, feature_attention_mask=mask)
    positions = torch.tensor(p["position_ids"])[:, None].long()
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=torch.ones_like(ids), position_ids=positions,
                     **inputs).logits[0].numpy()


def main():
    folder, data, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
    model = Qwen2_5OmniThinkerForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager").eval()
    disagreements = 0
    for source in sorted(os.listdir(data)):
        agree = right = total = 0
        worst = 0.0
        with tempfile.TemporaryDirectory() as scratch:
            for sample in samples(os.path.join(data, source), count):
                p = probe(folder, sample, scratch)
                logits = reference_logits(model, p)
                asked = p["targets"] >= 0
                ours, theirs = p["logits"][asked].argmax(-1), logits[asked].argmax(-1)
                same = bool((ours == theirs).all())
                agree += same
                right += same and bool((ours == p["targets"][asked]).all())
                worst = max(worst, float(np.abs(p["logits"] - logits).max()))
                total += 1
        print(f"{source}: {agree} of {total} agree, {right} right, largest difference {worst:.2g}")
        disagreements += total - agree
    sys.exit(1 if disagreements else 0)


if __name__ == "__main__":
    main()
