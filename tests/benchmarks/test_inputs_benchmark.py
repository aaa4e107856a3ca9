from __future__ import annotations

from pathlib import Path

import pytest
from peers.inputs import as_it_is

from tinyqa_ray.configs import ExportConfig
from tinyqa_ray.engines import choose
from tinyqa_ray.export import export


def test_model_is_measured_as_it_is_and_an_export_in_its_own_precision(
    tiny_bert: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A form of the model in the cache folder would be another contestant."""
    pytest.importorskip("onnx", reason="needs the extra cpu")
    pytest.importorskip("onnxruntime", reason="needs the extra cpu")
    exported = str(tmp_path / "export")
    export(ExportConfig(model=tiny_bert, format="onnx", precision="fp32"), exported)
    monkeypatch.setenv("TINYQA_ENGINE", "onnx-fp32")
    names = [
        choose.load(each, device="cpu", precision=as_it_is(each))[0].name for each in (tiny_bert, exported)
    ]
    assert [name.split(" on ")[0] for name in names] == ["torch float32", "ONNX Runtime fp32"]
