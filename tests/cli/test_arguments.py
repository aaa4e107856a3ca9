"""The words of a command line as plain lists: several values, switches, mistakes."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyqa_ray.cli import arguments
from tinyqa_ray.configs import AnswerConfig, AugmentConfig, DistillConfig, TeacherLogitsConfig
from tinyqa_ray.core.errors import InputError

# Values of --teachers, as one argument with "=" or as several, each followed by another option.


# Values of --teachers, as one argument with "=" or as several, each followed by another option.
teachers_given = st.lists(st.tuples(st.lists(st.sampled_from("abc"), min_size=1, max_size=3), st.booleans()))


words_of_no_hint = st.lists(st.sampled_from(["a", "1,2", "-1", "-x", "--general", "b,c"]), unique=True)


def made(config: type, line: str) -> Any:
    """A config from its options."""

    def returned(config: Any) -> Any:
        return config

    returned.__annotations__ = {"config": config}
    return arguments.parsed(returned, line.split(), "tinyqa")


@settings(deadline=None, max_examples=60)
@given(teachers_given)
def test_repeated_option_means_all_its_values(groups: list[tuple[list[str], bool]]) -> None:
    words: list[str] = []
    for number, (names, joined) in enumerate(groups):
        mark = [f"--teachers={names[0]}", *names[1:]] if joined else ["--teachers", *names]
        words += [*mark, f"--other{number}", str(number)]
    first, *others = [name for names, _ in groups for name in names] or [""]
    rest = [each for number in range(len(groups)) for each in (f"--other{number}", str(number))]
    hints = arguments.options(TeacherLogitsConfig)
    expected = [f"--teachers={first}", *others, *rest] if groups else []
    assert arguments.spelt(arguments.grouped(words), hints) == expected


@pytest.mark.parametrize(
    "typed",
    [
        "--student-layers 1 3 5",
        "--student-layers 1,3,5",
        "--student-layers=1,3,5",
        "--student_layers 1, 3 ,5",
        "--student-layers 1,3 --student-layers 5",
        "--student-layers=1 3 --student_layers=5",
    ],
)
def test_layers_come_with_commas_or_spaces(typed: str) -> None:
    config = made(DistillConfig, f"--data d --student s --objective labels {typed} --seed 1")
    assert config == DistillConfig(
        data="d", student="s", objective=("labels",), student_layers=(1, 3, 5), seed=1
    )


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("--objective intermediate,prediction", "--objective=intermediate prediction"),
        ("--objective-weights 1,0.5 --epochs 2", "--objective-weights=1 0.5 --epochs=2"),
        ("--teacher-weights 1,-2", "--teacher-weights=1 -2"),
        ("--student-layers None", "--student-layers=None"),
        ("--student-layers -1,2", "--student-layers=-1 2"),
        ("--soup-with a,b --soup-with c", "--soup-with=a,b c"),
        ("--dev x,y --student=-s", "--dev=x,y --student=-s"),
    ],
)
def test_comma_separates_values_that_are_no_paths(typed: str, expected: str) -> None:
    hints = arguments.options(DistillConfig)
    assert arguments.spelt(arguments.grouped(typed.split()), hints) == expected.split()


@settings(deadline=None)
@given(words_of_no_hint)
def test_words_of_unknown_options_are_left_alone(words: list[str]) -> None:
    assert arguments.spelt(arguments.grouped(words), {"--seed": int}) == words


def test_last_of_a_repeated_option_counts() -> None:
    config = made(AugmentConfig, "--data d --embeddings e --threads 1 --rows_per_shard=2 --threads 3")
    assert config == AugmentConfig(data="d", embeddings="e", threads=3, rows_per_shard=2)


@pytest.mark.parametrize(
    ("typed", "keep", "jsonl"),
    [
        ("", True, False),
        ("--jsonl --no-keep-no-answers", False, True),
        ("--no-jsonl --keep-no-answers", True, False),
        ("--jsonl True --keep_no_answers=False", False, True),
        ("--jsonl --no-jsonl", True, False),
    ],
)
def test_switch_has_no_value_but_its_old_form_is_read(typed: str, keep: bool, jsonl: bool) -> None:
    config = made(AnswerConfig, f"--documents d --questions q {typed}")
    assert config == AnswerConfig(documents="d", questions="q", keep_no_answers=keep, jsonl=jsonl)


def test_options_of_a_config_are_those_of_its_window_too() -> None:
    found = arguments.options(TeacherLogitsConfig)
    assert (found["--doc-stride"], found["--rows-per-shard"]) == (int, int)
    assert found["--abstain-at-threshold"] is found["--no-abstain-at-threshold"] is bool
    assert "--window" not in found


@pytest.mark.parametrize(
    ("typed", "complaint"),
    [
        ("", "Missing from tinyqa: --data STR"),
        ("--data d --seed 1", "Unrecognized options: --seed, 1"),
        ("--data d --rows-per-shrad 2", "--rows-per-shrad, 2; Perhaps you meant: --rows-per-shard INT"),
        ("--data d --rows-per-shard 0", "rows_per_shard is 0; it must be at least 1"),
        ("--data d --combine both", "invalid choice 'both' for argument '--combine'. Expected one of ('ave"),
        ("--data d e", "--data takes one value; given: d e"),
        ("--data", "--data takes one value; given: none"),
        ("--data d --abstain-at-threshold yes", "takes no value; given: yes; say --abstain-at-threshold or"),
        ("--data d --max-seq-len 64", "max_seq_len 64 leaves"),
    ],
)
def test_mistake_of_a_config_is_one_line_that_names_it(typed: str, complaint: str) -> None:
    with pytest.raises(InputError) as refusal:
        made(TeacherLogitsConfig, typed)
    message = str(refusal.value)
    assert complaint in message
    assert "\n" not in message
    assert message.endswith(" (see tinyqa --help)")


def test_refused_value_is_the_configs_own_line() -> None:
    def parse() -> None:
        try:
            raise InputError("seed is -1; it must be at least 0")
        except InputError:
            raise SystemExit(2)  # noqa: B904 - as the parser does

    with (
        pytest.raises(InputError, match=r"^seed is -1; it must be at least 0 \(see tinyqa --help\)$"),
        arguments.pointing_to_help("tinyqa"),
    ):
        arguments.refused_in_one_line(parse)


def test_broken_pipe_of_something_else_is_no_quiet_end(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(BrokenPipeError), arguments.mistakes_in_one_line():
        raise BrokenPipeError
