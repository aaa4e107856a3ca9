"""How a model is served over HTTP."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tinyqa_ray.configs.checks import at_least, engine_of_cpus, positive, share
from tinyqa_ray.configs.renamed import NEW_NAMES
from tinyqa_ray.core import bundled
from tinyqa_ray.core.errors import InputError


@dataclass(frozen=True, kw_only=True, slots=True)
class LimitConfig:
    """Limits of a single request and of all waiting requests."""

    max_body_bytes: int = 4_000_000
    """Longest body of a request; a longer one is answered with 413."""
    max_questions: int = 32
    """Most questions in a request; a request with more is answered with 422."""
    max_contexts: int = 100
    """Most contexts in a request; a request with more is answered with 422."""
    max_request_tokens: int = 65_536
    """Most tokens in all windows of a request; a request with more is answered with 422."""
    max_waiting_tokens: int = 131_072
    """Most tokens that may wait at a replica; if more are waiting, a new request is answered with 429."""
    max_wait_s: float = 10.0
    """Longest wait at a replica, in seconds; a request that is expected to wait longer, at the replica's
    present pace, is answered with 429."""
    timeout_s: float = 30.0
    """Seconds after which a request without an answer is answered with 504."""

    def __post_init__(self) -> None:
        at_least(self, 1, "max_body_bytes", "max_questions", "max_contexts")
        at_least(self, 1, "max_request_tokens", "max_waiting_tokens")
        positive(self, "timeout_s", "max_wait_s")


@dataclass(frozen=True, kw_only=True, slots=True)
class ServeConfig:
    """How a model is served on Ray Serve: an ingress reads the requests, and replicas run the model."""

    RENAMED = NEW_NAMES["serve"]

    model: str = bundled.MODEL
    """Folder, URL of a folder or hub id of a model with a question-answering head, or an export."""
    settings: str | None = None
    """Threshold and scale of scores: the output of an evaluation, or a settings file. When not given, those
    beside the model are used, if any."""
    threshold: float | None = None
    """The model abstains if the probability of no answer is above this; the settings' threshold when not
    given."""
    precision: Literal[
        "auto",
        "fp32",
        "bf16",
        "fp16",
        "int8",
        "torch-fp32",
        "onnx-fp32",
        "onnx-int8",
        "openvino-fp32",
        "openvino-bf16",
        "openvino-int8",
    ] = "auto"
    """Precision of the matrix products. auto: on a GPU, bf16 from Ampere on and fp16 on older ones; on a CPU,
    that of an export, else the fastest engine at hand (see tinyqa engines). An engine's name fixes it."""
    num_gpus: float = 0.0
    """GPUs of each replica, which may be a fraction; 0 runs on the CPU."""
    threads: int = 0
    """Torch threads, and CPUs, of each replica; 0 uses all cores of its machine."""
    min_replicas: int = 1
    """Fewest replicas of the model."""
    max_replicas: int = 1
    """Most replicas of the model; as many run as the current requests need."""
    target_ongoing_requests: float = 8.0
    """Requests per replica above which another replica is started: a few batches, so that replicas always
    have work and requests do not wait long."""
    upscale_delay_s: float = 10.0
    """Seconds for which the load must call for more replicas before they are started."""
    downscale_delay_s: float = 120.0
    """Seconds for which the load must call for fewer replicas before some are stopped; longer, since loading
    a model again is expensive."""
    ingress_replicas: int = 1
    """Processes that receive requests, cut windows, and turn logits into answers."""
    max_batch_tokens: int = 0
    """Tokens in one forward, padding included. 0 chooses: on a GPU, a size at which it is fast; on a CPU, few
    enough that a short request does not wait long for the forward before it."""
    api_key_file: str | None = None
    """File with the key that requests must send; the ingress must be able to read it. When not given, the
    key is the environment variable TINYQA_API_KEY, if set."""
    limits: LimitConfig = LimitConfig()
    """Limits of requests."""

    def __post_init__(self) -> None:
        at_least(self, 0, "num_gpus", "threads", "max_batch_tokens", "min_replicas")
        at_least(self, 1, "max_replicas", "ingress_replicas")
        at_least(self, 0, "upscale_delay_s", "downscale_delay_s")
        positive(self, "target_ongoing_requests")
        engine_of_cpus(self)
        if self.threshold is not None:
            share(self, "threshold")
        if self.min_replicas > self.max_replicas:
            raise InputError(
                f"min_replicas is {self.min_replicas}, max_replicas {self.max_replicas}; raise max_replicas"
            )
