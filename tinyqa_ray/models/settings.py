"""What was fitted for a model: its no-answer threshold, and the scale of its scores."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from tinyqa_ray.core import bundled, storage
from tinyqa_ray.core.errors import InputError
from tinyqa_ray.models import hub

FILE = "tinyqa.json"
"""File with the settings that were fitted for a model: beside the model, or in an evaluation's output."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSettings:
    """What was fitted for a model: written by an evaluation, and copied into an export."""

    no_answer_threshold: float = 0.5
    """Abstain when ``na_prob`` is above this."""
    fitted_on: str | None = None
    """Identity of the data behind the threshold; None when it is the default."""
    temperature: float = 1.0
    """Divides ``span - null - score_shift`` in an answer's score, so that a score is a probability of being
    right."""
    score_shift: float = 0.0
    """``span - null`` at which the score is one half; above 0 for a model that answers too readily."""
    temperature_fitted_on: str | None = None
    """Identity of the data behind temperature and shift; None when they are the defaults."""

    def __post_init__(self) -> None:
        threshold, temperature = self.no_answer_threshold, self.temperature
        if not isinstance(threshold, (int, float)) or not 0.0 <= threshold <= 1.0:
            raise InputError(f"no_answer_threshold is {threshold!r}; it must be a number in [0, 1]")
        if not isinstance(temperature, (int, float)) or not 0.0 < temperature < float("inf"):
            raise InputError(f"temperature is {temperature!r}; it must be a number above 0")
        if not isinstance(self.score_shift, (int, float)) or not abs(self.score_shift) < float("inf"):
            raise InputError(f"score_shift is {self.score_shift!r}; it must be a number")

    @property
    def identity(self) -> str:
        """A string that identifies the settings among a stage's inputs: equal numbers give equal strings."""
        return (
            f"threshold {self.no_answer_threshold}, temperature {self.temperature}, shift {self.score_shift}"
        )


def has_file(name: str, file: str) -> bool:
    """Whether ``name`` is a folder, here or at a URL, that holds ``file``."""
    name = bundled.located(name)
    return storage.kind(name) == "folder" and storage.kind(storage.join(name, file)) == "file"


def read_settings(model: str, settings: str | None = None) -> ModelSettings:
    """What was fitted for a model.

    Args:
        model: a model's name. When ``settings`` is not given, the file beside the model, in its folder or on
            the hub, counts, or the defaults if there is none.
        settings: the output of an evaluation that fitted something, or a settings file.

    Raises:
        InputError: ``settings`` does not exist, the file is not one of this version, or the hub refuses it.
    """
    if settings is None:
        found = hub.fetched(model, FILE) if hub.is_id(bundled.located(model)) else _beside(model)
        if found is None:
            return ModelSettings()
        path = found
    else:
        path = storage.join(settings, FILE) if storage.kind(settings) == "folder" else settings
        if storage.kind(path) != "file":
            raise InputError(
                f"{path}: no such settings; give the --output of a tinyqa evaluate with --fit-threshold or "
                "--fit-temperature, or a file that it wrote"
            )
    try:
        return ModelSettings(**storage.read_json(path))
    except TypeError as error:
        raise InputError(f"{path}: is not a settings file of this version ({error}); delete it") from None


def _beside(model: str) -> str | None:
    """Path of the settings in a model's folder; None where there are none."""
    return storage.join(bundled.located(model), FILE) if has_file(model, FILE) else None


def write_settings(folder: str, settings: ModelSettings) -> None:
    """Write settings into a folder, as its ``tinyqa.json``."""
    storage.write_json(storage.join(folder, FILE), asdict(settings))
