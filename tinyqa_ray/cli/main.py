"""``tinyqa``: parse, call one function of one config, print. Libraries load when a command needs them."""

from __future__ import annotations

import contextlib
import functools
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Annotated, Any, Literal

import tyro

from tinyqa_ray import configs
from tinyqa_ray.cli import arguments, recipe_arguments
from tinyqa_ray.configs import renamed
from tinyqa_ray.core import bundled, stage_folder
from tinyqa_ray.core.errors import InputError
from tinyqa_ray.core.version import __version__

_ABOUT = "Small question-answering models: made by distillation, run over corpora, on Ray."
_app = tyro.extras.SubcommandApp()
_commands: dict[str, Callable[..., Callable[[], None]]] = {}


def command(function: Callable[..., None]) -> Callable[..., None]:
    """Register a subcommand; parsing only returns the call, so that its errors are not taken for tyro's."""

    @functools.wraps(function)
    def bound(*values: Any, **options: Any) -> Callable[[], None]:
        return functools.partial(function, *values, **options)

    name = function.__name__.replace("_", "-")
    _commands[name] = _app.command(name=name)(bound)
    return function


def main(words: Sequence[str] | None = None) -> None:
    """Run the shell's command; a user's mistake is one line on stderr and exit code 2."""
    given = list(sys.argv[1:] if words is None else words)
    if given == ["--version"]:
        print(f"tinyqa {__version__}")
        return
    name, *rest = given or [""]
    with arguments.mistakes_in_one_line():
        if name == "distill" and recipe_arguments.names_recipe(rest):
            _run_recipe("tinyqa distill", rest)
        elif name == "evaluate" and _names_suites(rest):
            _suites("tinyqa evaluate", rest)()
        elif name in _commands:
            renamed.refuse_old_options(rest, name)
            arguments.parsed(_commands[name], rest, f"tinyqa {name}")()
        else:
            with arguments.pointing_to_help("tinyqa"):
                arguments.refused_in_one_line(lambda: _app.cli(prog="tinyqa", description=_ABOUT, args=given))


def run_job(stage: Callable[..., Any], config: type, *, recipes: bool = False, suites: bool = False) -> None:
    """The door of a job: parse a config and ``--output``, run, print a JSON summary as the last line.

    With ``recipes``, ``--recipe`` may ask for the stages of a recipe instead; with ``suites``, ``--suite`` or
    ``--suite-folder`` for test sets.
    """

    def job(config: Any, output: str) -> Callable[[], None]:
        return functools.partial(_summary, stage, config, output)

    job.__annotations__ = {"config": config, "output": str}
    program, *given = sys.argv
    with arguments.mistakes_in_one_line():
        if recipes and recipe_arguments.names_recipe(given):
            _run_recipe(program, given, as_job=True)
            return
        if suites and _names_suites(given):
            _suites(program, given, as_job=True)()
            return
        renamed.refuse_old_options(given, stage_folder.stage_name(config))
        arguments.parsed(job, given, program)()


def run_pipeline() -> None:
    """The door of the job that runs a whole recipe; takes ``--recipe`` as ``tinyqa distill`` does."""
    with arguments.mistakes_in_one_line():
        _run_recipe(sys.argv[0], sys.argv[1:], as_job=True)


@command
def quickstart(output: str = "runs/quickstart", teacher: str | None = None) -> None:
    """Run every stage on bundled real data, in minutes, and show the answers.

    Args:
        output: Folder of all stages; run again, only what is left is done.
        teacher: Encoder or question-answering model to make the teacher of: a folder or hub id. The model of
            the package is the teacher, as it is, when not given.
    """
    from tinyqa_ray.cli import console
    from tinyqa_ray.recipes.quickstart import quickstart as recipe

    console.run_quickstart(recipe(teacher), output)


@command
def ask(
    question: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="QUESTION")],
    model: str = bundled.MODEL,
    settings: str | None = None,
    context: str | None = None,
    file: tuple[str, ...] = (),
    top_k: int | Literal["all"] = 1,
    min_score: float = 0.0,
    evidence: bool = False,
    max_answer_tokens: int = 30,
    threshold: float | None = None,
    precision: str | None = None,
    verbose: Annotated[bool, tyro.conf.arg(aliases=["-v"])] = False,
) -> None:
    """Ask a question of a text, and print the answer, its score and its offsets.

    Args:
        question: What to ask.
        model: Folder or hub id with a question-answering head, or an export; tinyqa-mini is the model of the
            package, tinyqa-mini-int8 its faster form for CPUs (extra 'cpu'), made on first use.
        settings: Threshold and scale of scores: the output of tinyqa evaluate, or a settings file; those
            beside the model, if any, when not given.
        context: The text to read.
        file: Files to read instead: UTF-8 text, PDF, DOCX, PPTX, HTML, Markdown or EPUB (extra
            'documents').
        top_k: Answers to print, best first; 'all' are those that the model holds for an answer, each by
            itself at the threshold.
        min_score: Answers with a lower score are left out.
        evidence: Print equal answers as one, with every place that says it and the sentence around it.
        max_answer_tokens: Longest answer, in tokens.
        threshold: Print 'no answer' when the probability of no answer is above it; that of the settings when
            not given, 1 always answers.
        precision: auto takes the fastest engine of this machine, which pays for long files: that of the
            package's model is made on first use; a name that tinyqa engines prints fixes one. When not given,
            the model is read as it is.
        verbose: Print the name of the engine, too.
    """
    if (context is None) == (not file):
        raise InputError("give the text either with --context or with --file")
    from tinyqa_ray.cli import asking
    from tinyqa_ray.core.cluster import quiet_models
    from tinyqa_ray.reader import Reader

    texts = {"": context} if context is not None else {each: asking.document(each) for each in file}
    wanted = asking.Wanted(
        top_k=top_k,
        min_score=min_score,
        max_answer_tokens=max_answer_tokens,
        threshold=threshold,
        evidence=evidence,
    )
    quiet_models()
    reader = Reader.from_pretrained(model, settings=settings, precision=precision)
    if verbose:
        print(f"engine: {reader.engine.name}", file=sys.stderr)
    for lines in asking.told(reader, question, texts, wanted):
        print(lines)


@command
def evaluate(config: configs.EvaluateConfig, output: str) -> None:
    """Measure a model on SQuAD 2.0 questions: metrics.json, predictions, and a page to read.

    With --suite squad2, squad1, xquad-en, adversarial_qa, squadshifts or mrqa, or with --suite-folder, it
    measures several models on public test sets or a folder of files instead, into one table:
    tinyqa evaluate --suite squad2 --help.

    Args:
        config: What to measure.
        output: Folder for the results.
    """
    from tinyqa_ray.evaluate import evaluate as stage

    report = _run_stage("questions", stage, config, output)
    print(f"report: {output}/report.html", file=sys.stderr)
    if any((config.fit_threshold, config.fit_temperature, config.fit_first_pass)):
        print(f"fitted: use it with --settings {output}", file=sys.stderr)
    _fail_below(config, report)


@command
def score(data: str, predictions: str, na_probs: str | None = None, na_prob_threshold: float = 1.0) -> None:
    """Print the official SQuAD 2.0 evaluator's JSON for a file of predictions.

    Args:
        data: SQuAD 2.0 JSON with the gold answers.
        predictions: JSON object: question id to answer text.
        na_probs: JSON object: question id to the probability that there is no answer.
        na_prob_threshold: A question whose probability is above it counts as left unanswered.
    """
    from tinyqa_ray.evaluate.score_files import score_files

    print(json.dumps(score_files(data, predictions, na_probs, na_prob_threshold), indent=2))


@command
def export(config: configs.ExportConfig, output: str) -> None:
    """Export a model for CPUs, or as smaller safetensors, and check what that costs in F1.

    OpenVINO, the default, and ONNX need the extra 'cpu'; safetensors needs none.

    Args:
        config: What to export, and how much F1 it may lose.
        output: Folder for the export, which every command takes as --model.
    """
    from tinyqa_ray.export import export as stage

    _run_stage("questions", stage, config, output)


@command
def engines(
    model: str = bundled.MODEL,
    calibration: str | None = None,
    forms: Literal["all", "int8", "fp32", "shipped-int8", "none"] = "all",
    threads: int = 0,
    again: bool = False,
    json_: Annotated[bool, tyro.conf.arg(name="json")] = False,
) -> None:
    """Time every engine that can run a model on this CPU, and show which one 'auto' takes.

    Exports of the model that are not there yet are made first and kept in the cache folder, where precision
    'auto', tinyqa serve and tinyqa answer find them.

    Args:
        model: Folder, URL or hub id of a model with a question-answering head.
        calibration: SQuAD 2.0 data similar to what the model will read, which int8 needs; without it no int8
            export is made. The shipped model has its own.
        forms: Precisions of the exports to make; those made before are timed in any case. shipped-int8 is
            the one int8 that is the faster one on this kind of processor, as tinyqa-mini-int8 takes it.
        threads: Threads to time with; 0 uses the machine's cores.
        again: Time engines that were timed before, too.
        json_: Print JSON.
    """
    from tinyqa_ray.cli import engine_table

    made = engine_table.compared(model, calibration=calibration, forms=forms, threads=threads, again=again)
    print(json.dumps(asdict(made)) if json_ else engine_table.text(made))


@command
def browser(
    output: str,
    model: str = bundled.MODEL,
    precision: Literal["int8", "fp32"] = "int8",
) -> None:
    """Write a page that answers questions in the browser: a folder that anything can serve; needs npm.

    Args:
        output: Folder for the page, its model and its WebAssembly; python -m http.server serves it.
        model: A folder that tinyqa export --format onnx wrote, or a model; int8 is made here of the shipped
            model only.
        precision: Of the model that the page fetches.
    """
    from tinyqa_ray.serve.browser import build

    print(json.dumps(asdict(build(model, output, precision=precision)), indent=2))


@command
def push(
    model: str, repo: str, settings: str | None = None, private: bool = False, message: str | None = None
) -> None:
    """Upload a model's folder to the Hugging Face hub, with its card and settings, and print its address.

    Args:
        model: Folder of the model.
        repo: Id on the hub, such as user/name; made where it is not there yet.
        settings: Threshold and scale of scores to upload with it: the output of tinyqa evaluate, or a
            settings file; those beside the model, if any, when not given.
        private: Make a repository that only its owners see.
        message: What the commit says.
    """
    from tinyqa_ray.models.push import push as upload

    print(upload(model, repo, settings=settings, private=private, message=message).url)


@command
def convert(model: str, output: str) -> None:
    """Write a model whose weights are pickled (pytorch_model.bin) as a folder with safetensors.

    Args:
        model: Folder or hub id.
        output: Folder for the model, which every command takes as --model.
    """
    from tinyqa_ray.models.convert import convert as write

    print(json.dumps(asdict(write(model, output)), indent=2))


@command
def gather(config: configs.GatherConfig, output: str) -> None:
    """Put SQuAD data of several sources together; leave articles out, or make unanswerable questions.

    Args:
        config: What to gather.
        output: Folder for the paragraphs.
    """
    from tinyqa_ray.gather import gather as stage

    _run_stage("paragraphs", stage, config, output)


@command
def augment(config: configs.AugmentConfig, output: str) -> None:
    """Make copies of SQuAD paragraphs with some words replaced by others that fit; answers stay as they are.

    Args:
        config: How copies are made.
        output: Folder for the paragraphs; run again, it continues.
    """
    from tinyqa_ray.augment import augment as stage

    _run_stage("paragraphs", stage, config, output)


@command
def teacher_logits(config: configs.TeacherLogitsConfig, output: str) -> None:
    """Write windows of tokens with labels and, with --teachers, the logits of one or several teachers.

    Args:
        config: What is cut into windows, and which teachers read them.
        output: Folder for the windows; run again, it continues.
    """
    from tinyqa_ray.teacher_logits import teacher_logits as stage

    _run_stage("paragraphs", stage, config, output)


@command
def distill(config: configs.DistillConfig, output: str) -> None:
    """Train a student on Ray Train: on labels, a teacher's layers, or its predictions.

    With --recipe tinyroberta, tinybert, mini or quickstart it runs the stages of a recipe instead:
    tinyqa distill --recipe tinyroberta --help.

    Args:
        config: The training stage.
        output: Folder for the student; run again, it continues.
    """
    from tinyqa_ray.distill import distill as stage

    _run_stage("steps", stage, config, output)


@command
def answer(config: configs.AnswerConfig, output: str) -> None:
    """Answer questions about a corpus of documents into Parquet.

    Args:
        config: Model, documents and questions.
        output: Folder for the answers; run again, it continues.
    """
    from tinyqa_ray.answer import answer as stage

    _run_stage("questions", stage, config, output)


@command
def serve(
    config: configs.ServeConfig, host: str = "127.0.0.1", port: int = 8000, drain_s: float = 0.0
) -> None:
    """Answer questions over HTTP, with a page to try at /, until stopped.

    Args:
        config: The model, its replicas, and the limits of requests.
        host: Address to listen on; 0.0.0.0 for all, which wants a key.
        port: Port to listen on.
        drain_s: Seconds in which /health says 503 while requests are still taken, once told to stop.
    """
    from tinyqa_ray.cli import console
    from tinyqa_ray.serve import server

    with console.native_noise_in_a_file():
        server.run(config, host=host, port=port, drain_s=drain_s, ready=_served)


def _served(url: str) -> None:
    print(f"{url} answers; its page is there, its documentation at {url}/docs; Ctrl-C stops it", flush=True)


@command
def mcp(
    config: configs.McpConfig,
    transport: Literal["stdio", "http"] = "stdio",
    host: str = "127.0.0.1",
    port: int = 8001,
) -> None:
    """Answer programs that speak the Model Context Protocol, with evidence; needs the extra 'mcp'.

    Args:
        config: The model, and what may be asked.
        transport: stdio, as desktop programs start it, or streamable HTTP at /mcp.
        host: Address to listen on, with http; others than this machine's want a key in TINYQA_API_KEY.
        port: Port to listen on, with http.
    """
    from tinyqa_ray.core.cluster import quiet_models
    from tinyqa_ray.integrations.mcp import run

    quiet_models()
    run(config, transport, host, port)


def _run_stage(unit: str, stage: Callable[..., Any], config: Any, output: str) -> dict[str, Any]:
    """Run a stage with a progress bar, print its report as JSON, and return it."""
    from tinyqa_ray.cli import console

    report = console.run_stage(unit, stage, config, output)
    print(json.dumps(report, indent=2))
    return report


def _names_suites(words: Sequence[str]) -> bool:
    """Whether a command line asks for suites, not for one evaluation."""
    return any(word.partition("=")[0].replace("_", "-") in ("--suite", "--suite-folder") for word in words)


def _suites(program: str, words: Sequence[str], *, as_job: bool = False) -> Callable[[], None]:
    """The call that a command line with ``--suite`` or ``--suite-folder`` asks for."""

    def evaluate(config: configs.SuiteConfig, output: str) -> Callable[[], None]:
        """Measure models on public test sets or on a folder of files, into one table and a page to read.

        Args:
            config: What to measure.
            output: Folder for the results; run again, it continues.
        """
        return functools.partial(_run_suites, config, output, as_job=as_job)

    call: Callable[[], None] = arguments.parsed(evaluate, words, program)
    return call


def _run_suites(config: configs.SuiteConfig, output: str, *, as_job: bool) -> None:
    from tinyqa_ray.evaluate import evaluate_suites

    if as_job:
        _summary(evaluate_suites, config, output)
        return
    report = _run_stage("questions", evaluate_suites, config, output)
    print(f"report: {output}/report.html", file=sys.stderr)
    _fail_below(config, report)


def _fail_below(config: Any, report: dict[str, Any]) -> None:
    """End with exit code 1 and one line if a figure is below the least that was asked for.

    Args:
        config: of an evaluation or of suites; that of another stage asks for nothing.
        report: what the stage reported, as plain values.
    """
    if not getattr(config, "fail_below", ()):
        return
    from tinyqa_ray.configs.gates import gates
    from tinyqa_ray.evaluate import suite_report

    rows = report.get("rows") or [suite_report.of_evaluation(report, config.model, config.data)]
    said = suite_report.shortfalls(gates(config.fail_below), rows)
    if said:
        print(f"tinyqa: {'; '.join(said)}", file=sys.stderr)
        raise SystemExit(1)


def _summary(stage: Callable[..., Any], config: Any, output: str) -> None:
    """Run a stage, and print the summary that ends a job."""
    was_finished = stage_folder.is_finished(output)
    report = asdict(stage(config, output))
    if was_finished:
        print(f"{output}: was finished, nothing is left to do", file=sys.stderr)
    name = stage_folder.stage_name(config)
    made = {"stage": name, "output": output, "was_finished": was_finished, **report}
    print(json.dumps(made), flush=True)
    _fail_below(config, report)


def _run_recipe(program: str, words: Sequence[str], *, as_job: bool = False) -> None:
    """Run the stages that a command line with ``--recipe`` asks for, and print their reports as JSON."""
    call = recipe_arguments.recipe_call(words, program)
    from tinyqa_ray.cli import console

    # In a job, Ray's output belongs in the log.
    with contextlib.nullcontext() if as_job else console.native_noise_in_a_file():
        stages = console.run_recipe(call.recipe, call.output, call.stages)
    summary = {"recipe": call.recipe.name, "output": call.output, "stages": stages}
    print(json.dumps(summary, indent=None if as_job else 2))
