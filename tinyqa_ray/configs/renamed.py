"""Options that once had other names: an old one is refused with the new; runs that wrote it down go on."""

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
"""By command, its config's fields: old name to new. Each config holds its own part as ``RENAMED``, by which
``core.stage_folder`` reads what earlier versions wrote of their runs."""


def refuse_old_options(arguments: Sequence[str], *commands: str) -> None:
    """Refuse options of a command line that have other names now.

    An old name that is a new name of another field too (as ``NEW_NAMES`` shows) passes: its config tells the
    two apart by their values.

    Args:
        arguments: words of a command line; options as ``--name``, ``--name=value`` or ``--stage.name``.
        commands: whose options they are, as in ``NEW_NAMES``; a command without an entry has no old names.

    Raises:
        InputError: names the first such option, and what it is called now.
    """
    for argument in arguments:
        if not argument.startswith("--"):
            continue
        typed = argument.removeprefix("--").partition("=")[0].replace("_", "-")
        stage, dot, option = typed.rpartition(".")
        found: list[str] = []
        for command in commands:
            names = NEW_NAMES.get(command, {})
            new = names.get(option.replace("-", "_"))
            if new is not None and option.replace("-", "_") not in names.values():
                found.append(f"--{stage}{dot}{new.replace('_', '-')}")
        if found:
            raise InputError(f"--{typed} is now called {' or '.join(dict.fromkeys(found))}")
