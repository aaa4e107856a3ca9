"""What was fitted for a model: its no-answer threshold, and the scale of its scores."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

from tinyqa_ray.core import bundled, storage
from tinyqa_ray.core.contents import identity
from tinyqa_ray.core.errors import InputError
from tinyqa_ray.models import hub

FILE = "tinyqa.json"
"""File with the settings that were fitted for a model: beside the model, or in an evaluation's output."""
_COMPARED = "by sentences and tokens"
"""How an encoder of sentences compares; changes with it, so that what was fitted before is fitted again."""


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
    first_pass_keep: float | None = None
    """How far below the best of its question a text may be, in log odds of a smaller model that reads first,
    to be read by this model."""
    first_pass_fitted_for: str | None = None
    """Identity of that smaller model, see ``first_reader_identity``."""
    first_pass_fitted_on: str | None = None
    """Identity of the data on which it was fitted."""
    rank_temperatures: tuple[float, ...] = ()
    """For the second answer, the third, and so on: the log odds of its score are lowered by its rank's shift
    and divided by its temperature. The last one counts for all later answers; empty if nothing was fitted."""
    rank_shifts: tuple[float, ...] = ()
    ranks_fitted_on: str | None = None
    """Identity of the data behind both."""

    def __post_init__(self) -> None:
        threshold, temperature = self.no_answer_threshold, self.temperature
        if not isinstance(threshold, (int, float)) or not 0.0 <= threshold <= 1.0:
            raise InputError(f"no_answer_threshold is {threshold!r}; it must be a number in [0, 1]")
        if not isinstance(temperature, (int, float)) or not 0.0 < temperature < float("inf"):
            raise InputError(f"temperature is {temperature!r}; it must be a number above 0")
        if not isinstance(self.score_shift, (int, float)) or not abs(self.score_shift) < float("inf"):
            raise InputError(f"score_shift is {self.score_shift!r}; it must be a number")
        keep = self.first_pass_keep
        if keep is not None and not (isinstance(keep, (int, float)) and 0.0 <= keep < float("inf")):
            raise InputError(f"first_pass_keep is {keep!r}; it must be a number, 0 or more")
        self._check_ranks()

    def _check_ranks(self) -> None:
        for name in ("rank_temperatures", "rank_shifts"):
            values = getattr(self, name)
            object.__setattr__(self, name, tuple(values))  # JSON has lists
            if not all(isinstance(each, (int, float)) and math.isfinite(each) for each in values):
                raise InputError(f"{name} is {values!r}; it must hold numbers")
        if (
            len(self.rank_temperatures) != len(self.rank_shifts)
            or min(self.rank_temperatures, default=1) <= 0
        ):
            raise InputError(
                f"rank_temperatures is {self.rank_temperatures!r}, rank_shifts {self.rank_shifts!r}; they "
                "must be as many, and temperatures above 0"
            )

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


def first_reader_identity(name: str) -> str:
    """Identifies a smaller model and how its readings are compared; what was fitted holds for both."""
    return f"{identity(bundled.source(name))} {_COMPARED}"


def keep_of(first_pass: str, given: float | None, settings: ModelSettings) -> float:
    """How far below the best a pair may be: as given, or as it was fitted for these two models.

    Args:
        first_pass: name of the smaller model.
        given: what the user asked for, if anything.
        settings: those of the larger model.

    Raises:
        InputError: nothing is given, and nothing was fitted, or it was fitted for another smaller model.
    """
    if given is not None:
        return given
    if settings.first_pass_keep is None:
        raise InputError(
            f"first_pass is {first_pass}, but what it keeps was not fitted; give --settings with the output "
            "of tinyqa evaluate --fit-first-pass, or --first-pass-keep"
        )
    if settings.first_pass_fitted_for != first_reader_identity(first_pass):
        raise InputError(
            f"first_pass is {first_pass}, but the settings were fitted for another one, or by an earlier "
            "version; fit them again with tinyqa evaluate --fit-first-pass, or give --first-pass-keep"
        )
    return settings.first_pass_keep


def write_settings(folder: str, settings: ModelSettings) -> None:
    """Write settings into a folder, as its ``tinyqa.json``."""
    values = asdict(settings)
    # Earlier versions refuse fields that they do not know: those of a first pass and of ranks.
    late = ("first_", "rank_", "ranks_")
    kept = {
        name: each for name, each in values.items() if each not in (None, ()) or not name.startswith(late)
    }
    storage.write_json(storage.join(folder, FILE), kept)
