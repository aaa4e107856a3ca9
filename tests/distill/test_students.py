from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    AlbertConfig,
    AlbertForQuestionAnswering,
    BertConfig,
    BertForQuestionAnswering,
    DebertaConfig,
    DebertaForQuestionAnswering,
    DistilBertConfig,
    DistilBertForQuestionAnswering,
    ModernBertConfig,
    ModernBertForQuestionAnswering,
    PreTrainedModel,
    RobertaConfig,
    RobertaForQuestionAnswering,
)

from tinyqa_ray.core.errors import InputError
from tinyqa_ray.distill.encoders import encoder_layers
from tinyqa_ray.distill.losses import hidden_loss
from tinyqa_ray.distill.students import (
    Projections,
    evenly_spaced_layers,
    layer_block,
    layer_pairs,
    student_from_layers,
)

TOKENS = torch.tensor([[5, 9, 3, 11, 7], [4, 2, 8, 1, 1]])
INPUTS = {"input_ids": TOKENS, "attention_mask": (TOKENS != 1).long()}
FAMILIES = ("bert", "distilbert", "roberta")
every_family = pytest.mark.parametrize("family", FAMILIES)


def make_teacher(family: str) -> PreTrainedModel:
    torch.manual_seed(2)
    sizes: dict[str, Any] = {
        "vocab_size": 20,
        "hidden_size": 16,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "max_position_embeddings": 12,
    }
    if family == "bert":
        return BertForQuestionAnswering(BertConfig(**sizes)).eval()
    if family == "roberta":
        return RobertaForQuestionAnswering(RobertaConfig(**sizes)).eval()
    config = DistilBertConfig(
        vocab_size=20, dim=16, n_layers=4, n_heads=2, hidden_dim=24, max_position_embeddings=12
    )
    return DistilBertForQuestionAnswering(config).eval()


def test_known_depths_give_the_layers_of_the_papers() -> None:
    assert evenly_spaced_layers(6, 3) == (1, 3, 5)
    assert evenly_spaced_layers(12, 6) == (1, 3, 5, 7, 9, 11)
    assert evenly_spaced_layers(12, 12) == tuple(range(12))
    attention, hidden = layer_pairs(12, 4)
    assert attention == ((0, 2), (1, 5), (2, 8), (3, 11))
    assert hidden == ((0, 0), (1, 3), (2, 6), (3, 9), (4, 12))


@given(depth=st.integers(1, 12), block=st.integers(1, 6))
@settings(deadline=None)
def test_pairs_cover_the_student_and_end_at_the_top_of_the_teacher(depth: int, block: int) -> None:
    attention, hidden = layer_pairs(depth * block, depth)
    assert layer_block(depth * block, depth) == block
    assert [student for student, _ in attention] == list(range(depth))
    assert [student for student, _ in hidden] == list(range(depth + 1))
    assert attention[-1][1] == depth * block - 1
    # The hidden state above a paired layer is the pair of the hidden state above the student's layer.
    assert [(student + 1, teacher + 1) for student, teacher in attention] == list(hidden[1:])


@pytest.mark.parametrize(
    ("student_layers", "nearest"), [(5, "4, 6"), (7, "6, 12"), (0, "1"), (-3, "1"), (24, "12")]
)
def test_a_depth_that_does_not_divide_is_refused_with_the_nearest(student_layers: int, nearest: str) -> None:
    message = f"a student of {student_layers} layers .* teacher of 12; .*: {nearest}$"
    for function in (layer_block, layer_pairs, evenly_spaced_layers):
        with pytest.raises(InputError, match=message):
            function(12, student_layers)


@every_family
def test_a_student_of_all_layers_answers_like_its_teacher(family: str) -> None:
    teacher = make_teacher(family)
    student = student_from_layers(teacher, range(4))
    assert type(student) is type(teacher)
    for logits in ("start_logits", "end_logits"):
        torch.testing.assert_close(getattr(student(**INPUTS), logits), getattr(teacher(**INPUTS), logits))


@every_family
def test_a_student_has_the_chosen_layers_in_increasing_order(family: str) -> None:
    teacher = make_teacher(family)
    student = student_from_layers(teacher, (3, 1))
    assert student.config.num_hidden_layers == len(encoder_layers(student)) == 2
    assert teacher.config.num_hidden_layers == len(encoder_layers(teacher)) == 4
    for kept, original in zip(
        encoder_layers(student), [encoder_layers(teacher)[i] for i in (1, 3)], strict=True
    ):
        torch.testing.assert_close(kept.state_dict(), original.state_dict(), rtol=0, atol=0)
    for part in ("embeddings.word_embeddings", "embeddings.position_embeddings"):
        copied = student.base_model.get_submodule(part).weight
        torch.testing.assert_close(copied, teacher.base_model.get_submodule(part).weight, rtol=0, atol=0)
    torch.testing.assert_close(student.qa_outputs.weight, teacher.qa_outputs.weight, rtol=0, atol=0)


@every_family
def test_a_changed_student_leaves_its_teacher_alone(family: str) -> None:
    teacher = make_teacher(family).requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    student = student_from_layers(teacher, (0, 2))
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(1.0)
    torch.testing.assert_close(dict(teacher.state_dict()), before, rtol=0, atol=0)
    assert all(parameter.requires_grad for parameter in encoder_layers(student).parameters())


def test_a_student_can_be_saved_and_loaded(tmp_path: Any) -> None:
    student = student_from_layers(make_teacher("distilbert"), (1, 3))
    student.save_pretrained(tmp_path)
    loaded = DistilBertForQuestionAnswering.from_pretrained(tmp_path).eval()
    assert loaded.config.n_layers == 2
    torch.testing.assert_close(loaded(**INPUTS).start_logits, student(**INPUTS).start_logits)


def test_a_student_keeps_dtype_and_mode() -> None:
    teacher = make_teacher("bert").to(torch.bfloat16)
    assert student_from_layers(teacher, (0,)).dtype == torch.bfloat16
    assert not student_from_layers(teacher, (0,)).training
    assert student_from_layers(teacher.train(), (0,)).training


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ((), "no layer is chosen"),
        ((0, 4), "layer 4 is chosen for the student; give each of layers 0 to 3"),
        ((-1,), "layer -1 is chosen"),
        ((2, 1, 2), "layer 2 is chosen twice"),
    ],
)
def test_layers_that_make_no_student_are_refused(layers: tuple[int, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        student_from_layers(make_teacher("bert"), layers)


def test_projections_learn_where_widths_differ() -> None:
    projections = Projections(3, student_width=6, teacher_width=10)
    assert sorted(tuple(parameter.shape) for parameter in projections.parameters()) == [(10, 6)] * 3
    hidden, mask = torch.randn(2, 4, 6), torch.ones(2, 4, dtype=torch.bool)
    loss = hidden_loss(projections(1, hidden), torch.randn(2, 4, 10), mask, 8)
    loss.backward()  # type: ignore[no-untyped-call]
    gradients = [parameter.grad for parameter in projections.parameters()]
    assert gradients[0] is None
    assert gradients[1] is not None
    assert gradients[1].any()
    assert gradients[2] is None


def test_projections_of_equal_widths_change_nothing_and_have_no_parameters() -> None:
    projections = Projections(2, student_width=6, teacher_width=6)
    hidden = torch.randn(2, 4, 6)
    assert not list(projections.parameters())
    assert torch.equal(projections(1, hidden), hidden)


def test_student_of_a_model_whose_layers_differ_in_kind_keeps_their_kinds() -> None:
    """ModernBERT's layers attend locally or globally, and the first one alone has no norm before."""
    torch.manual_seed(4)
    sizes = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 24}
    special = {"pad_token_id": 1, "cls_token_id": 0, "sep_token_id": 2}
    teacher = ModernBertForQuestionAnswering(ModernBertConfig(vocab_size=20, **sizes, **special)).eval()
    student = student_from_layers(teacher, (0, 2, 3))
    kinds = teacher.config.layer_types
    assert student.config.layer_types == [kinds[0], kinds[2], kinds[3]]
    assert student(**INPUTS).start_logits.shape == TOKENS.shape
    with pytest.raises(InputError, match="layer 0, the only one that takes embeddings"):
        student_from_layers(teacher, (1, 2))


def make_albert(groups: int) -> PreTrainedModel:
    torch.manual_seed(3)
    sizes = {"hidden_size": 16, "num_hidden_layers": 6, "num_attention_heads": 2, "intermediate_size": 24}
    config = AlbertConfig(vocab_size=20, embedding_size=8, num_hidden_groups=groups, **sizes)
    return AlbertForQuestionAnswering(config).eval()


def test_student_of_albert_repeats_the_weights_of_one_group_less_often() -> None:
    teacher = make_albert(1)
    student = student_from_layers(teacher, (1, 3, 5))
    assert len(encoder_layers(student)) == student.config.num_hidden_layers == 3
    torch.testing.assert_close(dict(student.state_dict()), dict(teacher.state_dict()), rtol=0, atol=0)
    hidden = teacher(**INPUTS, output_hidden_states=True).hidden_states
    mine = student(**INPUTS, output_hidden_states=True).hidden_states
    torch.testing.assert_close(mine, hidden[:4])


def test_student_of_albert_keeps_the_groups_that_its_layers_are_of() -> None:
    teacher = make_albert(3)  # layers 0 and 1 are of group 0, 2 and 3 of group 1, 4 and 5 of group 2
    student = student_from_layers(teacher, (0, 1, 4, 5))
    assert student.config.num_hidden_groups == 2
    for place, layer in ((0, 0), (1, 1), (2, 4), (3, 5)):
        kept, original = encoder_layers(student)[place], encoder_layers(teacher)[layer]
        torch.testing.assert_close(kept.state_dict(), original.state_dict(), rtol=0, atol=0)


def test_layers_that_albert_cannot_repeat_are_refused_with_what_it_would_run() -> None:
    message = (
        r"layers 0, 1, 2, 5 are of groups 0, 0, 0, 1, .* 4 layers would run groups 0, 0, 1, 1; choose layers"
    )
    with pytest.raises(InputError, match=message):
        student_from_layers(make_albert(2), (5, 0, 1, 2))


def test_student_of_deberta_answers_like_its_teacher_cut_short() -> None:
    torch.manual_seed(5)
    sizes = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 24}
    config = DebertaConfig(vocab_size=20, relative_attention=True, pos_att_type=["c2p", "p2c"], **sizes)
    teacher = DebertaForQuestionAnswering(config).eval()
    student = student_from_layers(teacher, (0, 1))
    for mine, its in zip(
        student(**INPUTS, output_hidden_states=True).hidden_states,
        teacher(**INPUTS, output_hidden_states=True).hidden_states,
        strict=False,
    ):
        torch.testing.assert_close(mine, its)
