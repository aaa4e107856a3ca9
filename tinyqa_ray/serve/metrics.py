"""What ``/metrics`` shows, in Prometheus' format: requests as callers saw them, and the replicas' queues."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from tinyqa_ray.serve.queue import Counts

Family = CounterMetricFamily | GaugeMetricFamily

_SECONDS = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)


class Metrics:
    """Counts of one ingress."""

    def __init__(self, replicas: Mapping[str, Counts]) -> None:
        """Count from nothing.

        Args:
            replicas: the latest counts of each replica of the model, kept up to date by their owner.
        """
        self._registry = CollectorRegistry()
        own = self._registry
        labels = ["path", "status"]
        self._requests = Counter("tinyqa_requests", "Requests, by path and status.", labels, registry=own)
        labels = ["error_type"]
        self._errors = Counter("tinyqa_errors", "Requests not answered, by reason.", labels, registry=own)
        self._seconds = Histogram(
            "tinyqa_request_seconds", "From arrival to answer.", ["path"], buckets=_SECONDS, registry=own
        )
        self._under_way = Gauge("tinyqa_requests_under_way", "Requests not yet answered.", registry=own)
        own.register(_Replicas(replicas))

    def begun(self) -> None:
        """A request has come."""
        self._under_way.inc()

    def ended(self, path: str, status: int, seconds: float) -> None:
        """It has gone."""
        self._under_way.dec()
        self._requests.labels(path, str(status)).inc()
        self._seconds.labels(path).observe(seconds)

    def failed(self, error_type: str) -> None:
        """It was not answered."""
        self._errors.labels(error_type).inc()

    def text(self) -> bytes:
        """All of them."""
        return generate_latest(self._registry)


class _Replicas(Collector):
    """Sums over the replicas of the model that answered this ingress."""

    def __init__(self, replicas: Mapping[str, Counts]) -> None:
        self._replicas = replicas

    def collect(self) -> Iterator[Family]:
        """The families, with their values now."""
        every = list(self._replicas.values())
        tokens, padded = sum(each.tokens for each in every), sum(each.padded_tokens for each in every)
        counters = {
            "tinyqa_forwards": ("Forwards of the model.", sum(each.forwards for each in every)),
            "tinyqa_batch_tokens": ("Tokens of all forwards.", tokens),
            "tinyqa_batch_padded_tokens": ("The same, padding included.", padded),
            "tinyqa_forward_seconds": ("Spent in forwards.", sum(each.seconds for each in every)),
        }
        for name, (what, value) in counters.items():
            yield CounterMetricFamily(name, what, value)
        waiting = sum(each.waiting_tokens for each in every)
        yield GaugeMetricFamily("tinyqa_queue_tokens", "Tokens that wait for a forward.", waiting)
        share = 1.0 - tokens / padded if padded else 0.0
        yield GaugeMetricFamily("tinyqa_padding_share", "Share of padding in all forwards.", share)
