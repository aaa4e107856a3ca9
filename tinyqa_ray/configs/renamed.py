"""Renamed options: an old name is refused with a hint at the new one; runs recorded under it can go on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tinyqa_ray.core.errors import InputError

NEW_NAMES: Mapping[str, Mapping[str, str]] = {
    "answer": {"num_gpus_per_actor": "num_gpus"},
    "augment": {"num_gpus_per_actor": "num_gpus"},
    "distill": {
        "also": "soup_with",
        "accumulation": "gradient_accumulation_steps",
        "warmup": "warmup_ratio",
    },
    "evaluate": {"also": "ensemble_with"},
    "teacher-logits": {
        "model": "teachers",
        "teachers": "combine",
        "at_thresholds": "abstain_at_threshold",
        "num_gpus_per_actor": "num_gpus",
    },
    "serve": {"gpu": "num_gpus"},
}
"""Old to new names of config fields, by command. Each config has its own part as ``RENAMED``, with which
``core.stage_folder`` reads the documents of runs of earlier versions."""


GONE: Mapping[str, Mapping[str, str]] = {
    "distill": {"num_gpus_per_evaluation": "the workers measure checkpoints, on the devices they train on"},
}
"""Fields that a config had once, by command, with the reason; all were fields of execution, which no document
of a run holds."""


def refuse_old_options(arguments: Sequence[str], *commands: str) -> None:
    """Refuse options of a command line by their old names, and those that are gone.

    An old name that is now the name of another field passes: the config tells the two apart by their values.

    Args:
        arguments: words of a command line; options as ``--name``, ``--name=value`` or ``--stage.name``.
        commands: commands that the options belong to; one without an entry in ``NEW_NAMES`` has no old names.

    Raises:
        InputError: an option has an old name, or is gone; the message says what the first such option is
            called now, or why it is gone.
    """
    for argument in arguments:
        if not argument.startswith("--"):
            continue
        typed = argument.removeprefix("--").partition("=")[0].replace("_", "-")
        stage, dot, option = typed.rpartition(".")
        for command in commands:
            if (reason := GONE.get(command, {}).get(option.replace("-", "_"))) is not None:
                raise InputError(f"--{typed} is gone: {reason}; leave it out")
        found: list[str] = []
        for command in commands:
            names = NEW_NAMES.get(command, {})
            new = names.get(option.replace("-", "_"))
            if new is not None and option.replace("-", "_") not in names.values():
                found.append(f"--{stage}{dot}{new.replace('_', '-')}")
        if found:
            raise InputError(f"--{typed} is now called {' or '.join(dict.fromkeys(found))}")
