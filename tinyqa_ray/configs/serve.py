"""How a model answers on line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tinyqa_ray.configs.checks import at_least, positive, share
from tinyqa_ray.configs.renamed import NEW_NAMES
from tinyqa_ray.core import bundled
from tinyqa_ray.core.errors import InputError


@dataclass(frozen=True, kw_only=True, slots=True)
class LimitConfig:
    """What one request, and all that wait, may ask for."""

    max_body_bytes: int = 4_000_000
    """Longest body of a request; a longer one is answered with 413."""
    max_questions: int = 32
    """Questions of a request; more are answered with 422."""
    max_contexts: int = 100
    """Contexts of a request; more are answered with 422."""
    max_request_tokens: int = 65_536
    """Tokens of all windows of a request; more are answered with 422."""
    max_waiting_tokens: int = 131_072
    """Tokens that may wait at a replica; a request that finds more is answered with 429."""
    max_wait_s: float = 10.0
    """A request that would wait longer than this at a replica, by its pace so far, is answered with 429."""
    timeout_s: float = 30.0
    """A request that is not answered by then is answered with 504."""

    def __post_init__(self) -> None:
        at_least(self, 1, "max_body_bytes", "max_questions", "max_contexts")
        at_least(self, 1, "max_request_tokens", "max_waiting_tokens")
        positive(self, "timeout_s", "max_wait_s")


@dataclass(frozen=True, kw_only=True, slots=True)
class ServeConfig:
    """How a model is served on Ray Serve: an ingress that reads requests, replicas that run the model."""

    RENAMED = NEW_NAMES["serve"]

    model: str = bundled.MODEL
    """Folder, URL of a folder or hub id with a question-answering head, or a folder of ``tinyqa export``."""
    settings: str | None = None
    """Threshold and scale of scores: the output of an evaluation, or a settings file; those beside the model,
    if any, when not given."""
    threshold: float | None = None
    """No answer is given where its probability is above this; that of the settings when not given."""
    precision: Literal["auto", "fp32", "bf16", "fp16", "int8"] = "auto"
    """On a GPU auto is bf16 from Ampere on, else fp16; on a CPU the export's, else fp32."""
    num_gpus: float = 0.0
    """GPUs of a replica, a part of one too; 0 runs on the CPU."""
    threads: int = 0
    """Torch threads, and CPUs, of a replica; 0 uses the cores of its machine."""
    min_replicas: int = 1
    """Replicas of the model at least."""
    max_replicas: int = 1
    """Replicas of the model at most; between the two, as many as the requests under way need."""
    target_ongoing_requests: float = 8.0
    """Requests under way at a replica above which another one is started: a few batches, so that a replica
    never waits for work and a request never waits for more than these."""
    upscale_delay_s: float = 10.0
    """Seconds that the load must ask for more replicas before they are started."""
    downscale_delay_s: float = 120.0
    """Seconds that the load must ask for fewer before they are stopped: loading a model again costs more."""
    ingress_replicas: int = 1
    """Processes that take requests, cut windows and read answers off the logits."""
    max_batch_tokens: int = 0
    """Tokens of a forward, padding included; 0 chooses: what the GPU is fast at, on a CPU few enough that a
    short request does not wait long for the forward before it."""
    api_key_file: str | None = None
    """File with the key that requests must carry, readable where the ingress runs; when not given, the
    environment's TINYQA_API_KEY, if any."""
    limits: LimitConfig = LimitConfig()
    """Limits of requests."""

    def __post_init__(self) -> None:
        at_least(self, 0, "num_gpus", "threads", "max_batch_tokens", "min_replicas")
        at_least(self, 1, "max_replicas", "ingress_replicas")
        at_least(self, 0, "upscale_delay_s", "downscale_delay_s")
        positive(self, "target_ongoing_requests")
        if self.threshold is not None:
            share(self, "threshold")
        if self.min_replicas > self.max_replicas:
            raise InputError(
                f"min_replicas is {self.min_replicas}, max_replicas {self.max_replicas}; raise max_replicas"
            )
