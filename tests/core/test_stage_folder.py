from __future__ import annotations

import os
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tinyqa_ray import configs
from tinyqa_ray.core import contents, locks, stage_folder, storage
from tinyqa_ray.core.errors import InputError

WINDOW = configs.WindowConfig()


@dataclass(frozen=True, kw_only=True, slots=True)
class CountWordsConfig:
    data: str
    extra: str | None = None
    copies: int = 2
    window: configs.WindowConfig = WINDOW
    actors: int = stage_folder.execution(1)


@dataclass(frozen=True, kw_only=True, slots=True)
class CountWordsReport:
    words: int


class InterruptedRunError(Exception):
    pass


def count_words(config: Any, output: str, *, fail: Exception | None = None, calls: list[str]) -> Any:
    with stage_folder.stage(output, config, inputs=("data", "extra")) as stage:
        if stage.finished:
            return stage.report(CountWordsReport)
        calls.append(output)
        storage.write_atomic(stage.path("parts", "0"), b"made")
        if fail:
            raise fail
        return stage.publish(CountWordsReport(words=len(storage.read_bytes(config.data).split())))


@pytest.fixture
def data(tmp_path: Path) -> str:
    (tmp_path / "data.txt").write_text("one two three")
    return str(tmp_path / "data.txt")


@pytest.fixture(params=["local", "memory"])
def output(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "out") if request.param == "local" else f"memory://{uuid.uuid4().hex}/out"


def test_finished_stage_is_not_run_twice(data: str, output: str) -> None:
    calls: list[str] = []
    first = count_words(CountWordsConfig(data=data), output, calls=calls)
    again = count_words(CountWordsConfig(data=data), output, calls=calls)
    assert first == again == CountWordsReport(words=3)
    assert calls == [output]


def test_published_document_names_stage_inputs_and_versions(data: str, output: str) -> None:
    config = CountWordsConfig(data=data)
    count_words(config, output, calls=[])
    document = stage_folder.require_finished(output, "count-words")
    assert document["fingerprint"] == stage_folder.fingerprint(config)
    assert document["inputs"] == {"data": contents.identity(data), "extra": ""}
    assert document["report"] == {"words": 3}
    assert {"python", "torch", "tinyqa-ray"} <= set(document["versions"])


def test_other_config_is_refused_with_the_difference(data: str, output: str) -> None:
    count_words(CountWordsConfig(data=data), output, calls=[])
    other = CountWordsConfig(data=data, copies=3, window=configs.WindowConfig(doc_stride=64))
    with pytest.raises(InputError, match=r"copies 2 there, 3 here; window .*128.*64") as refusal:
        count_words(other, output, calls=[])
    assert "\n" not in str(refusal.value)


def test_other_stage_is_refused(data: str, output: str) -> None:
    count_words(CountWordsConfig(data=data), output, calls=[])
    config = configs.AugmentConfig(data=data, embeddings="e")
    with (
        pytest.raises(InputError, match="stage count-words there, augment here"),
        stage_folder.stage(output, config),
    ):
        pass


def test_execution_fields_do_not_count(data: str, output: str) -> None:
    one, many = CountWordsConfig(data=data), CountWordsConfig(data=data, actors=8)
    assert stage_folder.fingerprint(one) == stage_folder.fingerprint(many)
    assert stage_folder.fingerprint(one) != stage_folder.fingerprint(CountWordsConfig(data=data, copies=3))
    calls: list[str] = []
    count_words(one, output, calls=calls)
    count_words(many, output, calls=calls)
    assert len(calls) == 1


def test_run_goes_on_where_a_field_of_identity_became_one_of_execution(data: str, output: str) -> None:
    """The earlier version's document still names it, with another value than that of now."""
    calls: list[str] = []
    config = CountWordsConfig(data=data, actors=2)
    with pytest.raises(InterruptedRunError):
        count_words(config, output, fail=InterruptedRunError(), calls=calls)
    started = storage.join(output, stage_folder.STARTED)
    document = storage.read_json(started)
    document["config"]["actors"] = 1
    storage.write_json(started, document)
    assert count_words(config, output, calls=calls).words == 3


def test_run_goes_on_where_a_field_came_later_and_has_its_default(data: str, output: str) -> None:
    calls: list[str] = []
    with pytest.raises(InterruptedRunError):
        count_words(CountWordsConfig(data=data), output, fail=InterruptedRunError(), calls=calls)
    started = storage.join(output, stage_folder.STARTED)
    document = storage.read_json(started)
    del document["config"]["copies"]
    storage.write_json(started, document)
    with pytest.raises(InputError, match="copies 2 there, 3 here"):
        count_words(CountWordsConfig(data=data, copies=3), output, calls=calls)
    assert count_words(CountWordsConfig(data=data), output, calls=calls).words == 3


def test_changed_input_is_refused(data: str, output: str) -> None:
    count_words(CountWordsConfig(data=data), output, calls=[])
    Path(data).write_text("one two")
    with pytest.raises(InputError, match="content of data"):
        count_words(CountWordsConfig(data=data), output, calls=[])


def test_moved_input_of_equal_content_is_accepted(data: str, output: str) -> None:
    calls: list[str] = []
    count_words(CountWordsConfig(data=data), output, calls=calls)
    moved = str(Path(data).rename(Path(data).with_name("elsewhere.txt")))
    assert count_words(CountWordsConfig(data=moved), output, calls=calls).words == 3
    assert len(calls) == 1


def test_moved_folder_of_a_finished_stage_is_accepted(data: str, tmp_path: Path) -> None:
    count_words(CountWordsConfig(data=data), str(tmp_path / "a"), calls=[])
    before = contents.identity(str(tmp_path / "a"))
    (tmp_path / "a").rename(tmp_path / "b")
    assert contents.identity(str(tmp_path / "b")) == before


def test_run_keeps_its_fingerprint_where_inputs_moved(data: str, output: str, tmp_path: Path) -> None:
    """What an interrupted run left is found by it: Ray's checkpoints, say."""
    began = CountWordsConfig(data=data)
    with pytest.raises(InterruptedRunError):
        count_words(began, output, fail=InterruptedRunError(), calls=[])
    moved = CountWordsConfig(data=str((tmp_path / "data.txt").rename(tmp_path / "moved.txt")))
    assert stage_folder.fingerprint(moved) != stage_folder.fingerprint(began)
    for _ in range(2):  # unfinished, then finished
        with stage_folder.stage(output, moved, inputs=("data", "extra")) as stage:
            assert stage.fingerprint == stage_folder.fingerprint(began)
        count_words(moved, output, calls=[])


def test_equal_numbers_have_equal_fingerprints() -> None:
    """A recipe's 2 epochs are the shell's 2.0."""

    def config(number: float) -> configs.DistillConfig:
        return configs.DistillConfig(
            data="d", student="s", objective=("labels",), epochs=number, objective_weights=(number,)
        )

    assert stage_folder.fingerprint(config(2)) == stage_folder.fingerprint(config(2.0))
    assert stage_folder.identity_fields(config(2))["epochs"] == 2.0
    assert type(stage_folder.identity_fields(config(2))["batch_size"]) is int


def test_optional_input_that_appears_is_a_difference(data: str, output: str) -> None:
    count_words(CountWordsConfig(data=data), output, calls=[])
    with pytest.raises(InputError, match="content of extra ''"):
        count_words(CountWordsConfig(data=data, extra=data), output, calls=[])


def test_interrupted_run_continues_with_the_same_config_only(data: str, output: str) -> None:
    calls: list[str] = []
    with pytest.raises(InterruptedRunError):
        count_words(CountWordsConfig(data=data), output, fail=InterruptedRunError(), calls=calls)
    with pytest.raises(InputError, match="copies 2 there, 5 here"):
        count_words(CountWordsConfig(data=data, copies=5), output, calls=calls)
    with pytest.raises(InputError, match="unfinished"):
        stage_folder.require_finished(output, "count-words")
    assert count_words(CountWordsConfig(data=data), output, calls=calls).words == 3
    assert len(calls) == 2


def test_foreign_files_are_refused_and_left_alone(data: str, output: str) -> None:
    storage.write_atomic(storage.join(output, "thesis.txt"), b"mine")
    with pytest.raises(InputError, match="no run of tinyqa"):
        count_words(CountWordsConfig(data=data), output, calls=[])
    assert storage.list_files(output, recursive=True) == [storage.join(output, "thesis.txt")]


def test_foreign_files_in_a_subfolder_are_refused(data: str, output: str) -> None:
    storage.write_atomic(storage.join(output, "photos", "a.jpg"), b"mine")
    with pytest.raises(InputError, match="no run of tinyqa"):
        count_words(CountWordsConfig(data=data), output, calls=[])


def test_output_that_is_a_file_is_refused(data: str) -> None:
    with pytest.raises(InputError, match="no run of tinyqa"):
        count_words(CountWordsConfig(data=data), data, calls=[])


def test_user_error_before_any_file_leaves_nothing_behind(data: str, output: str) -> None:
    with (
        pytest.raises(InputError, match="no such option"),
        stage_folder.stage(output, CountWordsConfig(data=data), inputs=("data",)),
    ):
        raise InputError("no such option")
    assert storage.kind(output) == "absent"


def test_user_error_after_a_file_keeps_the_run(data: str, output: str) -> None:
    with pytest.raises(InputError):
        count_words(CountWordsConfig(data=data), output, fail=InputError("row 7"), calls=[])
    assert storage.kind(storage.join(output, "parts", "0")) == "file"
    assert storage.kind(storage.join(output, stage_folder.STARTED)) == "file"


def test_second_run_at_once_is_refused_and_spoils_nothing(data: str, output: str) -> None:
    config = CountWordsConfig(data=data)
    with stage_folder.stage(output, config, inputs=("data", "extra")) as first:
        with pytest.raises(InputError, match="another run works in it"):
            count_words(config, output, calls=[])
        first.publish(CountWordsReport(words=3))
    calls: list[str] = []
    assert count_words(config, output, calls=calls).words == 3
    assert calls == []


def test_run_that_another_took_for_dead_publishes_nothing(data: str) -> None:
    output = f"memory://{uuid.uuid4().hex}/out"
    with stage_folder.stage(output, CountWordsConfig(data=data), inputs=("data",)) as stage:
        for file in locks.objects(output):
            storage.delete_file(file)
        with pytest.raises(InputError, match="took this one for dead"):
            stage.publish(CountWordsReport(words=3))
    assert not stage_folder.is_finished(output)


def test_inputs_of_a_finished_run_are_not_read_again(
    data: str, output: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.utime(data, (1e9, 1e9))
    count_words(CountWordsConfig(data=data), output, calls=[])
    contents._known.clear()  # as in another process
    monkeypatch.setattr(storage, "chunks", None)
    assert count_words(CountWordsConfig(data=data), output, calls=[]).words == 3


def test_finished_folder_that_may_not_be_written_to_is_read(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = str(tmp_path / "out")
    count_words(CountWordsConfig(data=data), output, calls=[])
    os.utime(data, (1e9, 1e9))  # so that there is something to note

    def closed(*given: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(locks.FileLock, "acquire", closed)
    assert count_words(CountWordsConfig(data=data), output, calls=[]).words == 3


def test_run_that_did_not_note_its_settings_says_what_to_do(data: str, output: str) -> None:
    count_words(CountWordsConfig(data=data), output, calls=[])
    fitted = {stage_folder.SETTINGS: "threshold 0.5"}
    with (
        pytest.raises(InputError, match=r"did not write down the threshold .* choose another --output"),
        stage_folder.stage(output, CountWordsConfig(data=data), inputs=("data", "extra"), extra=fitted),
    ):
        pass


def test_empty_folder_is_taken(data: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert count_words(CountWordsConfig(data=data), str(tmp_path / "empty"), calls=[]).words == 3


def test_folder_of_another_stage_is_not_read(data: str, output: str) -> None:
    count_words(CountWordsConfig(data=data), output, calls=[])
    with pytest.raises(InputError, match="made by 'count-words'; give the --output of 'augment'"):
        stage_folder.require_finished(output, "augment")
    with pytest.raises(InputError, match="no such folder"):
        stage_folder.require_finished(output + "x", "augment")


def test_stage_is_named_after_its_config() -> None:
    assert stage_folder.stage_name(configs.TeacherLogitsConfig(data="d", tokenizer="t")) == "teacher-logits"
    assert stage_folder.stage_name(configs.AugmentConfig(data="d", embeddings="e")) == "augment"


def test_run_that_wrote_an_id_without_owner_goes_on(tmp_path: Path) -> None:
    inputs = ("data", "masked_lm")
    old = configs.AugmentConfig(data="squad_v2:train", masked_lm="roberta-base")
    new = configs.AugmentConfig(data="rajpurkar/squad_v2:train", masked_lm="FacebookAI/roberta-base")
    other = configs.AugmentConfig(data="rajpurkar/squad:train", masked_lm="FacebookAI/roberta-base")
    output = str(tmp_path / "run")
    with stage_folder.stage(output, old, inputs=inputs) as stage:
        assert not stage.finished
    with stage_folder.stage(output, new, inputs=inputs) as stage:
        assert stage.fingerprint == stage_folder.fingerprint(old)
    with pytest.raises(InputError, match="holds a run with other settings"):
        stage_folder.Stage(output, other, {"data": other.data, "masked_lm": "FacebookAI/roberta-base"})
