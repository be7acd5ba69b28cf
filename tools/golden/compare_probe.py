"""Holds `omnitrain probe` against transformers: one model, one conversation.

    python3 -m venv venv && venv/bin/pip install -r tools/golden/requirements.txt av librosa soundfile
    venv/bin/python tools/golden/compare_probe.py MODEL_DIR CONVERSATION.json

MODEL_DIR is a Hugging Face folder with tokenizer, chat template and processors; the conversation
is JSON with "messages" whose content is text or typed parts, media by paths beside the file.
Everything on the reference's side is made by transformers: its template, tokenizer, processors and
model, in fp32 with eager attention. Says which of these agree and exits with 1 if one does not:

    token ids, targets, positions   exactly
    pixel values                    1/128      mel features       1e-4
    logits, loss                    1e-4       each gradient      1e-3 of its norm

What this can't tell apart: an assistant's text is tokenised by itself in omnitrain, as it is
generated; a template that trains on text joined with white space before it may cut it otherwise.
"""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile

import numpy as np
import torch
import transformers as hf
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import load_file
from transformers.audio_utils import load_audio
from transformers.models.qwen2_5_omni import modeling_qwen2_5_omni
from transformers.models.qwen2_5_omni.processing_qwen2_5_omni import Qwen2_5OmniProcessor
from transformers.video_utils import load_video

OMNITRAIN = os.environ.get("OMNITRAIN", os.path.join(
    os.path.dirname(os.path.abspath(__file__)), "../../build/bin/omnitrain"))
PIXELS, FEATURES, LOGITS, GRADIENT = 1 / 128, 1e-4, 1e-4, 1e-3
THINKER = modeling_qwen2_5_omni.Qwen2_5OmniThinkerForConditionalGeneration
CLASSES = {
    "qwen2": hf.Qwen2ForCausalLM, "qwen3": hf.Qwen3ForCausalLM, "llama": hf.LlamaForCausalLM,
    "qwen3_moe": hf.Qwen3MoeForCausalLM, "qwen2_5_vl": hf.Qwen2_5_VLForConditionalGeneration,
    "qwen3_vl": hf.Qwen3VLForConditionalGeneration,
    "qwen3_vl_moe": hf.Qwen3VLMoeForConditionalGeneration,
    "qwen2_audio": hf.Qwen2AudioForConditionalGeneration,
    "qwen2_5_omni": THINKER, "qwen2_5_omni_thinker": THINKER}
NO_THOUGHT = "<think>\n\n</think>\n\n"


@dataclasses.dataclass
class Result:
    """What differs; zeros where there is nothing to compare."""
    tokens: int = 0
    failed: list = dataclasses.field(default_factory=list)
    pixels: float = 0.0
    features: float = 0.0
    logits: float = 0.0
    loss: float = 0.0
    gradient: float = 0.0
    worst_gradient: str = ""

    def __str__(self):
        return (f"{'FAILED: ' + '; '.join(self.failed) if self.failed else 'ok'}, {self.tokens} "
                f"tokens, pixels {self.pixels:.1e}, features {self.features:.1e}, logits "
                f"{self.logits:.1e}, loss {self.loss:.1e}, worst gradient {self.gradient:.1e}")


def load_model(folder):
    with open(os.path.join(folder, "config.json")) as file:
        kind = json.load(file)["model_type"]
    model = CLASSES[kind].from_pretrained(folder, attn_implementation="eager", dtype=torch.float32)
    return model.eval()


def load_processor(folder):
    """The processor, or the tokenizer of a model of text alone."""
    if any(os.path.exists(os.path.join(folder, name)) for name in (
            "preprocessor_config.json", "processor_config.json")):
        return hf.AutoProcessor.from_pretrained(folder)
    return hf.AutoTokenizer.from_pretrained(folder)


def media_of(messages, folder, processor):
    """Keyword arguments of the processor."""
    found = {"image": [], "video": [], "audio": []}
    for message in messages:
        if isinstance(message["content"], list):
            for part in message["content"]:
                if part["type"] != "text":
                    found[part["type"]].append(os.path.join(folder, part[part["type"]]))
    media = {}
    if found["image"]:
        media["images"] = [Image.open(path) for path in found["image"]]
    if found["video"]:
        videos = [drawn_frames(path, processor.video_processor) for path in found["video"]]
        media["videos"] = [frames for frames, _ in videos]
        media["video_metadata"] = [about for _, about in videos]
        media["do_sample_frames"] = False
        # As qwen_vl_utils does. Left alone, 4.57's processors say 2 frames a second, whatever they
        # drew; 5's say what they drew.
        rates = [len(frames) / about.duration for frames, about in videos]
        if isinstance(processor, hf.Qwen2_5_VLProcessor):
            media["fps"] = rates
        elif isinstance(processor, Qwen2_5OmniProcessor):
            media["fps"] = rates[0]  # takes one for all; see prepare
    if found["audio"]:
        rate = processor.feature_extractor.sampling_rate
        media["audio"] = [load_audio(path, sampling_rate=rate) for path in found["audio"]]
    return media


def drawn_frames(path, video_processor):
    frames, about = load_video(path, backend="pyav")
    rate = getattr(video_processor, "fps", None) or 2
    indices = [int(i) for i in video_processor.sample_frames(about, fps=rate)]
    indices = [i for i in indices if i < len(frames)]
    about.frames_indices = indices
    return torch.from_numpy(frames[indices]).permute(0, 3, 1, 2), about


def prepare(processor, conversation_path):
    """(inputs of the model, labels, kinds of the media in order)."""
    with open(conversation_path) as file:
        messages = json.load(file)["messages"]
    if isinstance(processor, Qwen2_5OmniProcessor):  # looks for the text of a first part
        messages = [dict(m, content=[{"type": "text", "text": m["content"]}])
                    if isinstance(m["content"], str) else m for m in messages]
    text = processor.apply_chat_template(messages, tokenize=False)
    media = media_of(messages, os.path.dirname(conversation_path), processor)
    if isinstance(processor, hf.PreTrainedTokenizerBase):
        inputs = processor(text, add_special_tokens=False, return_tensors="pt")
    else:
        inputs = processor(text=[text], return_tensors="pt", **media)
    if isinstance(processor, Qwen2_5OmniProcessor) and "videos" in media:
        inputs["video_second_per_grid"] = torch.tensor(
            [processor.video_processor.temporal_patch_size * about.duration / len(frames)
             for frames, about in zip(media["videos"], media["video_metadata"])])
    tokenizer = getattr(processor, "tokenizer", processor)
    kinds = [part["type"] for message in messages if isinstance(message["content"], list)
             for part in message["content"] if part["type"] != "text"]
    return dict(inputs), labels_of(inputs["input_ids"][0].tolist(), messages, tokenizer), kinds


def labels_of(ids, messages, tokenizer):
    """-100 but for what assistants say and the token that ends it."""
    encode = lambda s: tokenizer.encode(s, add_special_tokens=False)
    is_llama = "<|eot_id|>" in tokenizer.get_vocab()
    header = encode("<|start_header_id|>assistant<|end_header_id|>\n\n" if is_llama
                    else "<|im_start|>assistant\n")
    end = encode("<|eot_id|>" if is_llama else "<|im_end|>")
    labels, cursor = [-100] * len(ids), 0
    for message in messages:
        if message["role"] != "assistant":
            continue
        content = message["content"]
        if isinstance(content, list):
            content = "".join(part["text"] for part in content)
        said = encode(content.strip() if is_llama else content) + end
        for before in (header, header + encode(NO_THOUGHT)):
            run = before + said
            at = next((i for i in range(cursor, len(ids)) if ids[i:i + len(run)] == run), None)
            if at is not None:
                break
        if at is None:
            raise ValueError(f"no turn of an assistant that says {content!r}")
        cursor = at + len(run)
        labels[cursor - len(said):cursor] = said
    return torch.tensor([labels])


def positions_of(model, inputs):
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    inner = model if hasattr(model, "get_rope_index") else getattr(model, "model", model)
    if not hasattr(inner, "get_rope_index"):
        return np.tile(np.arange(ids.shape[1]), (3, 1))
    grids = {name: inputs.get(name) for name in ("image_grid_thw", "video_grid_thw")}
    more = {"second_per_grid_ts": inputs["second_per_grid_ts"]} if "second_per_grid_ts" in inputs else {}
    if isinstance(model, THINKER):
        if "feature_attention_mask" in inputs:
            more["audio_seqlens"] = inputs["feature_attention_mask"].sum(-1)
        if "video_second_per_grid" in inputs:
            more["second_per_grids"] = inputs["video_second_per_grid"]
    return inner.get_rope_index(ids, attention_mask=mask, **grids, **more)[0][:, 0].numpy()


def probe(folder, conversation_path, *options):
    with tempfile.TemporaryDirectory() as made:
        out = os.path.join(made, "probe.safetensors")
        subprocess.run([OMNITRAIN, "probe", folder, "--conversation", conversation_path, "--out",
                        out, *options], check=True, stdout=subprocess.DEVNULL,
                       stderr=subprocess.PIPE, text=True)
        return load_file(out)


def compare_inputs(p, inputs, kinds, result):
    """`kinds`: of the media, in the order of the conversation, which is ours; theirs is by kind."""
    grids = {"image": inputs.get("image_grid_thw", ()), "video": inputs.get("video_grid_thw", ())}
    rows = {"image": inputs.get("pixel_values"), "video": inputs.get("pixel_values_videos")}
    taken, at = {"image": [0, 0], "video": [0, 0]}, 0
    for i, kind in enumerate(k for k in kinds if k != "audio"):
        number, begin = taken[kind]
        grid = grids[kind][number].tolist()
        if p["vision.grid_thw"][i].tolist() != grid:
            result.failed.append(f"grid {p['vision.grid_thw'][i].tolist()}, expected {grid}")
            return
        count = int(np.prod(grid))
        difference = np.abs(p["vision.pixel_values"][at:at + count] -
                            rows[kind][begin:begin + count].numpy()).max()
        if difference > PIXELS:
            result.failed.append(f"{kind} {i}'s pixels {difference:.1e}")
        result.pixels = max(result.pixels, float(difference))
        taken[kind], at = [number + 1, begin + count], at + count
    if "input_features" in inputs:
        lengths = inputs["feature_attention_mask"].sum(-1).tolist()
        if p["audio.feature_lengths"].tolist() != lengths:
            result.failed.append(f"frames {p['audio.feature_lengths'].tolist()}, expected {lengths}")
            return
        theirs = inputs["input_features"].numpy()
        # Rows beyond a clip's frames, which some towers see, are made for each clip alike.
        rows = p["audio.input_features"].shape[0]
        extra = (rows - sum(lengths)) if len(lengths) == 1 else None
        at = 0
        for clip, length in zip(theirs, lengths):
            ours = p["audio.input_features"][at:at + length]
            result.features = max(result.features, float(np.abs(ours - clip.T[:length]).max()))
            at += length
            if extra is None and rows != sum(lengths):
                break  # whose rows the rest are is not said


def compare_gradients(p, model, folder, result):
    on_disk = set()
    for name in os.listdir(folder):
        if name.endswith(".safetensors"):
            with safe_open(os.path.join(folder, name), "pt") as file:
                on_disk.update(file.keys())
    gradients = {name: p[name] for name in p if name.startswith("grad.")}
    total = sum(q.grad.norm() ** 2 for q in model.parameters() if q.grad is not None) ** 0.5
    for name, parameter in model.named_parameters():
        if parameter.grad is None or parameter.grad.norm() == 0:
            continue
        older = name.replace("model.language_model.", "model.").replace("model.visual.", "visual.")
        stored = next(n for n in (name, older, "thinker." + name) if n in on_disk)
        ours = gradients.pop("grad." + stored, None)
        if ours is None:
            # A key's bias moves all scores of a query alike, so its gradient is rounding.
            if parameter.grad.norm() > 1e-6 * total:
                result.failed.append(f"no gradient of {stored}")
            continue
        difference = (torch.tensor(ours) - parameter.grad).norm()
        relative = (difference / parameter.grad.norm()).item()
        if parameter.grad.norm() > 1e-6 * total and relative > result.gradient:
            result.gradient, result.worst_gradient = relative, stored
    # Experts that no token chose: ours are a part of one tensor, theirs have none.
    if extra := sorted(name for name, values in gradients.items() if values.any()):
        result.failed.append(f"gradients of nothing there: {extra[:3]}")


def compare(folder, conversation_path, model=None, processor=None, options=()):
    model = model or load_model(folder)
    processor = processor or load_processor(folder)
    result = Result()
    inputs, labels, kinds = prepare(processor, conversation_path)
    ids = inputs["input_ids"][0].tolist()
    result.tokens = len(ids)
    try:
        p = probe(folder, conversation_path, *options)
    except subprocess.CalledProcessError as error:
        result.failed.append("probe: " + error.stderr.strip().splitlines()[-1])
        return result
    if p["input_ids"].tolist() != ids:
        ours = p["input_ids"].tolist()
        at = next((i for i, (a, b) in enumerate(zip(ours, ids)) if a != b), min(len(ours), len(ids)))
        result.failed.append(f"token ids: {len(ours)} of them, from {at} on {ours[at:at + 6]}, "
                             f"expected {len(ids)}, {ids[at:at + 6]}")
        return result
    targets = np.append(labels[0, 1:].numpy(), -100)
    if not np.array_equal(np.where(targets < 0, -1, targets), p["targets"]):
        result.failed.append("targets")
        return result
    positions = positions_of(model, inputs)
    if not np.array_equal(p["position_ids"], positions):
        at = int(np.argmax((p["position_ids"] != positions).any(0)))
        result.failed.append(f"positions from token {at} on {p['position_ids'][:, at].tolist()}, "
                             f"expected {positions[:, at].tolist()}")
    compare_inputs(p, inputs, kinds, result)
    known = {n: v for n, v in inputs.items() if n not in ("mm_token_type_ids", "token_type_ids")}
    out = model(**known, labels=labels)
    model.zero_grad(set_to_none=True)
    out.loss.backward()
    result.logits = float(np.abs(p["logits"] - out.logits[0].detach().numpy()).max())
    result.loss = abs(float(p["loss"][0]) - out.loss.item())
    compare_gradients(p, model, folder, result)
    for name, bound in (("features", FEATURES), ("logits", LOGITS),
                        ("loss", LOGITS), ("gradient", GRADIENT)):
        if not getattr(result, name) <= bound:
            result.failed.append(f"{name} {getattr(result, name):.1e}" + (
                f" ({result.worst_gradient})" if name == "gradient" else ""))
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("conversation")
    parser.add_argument("--set", action="append", default=[], help="passed on to omnitrain")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    options = [word for override in arguments.set for word in ("--set", override)]
    result = compare(arguments.model, os.path.abspath(arguments.conversation), options=options)
    print(result)
    sys.exit(1 if result.failed else 0)


if __name__ == "__main__":
    main()
