from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pyarrow as pa
import pytest
import tiny
from transformers import AutoModel, BertConfig, BertForQuestionAnswering

from tinyqa_ray.configs import LAYER_OBJECTIVES, DistillConfig, Objective, TeacherLogitsConfig
from tinyqa_ray.core import stage_folder, storage
from tinyqa_ray.core.errors import InputError
from tinyqa_ray.distill.checks import check, check_room
from tinyqa_ray.models import pretrained
from tinyqa_ray.teacher_logits import TeacherLogitsReport
from tinyqa_ray.teacher_logits.window_dataset import FOLDER, logit_columns, save_tokenizer, schema

WINDOWS, TOKENS = 12, 20


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("made")


def make_windows(
    folder: Path, tokenizer: str, *, teachers: int = 1, labels: bool = True, longest: int = TOKENS
) -> str:
    """A finished folder of windows whose texts mean nothing; ``teachers`` have their logits in it."""
    row: dict[str, Any] = {
        "window_id": 0,
        "copy": 0,
        "context_start": 1,
        "start_position": 3 if labels else -1,
        "end_position": 4 if labels else -1,
    }
    rows = [{**row, "input_ids": [5] * length} for length in (longest, *[TOKENS] * (WINDOWS - 1))]
    names = [name for teacher in range(teachers) for name in logit_columns(teacher)]
    table = pa.Table.from_pylist(
        [{**each, **{name: [0.5] * len(each["input_ids"]) for name in names}} for each in rows],
        schema=schema(teachers),
    )
    config = TeacherLogitsConfig(data="d.json", tokenizer=tokenizer, teachers=("t",) * bool(teachers))
    report = TeacherLogitsReport(paragraphs=1, questions=1, windows=WINDOWS, tokens=0, answerable_windows=0)
    with stage_folder.stage(str(folder), config) as stage:
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        storage.write_atomic(stage.path(FOLDER, "part-000000.arrow"), sink.getvalue().to_pybytes())
        save_tokenizer(pretrained.load_tokenizer(tokenizer), stage.output)
        stage.publish(report)
    return str(folder)


@pytest.fixture(scope="module")
def windows(folders: Path, tiny_bert: str) -> str:
    return make_windows(folders / "windows", tiny_bert)


@pytest.fixture(scope="module")
def student(folders: Path) -> str:
    """Half as deep as the teacher, which is ``tiny_bert``."""
    return tiny.save_qa_model(folders / "student", layers=1)


@pytest.fixture
def config(windows: str, student: str) -> DistillConfig:
    return DistillConfig(data=windows, student=student, objective=("labels",), batch_size=4)


def refused(config: DistillConfig) -> str:
    with pytest.raises(InputError) as refusal:
        check(config)
    assert "\n" not in str(refusal.value)
    return str(refusal.value)


OBJECTIVES: tuple[Objective, ...] = get_args(Objective)


def test_what_fits_passes_and_its_windows_are_counted(
    config: DistillConfig, tiny_bert: str, tiny_squad: str
) -> None:
    for objective in OBJECTIVES:
        assert check(replace(config, objective=(objective,), teacher=tiny_bert)) == WINDOWS
    every = replace(config, objective=OBJECTIVES, objective_weights=None, teacher=tiny_bert, dev=tiny_squad)
    assert check(replace(every, batch_size=WINDOWS)) == WINDOWS


def test_encoder_without_a_head_may_be_student_and_teacher(
    config: DistillConfig, tiny_bert: str, folders: Path
) -> None:
    bare = str(folders / "bare")
    AutoModel.from_pretrained(tiny_bert).save_pretrained(bare)
    pretrained.load_tokenizer(tiny_bert).save_pretrained(bare)
    assert check(replace(config, student=bare, teacher=bare, objective=("relations",))) == WINDOWS


def test_fewer_windows_than_a_batch_are_refused(config: DistillConfig) -> None:
    told = refused(replace(config, batch_size=16))
    assert told == (
        f"{config.data}: holds 12 windows, fewer than batch_size 16; lower --batch-size or give more data"
    )


def test_prediction_needs_a_teachers_logits(config: DistillConfig, tiny_bert: str, folders: Path) -> None:
    data = make_windows(folders / "no-logits", tiny_bert, teachers=0)
    told = refused(replace(config, data=data, objective=("prediction",)))
    assert told.startswith(
        f"{data}: its windows carry no teacher's logits; run 'teacher-logits' with --teachers"
    )
    assert check(replace(config, data=data)) == WINDOWS


def test_each_teacher_needs_its_weight(config: DistillConfig, tiny_bert: str, folders: Path) -> None:
    taught = replace(config, objective=("prediction",), teacher_weights=(0.5, 0.5))
    assert "2 teacher_weights are given, but the windows carry the logits of 1;" in refused(taught)
    both = make_windows(folders / "two-teachers", tiny_bert, teachers=2)
    assert check(replace(taught, data=both)) == WINDOWS
    assert check(replace(taught, data=both, teacher_weights=None)) == WINDOWS
    assert "1 teacher_weights are given, but the windows carry the logits of 2;" in refused(
        replace(taught, data=both, teacher_weights=(1.0,))
    )


def test_windows_of_plain_text_have_no_labels_to_teach(
    config: DistillConfig, tiny_bert: str, folders: Path
) -> None:
    data = make_windows(folders / "plain", tiny_bert, labels=False)
    told = refused(replace(config, data=data))
    assert told.startswith(f"{data}: its windows are plain text, without labels;")
    for objective in LAYER_OBJECTIVES:
        plain = replace(config, data=data, objective=(objective,), teacher=tiny_bert)
        assert check(plain) == WINDOWS


def test_student_of_another_vocabulary_is_refused_by_name(config: DistillConfig, tiny_roberta: str) -> None:
    told = refused(replace(config, student=tiny_roberta))
    assert f"the student's tokenizer '{tiny_roberta}'" in told
    assert config.data in told
    assert "use a student and a teacher of one vocabulary" in told


def test_teacher_of_another_vocabulary_is_refused_by_name(
    config: DistillConfig, tiny_roberta: str, student: str
) -> None:
    told = refused(replace(config, objective=("relations",), teacher=tiny_roberta))
    assert f"the student's tokenizer '{student}' and the teacher's '{tiny_roberta}' differ in the ids" in told


def test_depth_that_does_not_divide_is_refused(config: DistillConfig, tiny_bert: str, folders: Path) -> None:
    deep = tiny.save_qa_model(folders / "deep", layers=3)
    taught = replace(config, student=deep, objective=("intermediate",), teacher=tiny_bert)
    assert "a student of 3 layers does not divide a teacher of 2; the nearest depths that do: 2" in refused(
        taught
    )
    assert check(replace(taught, student_layers=(0, 2))) == WINDOWS
    assert check(replace(taught, objective=("relations",))) == WINDOWS


def test_other_heads_are_refused_for_attention_and_not_for_relations(
    config: DistillConfig, folders: Path
) -> None:
    teacher = tiny.save_qa_model(folders / "heads", heads=8)
    taught = replace(config, objective=("intermediate",), teacher=teacher)
    assert "the student has 4 attention heads, the teacher 8;" in refused(taught)
    assert check(replace(taught, objective=("relations",))) == WINDOWS


def test_relation_heads_and_layer_must_fit(config: DistillConfig, tiny_bert: str) -> None:
    taught = replace(config, objective=("relations",), teacher=tiny_bert)
    told = refused(replace(taught, relation_heads=5))
    assert "5 relation heads do not divide both widths, 32 of the student and 32 of the teacher" in told
    assert told.endswith("give --relation-heads one of 1, 2, 4, 8, 16, 32")
    assert refused(replace(taught, relation_layer=2)) == "relation_layer is 2; the teacher has layers 0 to 1"
    assert check(replace(taught, relation_heads=16, relation_layer=0)) == WINDOWS


@pytest.mark.parametrize("layers", [(), (0, 2), (-1,), (1, 1)])
def test_layers_that_the_student_lacks_are_refused(
    config: DistillConfig, tiny_bert: str, layers: tuple[int, ...]
) -> None:
    told = refused(replace(config, student=tiny_bert, student_layers=layers))
    assert told == f"student_layers are {layers}; {tiny_bert} has layers 0 to 1; give each at most once"


def short_sighted(model: str, folder: Path, tokens: int) -> str:
    """A model like ``model`` that reads ``tokens`` tokens."""
    sizes = BertConfig.from_pretrained(model, max_position_embeddings=tokens)
    BertForQuestionAnswering(sizes).save_pretrained(folder)
    pretrained.load_tokenizer(model).save_pretrained(folder)
    return str(folder)


def test_window_longer_than_a_model_reads_is_refused(
    config: DistillConfig, tiny_bert: str, folders: Path
) -> None:
    short = short_sighted(tiny_bert, folders / "short", TOKENS)
    data = make_windows(folders / "long", tiny_bert, longest=TOKENS + 1)
    reads = f"max_seq_len is 21, but {short} reads at most 20 tokens"
    assert refused(replace(config, data=data, student=short)).startswith(reads)
    beside = replace(config, data=data, objective=("relations",), teacher=short)
    assert refused(beside).startswith(reads)
    assert check(replace(config, data=data)) == WINDOWS


def test_models_data_and_dev_that_cannot_be_read_are_refused_by_name(
    config: DistillConfig, tmp_path: Path
) -> None:
    gone = str(tmp_path / "gone")
    assert refused(replace(config, data=gone)).startswith(f"{gone}: no such folder")
    assert refused(replace(config, student=gone)).startswith(f"{gone}: no such model folder")
    beside = replace(config, objective=("relations",), teacher=gone)
    assert refused(beside).startswith(f"{gone}: no such model folder")
    (tmp_path / "dev.json").write_text("{not JSON")
    assert f"{tmp_path}/dev.json: not JSON" in refused(replace(config, dev=str(tmp_path / "dev.json")))


def test_zero_without_deepspeed_names_the_extra(
    config: DistillConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec

    def lacking(name: str, package: str | None = None) -> Any:
        return None if name == "deepspeed" else find(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", lacking)
    assert "pip install 'tinyqa-ray[deepspeed]', or use 'ddp'" in refused(replace(config, strategy="zero1"))
    assert check(config) == WINDOWS


def test_training_in_bf16_that_would_be_emulated_is_announced(
    config: DistillConfig,
    has: Callable[..., None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    for features in (("avx2", "bf16"), ("avx2",)):
        assert not caplog.messages
        has(*features)
        check(replace(config, precision="bf16"))
    assert [line.split(":")[0] for line in caplog.messages] == ["bf16 is computed in fp32"]


ROOM = {"CPU": 4.0, "GPU": 2.0}


@pytest.mark.parametrize(
    ("options", "unit", "there"),
    [({"workers": 8}, "CPU", 4), ({"workers": 4, "use_gpu": True}, "GPU", 2)],
    ids=["cpu", "gpu"],
)
def test_more_workers_than_the_cluster_holds_are_refused(
    config: DistillConfig, options: dict[str, Any], unit: str, there: int
) -> None:
    many = replace(config, batch_size=8, **options)
    with pytest.raises(InputError) as refusal:
        check_room(many, ROOM)
    told = str(refusal.value)
    assert told.startswith(
        f"{many.workers} workers need a {unit} each, and there are {there}; lower --workers"
    )
    assert told.endswith("set --no-use-gpu") == many.use_gpu
    check_room(replace(many, workers=there), ROOM)


def test_elastic_run_needs_room_for_its_fewest_workers_only(config: DistillConfig) -> None:
    elastic = replace(config, workers=8, batch_size=8, min_workers=4)
    check_room(elastic, ROOM)
    with pytest.raises(InputError, match="5 workers need a CPU each, and there are 4"):
        check_room(replace(elastic, min_workers=5), ROOM)


def test_cluster_without_gpus_says_so(config: DistillConfig) -> None:
    with pytest.raises(InputError, match="1 workers need a GPU each, and there are 0"):
        check_room(replace(config, use_gpu=True), {"CPU": 4.0})
