"""How a model is measured and exported."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tinyqa_ray.configs.checks import at_least, default
from tinyqa_ray.configs.data import WindowConfig
from tinyqa_ray.configs.gates import gates
from tinyqa_ray.configs.renamed import NEW_NAMES
from tinyqa_ray.core import bundled
from tinyqa_ray.core.errors import InputError
from tinyqa_ray.core.stage_folder import execution


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluateConfig:
    """How a model is measured on SQuAD 2.0 questions."""

    RENAMED = NEW_NAMES["evaluate"]

    model: str = bundled.MODEL
    """Folder or hub id of a model with a question-answering head."""
    data: str
    """SQuAD 2.0 JSON, a folder of paragraphs, or a hub id."""
    ensemble_with: tuple[str, ...] = ()
    """Other models with the same tokenizer. The mean of the logits of all models is measured, as if they were
    averaged as teachers, with the settings of ``model``."""
    settings: str | None = None
    """Threshold and scale of scores to measure with: the output of another evaluation, or a settings file.
    When not given, those beside the model are used, if any."""
    fit_threshold: str | None = None
    """Other SQuAD 2.0 data, on which the no-answer threshold is fitted. It is written to ``tinyqa.json`` in
    the output, which --settings accepts."""
    fit_temperature: str | None = None
    """Other SQuAD 2.0 data, on which the temperature and shift of scores are fitted, of best answers and of
    later ones. They are written to the same file."""
    fit_first_pass: str | None = None
    """Other SQuAD 2.0 data, to fit how many texts a first pass may leave unread in tinyqa answer. This is
    written to the same file; ``first-pass.json`` has the whole curve."""
    first_pass: str | None = None
    """Folder or hub id of the smaller model that reads first, or of an encoder of sentences."""
    first_pass_loss: float | None = None
    """Percent of the model's F1 that the first pass may cost on that data; 1 when not given."""
    first_pass_questions: int | None = None
    """Most questions of that data to fit on, spread evenly; 500 when not given."""
    first_pass_candidates: int | None = None
    """Texts of that data of which each question is asked, chosen by BM25; 10 when not given."""
    max_answer_tokens: int = 30
    """Longest answer, in tokens."""
    window: WindowConfig = WindowConfig()
    """Sizes of the windows."""
    threads: int = execution(0)
    """Torch threads; 0 uses the machine's cores."""
    fail_below: tuple[str, ...] = execution(())
    """Least percentages, such as f1=80 exact=70: the command ends with exit code 1 if the model is below one
    of them."""

    def __post_init__(self) -> None:
        at_least(self, 1, "max_answer_tokens", "first_pass_questions", "first_pass_candidates")
        at_least(self, 0, "threads", "first_pass_loss")
        if (self.first_pass is None) != (self.fit_first_pass is None):
            raise InputError("first_pass and fit_first_pass belong together; give both, or neither")
        if self.first_pass is not None and self.ensemble_with:
            raise InputError("a first pass is fitted for one model; leave out ensemble_with")
        if self.fit_first_pass is not None:
            default(self, "first_pass_loss", 1.0)
            default(self, "first_pass_questions", 500)
            default(self, "first_pass_candidates", 10)
        gates(self.fail_below)


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportConfig:
    """How a model is exported: for CPUs, or as a smaller folder of weights."""

    model: str = bundled.MODEL
    """Folder or hub id of a model with a question-answering head."""
    soup_with: tuple[str, ...] = ()
    """Models of the same shape, trained from the same start: what is exported has the mean of the weights of
    all (a model soup, arXiv 2203.05482)."""
    precision: Literal["int8", "bf16", "fp32", "fp16"] = "int8"
    """Precision of the matrix products; a bf16 export runs in fp32 on CPUs without bf16. For safetensors,
    the type of the stored weights, of which fp16 is half as large as fp32."""
    format: Literal["openvino", "onnx", "safetensors"] | None = None
    """What the export runs on: OpenVINO, also when not given, or ONNX Runtime, in fp32 or int8. Files of
    an ONNX folder have the names that optimum and transformers.js look for. safetensors is a model of
    transformers in fp32, bf16 or fp16; everything that reads the model reads it."""
    weight_bits: Literal[7, 8] = 7
    """Bits of int8 weights. 7 are right everywhere; 8 are finer, and right with VNNI and on Arm alone."""
    settings: str | None = None
    """Threshold and scale of scores to store in the export: the output of an evaluation, or a settings file.
    When not given, those beside the model are used, if any."""
    calibration: str | None = None
    """SQuAD 2.0 data similar to what the model will read. Some of its questions determine the value ranges
    for int8, others check the F1 of the export. When not given, a bundled excerpt is used for int8 of the
    shipped model only."""
    calibration_questions: int = 300
    """Questions whose windows determine the value ranges for int8."""
    check_questions: int = 1000
    """Most other questions on which the F1 of the export is checked."""
    max_f1_drop: float = 0.5
    """Points of F1 that the export may lose, both with and without abstaining."""
    max_answer_tokens: int = 30
    """Longest answer, in tokens."""
    window: WindowConfig = WindowConfig()
    """Sizes of the windows used for calibration and checks."""
    seed: int = 0
    """Seed of the choice of questions."""

    def __post_init__(self) -> None:
        at_least(self, 1, "calibration_questions", "check_questions", "max_answer_tokens")
        at_least(self, 0, "max_f1_drop", "seed")
        if self.format == "onnx" and self.precision in ("bf16", "fp16"):
            raise InputError(
                f"precision is {self.precision!r}, but ONNX Runtime has none on CPUs; use fp32 or int8"
            )
        if self.weight_bits not in (7, 8):
            raise InputError(f"weight_bits is {self.weight_bits}; it must be 7 or 8")
        if self.weight_bits == 8 and self.precision != "int8":
            raise InputError(
                f"weight_bits is 8, but precision is {self.precision!r}; only int8 has such weights"
            )
        if self.format == "safetensors" and self.precision == "int8":
            raise InputError("precision is 'int8', but weights are stored in fp32, bf16 or fp16")
        if self.format in (None, "openvino") and self.precision == "fp16":
            raise InputError(
                "precision is 'fp16', but OpenVINO has none on CPUs; use bf16, or format 'safetensors'"
            )
        if self.model == bundled.MODEL and self.precision == "int8":
            default(self, "calibration", bundled.asset("squad2_train.json"))
