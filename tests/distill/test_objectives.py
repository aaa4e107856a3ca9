from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import tiny
import torch

from tinyqa_ray.configs import DistillConfig, TeacherLogitsConfig, WindowConfig
from tinyqa_ray.core.errors import InputError
from tinyqa_ray.datasets import squad
from tinyqa_ray.distill.batches import Batch, WindowData
from tinyqa_ray.distill.feed import step_input
from tinyqa_ray.distill.layers import Intermediate
from tinyqa_ray.distill.loop import build, train_step
from tinyqa_ray.distill.losses import label_loss, prediction_loss
from tinyqa_ray.distill.objectives import DistillationModule
from tinyqa_ray.distill.session import LocalSession
from tinyqa_ray.distill.strategies import OPTIMIZER, DataParallel, adamw
from tinyqa_ray.models import pretrained
from tinyqa_ray.teacher_logits.window_writers import WindowWriter

ROWS = np.arange(12)


@pytest.fixture(scope="module")
def data(tiny_squad: str, tiny_bert: str, tmp_path_factory: pytest.TempPathFactory) -> WindowData:
    config = TeacherLogitsConfig(
        data=tiny_squad,
        tokenizer=tiny_bert,
        teachers=(tiny_bert,),
        window=WindowConfig(max_seq_len=64, doc_stride=8, max_query_len=20),
    )
    table = WindowWriter(config)(squad.to_table(squad.read_squad(tiny_squad)))[0]
    path = tmp_path_factory.mktemp("windows") / "part.arrow"
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return WindowData([str(path)], 0)


@pytest.fixture(scope="module")
def batch(data: WindowData) -> Batch:
    return data.batch(ROWS, ROWS)


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Half as deep as the teacher, with other weights."""
    return str(tiny.save_qa_model(tmp_path_factory.mktemp("student") / "m", layers=1, seed=1))


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Narrower than the teacher, with as many heads."""
    return str(tiny.save_qa_model(tmp_path_factory.mktemp("narrow") / "m", layers=1, hidden=16, seed=1))


def distillation(
    student: str, *objective: str, teacher: str | None = None, **options: Any
) -> DistillationModule:
    given = {"data": "-", "student": student, "objective": objective, "teacher": teacher, **options}
    return build(DistillConfig(**{"learning_rate": 1e-3, "attention_dropout": 0.0, **given}))


def loss(model: DistillationModule, batch: Batch) -> torch.Tensor:
    return torch.stack(list(model(batch).values())).sum()


@pytest.mark.parametrize("maps", ["scores", "probabilities"])
def test_student_that_is_its_teacher_has_nothing_to_learn(tiny_bert: str, batch: Batch, maps: str) -> None:
    same = distillation(tiny_bert, "intermediate", teacher=tiny_bert, attention_maps=maps).eval()
    other = distillation(tiny_bert, "intermediate", teacher=tiny_bert, attention_maps=maps).eval()
    with torch.no_grad():
        for parameter in other.student.parameters():
            parameter.mul_(1.5)
    scale = loss(other, batch).detach()
    zero = loss(same, batch)
    torch.autograd.backward(zero)
    norm = torch.nn.utils.get_total_norm([p.grad for p in same.parameters() if p.grad is not None])
    assert scale > 0.01
    assert zero < 1e-5 * scale
    assert norm < 1e-2 * scale


OBJECTIVES: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "labels": (("labels",), {}),
    "scores": (("intermediate",), {"attention_maps": "scores"}),
    "probabilities": (("intermediate",), {"attention_maps": "probabilities"}),
    "relations": (("relations",), {}),
    "prediction": (("prediction",), {"distillation_weight": 0.75, "temperature": 1.5}),
    "layers and prediction": (("intermediate", "prediction"), {"objective_weights": (0.5, 1.0)}),
    "all": (("labels", "intermediate", "relations", "prediction"), {"prediction_loss": "mse"}),
}
LAYERS = {"intermediate", "relations"}


def one_of(name: str, student: str, teacher: str) -> DistillationModule:
    """The model of an entry of ``OBJECTIVES``."""
    objectives, options = OBJECTIVES[name]
    beside = teacher if LAYERS & set(objectives) else None
    return distillation(student, *objectives, teacher=beside, **options)


def one_step(model: DistillationModule, data: WindowData, folder: Path) -> dict[str, float]:
    session = LocalSession(folder)
    given = step_input(data, ROWS, session, 1)
    return train_step(DataParallel(model, model.config, session), given, session, 1e-3).figures().terms


@pytest.mark.parametrize("name", OBJECTIVES)
def test_loss_falls_and_the_teacher_stays(
    name: str, student: str, tiny_bert: str, data: WindowData, tmp_path: Path
) -> None:
    model = one_of(name, student, tiny_bert)
    session = LocalSession(tmp_path)
    strategy = DataParallel(model, model.config, session)
    losses = []
    for _ in range(12):
        taken = train_step(strategy, step_input(data, ROWS, session, 1), session, 1e-3)
        losses.append(sum(taken.figures().terms.values()))
    assert losses[-1] < 0.9 * losses[0]
    if model.beside is not None:
        (teacher,) = model.beside._teacher
        fresh = pretrained.load_qa_model(tiny_bert).state_dict()
        assert all(torch.equal(fresh[key], tensor) for key, tensor in teacher.state_dict().items())
        assert all(parameter.grad is None for parameter in teacher.parameters())
        owned = {id(parameter) for parameter in model.parameters()}
        assert not any(id(parameter) in owned for parameter in teacher.parameters())


def test_step_after_an_evaluation_trains_again_and_the_teacher_never_does(
    student: str, tiny_bert: str, data: WindowData, tmp_path: Path
) -> None:
    model = distillation(student, "intermediate", teacher=tiny_bert)
    seen: list[tuple[bool, bool]] = []
    assert model.beside is not None
    (teacher,) = model.beside._teacher
    teacher.register_forward_hook(lambda *_: seen.append((teacher.training, model.student.training)))
    for _ in range(2):
        model.student.eval()
        one_step(model, data, tmp_path)
    assert seen == [(False, True), (False, True)]
    assert not any(module.training for module in teacher.modules())
    assert all(module.training for module in model.student.modules())


def test_checkpoint_names_its_parts_as_earlier_versions_did(
    narrow: str, tiny_bert: str, tmp_path: Path
) -> None:
    """A run that one of them began is continued."""
    model = distillation(narrow, "intermediate", teacher=tiny_bert)
    DataParallel(model, model.config, LocalSession(tmp_path)).save(tmp_path)
    state = torch.load(tmp_path / OPTIMIZER, weights_only=True)
    assert state.keys() == {"trainee", "optimizer", "scaler", "overflows"}
    projections = {name for name in state["trainee"] if not name.startswith("student.")}
    assert projections == {f"beside.objectives.intermediate.projections.maps.{i}.weight" for i in range(2)}


def test_projections_to_a_wider_teacher_are_trained(
    narrow: str, tiny_bert: str, data: WindowData, tmp_path: Path
) -> None:
    model = distillation(narrow, "intermediate", teacher=tiny_bert)
    assert model.beside is not None
    objective = model.beside.objectives["intermediate"]
    assert isinstance(objective, Intermediate)
    maps = list(objective.projections.parameters())
    assert [tuple(each.shape) for each in maps] == [(32, 16), (32, 16)]
    before = [each.detach().clone() for each in maps]
    optimizer = adamw(model, model.config)
    optimized = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    assert {id(each) for each in maps} <= optimized
    one_step(model, data, tmp_path)
    for each, old in zip(maps, before, strict=True):
        assert not torch.equal(each, old)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_trained_parameter_gets_a_gradient(
    name: str, student: str, tiny_bert: str, batch: Batch
) -> None:
    """Data parallelism waits for each of them."""
    model = one_of(name, student, tiny_bert)
    torch.autograd.backward(loss(model, batch))
    assert [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


@pytest.mark.parametrize("weight", [0.0, 0.75, 1.0])
def test_prediction_mixes_the_teacher_and_the_labels_by_weight(
    student: str, batch: Batch, weight: float
) -> None:
    model = distillation(student, "prediction", distillation_weight=weight, temperature=1.5).eval()
    output = model.student(
        input_ids=batch.input_ids,
        attention_mask=batch.token_mask.long(),
        token_type_ids=batch.token_type_ids,
    )
    logits = (output.start_logits, output.end_logits)
    assert batch.start_logits is not None
    assert batch.end_logits is not None
    taught = prediction_loss(
        *logits, batch.start_logits[0], batch.end_logits[0], batch.token_mask, 1.5, len(ROWS)
    )
    label = label_loss(*logits, batch.start_positions, batch.end_positions, batch.token_mask, len(ROWS))
    torch.testing.assert_close(loss(model, batch), weight * taught + (1 - weight) * label)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_micro_batches_add_up_to_the_global_batch(
    name: str, student: str, tiny_bert: str, data: WindowData, batch: Batch
) -> None:
    model = one_of(name, student, tiny_bert).eval()
    parts = [loss(model, data.batch(rows, ROWS)) for rows in np.array_split(ROWS, 3)]
    torch.testing.assert_close(torch.stack(parts).sum(), loss(model, batch), rtol=1e-5, atol=1e-6)


def test_dropout_before_the_head_is_drawn_in_training_only(student: str, batch: Batch) -> None:
    model = distillation(student, "labels", head_dropout=0.9).eval()
    for module in model.student.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    plain = distillation(student, "labels").eval()
    assert torch.equal(loss(model, batch), loss(plain, batch))
    model.train()
    assert not torch.equal(loss(model, batch), loss(model, batch))


def test_teacher_with_other_heads_is_refused_for_attention_but_serves_for_relations(
    student: str, tmp_path: Path, batch: Batch
) -> None:
    teacher = tiny.save_qa_model(tmp_path / "wide", hidden=64, heads=8)
    with pytest.raises(InputError, match=r"student has 4 attention heads, the teacher 8"):
        distillation(student, "intermediate", teacher=teacher)
    assert loss(distillation(student, "relations", teacher=teacher), batch).isfinite()


def test_sum_of_objectives_is_the_weighted_sum_of_each(student: str, tiny_bert: str, batch: Batch) -> None:
    weights = (2.0, 0.5, 3.0)
    names = ("labels", "intermediate", "prediction")
    mixed = distillation(student, *names, teacher=tiny_bert, objective_weights=weights).eval()
    alone = [distillation(student, name, teacher=tiny_bert).eval() for name in names]
    expected = sum(weight * loss(model, batch) for weight, model in zip(weights, alone, strict=True))
    torch.testing.assert_close(loss(mixed, batch), expected)
    assert mixed.student.qa_outputs.weight.requires_grad


@pytest.mark.parametrize("weights", [None, (3.0, 1.0)])
def test_several_teachers_are_averaged_by_their_weights(
    student: str, batch: Batch, weights: tuple[float, ...] | None
) -> None:
    assert batch.start_logits is not None
    assert batch.end_logits is not None
    generator = torch.Generator().manual_seed(0)
    other = [torch.randn(each.shape, generator=generator) for each in (batch.start_logits, batch.end_logits)]
    both = replace(
        batch,
        start_logits=torch.cat([batch.start_logits, other[0]]),
        end_logits=torch.cat([batch.end_logits, other[1]]),
    )
    model = distillation(student, "prediction", teacher_weights=weights).eval()
    plain = distillation(student, "prediction").eval()
    first, second = (
        float(loss(plain, each).detach())
        for each in (batch, replace(batch, start_logits=other[0], end_logits=other[1]))
    )
    shares = (0.5, 0.5) if weights is None else (0.75, 0.25)
    expected = shares[0] * first + shares[1] * second
    assert float(loss(model, both).detach()) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_lower_precision_gives_nearly_the_loss_of_fp32(
    name: str, precision: str, student: str, tiny_bert: str, batch: Batch
) -> None:
    model = one_of(name, student, tiny_bert).eval()
    full = loss(model, batch)
    model.autocast = {"bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    lower = loss(model, batch)
    assert lower.dtype == torch.float32
    assert not torch.equal(lower, full)
    torch.testing.assert_close(lower, full, rtol=0.05, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", [name for name in OBJECTIVES if LAYERS & set(OBJECTIVES[name][0])])
def test_frozen_teacher_is_held_in_the_precision_of_the_products(
    name: str, dtype: torch.dtype, student: str, tiny_bert: str, batch: Batch
) -> None:
    """Half the memory and traffic of a large teacher; the losses stay those of one in float32."""
    model = one_of(name, student, tiny_bert)
    teacher = pretrained.load_qa_model(tiny_bert)
    lower = DistillationModule(model.student, model.config, teacher, dtype).eval()
    assert lower.beside is not None
    assert {parameter.dtype for parameter in lower.beside._teacher[0].parameters()} == {dtype}
    assert {parameter.dtype for parameter in lower.parameters()} == {torch.float32}
    full = DistillationModule(model.student, model.config, pretrained.load_qa_model(tiny_bert)).eval()
    assert full.beside is not None
    lower.beside.objectives.load_state_dict(full.beside.objectives.state_dict())
    with torch.no_grad():
        found, wanted = lower(batch), full(batch)
    assert found.keys() == wanted.keys()
    for term, value in wanted.items():
        exact = dtype == torch.float32
        torch.testing.assert_close(
            found[term], value, rtol=1e-6 if exact else 0.03, atol=0 if exact else 1e-3
        )
