from __future__ import annotations

import pyarrow.parquet as pq
import pytest

from tinyqa_ray import models, runs, shards, squad
from tinyqa_ray.configs import TeacherLogitsConfig, WindowConfig
from tinyqa_ray.distill.teacher_logits import TeacherLogitsReport, WindowWriter
from tinyqa_ray.distill.window_folder import FOLDER


@pytest.fixture(scope="session")
def tiny_windows(tiny_squad: str, tiny_bert: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A finished teacher-logits stage, made without Ray."""
    output = str(tmp_path_factory.mktemp("windows") / "out")
    config = TeacherLogitsConfig(
        data=tiny_squad,
        tokenizer=tiny_bert,
        model=(tiny_bert,),
        window=WindowConfig(max_seq_len=64, doc_stride=8, max_query_len=20),
    )
    with runs.stage(output, config, inputs=("data", "tokenizer", "model")) as stage:
        source = stage.path("_input.parquet")
        pq.write_table(squad.to_table(squad.read_squad(tiny_squad)), source)
        models.load_tokenizer(tiny_bert).save_pretrained(stage.path("tokenizer"))
        writer = WindowWriter(config)
        for shard in shards.cut([source], 3, stage.path(FOLDER), "arrow"):
            shards.work(shard, writer)
        stage.publish(
            TeacherLogitsReport(paragraphs=8, questions=24, windows=0, tokens=0, answerable_windows=0)
        )
    return output
