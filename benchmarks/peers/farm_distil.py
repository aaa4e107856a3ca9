"""Haystack 1's distillation as a contestant: both of its stages, then the student as a model folder."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import modeling_utils
from transformers.models.electra.modeling_electra import ElectraSequenceSummary

from peers.protocol import Job, Prepare, Query, serve

# Where the peer looks for this class, which transformers 4.57 moved; only ELECTRA and its like use it.
modeling_utils.SequenceSummary = ElectraSequenceSummary
from haystack.modeling.training.base import Trainer  # noqa: E402
from haystack.nodes import FARMReader  # noqa: E402


def load(job: Job) -> Prepare:
    """Two stages from folders to a folder, as a user of the reader runs them; nothing is loaded before."""

    def prepare(_queries: list[Query], batch_size: int) -> Callable[[], dict[str, Any]]:
        def run() -> dict[str, Any]:
            with tempfile.TemporaryDirectory() as folder:
                return distil(job, batch_size, folder)

        return run

    return prepare


def distil(job: Job, batch_size: int, folder: str) -> dict[str, Any]:
    """Distil layers, then predictions, and write the student, without a tokenizer, to ``job["output"]``.

    Returns:
        by stage, ``seconds`` of the whole call, ``loop_seconds`` of its training loop, ``windows`` and
        ``samples``, windows that the loop saw.
    """
    reader = {"max_seq_len": job["max_seq_len"], "doc_stride": job["step"], "use_gpu": False}
    student, teacher = (
        FARMReader(job[name], progress_bar=False, **reader) for name in ("student", "teacher")
    )
    data = Path(job["data"])
    shared: dict[str, Any] = {
        "data_dir": str(data.parent),
        "train_filename": data.name,
        "use_gpu": False,
        "batch_size": batch_size,
        "n_epochs": job["epochs"],
        "warmup_proportion": job["warmup"],
        "dev_split": 0,
        "evaluate_every": 0,
        "num_processes": 1,
        "save_dir": folder,
        "checkpoint_root_dir": Path(folder) / "checkpoints",
    }
    prediction = {
        "temperature": job["temperature"],
        "distillation_loss_weight": job["distillation_weight"],
    }
    made = {}
    with _watched() as seen:
        for stage, call, settings in (
            ("intermediate", student.distil_intermediate_layers_from, {}),
            ("prediction", student.distil_prediction_layer_from, prediction),
        ):
            began = time.perf_counter()
            call(teacher, learning_rate=job["learning_rates"][stage], **shared, **settings)
            made[stage] = {"seconds": time.perf_counter() - began, **seen}
    student.inferencer.model.convert_to_transformers()[0].save_pretrained(job["output"])
    return made


@contextmanager
def _watched() -> Iterator[dict[str, Any]]:
    """What the latest training loop took and saw; the loop itself stays as it is."""
    train = Trainer.train
    seen: dict[str, Any] = {}

    def timed(self: Trainer) -> Any:
        windows = len(self.data_silo.loaders["train"].dataset)
        began = time.perf_counter()
        model = train(self)
        loop_seconds = time.perf_counter() - began
        seen.update(loop_seconds=loop_seconds, windows=windows, samples=windows * self.epochs)
        return model

    Trainer.train = timed
    try:
        yield seen
    finally:
        Trainer.train = train


if __name__ == "__main__":
    serve(load, ("farm-haystack", "transformers", "torch", "tokenizers"))
