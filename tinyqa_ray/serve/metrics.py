"""What ``/metrics`` shows, in Prometheus' format: requests as callers saw them, and the model's queues.

Every replica counts for itself, and its series carry its name, so that they end with it. Without the name,
the sum of a counter would fall when a replica ends; Prometheus would take that for a reset to 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from tinyqa_ray.serve.queue import Counts

_SECONDS = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)


@dataclass(frozen=True, slots=True)
class Figures:
    """The metrics of one replica, of the ingress or of the model."""

    replica: str
    families: list[Metric]


class Metrics:
    """Counts the requests of one replica of the ingress."""

    def __init__(self) -> None:
        """Start all counts at 0."""
        self._registry = CollectorRegistry()
        own = self._registry
        labels = ["path", "status"]
        self._requests = Counter("tinyqa_requests", "Requests, by path and status.", labels, registry=own)
        labels = ["error_type"]
        self._errors = Counter("tinyqa_errors", "Requests not answered, by reason.", labels, registry=own)
        self._seconds = Histogram(
            "tinyqa_request_seconds",
            "Seconds from arrival to answer.",
            ["path"],
            buckets=_SECONDS,
            registry=own,
        )
        self._under_way = Gauge("tinyqa_requests_under_way", "Requests not yet answered.", registry=own)

    def begun(self) -> None:
        """Count a request that has arrived."""
        self._under_way.inc()

    def ended(self, path: str, status: int, seconds: float) -> None:
        """Count a request that has ended."""
        self._under_way.dec()
        self._requests.labels(path, str(status)).inc()
        self._seconds.labels(path).observe(seconds)

    def failed(self, error_type: str) -> None:
        """Count a request that was not answered, by reason."""
        self._errors.labels(error_type).inc()

    def figures(self, replica: str) -> Figures:
        """What was counted so far, under the replica's name."""
        return Figures(replica, list(self._registry.collect()))


def queue_figures(replica: str, counts: Counts) -> Figures:
    """What a replica of the model has counted."""
    counters = {
        "tinyqa_forwards": ("Forwards of the model.", counts.forwards),
        "tinyqa_batch_tokens": ("Tokens of all forwards.", counts.tokens),
        "tinyqa_batch_padded_tokens": ("Tokens of all forwards, padding included.", counts.padded_tokens),
        "tinyqa_forward_seconds": ("Seconds spent in forwards.", counts.seconds),
    }
    families: list[Metric] = [
        CounterMetricFamily(name, what, value) for name, (what, value) in counters.items()
    ]
    waiting = "Tokens waiting for a forward."
    families.append(GaugeMetricFamily("tinyqa_queue_tokens", waiting, counts.waiting_tokens))
    return Figures(replica, families)


def text(every: Iterable[Figures]) -> bytes:
    """The figures of every replica, in Prometheus' format."""
    registry = CollectorRegistry()
    registry.register(_Labelled(every))
    return generate_latest(registry)


class _Labelled(Collector):
    """Joins the families of the same name, and labels each series with its replica."""

    def __init__(self, every: Iterable[Figures]) -> None:
        self._every = list(every)

    def collect(self) -> Iterator[Metric]:
        """The families."""
        joined: dict[str, Metric] = {}
        for figures in self._every:
            for family in figures.families:
                empty = Metric(family.name, family.documentation, family.type)
                joined.setdefault(family.name, empty).samples += [
                    sample._replace(labels={**sample.labels, "replica": figures.replica})
                    for sample in family.samples
                ]
        yield from joined.values()
