from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny
import torch

from tinyqa_ray.configs import EvaluateConfig, WindowConfig
from tinyqa_ray.core.errors import InputError
from tinyqa_ray.engines.ensemble import load_mean
from tinyqa_ray.evaluate import evaluate
from tinyqa_ray.models import pretrained
from tinyqa_ray.reader import Reader

WINDOW = WindowConfig(max_seq_len=64, doc_stride=8, max_query_len=16)


@pytest.fixture
def other(tiny_bert: str, tmp_path: Path) -> str:
    """The same architecture with other weights."""
    network = pretrained.load_qa_model(tiny_bert)
    torch.manual_seed(7)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    folder = str(tmp_path / "other")
    network.save_pretrained(folder)
    pretrained.load_tokenizer(tiny_bert).save_pretrained(folder)
    return folder


def test_logits_are_the_mean_of_those_of_each_model(tiny_bert: str, other: str) -> None:
    readers = [Reader.from_pretrained(name, device="cpu", window=WINDOW) for name in (tiny_bert, other)]
    contexts = [row["context"] for article in tiny.squad_document()["data"] for row in article["paragraphs"]]
    windows = readers[0].windower.windows([("Who built it?", context) for context in contexts])
    mean = load_mean((tiny_bert, other), device="cpu")
    each = [reader.engine.logits(windows) for reader in readers]
    for side, found in enumerate(mean.logits(windows, max_batch_tokens=100)):
        for number, logits in enumerate(found):
            expected = (each[0][side][number] + each[1][side][number]) / 2
            np.testing.assert_allclose(logits, expected, atol=1e-5)
    assert not np.allclose(each[0][0][0], each[1][0][0], atol=1e-2)
    assert mean.parameters == sum(reader.engine.parameters for reader in readers)


def test_mean_is_evaluated_and_nothing_is_stored_beside_a_model(
    tiny_bert: str, other: str, tiny_squad: str, tmp_path: Path
) -> None:
    alone = EvaluateConfig(model=other, data=tiny_squad, window=WINDOW)
    both = EvaluateConfig(model=other, ensemble_with=(other,), data=tiny_squad, window=WINDOW)
    mixed = EvaluateConfig(model=other, ensemble_with=(tiny_bert,), data=tiny_squad, window=WINDOW)
    reports = [evaluate(each, str(tmp_path / str(n))) for n, each in enumerate((alone, both, mixed))]
    assert reports[0].forced_f1 == reports[1].forced_f1
    assert reports[1].parameters == 2 * reports[0].parameters
    predictions = [(tmp_path / str(n) / "na_probs.json").read_text() for n in range(3)]
    assert predictions[0] != predictions[2]

    asked = tmp_path / "fit.json"
    asked.write_text(Path(tiny_squad).read_text().replace('"id": "', '"id": "f-'))
    fitting = EvaluateConfig(
        model=other, ensemble_with=(tiny_bert,), data=tiny_squad, window=WINDOW, fit_threshold=str(asked)
    )
    before = sorted(path.name for path in Path(other).iterdir())
    report = evaluate(fitting, str(tmp_path / "fitted"))
    assert 0 <= report.no_answer_threshold <= 1
    assert sorted(path.name for path in Path(other).iterdir()) == before


def test_models_of_other_tokens_are_refused(tiny_bert: str, tiny_roberta: str) -> None:
    with pytest.raises(InputError, match="another vocabulary"):
        load_mean((tiny_bert, tiny_roberta), device="cpu")
