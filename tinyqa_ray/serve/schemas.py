"""Schemas of requests and answers: our own, and that of Hugging Face Inference for question answering."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    WithJsonSchema,
    model_validator,
)

MAX_TOP_K = 100


def _plain(meta: dict[str, Any]) -> dict[str, Any]:
    """Refuse a meta that could not be sent back as JSON in UTF-8."""
    try:
        json.dumps(meta, allow_nan=False, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        raise ValueError(
            "meta holds NaN, Infinity or half a surrogate pair, or is nested too deeply"
        ) from None
    return meta


def _whole(text: str) -> str:
    """Refuse a text that could not be sent back in UTF-8: JSON may hold half a surrogate pair."""
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"holds half a surrogate pair at character {error.start}") from None
    return text


Text = Annotated[str, AfterValidator(_whole)]
Question = Annotated[Text, WithJsonSchema({"type": "string", "minLength": 1, "pattern": r"\S"})]


def _number(value: Any) -> Any:
    """Refuse other types that pydantic would convert to a number."""
    if isinstance(value, (bool, str)):
        raise ValueError("is not a number")
    return value


Count = Annotated[int, BeforeValidator(_number)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Context(_Strict):
    """A passage to read."""

    text: Text = Field(description="The passage.")
    id: Text | None = Field(
        None, description="Its name, returned as document_id; when absent, its position from 0."
    )
    meta: Annotated[dict[str, Any], AfterValidator(_plain)] | None = Field(
        None, description="Any JSON object; returned with every answer from this passage."
    )


class AnswerRequest(_Strict):
    """One question, or several, about the same passages."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [{"question": "Who built it?", "contexts": ["Edith Marlow built it in 1871."]}],
            "oneOf": [
                {"required": ["question"], "properties": {"question": {"type": "string"}}},
                {"required": ["questions"], "properties": {"questions": {"type": "array"}}},
            ],
        },
    )

    question: Question | None = Field(None, description="A question.")
    questions: list[Question] | None = Field(None, min_length=1, description="Several, instead of one.")
    contexts: list[Text | Context] = Field(min_length=1, description="Passages; answers are ranked over all.")
    top_k: Annotated[int, Field(ge=1, le=MAX_TOP_K), BeforeValidator(_number)] | Literal["all"] = Field(
        1,
        description="Number of answers to each question, best first; 'all' are those that the model holds "
        "for an answer, each by itself.",
    )
    min_score: Annotated[float, BeforeValidator(_number)] = Field(
        0.0, ge=0.0, le=1.0, description="Answers with a lower score are left out."
    )
    evidence: StrictBool = Field(
        False, description="Whether equal answers become one, with every place that says it."
    )
    no_answer: StrictBool = Field(True, description="Whether 'no answer' may be the answer.")
    max_answer_len: Count = Field(30, ge=1, le=512, description="Longest answer, in tokens.")

    @model_validator(mode="after")
    def _one_of_both(self) -> AnswerRequest:
        if (self.question is None) == (self.questions is None):
            raise ValueError("give either question or questions")
        return self

    @property
    def asked(self) -> list[str]:
        """The questions, in order."""
        return self.questions if self.questions is not None else [self.question or ""]


class Box(BaseModel):
    """A rectangle on a page of a PDF: points (1/72 inch) from the upper left corner of the page as shown."""

    page: int = Field(description="From 1.")
    left: float
    top: float
    right: float
    bottom: float


class UnreadableFile(BaseModel):
    """A file that came with a request, and was not read."""

    document_id: str = Field(description="Its name.")
    error: str


class Place(BaseModel):
    """Where a passage says an answer."""

    document_id: str | None = Field(description="The passage's id.")
    answer: str = Field(description="As it stands there, context[start:end].")
    score: float = Field(description="Its probability by this place alone, against no answer.")
    start: int = Field(description="First character in its passage, counted in Unicode code points.")
    end: int = Field(description="One past its last character.")
    sentence: str = Field(description="The sentence around it.")
    sentence_start: int = Field(description="Where that begins in the passage.")
    meta: Annotated[dict[str, Any] | None, Field(description="The passage's meta.")] = None
    page: Annotated[int | None, Field(description="Page of the file; null if its format has none.")] = None
    boxes: Annotated[list[Box] | None, Field(description="Where a PDF shows it, a box for each line.")] = None


class FoundAnswer(BaseModel):
    """An answer; if ``answer`` is null, there is none."""

    answer: str | None = Field(description="The text, context[start:end]; null when the passages hold none.")
    score: float = Field(
        description="The probability that it is right, 0 to 1: of the best one against no answer, of later "
        "ones against better ones, too; with evidence, of an answer by all its places against all others."
    )
    start: int = Field(description="First character in its passage, counted in Unicode code points.")
    end: int = Field(description="One past its last character.")
    na_prob: float = Field(description="Probability that its passage holds no answer, 0 to 1.")
    document_id: str | None = Field(description="The passage's id.")
    meta: dict[str, Any] | None = Field(None, description="The passage's meta.")
    page: Annotated[int | None, Field(description="Page of the file; null if its format has none.")] = None
    boxes: Annotated[list[Box] | None, Field(description="Where a PDF shows it, a box for each line.")] = None
    paragraph: Annotated[str | None, Field(description="The paragraph of the file that holds it.")] = None
    picture: Annotated[str | None, Field(description="Its page, if pictures are asked for: a data: URL.")] = (
        None
    )
    paragraph_start: Annotated[int | None, Field(description="Where that begins in the text.")] = None
    places: Annotated[list[Place] | None, Field(description="With evidence: all its places, best first.")] = (
        None
    )


class Usage(BaseModel):
    """What a request cost."""

    contexts: int = Field(description="Passages read.")
    windows: int = Field(description="Windows that the passages were cut into, over all questions.")
    tokens: int = Field(description="Tokens of all windows.")
    seconds: float = Field(description="From the request's arrival to its answer.")


class QuestionAnswers(BaseModel):
    """The answers to one of several questions."""

    question: str
    answers: list[FoundAnswer]


class AnswerResponse(BaseModel):
    """The answers to a question, best first, never empty; or those to each of several questions."""

    answers: list[FoundAnswer] | None = Field(None, description="Answers to `question`.")
    results: list[QuestionAnswers] | None = Field(None, description="Answers to `questions`, in their order.")
    unreadable: list[UnreadableFile] | None = Field(None, description="Files that were not read, and why.")
    model: str
    usage: Usage


class InferenceInputs(_Strict):
    """A question and its passage."""

    question: Question
    context: Annotated[Text, WithJsonSchema({"type": "string", "minLength": 1})]


class InferenceParameters(_Strict):
    """Parameters of transformers' pipeline; null stands for its default."""

    top_k: Count | None = Field(None, ge=1, le=MAX_TOP_K)
    doc_stride: Count | None = Field(None, ge=0)
    max_answer_len: Count | None = Field(None, ge=1, le=512)
    max_seq_len: Count | None = Field(None, ge=1)
    max_question_len: Count | None = Field(None, ge=1)
    handle_impossible_answer: StrictBool | None = None
    align_to_words: StrictBool | None = None


class InferenceRequest(_Strict):
    """The Hugging Face Inference schema of question answering."""

    inputs: InferenceInputs
    parameters: InferenceParameters | None = None


class InferenceAnswer(BaseModel):
    """An answer as transformers' pipeline gives it; the score is its probability."""

    answer: str
    score: float
    start: int
    end: int


class Info(BaseModel):
    """The model that answers, its settings, and the limits."""

    model: str
    engine: str
    parameters: int
    version: str
    max_seq_len: int
    doc_stride: int
    threshold: float
    temperature: float
    score_shift: float
    limits: dict[str, int | float]


class Problem(BaseModel):
    """Why there is no answer."""

    error: str
    error_type: str
