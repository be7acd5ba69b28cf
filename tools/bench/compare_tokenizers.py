#!/usr/bin/env python3
"""Sets our encoding speed against PyPI's tokenizers, one thread each, alternating.

usage: compare_tokenizers.py [--rounds 20] [--seconds 2] BENCH TOKENIZER_JSON TEXT
  BENCH  build/bin/tokenizer_bench
  TEXT   UTF-8; documents end at bytes of value 0

Both encode the documents one after the other; the reference with encode_batch_fast, which computes
no offsets, in one call. First all ids are compared. Prints MB (10^6 bytes) a second of processor
time of each side, medians and quartiles over the rounds of each round's best pass, and the ratio.
"""
import argparse
import array
import json
import os
import statistics
import subprocess
import tempfile
import time

os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["RAYON_NUM_THREADS"] = "1"
from tokenizers import Tokenizer, __version__  # noqa: E402


def spread(values):
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:.4g} (quartiles {low:.4g} .. {high:.4g}, all {min(values):.4g} .. {max(values):.4g})"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=2)
    parser.add_argument("bench")
    parser.add_argument("tokenizer")
    parser.add_argument("text")
    arguments = parser.parse_args()
    with open(arguments.text, "rb") as file:
        data = file.read()
    documents = data.decode("utf-8").split("\0")
    start = time.process_time()
    tokenizer = Tokenizer.from_file(arguments.tokenizer)
    load_s = time.process_time() - start

    def ours(ids=""):
        command = [arguments.bench, arguments.tokenizer, arguments.text, str(arguments.seconds)]
        done = subprocess.run(command + ([ids] if ids else []), capture_output=True, text=True, check=True)
        return json.loads(done.stdout)

    def reference():
        passes, end = [], time.process_time() + arguments.seconds
        while not passes or time.process_time() < end:
            start = time.process_time()
            tokenizer.encode_batch_fast(documents, add_special_tokens=False)
            passes.append(time.process_time() - start)
        return {"mb_per_s": {"best": len(data) / 1e6 / min(passes)}}

    with tempfile.TemporaryDirectory() as folder:
        found = ours(f"{folder}/ids")
        ids = array.array("i")
        with open(f"{folder}/ids", "rb") as file:
            ids.frombytes(file.read())
    expected = array.array("i")
    for encoding in tokenizer.encode_batch_fast(documents, add_special_tokens=False):
        expected.extend(encoding.ids)
    assert ids == expected, "the ids differ"
    print(f"tokenizers {__version__}: the same {len(ids)} ids, {len(data) / 1e6:.2f} MB in "
          f"{len(documents)} documents; loading: ours {found['load_s']:.2f} s, reference {load_s:.2f} s")
    rounds = []
    for index in range(arguments.rounds):
        order = (("ours", ours), ("reference", reference))
        found = {name: run()["mb_per_s"]["best"] for name, run in (order if index % 2 == 0 else order[::-1])}
        rounds.append(found)
    for side in ("ours", "reference"):
        print(f"{side} MB/s: {spread([found[side] for found in rounds])}")
    print(f"ratio (ours / reference): {spread([found['ours'] / found['reference'] for found in rounds])}")


if __name__ == "__main__":
    main()
