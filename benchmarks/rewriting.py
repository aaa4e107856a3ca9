"""Copies of paragraphs that one core rewrites per second, once their candidates are known.

python benchmarks/rewriting.py

The candidates are random words: their number decides the time, not what they are. Seconds are those of the
processor, so that other work on the machine counts little. The ratio is to finding the 15 tokens with the
largest logits for as many words, the least that any masked language model has to do beside its matrices.
"""

import argparse
import random
import string
import time
from typing import Any

import numpy as np
import torch
from machine import machine, show

from tinyqa_ray.augment.rewriting import Words, copies
from tinyqa_ray.core import bundled, storage
from tinyqa_ray.datasets import squad

SEED = 13
CANDIDATES = 15
COPIES = 20
VOCABULARY = 30_522


def main() -> None:
    """Print the figures, and keep them if asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--paragraphs", type=int, default=100, help="paragraphs to copy")
    parser.add_argument("--rounds", type=int, default=3, help="rounds, of which the median counts")
    parser.add_argument("--output", default=None, help="JSON file to write")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    paragraphs = squad.read_squad(bundled.asset("squad2_train.json"))
    texts = [Words.of(each.context, []) for each in paragraphs][: arguments.paragraphs]
    rates = sorted(rate(texts) for _ in range(arguments.rounds))
    words = sum(len(text.changeable) for text in texts)
    figures: dict[str, Any] = {
        "paragraphs": len(texts),
        "copies": COPIES,
        "candidates": CANDIDATES,
        "copies_per_cpu_s": {
            "median": round(rates[len(rates) // 2]),
            "min": round(rates[0]),
            "max": round(rates[-1]),
        },
        "ratio_to_choosing_candidates": round(
            (words / chosen_per_s()) / (COPIES * len(texts) / rates[len(rates) // 2]), 2
        ),
    }
    if arguments.output:
        storage.write_json(arguments.output, {"benchmark": "rewriting", **figures, "machine": machine()})
    show("rewriting", figures)


def rate(texts: list[Words]) -> float:
    """Copies in a second of the processor."""
    rng = random.Random(SEED)
    pool = ["".join(rng.choices(string.ascii_lowercase, k=7)) for _ in range(5_000)]
    offered = [[rng.sample(pool, CANDIDATES) for _ in text.spans] for text in texts]
    began = time.process_time()
    for number, (text, candidates) in enumerate(zip(texts, offered, strict=True)):
        made = copies(text, candidates, n=COPIES, replace_probability=0.4, seed=[SEED, number])
        assert len(made) == COPIES
        assert all(copy.replaced > 0 for copy in made)
    return COPIES * len(texts) / (time.process_time() - began)


def chosen_per_s() -> float:
    """Words for which the best candidates of a vocabulary are chosen in a second of the processor."""
    logits = torch.from_numpy(np.random.default_rng(SEED).standard_normal((256, VOCABULARY), np.float32))
    began = time.process_time()
    for _ in range(4):
        logits.topk(CANDIDATES, dim=1)
    return 4 * len(logits) / (time.process_time() - began)


if __name__ == "__main__":
    main()
