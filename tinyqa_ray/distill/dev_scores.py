"""Figures of a student on dev while it is trained: each worker reads its part of the questions."""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from tinyqa_ray.configs import DistillConfig, EvaluateConfig
from tinyqa_ray.core import storage
from tinyqa_ray.datasets.windows import Windower
from tinyqa_ray.distill.session import Session
from tinyqa_ray.engines.devices import pick_dtype
from tinyqa_ray.engines.torch_engine import TorchEngine
from tinyqa_ray.evaluate import measure
from tinyqa_ray.evaluate.work import figures
from tinyqa_ray.models import families
from tinyqa_ray.models.settings import ModelSettings
from tinyqa_ray.reader import Reader
from tinyqa_ray.reader.spans import Reading
from tinyqa_ray.teacher_logits.window_dataset import window_sizes

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SCORE = "dev_best_f1"
"""Metric of a checkpoint by which Ray Train keeps the best ones."""


class DevScores:
    """Measures a student between two steps, on the devices on which it is trained.

    A copy of the student reads: in eval mode, without the dropout and the recorders of training, in the
    precision in which ``tinyqa evaluate`` runs a model on that device. Training goes on as if nothing had
    been measured. Every rank must call the methods equally often.
    """

    def __init__(
        self, config: DistillConfig, session: Session, student: PreTrainedModel, tokenizer: Any, folder: str
    ) -> None:
        """Measure ``student`` on ``config.dev``; rank 0 writes the figures to ``folder``."""
        self.config, self.session, self.student = config, session, student
        self.tokenizer, self.folder = tokenizer, folder

    def scored(self, step: int) -> dict[str, float]:
        """Measure the student as it is after ``step``, and keep the figures as ``step-000000400.json``.

        Returns:
            the metric of its checkpoint, the same on every rank.

        Raises:
            InputError: dev cannot be read, or holds no questions that can be measured.
        """
        # Neighbours share their contexts, which are tokenised once.
        mine = _part(self._asked, self.session.rank, self.session.world_size)
        self._model.load_state_dict(self.student.state_dict())
        readings, _ = measure.read(self._reader, mine, self._how.max_answer_tokens)
        whole: list[Reading] = [each for part in self.session.gather(readings) for each in part]
        found = figures(self._asked, whole, self._reader.settings.no_answer_threshold)
        if self.session.rank == 0:
            parameters = self._reader.engine.parameters
            storage.write_json(self._file(step), {"step": step, **found, "parameters": parameters})
        assert found["best_f1"] is not None
        return {SCORE: found["best_f1"]}

    def catch_up(self, step: int) -> None:
        """Measure the student of the checkpoint of ``step`` unless it was: a node's notice left no time."""
        (absent, *_) = self.session.gather(
            self.session.rank == 0 and storage.kind(self._file(step)) != "file"
        )
        if absent:
            self.scored(step)

    def _file(self, step: int) -> str:
        return storage.join(self.folder, f"step-{step:09d}.json")

    @functools.cached_property
    def _how(self) -> EvaluateConfig:
        """How ``tinyqa evaluate`` would measure the student."""
        assert self.config.dev is not None
        window = window_sizes(self.config.data)
        return EvaluateConfig(model=self.config.student, data=self.config.dev, window=window)

    @functools.cached_property
    def _asked(self) -> list[measure.Asked]:
        return measure.questions_of(self._how.data)

    @functools.cached_property
    def _model(self) -> PreTrainedModel:
        return _like(self.student, pick_dtype("auto", self.session.device))

    @functools.cached_property
    def _reader(self) -> Reader:
        windower = Windower(self.tokenizer, self._how.window, cut_questions=True)
        engine = TorchEngine(self._model, device=str(self.session.device))
        return Reader(engine, windower, ModelSettings())


def _part(asked: Sequence[measure.Asked], rank: int, workers: int) -> Sequence[measure.Asked]:
    """A worker's part of the questions; the parts of all ranks in turn are the whole."""
    return asked[len(asked) * rank // workers : len(asked) * (rank + 1) // workers]


def _like(student: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """A model of the student's shape in eval mode, whose weights mean nothing; no random state is used."""
    from transformers import AutoModelForQuestionAnswering

    with torch.random.fork_rng(devices=[]):
        made = AutoModelForQuestionAnswering.from_config(copy.deepcopy(student.config), dtype=dtype)
    return families.settle(made.eval())
