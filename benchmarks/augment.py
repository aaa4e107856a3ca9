"""Copies of paragraphs per second: our augmentation and Haystack 1's ``augment_squad`` in one run.

python benchmarks/augment.py

Both have the same masked LM (random weights unless given: speed does not ask what they know), word vectors,
paragraphs, candidates and threads, and a process each. Loading is not counted, nor is our table of
neighbours, made once a vocabulary. The first run makes the peer's environment: some GB, from PyPI.
"""

import argparse
import os
import random
import re
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from machine import machine, show
from peers.environment import AUGMENTERS, interpreter
from peers.process import Process, Reply

from tinyqa_ray.augment.masked import MaskedCandidates
from tinyqa_ray.augment.neighbours import whole_words
from tinyqa_ray.augment.rewriting import replaceable, word_spans
from tinyqa_ray.augment.work import neighbours_of
from tinyqa_ray.configs import AugmentConfig
from tinyqa_ray.core import bundled, storage
from tinyqa_ray.core.errors import InputError
from tinyqa_ray.datasets import squad
from tinyqa_ray.models import pretrained

SEED = 13
VECTOR_WIDTH = 50
PEER_BATCH_SIZE = 16
"""The peer's default."""
OURS: dict[str, dict[str, Any]] = {
    "tinyqa": {"masked_share": 0.15},
    "tinyqa, one word a forward": {"masked_share": 0.0},
    "tinyqa, style haystack": {"style": "haystack"},
}
"""Settings of our contestants, beside those shared; the last does as the peer does, stop-words included."""


def main() -> None:
    """Measure all in turn, in every round, then print and keep the figures."""
    arguments = _arguments()
    with tempfile.TemporaryDirectory() as folder:
        config = _config(arguments, Path(folder))
        paragraphs = squad.read_squad(config.data)
        contexts = random.Random(SEED).sample([one.context for one in paragraphs], arguments.paragraphs)
        began = time.perf_counter()
        neighbours = Path(folder) / "neighbours.parquet"
        pq.write_table(neighbours_of(config).to_table(), neighbours)
        neighbours_s = time.perf_counter() - began
        replies = _replies(arguments, config, contexts, str(neighbours))
        agreement = _agreement(config, contexts)
    speeds = {name: _speed(every, config.copies) for name, every in replies.items()}
    figures = {
        "masked_lm": arguments.masked_lm or "random 6x384 BERT",
        "paragraphs": len(contexts),
        "copies": config.copies,
        "candidates": config.candidates,
        "threads": arguments.threads,
        "rounds": arguments.repeats,
        "copies_per_s": speeds,
        "ratio_to_farm": {
            name: round(speed["median"] / speeds["farm"]["median"], 2)
            for name, speed in speeds.items()
            if "farm" in speeds and name != "farm"
        },
        "neighbours_s": round(neighbours_s, 2),
        "candidates_in_common_with_one_word_a_forward": agreement,
        "versions": {name: every[0].versions for name, every in replies.items()},
    }
    if arguments.output:
        storage.write_json(arguments.output, {"benchmark": "augment", **figures, "machine": machine()})
    show("augment", figures)


def _config(arguments: argparse.Namespace, folder: Path) -> AugmentConfig:
    masked_lm = arguments.masked_lm or random_masked_lm(pretrained.default_encoder(), folder / "masked-lm")
    vectors = arguments.word_vectors or _random_vectors(masked_lm, arguments.data, folder / "vectors.txt")
    return AugmentConfig(
        data=arguments.data,
        masked_lm=masked_lm,
        word_vectors=vectors,
        copies=arguments.copies,
        candidates=15,
        threads=arguments.threads,
    )


def random_masked_lm(tokenizer_of: str, folder: Path) -> str:
    """A BERT of 6 layers x 384 with random weights and a real vocabulary, which transformers 4 reads too."""
    from transformers import BertConfig, BertForMaskedLM

    config = BertConfig(
        vocab_size=len(pretrained.load_tokenizer(tokenizer_of)),
        num_hidden_layers=6,
        hidden_size=384,
        num_attention_heads=12,
        intermediate_size=1536,
    )
    torch.manual_seed(SEED)
    BertForMaskedLM(config).save_pretrained(folder)
    # The files as they are: what one transformers saves anew, an older one may not read.
    for pattern in ("*token*", "vocab.txt"):
        for file in Path(tokenizer_of).glob(pattern):
            shutil.copy(file, folder)
    return str(folder)


def _random_vectors(model: str, data: str, file: Path) -> str:
    """A GloVe file of random vectors for the vocabulary's words, and for the data's, which it may split."""
    known, _ = whole_words(pretrained.load_tokenizer(model).get_vocab())
    met = sorted(
        {word for one in squad.read_squad(data) for word in re.findall("[a-z]+", one.context.lower())}
    )
    words = list(dict.fromkeys([*known, *met]))
    matrix = np.random.default_rng(SEED).standard_normal((len(words), VECTOR_WIDTH)).astype(np.float32)
    with file.open("w", encoding="utf-8") as lines:
        for word, row in zip(words, matrix, strict=True):
            lines.write(f"{word} {' '.join(f'{value:.5f}' for value in row)}\n")
    return str(file)


def _replies(
    arguments: argparse.Namespace, config: AugmentConfig, contexts: Sequence[str], neighbours: str
) -> dict[str, list[Reply]]:
    """Each contestant's replies, after a warm-up on two paragraphs."""
    shared = {name: getattr(config, name) for name in ("copies", "candidates", "replace_probability")}
    inputs = {name: getattr(config, name) for name in ("data", "masked_lm", "word_vectors", "threads")}
    job = {
        "threads": config.threads,
        "workloads": {"paragraphs": [("", [context]) for context in contexts]},
        **shared,
        "model": config.masked_lm,
        "word_vectors": config.word_vectors,
        "neighbours": neighbours,
    }
    with ExitStack() as stack:
        processes = {}
        for name, settings in OURS.items():
            own = {**job, "config": {**shared, **inputs, **settings}}
            processes[name] = stack.enter_context(Process("tinyqa_augment", own))
        if "farm" not in arguments.skip:
            python = interpreter("farm", Path(arguments.environments))
            processes["farm"] = stack.enter_context(Process("farm_augment", job, python))
        for process in processes.values():
            process.ask("paragraphs", batch_size=PEER_BATCH_SIZE, limit=2)
        replies: dict[str, list[Reply]] = {name: [] for name in processes}
        for _ in range(arguments.repeats):
            for name, process in processes.items():
                reply = process.ask("paragraphs", batch_size=PEER_BATCH_SIZE)
                assert reply.result == config.copies * len(contexts), f"{name} made {reply.result} copies"
                replies[name].append(reply)
    return replies


def _speed(replies: Sequence[Reply], copies: int) -> dict[str, float]:
    speeds = [copies * reply.pairs / reply.seconds for reply in replies]
    found = {"median": statistics.median(speeds), "min": min(speeds), "max": max(speeds)}
    return {name: round(value, 2) for name, value in found.items()}


def _agreement(config: AugmentConfig, contexts: Sequence[str]) -> dict[str, float]:
    """How many of the best candidates stay when a share of the words is masked at once, not one word."""
    spans = [word_spans(context) for context in contexts]
    wanted = [
        [span for span, yes in zip(words, replaceable(context, words, []), strict=True) if yes]
        for context, words in zip(contexts, spans, strict=True)
    ]
    assert config.masked_share is not None
    many, single = (_candidates(config, share, contexts, wanted) for share in (config.masked_share, 0.0))
    pairs = [(set(one), set(other)) for one, other in zip(many, single, strict=True)]
    common = statistics.fmean(len(one & other) / max(1, len(other)) for one, other in pairs)
    return {"masked_share": config.masked_share, "words": len(pairs), "share": round(common, 4)}


def _candidates(
    config: AugmentConfig, masked_share: float, contexts: Sequence[str], wanted: Sequence[Any]
) -> list[list[str]]:
    """Candidates of every word that the model does not split."""
    assert config.masked_lm is not None
    assert config.candidates is not None
    model = MaskedCandidates.load(
        config.masked_lm,
        device="cpu",
        k=config.candidates,
        masked_share=masked_share,
        max_batch_tokens=config.max_batch_tokens,
        seed=config.seed,
    )
    return [words for row in model.candidates(contexts, wanted) for words in row if words is not None]


def _arguments() -> argparse.Namespace:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    add = parser.add_argument
    add("--data", default=bundled.asset("squad2_train.json"), help="SQuAD JSON (bundled excerpt)")
    add("--masked-lm", help="local folder of a BERT masked LM (random, 6x384)")
    add("--word-vectors", help="GloVe text file (random, of the vocabulary's and the data's words)")
    add("--paragraphs", type=int, default=12, help="paragraphs drawn (12)")
    add("--copies", type=int, default=20, help="copies of each (20)")
    add("--threads", type=int, default=cores, help="of every contestant (all cores)")
    add("--repeats", type=int, default=3, help="rounds (3)")
    add("--environments", default="runs/benchmarks/environments", help="where the peer is installed")
    add("--skip", action="append", default=[], choices=[*AUGMENTERS])
    add("--output", help="JSON file for the figures")
    return parser.parse_args()


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(f"augment: {error}")
