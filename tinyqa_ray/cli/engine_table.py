"""What ``tinyqa engines`` does and prints."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tinyqa_ray.core.errors import InputError


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """The engines that can run a model here."""

    model: str
    chosen: str
    candidates: tuple[Any, ...]
    """``choose.Candidate``, the fastest first."""


def compared(model: str, *, calibration: str | None, forms: str, threads: int, again: bool) -> Comparison:
    """Make forms of a model, and time its engines.

    Raises:
        InputError: no such model, or it is an export.
    """
    import torch

    from tinyqa_ray.configs import WindowConfig
    from tinyqa_ray.core import bundled
    from tinyqa_ray.core.cluster import cores, quiet_models
    from tinyqa_ray.core.forms import NAMES, of_shipped
    from tinyqa_ray.engines import choose
    from tinyqa_ray.engines.exported import is_exported
    from tinyqa_ray.engines.load import check_model

    if model == bundled.INT8 or is_exported(model):
        raise InputError(
            f"{model}: is an export, which runs on one engine; give the model that it was made of"
        )
    quiet_models()
    # The smallest windows: only what is missing is refused here.
    check_model(model, WindowConfig(max_seq_len=16, doc_stride=2, max_query_len=4))
    torch.set_num_threads(threads or cores(1))
    wanted = {"shipped-int8": of_shipped()[:1], "all": NAMES}
    make = [*wanted.get(forms, [name for name in NAMES if name.endswith(forms)])]
    if model != bundled.MODEL and calibration is None:
        make = [name for name in make if not name.endswith("int8")]
    found = choose.candidates(model, make=make, calibration=calibration, again=again)
    found.sort(key=lambda each: -each.windows_per_s)
    return Comparison(model=model, chosen=choose.best(found).name, candidates=tuple(found))


def text(made: Comparison) -> str:
    """A line for each engine: windows per second, in relation to torch, and the loss of F1."""
    plain = next(each.windows_per_s for each in made.candidates if each.name == "torch-fp32")
    lines = [f"{'engine':14} {'windows/s':>10} {'torch = 1':>10} {'F1 lost':>8}"]
    for each in made.candidates:
        if each.refusal:
            lines.append(f"{each.name:14} {each.refusal}")
            continue
        lost = "?" if each.f1_lost is None else f"{each.f1_lost:.2f}"
        speed = "not timed" if not each.windows_per_s else f"{each.windows_per_s:.1f}"
        share = f"{each.windows_per_s / plain:.2f}" if plain else ""
        mark = "  <- auto" if each.name == made.chosen else ""
        lines.append(f"{each.name:14} {speed:>10} {share:>10} {lost:>8}{mark}")
    took = [
        f"{each.name} in {each.made_in_s:.0f} s" for each in made.candidates if each.made_in_s is not None
    ]
    return "\n".join([*lines, *([f"made here: {', '.join(took)}"] if took else [])])
