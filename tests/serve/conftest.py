from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tinyqa_ray.configs import ServeConfig
from tinyqa_ray.serve.api import create_api
from tinyqa_ray.serve.metrics import Figures, Metrics
from tinyqa_ray.serve.service import EngineInfo, Logits, Service
from tinyqa_ray.windows import Windows


@pytest.fixture(scope="module")
def chance_api(tiny_bert: str) -> Any:
    """The application, over logits drawn by chance."""
    rng = np.random.default_rng(0)

    async def run(windows: Windows) -> Logits:
        return [rng.normal(size=(2, tokens)).astype(np.float32) for tokens in windows.lengths]

    async def engine() -> EngineInfo:
        return EngineInfo(name="chance", parameters=0)

    metrics = Metrics()

    async def every() -> list[Figures]:
        return [metrics.figures("one")]

    return create_api(Service(ServeConfig(model=tiny_bert), run), engine, metrics, every=every)
