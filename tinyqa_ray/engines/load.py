"""Choose the engine and the windows that fit a model."""

from __future__ import annotations

from typing import Any

from tinyqa_ray.configs import WindowConfig
from tinyqa_ray.core import bundled
from tinyqa_ray.core.errors import InputError
from tinyqa_ray.datasets.windows import Windower
from tinyqa_ray.engines.devices import pick_device, pick_dtype
from tinyqa_ray.engines.engine import Engine
from tinyqa_ray.engines.exported import ONNX_FILES, UnreadableError, export_format, is_exported
from tinyqa_ray.engines.onnx_engine import OnnxEngine
from tinyqa_ray.engines.openvino import OpenVinoEngine
from tinyqa_ray.engines.torch_engine import TorchEngine
from tinyqa_ray.models import pretrained, weights
from tinyqa_ray.models.settings import has_file


def load_engine(
    model: str, *, device: str = "auto", precision: str = "auto", compiled: bool = False
) -> tuple[Engine, Any]:
    """Load the engine of a model or of an export, and the model's configuration; see ``from_pretrained``."""
    kind = export_format(model)
    if kind is not None:
        try:
            return _exported(kind, model, device, precision)
        except UnreadableError as error:
            if model != bundled.INT8:
                raise
            raise InputError(f"{error}, or delete {bundled.located(model)}: then it is made anew") from None
    dtype = pick_dtype(precision, pick_device(device))
    network = pretrained.load_qa_model(model, dtype=dtype)
    return TorchEngine(network, device=device, compiled=compiled, owns_model=True), network.config


def _exported(kind: str, model: str, device: str, precision: str) -> tuple[Engine, Any]:
    if kind == "onnx":
        return _onnx(model, device, precision)
    if pick_device(device).type != "cpu" and device != "auto":
        raise InputError(f"{model}: is an export for CPUs, but device is {device!r}; use 'cpu' or 'auto'")
    config = pretrained.load_config(model)
    exported = OpenVinoEngine.load(model, config)
    if precision not in ("auto", exported.precision):
        raise InputError(_exported_to(model, exported.precision, precision))
    return exported, config


def _onnx(model: str, device: str, precision: str) -> tuple[Engine, Any]:
    """The engine of an ONNX export: the file of the precision asked for, else int8 where there is one."""
    files = {name: file for name, file in ONNX_FILES.items() if has_file(model, file)}
    if precision not in ("auto", *files):
        raise InputError(_exported_to(model, " and ".join(files), precision))
    chosen = next(iter(files)) if precision == "auto" else precision
    config = pretrained.load_config(model)
    device = "cpu" if device == "auto" else device
    return OnnxEngine.load(model, files[chosen], config, device=device), config


def _exported_to(model: str, found: str, wanted: str) -> str:
    return (
        f"{model}: is exported to {found}, but precision is {wanted!r}; "
        f"export it again with --precision {wanted}, or leave precision to 'auto'"
    )


def check_model(model: str, window: WindowConfig) -> None:
    """Refuse, without loading weights, a model that cannot read such windows.

    Raises:
        InputError: no such model, head or fast tokenizer, or windows longer than the model reaches.
    """
    pretrained.check_window(model, pretrained.load_config(model), window.max_seq_len)
    Windower(pretrained.load_tokenizer(model), window)
    if not is_exported(model):
        weights.check_qa_model(model)


def fitting_window(reach: int) -> WindowConfig:
    """The default window, shrunk to a model that reaches fewer tokens."""
    default = WindowConfig()
    if reach >= default.max_seq_len:
        return default
    return WindowConfig(max_seq_len=reach, doc_stride=reach // 3, max_query_len=reach // 4)
