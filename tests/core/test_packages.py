from __future__ import annotations

from importlib import metadata
from typing import Any

import pytest

from tinyqa_ray.core import packages


def test_versions_say_what_is_absent() -> None:
    numpy = f"numpy {metadata.version('numpy')}"
    assert packages.versions("numpy", "no_such_module") == [numpy, "no_such_module absent"]


@pytest.mark.parametrize(("there", "said"), [("onnxruntime-gpu", "1.2"), ("another-name", "unknown")])
def test_package_under_another_name_has_a_version(
    there: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Distribution:
        version = "1.2"

    def distributions(*, name: str) -> list[Any]:
        return [Distribution()] if name == there else []

    monkeypatch.setattr(packages, "installed", lambda name: True)
    monkeypatch.setattr(metadata, "distributions", distributions)
    assert packages.versions("onnxruntime") == [f"onnxruntime {said}"]
