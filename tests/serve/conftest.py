from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tinyqa_ray.configs import ServeConfig
from tinyqa_ray.datasets.windows import Tokens
from tinyqa_ray.serve.api import create_api
from tinyqa_ray.serve.metrics import Figures, Metrics
from tinyqa_ray.serve.service import EngineInfo, Logits, Service


@pytest.fixture(scope="session")
def bearer() -> dict[str, str]:
    """The header with the key that ``chance_api`` wants."""
    return {"Authorization": "Bearer open sesame"}


@pytest.fixture(scope="session")
def chance_api(tiny_bert: str, bearer: dict[str, str]) -> Any:
    """The application, over logits drawn by chance; it wants a key."""
    rng = np.random.default_rng(0)

    async def run(windows: Tokens) -> Logits:
        return [rng.normal(size=(2, tokens)).astype(np.float32) for tokens in windows.lengths]

    async def engine() -> EngineInfo:
        return EngineInfo(name="chance", parameters=0)

    metrics = Metrics()

    async def every() -> list[Figures]:
        return [metrics.figures("one")]

    service = Service(ServeConfig(model=tiny_bert), run)
    key = bearer["Authorization"].removeprefix("Bearer ").encode()
    return create_api(service, engine, metrics, every=every, key=key)
