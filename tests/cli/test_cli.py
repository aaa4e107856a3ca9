"""The shell: what it prints, and that a mistake is one line and exit code 2."""

import json
import re
import runpy
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from safetensors.torch import load_file

from tinyqa_ray.cli import main
from tinyqa_ray.configs import DistillConfig, TeacherLogitsConfig
from tinyqa_ray.core import stage_folder
from tinyqa_ray.models import push
from tinyqa_ray.recipes import published
from tinyqa_ray.recipes.recipe import Recipe
from tinyqa_ray.recipes.run import StageResult
from tinyqa_ray.teacher_logits import TeacherLogitsReport

REPORT = TeacherLogitsReport(paragraphs=1, questions=2, windows=3, tokens=4, answerable_windows=5)

JOBS = Path(__file__).parents[2] / "jobs"
COMMANDS = (
    "quickstart",
    "ask",
    "evaluate",
    "score",
    "augment",
    "teacher-logits",
    "distill",
    "answer",
    "convert",
    "push",
    "engines",
    "mcp",
    "browser",
)


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line that a refused command prints."""
    with pytest.raises(SystemExit) as stop:
        main.main(arguments)
    assert stop.value.code == 2
    printed = capsys.readouterr()
    lines = [line for line in printed.err.splitlines() if line]
    assert len(lines) == 1, printed.err
    assert lines[0].startswith("tinyqa: ")
    assert "Traceback" not in printed.err + printed.out
    return lines[0]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_is_complete(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main.main([command, "--help"])
    assert stop.value.code in (0, None)
    shown = capsys.readouterr().out
    assert f"tinyqa {command}" in shown
    wanted = {
        "ask": "--context",
        "score": "--na-prob-threshold",
        "push": "--repo",
        "engines": "--forms",
        "mcp": "--transport",
    }.get(command, "--output")
    assert wanted in shown


def test_help_of_ask_and_export_says_what_they_do(capsys: pytest.CaptureFixture[str]) -> None:
    shown = {}
    for command in ("ask", "export"):
        with pytest.raises(SystemExit):
            main.main([command, "--help"])
        shown[command] = " ".join(re.sub("[│╭╮╰╯─]", " ", capsys.readouterr().out).split())
    assert "Print 'no answer'" in shown["ask"], "the words that it prints"
    assert "OpenVINO, the default, and ONNX need the extra 'cpu'; safetensors needs none." in shown["export"]


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    main.main(["--version"])
    assert capsys.readouterr().out.startswith("tinyqa 0.")


def test_unknown_command_names_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["distil"], []):
        line = refused(capsys, *words)
        assert "quickstart" in line
        assert "teacher-logits" in line
    assert "distil;" in refused(capsys, "distil")


def test_misspelt_option_names_the_nearest_and_the_help_of_its_command(
    capsys: pytest.CaptureFixture[str],
) -> None:
    line = refused(capsys, "answer", "--output", "o", "--jsnol")
    assert "Unrecognized options: --jsnol; Perhaps you meant: --jsonl" in line
    assert line.endswith("(see tinyqa answer --help)")


def test_score_prints_the_official_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    case = Path(__file__).parents[1] / "golden" / "squad2_metrics" / "case_1"
    arguments = [
        f"--{name}={case / file}"
        for name, file in (("data", "gold.json"), ("predictions", "predictions.json"))
    ]
    main.main(["score", *arguments])
    printed = json.loads(capsys.readouterr().out)
    expected = json.loads((case / "expected.json").read_text())["plain"]
    assert list(printed) == list(expected)
    assert printed == pytest.approx(expected, abs=1e-9)


def test_score_counts_and_names_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tiny.write_squad(tmp_path / "gold.json")
    predictions = tmp_path / "predictions.json"
    predictions.write_text("{}")
    line = refused(capsys, "score", "--data", data, "--predictions", str(predictions))
    first = tiny.squad_document()["data"][0]["paragraphs"][0]["qas"][0]["id"]
    assert "24" in line
    assert first in line


def test_ask_prints_answer_score_and_offsets(tiny_bert: str, capsys: pytest.CaptureFixture[str]) -> None:
    context = "The bridge was built in 1871 by Edith Marlow."
    main.main(["ask", "Who built it?", "--model", tiny_bert, "--context", context, "--threshold", "1"])
    answer, details = capsys.readouterr().out.splitlines()
    start, end = map(int, details.split("characters ")[1].split(",")[0].split("-"))
    assert context[start:end] == answer
    assert "score 0." in details


def test_ask_says_which_engine_reads_and_takes_one_by_name(
    tiny_bert: str, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["ask", "Who built it?", "--model", tiny_bert, "--context", "Anna.", "--threshold", "1"]
    main.main([*asked, "-v"])
    assert "engine: torch float32 on cpu\n" in capsys.readouterr().err
    main.main([*asked, "--precision", "torch-fp32", "--verbose"])
    assert "engine: torch float32 on cpu\n" in capsys.readouterr().err
    main.main(asked)
    assert "engine" not in capsys.readouterr().err
    assert "precision is 'int7'" in refused(capsys, *asked, "--precision", "int7")


def test_ask_reads_a_file(tiny_bert: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text.txt").write_text("Anna lives in Zürich.", encoding="utf-8")
    main.main(
        ["ask", "Where?", "--model", tiny_bert, "--file", str(tmp_path / "text.txt"), "--threshold", "0"]
    )
    assert capsys.readouterr().out.startswith("no answer")


def test_ask_reads_a_document_and_names_the_page(tiny_bert: str, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("pypdfium2", reason="needs the extra documents")
    folder = Path(__file__).parents[1] / "documents" / "files"
    asked = ("ask", "Who built it?", "--model", tiny_bert, "--threshold", "1", "--file")
    main.main([*asked, str(folder / "divided-words.pdf")])
    answer, details = capsys.readouterr().out.splitlines()
    assert answer
    assert re.search(r"characters \d+-\d+ on page [1-4], no-answer", details)
    line = refused(capsys, *asked, str(folder / "encrypted.pdf"))
    assert "encrypted.pdf: is encrypted; save it without a password" in line


def test_ask_prints_every_place_with_its_sentence(
    tiny_bert: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "The bridge was built in 1871 by Edith Marlow. A storm broke it."
    files = [tmp_path / "one.txt", tmp_path / "two.txt"]
    for number, file in enumerate(files):
        file.write_text("Once more. " * number + text)
    asked = ["ask", "Who built it?", "--model", tiny_bert, "--threshold", "1", "--file", *map(str, files)]
    main.main([*asked, "--evidence", "--top-k", "1"])
    answer, details, *places = capsys.readouterr().out.splitlines()
    found = [re.fullmatch(r"  characters (\d+)-(\d+) of (\S+): (.*\[.+\].*)", place) for place in places]
    assert {match and match[3] for match in found} == set(map(str, files))
    assert f", {len(places)} places, " in details
    for match in found:
        assert match
        read = Path(match[3]).read_text()
        assert read[int(match[1]) : int(match[2])].strip(".").lower() == answer.strip(".").lower()
        assert f"[{read[int(match[1]) : int(match[2])]}]" in match[4]
    main.main([*asked, "--top-k", "all", "--min-score", "0.001"])
    lines = capsys.readouterr().out.splitlines()[1::2]
    scores = [float(line.split()[1].strip(",")) for line in lines]
    assert len(scores) > 1
    assert sorted(scores, reverse=True) == scores
    assert "min_score is 2.0; it must lie in [0, 1]" in refused(capsys, *asked, "--min-score", "2")


def test_ask_takes_one_text(tiny_bert: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "Missing from tinyqa ask: QUESTION (see tinyqa ask --help)" in refused(capsys, "ask")
    assert "--context or with --file" in refused(capsys, "ask", "Who?", "--model", tiny_bert)
    both = ("--context", "a", "--file", str(tmp_path / "x"))
    assert "--context or with --file" in refused(capsys, "ask", "Who?", "--model", tiny_bert, *both)
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    line = refused(capsys, "ask", "Who?", "--model", tiny_bert, "--file", str(tmp_path / "latin.txt"))
    assert "not UTF-8 at byte 3" in line


def test_model_mistakes(tiny_bert: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from transformers import AutoModel, AutoTokenizer

    assert "no such model folder" in refused(capsys, "ask", "Who?", "--model", "./absent", "--context", "a")
    headless = tmp_path / "encoder"
    AutoModel.from_pretrained(tiny_bert).save_pretrained(headless)
    AutoTokenizer.from_pretrained(tiny_bert).save_pretrained(headless)
    line = refused(capsys, "ask", "Who?", "--model", str(headless), "--context", "a")
    assert "no question-answering head" in line
    assert str(headless) in line


def test_push_prints_the_address(
    tiny_bert: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given: list[Any] = []

    def upload(*positional: Any, **options: Any) -> push.Pushed:
        given.append((positional, options))
        return push.Pushed(repo="me/student", url="https://hub/me/student", files=("config.json",))

    monkeypatch.setattr(push, "push", upload)
    main.main(["push", "--model", tiny_bert, "--repo", "me/student", "--private", "--message", "A first one"])
    assert capsys.readouterr().out == "https://hub/me/student\n"
    assert given == [
        ((tiny_bert, "me/student"), {"settings": None, "private": True, "message": "A first one"})
    ]


def test_push_mistakes(tiny_bert: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    repo = ("--repo", "me/student")
    assert "no such model folder" in refused(capsys, "push", "--model", "./absent", *repo)
    assert "has no config.json" in refused(capsys, "push", "--model", str(tmp_path), *repo)
    line = refused(capsys, "push", "--model", tiny_bert, *repo, "--settings", str(tmp_path))
    assert "no such settings" in line
    assert "HF_HUB_OFFLINE" in refused(capsys, "push", "--model", tiny_bert, *repo)


def test_convert_prints_what_it_wrote(
    tiny_bert: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pickled = Path(shutil.copytree(tiny_bert, tmp_path / "pickled"))
    weights = load_file(pickled / "model.safetensors")
    (pickled / "model.safetensors").unlink()
    torch.save(weights, pickled / "pytorch_model.bin")
    # The refusal names the command that helps.
    line = refused(capsys, "ask", "Who?", "--model", str(pickled), "--context", "Anna.")
    words = line.split("tinyqa convert ")[1].replace("FOLDER", str(tmp_path / "out")).split()[:4]
    main.main(["convert", *words])
    assert json.loads(capsys.readouterr().out)["tensors"] == len(weights)
    main.main(["ask", "Who?", "--model", str(tmp_path / "out"), "--context", "Anna.", "--threshold", "1"])
    assert "score" in capsys.readouterr().out
    assert "holds something already" in refused(capsys, "convert", *words)


def test_value_out_of_range_names_the_option(
    tiny_bert: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    line = refused(
        capsys,
        "augment",
        "--data",
        "x.json",
        "--embeddings",
        tiny_bert,
        "--output",
        str(output),
        "--copies",
        "-1",
    )
    assert "copies is -1; it must be at least 0" in line
    assert not output.exists()


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (None, "no such file"),
        (b"{", "not JSON"),
        (b'{"\xff"}', "not UTF-8 at byte 2"),
        (b'{"data": [{"paragraphs": [{"qas": []}]}]}', "data[0].paragraphs[0]: has no str 'context'"),
        (
            b'{"data": [{"title": "t", "paragraphs": [{"context": "abc", "qas": '
            b'[{"id": "q1", "question": "?", "answers": [{"text": "b", "answer_start": 2}]}]}]}]}',
            "question 'q1' has the answer 'b' at 2, where its context reads 'c'",
        ),
    ],
)
def test_bad_data_is_refused_with_nothing_written(
    content: bytes | None, complaint: str, tiny_bert: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, output = tmp_path / "data.json", tmp_path / "out"
    if content is not None:
        data.write_bytes(content)
    line = refused(capsys, "evaluate", "--model", tiny_bert, "--data", str(data), "--output", str(output))
    assert complaint in line
    assert str(data) in line
    assert not output.exists()


@pytest.mark.parametrize(
    "arguments",
    [["--teachers", "A", "B"], ["--teachers", "A", "--teachers", "B"], ["--teachers=A", "--teachers", "B"]],
)
def test_command_and_job_take_several_teachers(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[TeacherLogitsConfig] = []

    def stage(config: TeacherLogitsConfig, output: str, progress: Any = None) -> TeacherLogitsReport:
        asked.append(config)
        return REPORT

    monkeypatch.setattr("tinyqa_ray.teacher_logits.teacher_logits", stage)
    given = [*arguments, "--data", "d", "--combine", "apart", "--output", "o"]
    main.main(["teacher-logits", *given])
    monkeypatch.setattr("sys.argv", ["teacher_logits.py", *given])
    main.run_job(stage, TeacherLogitsConfig)
    assert asked == [TeacherLogitsConfig(data="d", teachers=("A", "B"), combine="apart")] * 2
    assert '"windows": 3' in capsys.readouterr().out


def test_objectives_and_layers_come_with_commas_in_command_and_job(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[DistillConfig] = []

    def stage(config: DistillConfig, output: str, progress: Any = None) -> TeacherLogitsReport:
        asked.append(config)
        return REPORT

    monkeypatch.setattr("tinyqa_ray.distill.distill", stage)
    line = "--data d --student s --objective labels,prediction --objective-weights 1,.5 --student-layers=1,3"
    main.main(["distill", *line.split(), "--output", "o"])
    monkeypatch.setattr("sys.argv", ["distill.py", *line.split(), "--output", "o"])
    main.run_job(stage, DistillConfig, recipes=True)
    config = DistillConfig(
        data="d",
        student="s",
        objective=("labels", "prediction"),
        objective_weights=(1.0, 0.5),
        student_layers=(1, 3),
    )
    assert asked == [config, config]
    capsys.readouterr()


def test_recipe_runs_its_stages_and_prints_their_reports(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    asked: list[tuple[Recipe, str, tuple[str, ...]]] = []

    def run(recipe: Recipe, output: str, starting: Any, done: Any, chosen: Any) -> list[StageResult]:
        asked.append((recipe, output, chosen))
        starting("windows")(1, 2)
        result = StageResult(
            name="windows", report=REPORT, seconds=2.5, was_finished=False, output="o/windows"
        )
        done(result)
        return [result]

    monkeypatch.setattr("tinyqa_ray.recipes.run.run", run)
    line = ["distill", "--recipe", "tinybert", "--output", "o", "--data", "d.json", "--stage=windows"]
    main.main(line)
    printed = capfd.readouterr()
    stage = {"stage": "windows", "output": "o/windows", "was_finished": False, "seconds": 2.5}
    summary = {
        "recipe": "tinybert",
        "output": "o",
        "stages": [{**stage, **json.loads(json.dumps(asdict(REPORT)))}],
    }
    assert json.loads(printed.out) == summary
    assert "windows: 3 windows of 2 questions in 2 s" in printed.err
    assert asked == [(published.tinybert("d.json"), "o", ("windows",))]

    for job in ("distill", "pipeline"):
        monkeypatch.setattr("sys.argv", [f"jobs/{job}.py", *line[1:]])
        runpy.run_path(str(JOBS / f"{job}.py"), run_name="__main__")
        (printed_line,) = capfd.readouterr().out.splitlines()
        assert json.loads(printed_line) == summary
    assert asked == [asked[0]] * 3


def test_job_says_in_one_line_what_it_made_and_whether_it_was_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = str(tmp_path / "out")

    def stage(config: TeacherLogitsConfig, output: str) -> TeacherLogitsReport:
        with stage_folder.stage(output, config) as folder:
            return folder.report(TeacherLogitsReport) if folder.finished else folder.publish(REPORT)

    monkeypatch.setattr(
        "sys.argv", ["jobs/teacher_logits.py", "--data", "d", "--teachers", "m", "--output", output]
    )
    for was_finished in (False, True):
        main.run_job(stage, TeacherLogitsConfig)
        printed = capsys.readouterr()
        expected = {"stage": "teacher-logits", "output": output, "was_finished": was_finished}
        assert json.loads(printed.out) == {**expected, **json.loads(json.dumps(asdict(REPORT)))}
        said = f"{output}: was finished, nothing is left to do\n"
        assert printed.err == (said if was_finished else "")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ("--output o", "--data"),
        ("--data d --output o --rows-per-shrad 2", "Unrecognized options: --rows-per-shrad, 2"),
        ("--data d --output o --rows-per-shard two", "--rows-per-shard: invalid literal"),
        ("--data d --output o --rows-per-shard 0", "rows_per_shard is 0; it must be at least 1"),
    ],
)
def test_mistake_of_a_job_is_one_line_that_points_to_its_help(
    arguments: str, complaint: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["jobs/teacher_logits.py", *arguments.split()])
    with pytest.raises(SystemExit) as stop:
        main.run_job(pytest.fail, TeacherLogitsConfig)
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("tinyqa: ")
    assert complaint in line
    assert line.endswith("(see jobs/teacher_logits.py --help)")


def test_pipeline_names_the_recipes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments, code in (["--help"], 0), (["--output", "o"], 2):
        monkeypatch.setattr("sys.argv", ["jobs/pipeline.py", *arguments])
        with pytest.raises(SystemExit) as stop:
            main.run_pipeline()
        assert stop.value.code == code
        printed = capsys.readouterr()
        assert "tinyroberta, tinybert, quickstart" in (printed.err if code else printed.out)
        assert (printed.out if code else printed.err) == ""


def test_there_is_a_job_for_every_stage_and_one_for_recipes() -> None:
    jobs = {path.stem for path in JOBS.glob("*.py")}
    stages = {"gather", "augment", "teacher_logits", "distill", "evaluate", "export", "answer"}
    assert jobs == {*stages, "pipeline"}


def test_job_of_export_stores_a_model_and_ends_with_its_summary(
    tiny_bert: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    half = tmp_path / "half"
    line = ["--model", tiny_bert, "--format", "safetensors", "--precision", "fp16", "--output", str(half)]
    sizes = ["--max-seq-len", "64", "--doc-stride", "16", "--max-query-len", "16"]
    monkeypatch.setattr("sys.argv", ["jobs/export.py", *line, *sizes])
    for was_finished in (False, True):
        runpy.run_path(str(JOBS / "export.py"), run_name="__main__")
        summary = json.loads(capsys.readouterr().out.splitlines()[-1])
        expected = {"stage": "export", "output": str(half), "was_finished": was_finished}
        assert summary.items() >= {**expected, "precision": "fp16"}.items()
    assert load_file(half / "model.safetensors")["qa_outputs.weight"].dtype == torch.float16


def test_recipe_mistakes_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ("distill", "--recipe", "tinybert", "--output", str(tmp_path))
    assert "--learning-rate" in refused(capsys, *command, "--learnin-rate", "1")
    assert "batch_size is 0" in refused(capsys, *command, "--student.batch-size", "0")
    assert "recipe 'bert' is unknown" in refused(capsys, "distill", "--recipe", "bert")
    line = refused(capsys, *command, "--stage", "student")
    assert "stage student reads teacher-logits and intermediate, not finished in" in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments", [["--help"], ["distill", "--help"], ["distill", "--recipe=tinybert", "-h"]]
)
def test_reader_who_leaves_early_ends_it_quietly(arguments: list[str]) -> None:
    command = [sys.executable, "-u", "-m", "tinyqa_ray", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


def test_help_of_a_recipe_is_light() -> None:
    """Torch and Ray take seconds to import."""
    script = (
        "import sys\nfrom contextlib import suppress\nfrom tinyqa_ray.cli.main import main\n"
        "with suppress(SystemExit): main(['distill', '--recipe', 'tinyroberta', '--help'])\n"
        "print(*({'torch', 'ray', 'transformers', 'datasets', 'matplotlib'} & sys.modules.keys()))"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "--large-teacher" in ran.stdout
    assert ran.stdout.splitlines()[-1] == ""


def test_folder_of_another_config_is_refused_with_the_difference(
    tiny_bert: str, tiny_squad: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ("evaluate", "--model", tiny_bert, "--data", tiny_squad, "--output", str(tmp_path / "out"))
    sizes = ("--max-seq-len", "64", "--doc-stride", "16", "--max-query-len", "16")
    main.main([*command, *sizes])
    assert json.loads(capsys.readouterr().out)["questions"] == 24
    line = refused(capsys, *command, *sizes, "--max-answer-tokens", "5")
    assert "max_answer_tokens 30 there, 5 here" in line


def test_traceback_free_in_a_process_of_its_own() -> None:
    command = [
        sys.executable,
        "-m",
        "tinyqa_ray",
        "score",
        "--data",
        "absent.json",
        "--predictions",
        "absent.json",
    ]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 2
    assert ran.stderr.strip() == "tinyqa: absent.json: no such file"


def test_finished_stage_is_told_without_loading_what_it_works_with(
    tiny_bert: str, tiny_squad: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Torch, transformers and Ray take seconds to load, longer than all that is left to do."""
    command = ["evaluate", "--model", tiny_bert, "--data", tiny_squad, "--output", str(tmp_path / "out")]
    command += ["--max-seq-len", "64", "--doc-stride", "8", "--max-query-len", "20"]
    main.main(command)
    said = capsys.readouterr().out
    script = (
        f"import sys\nfrom tinyqa_ray.cli.main import main\nmain({command!r})\nprint('LOADED', *sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    again, _, loaded = ran.stdout.partition("LOADED")
    assert json.loads(again) == json.loads(said)
    assert [name for name in ("torch", "ray", "transformers") if name in loaded.split()] == []
