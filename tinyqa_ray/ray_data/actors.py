"""The actors of a processor: how many there are, and what each of them may use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tinyqa_ray.configs.checks import at_least
from tinyqa_ray.core.cluster import cores, cpus_per_actor, quiet_models
from tinyqa_ray.core.errors import InputError


@dataclass(frozen=True, kw_only=True)
class ActorConfig:
    """How many actors work on a Dataset, and what each of them may use."""

    concurrency: int | tuple[int, int] = 1
    """Number of actors; or the fewest and the most, between which Ray Data scales them."""
    rows_per_batch: int = 512
    """Rows that an actor works on at once. Within them, texts are sorted by length and run in batches of
    tokens, so a larger number saves padding."""
    max_batch_tokens: int | None = None
    """Tokens in one forward, padding included; chosen for the CPU or GPU when not given."""
    num_cpus: float | None = None
    """CPUs of each actor; when not given, as many as its threads keep busy, so that a CPU stays free on each
    node for the tasks that read and write."""
    num_gpus: float = 0.0
    """GPUs of each actor; 0 runs on the CPU."""
    resources: Mapping[str, float] | None = None
    """Custom resources of each actor."""
    threads: int = 0
    """Torch threads of each actor; 0 shares the cores of a node among the actors on it."""

    def __post_init__(self) -> None:
        at_least(self, 0, "threads", "num_gpus", "num_cpus")
        at_least(self, 1, "rows_per_batch", "max_batch_tokens")
        fewest, most = self.actors
        if not 1 <= fewest <= most:
            raise InputError(
                f"concurrency is {self.concurrency!r}; give a number of actors, at least 1, or a pair of "
                "the fewest and the most"
            )

    @property
    def actors(self) -> tuple[int, int]:
        """The fewest and the most actors."""
        given: Any = self.concurrency
        try:
            fewest, most = (given, given) if isinstance(given, int) else given
        except (TypeError, ValueError):
            return 0, 0
        return fewest, most

    def options(self) -> dict[str, Any]:
        """Arguments of ``Dataset.map_batches`` that ask for these actors."""
        import ray
        from ray.data import ActorPoolStrategy

        fewest, most = self.actors
        cpus = self.num_cpus
        if cpus is None:
            started = ray.is_initialized()
            cpus = cpus_per_actor(most, self.num_gpus, self.threads) if started else self.threads or 1
        chosen: dict[str, Any] = {
            "batch_size": self.rows_per_batch,
            "batch_format": "pyarrow",
            "compute": ActorPoolStrategy(min_size=fewest, max_size=most, max_tasks_in_flight_per_actor=2),
            "num_cpus": cpus,
            "num_gpus": self.num_gpus,
        }
        return chosen | ({"resources": dict(self.resources)} if self.resources else {})

    def begin(self) -> str:
        """Set up this process as one of the actors, and return the device that it computes on."""
        import torch

        quiet_models()
        torch.set_num_threads(self.threads or cores(self.actors[1]))
        return "cuda" if self.num_gpus else "cpu"
