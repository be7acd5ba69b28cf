"""Golden ids: small tokenizers as the Qwen and Llama families set theirs up, and their ids.

    python3.11 -m venv venv && venv/bin/pip install -r tools/golden/requirements.txt
    venv/bin/python tools/golden/bpe.py tests/golden/tokenizers

Writes NAME/tokenizer.json, NAME/ids.zst for each of qwen, llama3 and variants, strings.zst and
categories.zst. A number below is a LEB128 varint, a string its number of bytes and its bytes; all
of a file is one zstd frame.

  strings.zst     n, n strings
  ids.zst         for each of them: n, n ids with special tokens of the text as specials; then 0,
                  or 1 and n, n ids with encode_special_tokens where those differ. Then m, and m
                  times: n, n ids, the string they decode to.
  categories.zst  n, and n times: a pattern, r, and r times the distance from the end of the range
                  before and the length of the range; "word" is what single_word takes for \\w
"""

import json
import pathlib
import random
import sys

import zstandard
from tokenizers import (AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers,
                        processors, trainers)

import bpe_strings
import unicode_tables

QWEN = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+")
LLAMA3 = QWEN.replace(r"\p{N}|", r"\p{N}{1,3}|", 1)
QWEN_SPECIAL = ["endoftext", "im_start", "im_end", "object_ref_start", "object_ref_end",
                "box_start", "box_end", "quad_start", "quad_end", "vision_start", "vision_end",
                "vision_pad", "image_pad", "video_pad", "audio_start", "audio_end", "audio_pad",
                "AUDIO", "audio_bos", "audio_eos", "IMAGE", "VIDEO", "vision_bos", "vision_eos"]
QWEN_ORDINARY = ["<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>",
                 "<|fim_suffix|>", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>",
                 "<tool_response>", "</tool_response>", "<think>", "</think>"]
LLAMA3_SPECIAL = ["begin_of_text", "end_of_text", "reserved_special_token_0",
                  "reserved_special_token_1", "finetune_right_pad_id", "step_id",
                  "start_header_id", "end_header_id", "eom_id", "eot_id", "python_tag",
                  "image", "reserved_special_token_2", "reserved_special_token_3"]
ENDINGS = ["ing", "ed", "s", "ly", "er", "tion", "ness"]


def bracket(names):
    return [f"<|{name}|>" for name in names]


def corpus():
    root = pathlib.Path(__file__).resolve().parents[2]
    lines = [line for name in ("README.md", "ARCHITECTURE.md", "HACKING.md")
             for line in (root / name).read_text(encoding="utf-8").splitlines(keepends=True)]
    for phrase in bpe_strings.PHRASES:
        lines += [phrase + "\n"] * 4
    lines += [line + "\n" for line in bpe_strings.CODE] * 3
    return lines


def train(tokenizer, vocabulary):
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(corpus(), trainers.BpeTrainer(
        vocab_size=vocabulary, show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet())))


def special(names):
    return [AddedToken(name, special=True, normalized=False) for name in names]


def qwen():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(QWEN), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)])
    train(tokenizer, 3000)
    tokenizer.post_processor = processors.ByteLevel(add_prefix_space=False, trim_offsets=False,
                                                    use_regex=False)
    tokenizer.add_special_tokens(special(bracket(QWEN_SPECIAL)))
    tokenizer.add_tokens([AddedToken(name, special=False, normalized=False)
                          for name in QWEN_ORDINARY])
    return json.loads(tokenizer.to_str())


def llama3():
    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(LLAMA3), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=False)])
    train(tokenizer, 2500)
    found = json.loads(tokenizer.to_str())
    # Words that no merges lead to, which ignore_merges is about.
    vocabulary = found["model"]["vocab"]
    for word in [" fox" + e for e in ENDINGS] + ["quickly", "школа", "漢字文化", " <|"]:
        letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        vocabulary.setdefault(letters.pre_tokenize_str(word)[0][0], len(vocabulary))
    # As older files have them.
    found["model"]["merges"] = [" ".join(merge) for merge in found["model"]["merges"]]
    tokenizer = Tokenizer.from_str(json.dumps(found))
    tokenizer.add_special_tokens(special(bracket(LLAMA3_SPECIAL)))
    begin = "<|begin_of_text|>"
    tokenizer.post_processor = processors.Sequence([
        processors.ByteLevel(trim_offsets=False),
        processors.TemplateProcessing(single=f"{begin} $A", pair=f"{begin} $A {begin}:1 $B:1",
                                      special_tokens=[(begin, tokenizer.token_to_id(begin))])])
    added = json.loads(tokenizer.to_str())
    added["model"]["merges"] = found["model"]["merges"]
    return added


def variants():
    """What the families don't use: every flag of added tokens, GPT-2's pattern, removed pieces."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC()])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split("·", "removed"),
        pre_tokenizers.Split(Regex(r"[a-z-]+|\p{^Ll}"), "removed", invert=True),
        pre_tokenizers.Split(Regex(r"\d{1,2}(?=\D)|[\p{Lu}\p{Lt}]\P{L}??!"), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)])
    train(tokenizer, 700)
    tokenizer.add_tokens([
        AddedToken("word", single_word=True, normalized=False),
        AddedToken("<left>", lstrip=True, normalized=False),
        AddedToken("<right>", rstrip=True, normalized=False),
        AddedToken("<both>", lstrip=True, rstrip=True, single_word=True, normalized=True),
        AddedToken("cafe\u0301", normalized=True),  # composed by the normaliser
        AddedToken("qu", normalized=True), AddedToken("quick b", normalized=True),
        AddedToken("a\nb", normalized=False)])
    tokenizer.add_special_tokens([
        AddedToken("<s>", special=True, normalized=False),
        AddedToken("<s><s>", special=True, normalized=False),
        AddedToken("<norm>", special=True, normalized=True, lstrip=True),
        AddedToken("<ñ>", special=True, normalized=True, single_word=True)])
    return json.loads(tokenizer.to_str())


def number(value):
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def numbers(values):
    return number(len(values)) + b"".join(map(number, values))


def string(text):
    data = text.encode("utf-8")
    return number(len(data)) + data


def write(path, data):
    packed = zstandard.ZstdCompressor(level=19).compress(bytes(data))
    path.write_bytes(packed)
    print(f"{path}: {len(packed)} bytes of {len(data)}")


def ids_of(tokenizer, texts):
    out = bytearray()
    num_tokens = 0
    for text in texts:
        tokenizer.encode_special_tokens = False
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        tokenizer.encode_special_tokens = True
        plain = tokenizer.encode(text, add_special_tokens=False).ids
        out += numbers(ids)
        out += number(0) if plain == ids else number(1) + numbers(plain)
        num_tokens += len(ids)
    print(f"{num_tokens} ids of {len(texts)} strings")
    rng = random.Random(1)
    size = tokenizer.get_vocab_size()
    samples = [[rng.randrange(size) for _ in range(rng.randrange(12))] for _ in range(300)]
    samples += [[rng.randrange(256) for _ in range(rng.randrange(8))] for _ in range(300)]  # bytes
    out += number(len(samples))
    for ids in samples:
        out += numbers(ids) + string(tokenizer.decode(ids, skip_special_tokens=False))
    return out


def word_characters():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.add_tokens([AddedToken("TOKEN", single_word=True, normalized=False)])
    return {c for c in unicode_tables.ALL if not tokenizer.encode(chr(c) + "TOKEN").ids}


def categories():
    patterns = [r"\p{%s}" % name for name in
                "L Lu Ll Lt Lm Lo M N Nd Nl No P Pc Pd Ps Pe Pi Pf Po S Sm Sc Sk So Z Zs Zl Zp".split()]
    patterns += [r"\s", r"\S", r"\d", r"\D", r"\P{L}", r"\p{^N}", r"[^\r\n\p{L}\p{N}]",
                 r"[^\s\p{L}\p{N}]", r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"]
    patterns += [f"(?i:{letter})" for letter in "abcdefghijklmnopqrstuvwxyz'"] + ["(?i:[sdmt])"]
    found = {pattern: unicode_tables.members(pattern) for pattern in patterns}
    found["word"] = word_characters()
    out = bytearray(number(len(found)))
    for pattern, values in found.items():
        ranges = unicode_tables.ranges({c: 0 for c in values})
        out += string(pattern) + number(len(ranges))
        end = 0
        for first, last, _ in ranges:
            out += number(first - end) + number(last + 1 - first)
            end = last + 1
    return out


def main():
    folder = pathlib.Path(sys.argv[1])
    made = {"qwen": qwen(), "llama3": llama3(), "variants": variants()}
    specials = [token["content"] for found in made.values() for token in found["added_tokens"]]
    texts = bpe_strings.strings(24000, sorted(set(specials)))
    write(folder / "strings.zst", number(len(texts)) + b"".join(map(string, texts)))
    for name, found in made.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        text = json.dumps(found, ensure_ascii=False, separators=(",", ":"))
        (folder / name / "tokenizer.json").write_text(text, encoding="utf-8")
        write(folder / name / "ids.zst", ids_of(Tokenizer.from_str(text), texts))
    write(folder / "categories.zst", categories())


if __name__ == "__main__":
    main()
