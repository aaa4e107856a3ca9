from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyqa_ray.gather.overlap import Overlap

TEXT = (
    "In the late 17th century, Robert Boyle proved that air is necessary for combustion. English chemist "
    "John Mayow refined this work by showing that fire requires only a part of air."
)

QUOTATION = (
    'It is often said of him that "Robert Boyle proved that air is necessary for combustion", which he did '
    "not do alone: several members of the society had made the same experiment with a pump years before, "
    "and wrote of it to each other, to their friends abroad and at last to the king himself, who laughed."
)


@pytest.mark.parametrize(
    "text",
    [
        TEXT,
        TEXT.upper().replace(",", " ,").replace("proved", "próved"),
        TEXT[: len(TEXT) // 2],
        "Something else stood here before. " + TEXT,
        TEXT.replace("Robert Boyle", "Boyle"),
    ],
    ids=["same", "other marks, case and accents", "its first half", "within another text", "edited"],
)
def test_text_that_repeats_a_known_one_is_found(text: str) -> None:
    assert text in Overlap(["Rye bread is baked at dawn.", TEXT])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "…",
        "Combustion is a chemical reaction between substances that gives off light and heat in a flame.",
        QUOTATION,
    ],
    ids=["empty", "marks alone", "the same subject", "a quotation"],
)
def test_other_text_is_not(text: str) -> None:
    assert text not in Overlap([TEXT])


@given(st.text(min_size=1), st.text())
def test_every_text_with_a_letter_repeats_itself(text: str, other: str) -> None:
    assert (text in Overlap([other, text])) or not any(each.isalnum() for each in text)
