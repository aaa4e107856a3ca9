"""The work of the export stage: export a model, measure the loss of F1, and write the files."""

from __future__ import annotations

import copy
import logging
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tinyqa_ray.configs import ExportConfig
from tinyqa_ray.core import processor, stage_folder, storage
from tinyqa_ray.core.cluster import quiet_models
from tinyqa_ray.core.errors import InputError
from tinyqa_ray.datasets.windows import Windower
from tinyqa_ray.engines.engine import Engine, padded
from tinyqa_ray.engines.exported import FILE, ONNX_FILES
from tinyqa_ray.engines.onnx_engine import OnnxEngine
from tinyqa_ray.engines.openvino import OpenVinoEngine
from tinyqa_ray.engines.torch_engine import TorchEngine
from tinyqa_ray.evaluate import measure
from tinyqa_ray.export.onnx_format import down_projections_onnx, quantise_onnx, write_onnx
from tinyqa_ray.export.quantise import converted, down_projections, quantised
from tinyqa_ray.export.report import ExportReport, Figures
from tinyqa_ray.models import families, hub, pretrained
from tinyqa_ray.models.settings import ModelSettings, write_settings
from tinyqa_ray.models.soup import averaged
from tinyqa_ray.reader.reader import Reader

_log = logging.getLogger(__name__)

_ALL, _MAPS, _MAPS_AND_OUTPUTS = "all", "attention maps", "attention maps, ffn outputs"
"""Which matrix products stay in float."""
_CARD = "README.md"


@dataclass(frozen=True, slots=True)
class _Made:
    """An exported model."""

    engine: Engine
    float_products: str
    """Which matrix products stayed in float."""
    write: Callable[[Path], None]
    """Writes its files and its configuration into a folder."""


@dataclass(frozen=True, slots=True)
class _Trial:
    """An exported model and its scores."""

    made: _Made
    figures: Figures | None

    def drop(self, model: Figures | None) -> float:
        """F1 lost, in points, with or without abstaining, whichever lost more."""
        if model is None or self.figures is None:
            return 0.0
        drop = model.f1 - self.figures.f1
        if model.forced_f1 is not None and self.figures.forced_f1 is not None:
            drop = max(drop, model.forced_f1 - self.figures.forced_f1)
        return drop


def work(
    config: ExportConfig,
    settings: ModelSettings,
    stage: stage_folder.Stage,
    progress: stage_folder.Progress | None,
) -> ExportReport:
    """Export the model, check its loss of F1, and write it into the stage's folder."""
    quiet_models()
    if config.weight_bits == 8 and processor.saturates_int8():
        raise InputError(
            "weight_bits is 8, with which this processor, without VNNI, computes wrongly, so the loss of F1 "
            "cannot be checked here; use 7, or export on a processor with VNNI"
        )
    if config.precision == "int8" and config.format != "onnx" and processor.saturates_int8():
        _log.warning(
            "OpenVINO's int8 is slower than fp32 on processors without VNNI, such as this one; if the export "
            "is for such a processor, use --format onnx"
        )
    config = hub.pinned(config, stage, "model", "soup_with", data=("calibration",))
    seen, held_out = _split(config)
    network = averaged(pretrained.load_qa_model(config.model), config.model, config.soup_with)
    pretrained.check_window(config.model, network.config, config.window.max_seq_len)
    windower = Windower(pretrained.load_tokenizer(config.model), config.window)

    def figures(engine: Engine) -> Figures | None:
        reader = Reader(engine, windower, settings)
        return _figures(reader, held_out, config.max_answer_tokens, progress)

    wanted = figures(TorchEngine(network, device="cpu"))
    tried = []
    with tempfile.TemporaryDirectory() as scratch:
        if config.format == "safetensors":
            candidates = _weights(config, network)
        elif config.format == "onnx":
            candidates = _onnx_candidates(config, network, windower, seen, Path(scratch))
        else:
            candidates = _openvino_candidates(config, network, windower, seen)
        for made in candidates:
            trial = _Trial(made, figures(made.engine))
            if trial.drop(wanted) <= config.max_f1_drop:
                break
            tried.append(trial)
        else:
            raise InputError(_too_much_lost(config, wanted, tried, len(held_out)))
        megabytes = _save(trial.made, config, settings, stage)
    return ExportReport(
        format=config.format or "openvino",
        precision=config.precision,
        float_products=trial.made.float_products,
        megabytes=megabytes,
        questions=len(held_out),
        model=wanted,
        export=trial.figures,
    )


def _split(config: ExportConfig) -> tuple[list[measure.Asked], list[measure.Asked]]:
    """Questions to calibrate with, and others to check on."""
    if config.calibration is None:
        if config.precision == "int8":
            raise InputError("int8 has to see real windows; give SQuAD data with --calibration")
        return [], []
    asked = measure.questions_of(config.calibration)
    wanted = config.calibration_questions if config.precision == "int8" else 0
    if len(asked) <= wanted:
        raise InputError(
            f"{config.calibration}: holds {len(asked)} questions, but calibration_questions is {wanted}, and "
            "others are needed to check the export; give more data, or lower calibration_questions"
        )
    order = np.random.default_rng(config.seed).permutation(len(asked))
    # In the order of the data, which keeps the questions of a context together.
    check = np.sort(order[wanted : wanted + config.check_questions])
    return [asked[i] for i in order[:wanted]], [asked[i] for i in check]


def _openvino_candidates(
    config: ExportConfig, network: Any, windower: Windower, seen: Sequence[measure.Asked]
) -> Iterator[_Made]:
    """Exports to OpenVINO to try, the fastest first."""
    import openvino

    def made(model: Any, left: str) -> _Made:
        def write(folder: Path) -> None:
            openvino.save_model(model, folder / FILE, compress_to_fp16=False)
            network.config.save_pretrained(folder)

        return _Made(OpenVinoEngine(model, network.config), left, write)

    model = converted(network, config.precision)
    if config.precision != "int8":
        yield made(model, _ALL)
        return
    names = [port.get_any_name() for port in model.inputs]
    samples = list(_samples(windower, seen, names, network.config.pad_token_id or 0))
    outputs = down_projections(model, network.config)
    for products, left in (([], _MAPS), (outputs, _MAPS_AND_OUTPUTS)):
        yield made(quantised(model, samples, products, weight_bits=config.weight_bits), left)


def _weights(config: ExportConfig, network: Any) -> Iterator[_Made]:
    """The model with weights of another type, which engines read back in their own."""
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[config.precision]
    stored = copy.deepcopy(network).to(dtype)
    for name, weight in stored.named_parameters():
        if not weight.isfinite().all():
            raise InputError(
                f"{config.model}: {name} has values that {config.precision} cannot hold; use bf16"
            )
    read_back = copy.deepcopy(stored).float()
    yield _Made(TorchEngine(read_back, device="cpu"), _ALL, stored.save_pretrained)


def _onnx_candidates(
    config: ExportConfig, network: Any, windower: Windower, seen: Sequence[measure.Asked], scratch: Path
) -> Iterator[_Made]:
    """Exports to ONNX to try, the fastest first; their files lie in ``scratch``."""
    name = ONNX_FILES[config.precision]

    def made(file: Path, left: str) -> _Made:
        def write(folder: Path) -> None:
            (folder / name).parent.mkdir()
            shutil.copyfile(file, folder / name)
            network.config.save_pretrained(folder)

        return _Made(OnnxEngine(file, network.config), left, write)

    plain = scratch / "model.onnx"
    write_onnx(network, plain)
    if config.precision == "fp32":
        yield made(plain, _ALL)
        return
    names = families.input_names(network)
    samples = list(_samples(windower, seen, names, network.config.pad_token_id or 0))
    outputs = down_projections_onnx(plain, network.config)
    for number, (products, left) in enumerate((([], _MAPS), (outputs, _MAPS_AND_OUTPUTS))):
        file = scratch / f"int8-{number}.onnx"
        quantise_onnx(plain, file, products, samples, weight_bits=config.weight_bits)
        yield made(file, left)


def _samples(
    windower: Windower, seen: Sequence[measure.Asked], names: Sequence[str], pad_id: int
) -> Iterator[dict[str, Any]]:
    """Inputs for the exported model, one window at a time."""
    windows = windower.windows([(each.question.question, each.context) for each in seen])
    for window in range(len(windows)):
        ids, mask, types = padded(windows, np.array([window]), pad_id)
        values = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
        yield {name: values[name] for name in names}


def _figures(
    reader: Reader,
    asked: Sequence[measure.Asked],
    max_answer_tokens: int,
    progress: stage_folder.Progress | None,
) -> Figures | None:
    if not asked:
        return None
    measure.read(reader, asked[:16], max_answer_tokens)  # warm-up
    readings, seconds = measure.read(reader, asked, max_answer_tokens, progress)
    scored = measure.Scored.of(asked, readings).summary(reader.settings.no_answer_threshold)
    return Figures(f1=scored.f1, forced_f1=scored.forced_f1, questions_per_s=len(asked) / seconds)


def _too_much_lost(
    config: ExportConfig, wanted: Figures | None, tried: Sequence[_Trial], questions: int
) -> str:
    assert wanted is not None, "without data nothing is compared"
    found = [f"{_both(trial.figures)} with {trial.made.float_products} in float" for trial in tried]
    return (
        f"{config.model}: {config.precision} loses {min(trial.drop(wanted) for trial in tried):.2f} F1, more "
        f"than max_f1_drop {config.max_f1_drop}: {_both(wanted)} before, {'; '.join(found)}, on {questions} "
        "questions; calibrate on data more like yours, raise --max-f1-drop, or use "
        f"--precision {'fp32' if config.format == 'onnx' else 'bf16'}"
    )


def _both(figures: Figures | None) -> str:
    assert figures is not None
    forced = "" if figures.forced_f1 is None else f" (forced {figures.forced_f1:.2f})"
    return f"F1 {figures.f1:.2f}{forced}"


def _save(made: _Made, config: ExportConfig, settings: ModelSettings, stage: stage_folder.Stage) -> float:
    """Write the model with its tokenizer, settings and card; return its size in megabytes."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        made.write(folder)
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 1e6
        pretrained.load_tokenizer(config.model).save_pretrained(folder)
        if config.format == "safetensors" and not config.soup_with:
            _copy_card(config.model, folder)
        for file in sorted(each for each in folder.rglob("*") if each.is_file()):
            storage.write_atomic(stage.path(file.relative_to(folder).as_posix()), file.read_bytes())
    write_settings(stage.output, settings)
    return round(size, 1)


def _copy_card(model: str, folder: Path) -> None:
    """Copy a model's card, if it has one: smaller weights are the same model, a mean of several is not."""
    with pretrained.readable(model, weights=False) as own:
        card = Path(own) / _CARD
        if card.is_file():
            shutil.copyfile(card, folder / _CARD)
