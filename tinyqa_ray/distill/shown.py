"""What a training stage shows: curves while it runs, a page and a model card at the end."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

from tinyqa_ray.configs import LAYER_OBJECTIVES, DistillConfig
from tinyqa_ray.core import stage_folder, storage, version
from tinyqa_ray.core.errors import InputError, StoreError
from tinyqa_ray.core.names import display_name
from tinyqa_ray.distill.card import ModelCard, model_card
from tinyqa_ray.distill.metrics_log import read_rows
from tinyqa_ray.distill.page import ModelFigures, TrainingPage, training_html
from tinyqa_ray.distill.report import DistillReport
from tinyqa_ray.distill.trackers import MLflow, TensorBoard, Tracker
from tinyqa_ray.distill.watch import dev_figures
from tinyqa_ray.engines.exported import is_exported
from tinyqa_ray.models import weights
from tinyqa_ray.teacher_logits.window_dataset import window_sizes, window_teachers

_log = logging.getLogger(__name__)

METRICS = "metrics.jsonl"
DEV = "dev"
MODEL = "model"
REPORT = "report.html"
_TENSORBOARD = "tensorboard"
_MLFLOW = "mlflow.json"


def trackers(config: DistillConfig, stage: stage_folder.Stage) -> list[Tracker]:
    """TensorBoard's and, if ``config.mlflow`` is set, MLflow's; a resumed training continues its MLflow run.

    Raises:
        InputError: MLflow is not installed or cannot be used.
    """
    found: list[Tracker] = []
    if config.mlflow is not None:
        kept = stage.path(_MLFLOW)
        run_id = storage.read_json(kept)["run_id"] if storage.kind(kept) == "file" else None
        name = stage.output.rstrip("/").rsplit("/", 1)[-1]
        mlflow = MLflow(config.mlflow, name, stage_folder.identity_fields(config), run_id)
        storage.write_json(kept, {"run_id": mlflow.run_id})
        found.append(mlflow)
    return [TensorBoard(stage.path(_TENSORBOARD)), *found]


def show(
    config: DistillConfig, stage: stage_folder.Stage, report: DistillReport, hardware: dict[str, Any]
) -> None:
    """Write the page of the run and the card of its model; Ray tasks measure the models to compare with."""
    dev = dev_figures(stage.path(DEV))
    others = list(_others(config, stage)) if config.dev is not None else []
    figures = {int(row["step"]): row for row in dev}
    student = _figures("student", figures.get(report.published_step, {}), report.parameters)
    students = [student]
    if dev:
        best = max(dev, key=lambda row: (row["best_f1"], row["step"]))
        for name, row in (("student, last", dev[-1]), (f"student, best (step {best['step']})", best)):
            if row["step"] != report.published_step:
                students.append(_figures(name, row, report.parameters))
    facts = {**hardware, **version.versions()}
    recipe = stage_folder.identity_fields(config)
    page = TrainingPage(
        title=f"{display_name(stage.output)}: {', '.join(config.objective)}",
        facts=tuple((name, _shown(value)) for name, value in {**recipe, **facts}.items()),
        rows=read_rows(stage.path(METRICS)),
        dev=dev,
        models=(*students, *others),
    )
    _write(stage.path(REPORT), training_html(page))
    card = ModelCard(
        name=display_name(stage.output),
        student=config.student,
        model=student,
        max_seq_len=window_sizes(config.data).max_seq_len,
        recipe=recipe,
        data=_sources(config.data),
        teachers=tuple(_teachers(config)),
        dev=config.dev,
        compared=tuple(others),
        hardware=tuple((name, str(value)) for name, value in hardware.items()),
        versions=version.versions(),
    )
    _write(stage.path(MODEL, "README.md"), model_card(card))


def _write(path: str, text: str) -> None:
    """Write a page for people to read; if that fails, say so: the student is trained."""
    try:
        storage.write_atomic(path, text.encode())
    except (InputError, StoreError, OSError) as error:
        _log.warning("a page of this run could not be written (%s)", error)


def _teachers(config: DistillConfig) -> list[str]:
    """The models that taught, each once."""
    beside = [config.teacher] if any(name in LAYER_OBJECTIVES for name in config.objective) else []
    logits = window_teachers(config.data) if "prediction" in config.objective else ()
    return list(dict.fromkeys([*logits, *(name for name in beside if name is not None)]))


def _others(config: DistillConfig, stage: stage_folder.Stage) -> Iterator[ModelFigures]:
    """Figures on dev of the teachers that answer questions, and of the baseline."""
    named = [("teacher", f"teacher-{number}", model) for number, model in enumerate(_teachers(config))]
    if config.baseline is not None:
        named.append(("baseline", "baseline", config.baseline))
    for role, file_name, model in named:
        file = stage.path(DEV, f"{file_name}.json")
        if storage.kind(file) != "file":
            try:
                if not is_exported(model):
                    weights.check_qa_model(model)
            except InputError:
                continue  # it is gone, or has no head: there is nothing to compare
            storage.write_json(file, {"model": model, **_measured(config, model)})
        figures = storage.read_json(file)
        yield _figures(f"{role} {display_name(model)}", figures, int(figures["parameters"]), role)


def _measured(config: DistillConfig, model: str) -> dict[str, Any]:
    """Measure a model on dev in a Ray task."""
    import ray

    from tinyqa_ray.evaluate.work import measured

    assert config.dev is not None
    paths = [
        path if storage.kind(path) == "absent" else storage.absolute(path) for path in (model, config.dev)
    ]
    gpus = int(config.use_gpu)  # the workers, which held them, are gone
    task = ray.remote(measured).options(num_cpus=1, num_gpus=gpus)
    figures: dict[str, Any] = ray.get(
        task.remote(*paths, window_sizes(config.data), device="cuda" if gpus else "cpu")
    )
    return figures


def _figures(name: str, row: dict[str, Any], parameters: int, role: Any = "student") -> ModelFigures:
    kept = {key: value for key, value in row.items() if key not in ("step", "model", "parameters")}
    return ModelFigures(name=name, figures=kept, parameters=parameters, role=role)


def _sources(data: str) -> tuple[str, ...]:
    """Data that a folder of windows was made of, traced back through augmentation and gathering."""
    if not stage_folder.is_finished(data):
        return (data,)
    config = storage.read_json(storage.join(data, stage_folder.SUCCESS))["config"]
    given = config["data"] if isinstance(config["data"], list) else [config["data"]]
    asked = [config[name] for name in ("documents", "questions") if config.get(name) is not None]
    return tuple(dict.fromkeys(source for each in (*given, *asked) for source in _sources(each)))


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return "–" if value is None else str(value)
