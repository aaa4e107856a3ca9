"""What is added to a teacher's null score, so that it abstains at its fitted threshold."""

from __future__ import annotations

import numpy as np

from tinyqa_ray.configs import TeacherLogitsConfig
from tinyqa_ray.core.errors import InputError
from tinyqa_ray.models.settings import read_settings


def null_shifts(config: TeacherLogitsConfig) -> list[float]:
    """What is added to each teacher's null score, so that its fitted threshold moves to one half.

    Raises:
        InputError: no threshold was fitted for a teacher.
    """
    if not config.abstain_at_threshold:
        return [0.0] * len(config.teachers)
    given = config.settings or [None] * len(config.teachers)
    fitted = [read_settings(*pair) for pair in zip(config.teachers, given, strict=True)]
    for model, settings in zip(config.teachers, fitted, strict=True):
        if settings.fitted_on is None:
            raise InputError(
                f"{model}: has no fitted threshold for abstain_at_threshold; "
                "fit one with tinyqa evaluate --fit-threshold DATA, and give its --output with --settings"
            )
    # At a threshold of 0 or 1 the shift would be infinite.
    thresholds = np.clip([settings.no_answer_threshold for settings in fitted], 1e-6, 1 - 1e-6)
    return [float(shift) for shift in np.log(1 / thresholds - 1)]
