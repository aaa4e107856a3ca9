"""What a replica loads, without Ray."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("onnx", reason="needs the extra cpu")
pytest.importorskip("onnxruntime", reason="needs the extra cpu")

from tinyqa_ray.configs import ExportConfig, ServeConfig
from tinyqa_ray.engines import choose
from tinyqa_ray.engines.choose import Candidate
from tinyqa_ray.export import export
from tinyqa_ray.serve.model import Model


def test_replica_takes_the_engine_that_is_the_fastest_here(
    tiny_bert: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export(ExportConfig(model=tiny_bert, format="onnx", precision="fp32"), str(tmp_path / "form"))
    found = Candidate(name="onnx-fp32", folder=str(tmp_path / "form"))
    monkeypatch.setattr(choose, "chosen", lambda model: {tiny_bert: found}[model])
    assert Model(ServeConfig(model=tiny_bert, threads=1)).engine.name == "ONNX Runtime fp32 on 1 CPU threads"
    assert Model(ServeConfig(model=tiny_bert, threads=1, precision="fp32")).engine.name.startswith("torch")
