"""Fixtures of windows that several rooms' tests read."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest
import tiny

from tinyqa_ray.configs import TeacherLogitsConfig, WindowConfig
from tinyqa_ray.core import shards, stage_folder
from tinyqa_ray.datasets import squad
from tinyqa_ray.models import pretrained
from tinyqa_ray.teacher_logits import TeacherLogitsReport
from tinyqa_ray.teacher_logits.window_dataset import FOLDER
from tinyqa_ray.teacher_logits.window_writers import WindowWriter

TEXT = """The owl hunts at dusk. It eats beetles, worms and mice.

Rye bread keeps for a week, because its dough is sour. The bakers of Tarn mix flour, water and salt in the
evening and bake at five in the morning, in ovens of brick; by eight the loaves are on the market, and
by noon they are gone. On the eve of the fair they bake twice, and the whole village helps to carry.

\u200b

An owl."""


@pytest.fixture(scope="session")
def tiny_windows(tiny_squad: str, tiny_bert: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A finished teacher-logits stage, made without Ray."""
    output = str(tmp_path_factory.mktemp("windows") / "out")
    config = TeacherLogitsConfig(
        data=tiny_squad,
        tokenizer=tiny_bert,
        teachers=(tiny_bert,),
        window=WindowConfig(max_seq_len=64, doc_stride=8, max_query_len=20),
    )
    with stage_folder.stage(output, config, inputs=("data", "tokenizer", "teachers")) as stage:
        source = stage.path("_input.parquet")
        pq.write_table(squad.to_table(squad.read_squad(tiny_squad)), source)
        pretrained.load_tokenizer(tiny_bert).save_pretrained(stage.path("tokenizer"))
        writer = WindowWriter(config)
        for shard in shards.cut([source], 3, stage.path(FOLDER), "arrow"):
            shards.work(shard, writer)
        stage.publish(
            TeacherLogitsReport(paragraphs=8, questions=24, windows=0, tokens=0, answerable_windows=0)
        )
    return output


@pytest.fixture
def paragraphs(tiny_squad: str) -> list[squad.Paragraph]:
    return squad.read_squad(tiny_squad)


@pytest.fixture(scope="session")
def other_bert(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A second teacher of the tiny BERT's vocabulary."""
    return tiny.save_qa_model(tmp_path_factory.mktemp("other") / "m", layers=1, seed=5)


@pytest.fixture
def corpus(tmp_path: Path) -> str:
    """A plain text file."""
    (tmp_path / "corpus.txt").write_text(TEXT, encoding="utf-8")
    return str(tmp_path / "corpus.txt")
