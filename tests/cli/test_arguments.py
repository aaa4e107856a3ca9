"""The words of a command line, as plain lists."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyqa_ray.cli import arguments as command_line
from tinyqa_ray.configs import DistillConfig, TeacherLogitsConfig
from tinyqa_ray.core.errors import InputError

# Values of --teachers, as one argument with "=" or as several, each followed by another option.
models_given = st.lists(st.tuples(st.lists(st.sampled_from("abc"), min_size=1, max_size=3), st.booleans()))
words = st.lists(st.sampled_from(["a", "1,2", "-1", "--seed", "--dev=x", "--dev", "--general", "b,c"]))


@settings(deadline=None, max_examples=60)
@given(models_given)
def test_repeated_option_means_all_its_values(groups: list[tuple[list[str], bool]]) -> None:
    arguments = ["teacher-logits"]
    for number, (names, joined) in enumerate(groups):
        mark = [f"--teachers={names[0]}", *names[1:]] if joined else ["--teachers", *names]
        arguments += [*mark, f"--other{number}", str(number)]
    values = [name for names, _ in groups for name in names]
    others = [each for number in range(len(groups)) for each in (f"--other{number}", str(number))]
    expected = ["teacher-logits", *(["--teachers", *values] if groups else []), *others]
    assert command_line.gathered(arguments, "--teachers") == expected
    assert command_line.normalised(arguments) == expected


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
    found = command_line.normalised(["distill", *typed.split(), "--seed", "1"])
    assert found == ["distill", "--student-layers", "1", "3", "5", "--seed", "1"]


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("--objective intermediate,prediction", "--objective intermediate prediction"),
        ("--objective-weights 1,0.5 --epochs 2", "--objective-weights 1 0.5 --epochs 2"),
        ("--teacher-weights 1,-2", "--teacher-weights 1 -2"),
        ("--stage windows,student", "--stage windows student"),
        ("--student.objective labels,prediction", "--student.objective labels prediction"),
        ("--student-layers None", "--student-layers None"),
        ("--student-layers -1,2", "--student-layers -1 2"),
    ],
)
def test_comma_separates_values_that_are_no_paths(typed: str, expected: str) -> None:
    assert command_line.normalised(typed.split()) == expected.split()


def test_comma_in_a_path_or_in_text_stays() -> None:
    arguments = ["--teachers", "a,b", "--data", "1,2", "Who, then?", "--dev=x,y"]
    assert command_line.normalised(arguments) == arguments


@settings(deadline=None)
@given(words)
def test_what_is_of_no_option_with_several_values_is_left_alone(arguments: list[str]) -> None:
    assert command_line.normalised(arguments) == arguments


@settings(deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(["seed", "student.seed", "dev"]),
        st.lists(st.sampled_from(["1", "-.5", "a=b", ""])).map(tuple),
    )
)
def test_options_are_told_from_values(named: dict[str, tuple[str, ...]]) -> None:
    words = [word for name, values in named.items() for word in (f"--{name}", *values)]
    assert command_line.grouped(words) == named


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("--jsonl True --top-k 2", "--jsonl --top-k 2"),
        ("--jsonl=False", "--no-jsonl"),
        ("--use_gpu False --use-gpu True", "--no-use-gpu --use-gpu"),
        ("--student.use-gpu False", "--student.no-use-gpu"),
        ("--jsonl --questions True", "--jsonl --questions True"),
        ("--no-jsonl", "--no-jsonl"),
    ],
)
def test_switch_may_have_a_value_or_none(typed: str, expected: str) -> None:
    assert command_line.normalised(typed.split()) == expected.split()


def test_last_of_a_repeated_option_counts() -> None:
    assert command_line.grouped(["--seed", "1", "--batch_size=2", "--seed", "3"]) == {
        "seed": ("3",),
        "batch-size": ("2",),
    }


@pytest.mark.parametrize("arguments", [["stray", "--seed", "1"], ["-x", "1"], ["--seed", "1", "-x"]])
def test_word_of_no_option_is_refused(arguments: list[str]) -> None:
    with pytest.raises(InputError, match=r"^'(stray|-x)' belongs to no option"):
        command_line.grouped(arguments)


def test_options_of_a_config_are_those_of_its_window_too() -> None:
    found = command_line.hints(TeacherLogitsConfig)
    assert found["doc-stride"] is int
    assert found["rows-per-shard"] is int
    assert "window" not in found
    assert command_line.takes_several(command_line.hints(DistillConfig)["student-layers"])
    assert not command_line.takes_several(command_line.hints(DistillConfig)["dev"])


def test_refused_value_is_the_configs_own_line() -> None:
    def parse() -> None:
        try:
            raise InputError("seed is -1; it must be at least 0")
        except InputError:
            raise SystemExit(2)  # noqa: B904 - as the parser does

    with (
        pytest.raises(InputError, match=r"^seed is -1; it must be at least 0 \(see tinyqa --help\)$"),
        command_line.pointing_to_help("tinyqa"),
    ):
        command_line.parsed(parse)


def test_broken_pipe_of_something_else_is_no_quiet_end(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(BrokenPipeError), command_line.mistakes_in_one_line():
        raise BrokenPipeError
