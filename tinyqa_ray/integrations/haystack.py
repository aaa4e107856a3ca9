"""Haystack's extractive reader on this package's engine; needs ``pip install 'tinyqa-ray[haystack]'``.

from tinyqa_ray.integrations.haystack import ExtractiveReader

reader = ExtractiveReader(model="deepset/tinyroberta-squad2")
reader.run(query="Who built it?", documents=[Document(content="Edith Marlow built it in 1871.")])
# {"answers": [ExtractedAnswer(data="Edith Marlow", …), …]}
"""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError

from tinyqa_ray.configs import WindowConfig
from tinyqa_ray.core import faults
from tinyqa_ray.core.errors import InputError
from tinyqa_ray.integrations.haystack_spans import Found, RunOptions, candidates, ranked
from tinyqa_ray.models import pretrained
from tinyqa_ray.reader.reader import Reader
from tinyqa_ray.reader.spans import sigmoid

try:
    from haystack import Document, component, default_from_dict, default_to_dict
    from haystack.dataclasses import ExtractedAnswer
    from haystack.utils import ComponentDevice, Secret
except ImportError as error:
    raise ImportError(
        "tinyqa_ray.integrations.haystack needs Haystack; pip install 'tinyqa-ray[haystack]'"
    ) from error

_TOKEN = Secret.from_env_var(["HF_API_TOKEN", "HF_TOKEN"], strict=False)
_MODEL_FILES = ["*.json", "*.safetensors", "*.txt", "*.model"]

logger = logging.getLogger(__name__)


@component
class ExtractiveReader:
    """Finds answers to a query in documents: Haystack's ``ExtractiveReader``, on this package's engine.

    Parameters, answers and scores are those of ``TransformersExtractiveReader`` (transformers-haystack 2.0).
    Every window of a document gives its ``answers_per_seq`` best spans, of any length; a span scores
    ``sigmoid(calibration_factor * (start logit + end logit))``, comparable across documents. What differs:

    - an argument of ``run`` also counts when it is 0, and a threshold of None means no threshold;
    - a document without content is left out; it does not shift the documents after it;
    - windows are sorted by length and padded within their batch, not all to the longest;
    - ``to_dict`` keeps every parameter, ``overlap_threshold`` and ``device`` too;
    - the query is never cut; one that leaves its document no room is refused;
    - a BERT is told which tokens are the query's (token types), as in training;
    - a span without text is never an answer, and documents without any text are no error;
    - ``no_answer_score="null"`` scores the empty answer by the null score of SQuAD 2.0.

    A saved pipeline is loaded with ``Pipeline.loads(text, allowed_modules=["tinyqa_ray"])``.
    """

    def __init__(
        self,
        model: Path | str = "deepset/roberta-base-squad2-distilled",
        device: ComponentDevice | None = None,
        token: Secret | None = _TOKEN,
        top_k: int = 20,
        score_threshold: float | None = None,
        max_seq_length: int = 384,
        stride: int = 128,
        max_batch_size: int | None = None,
        answers_per_seq: int | None = None,
        no_answer: bool = True,
        calibration_factor: float = 0.1,
        overlap_threshold: float | None = 0.01,
        model_kwargs: dict[str, Any] | None = None,
        *,
        no_answer_score: Literal["product", "null"] = "product",
        precision: str | None = None,
    ) -> None:
        """Check the parameters; ``warm_up`` or the first ``run`` loads the model.

        Args:
            model: folder, URL of a folder, or hub id.
            device: a single one; None means the GPU where there is one.
            token: the hub's, for private models.
            top_k: most answers of a run, besides the empty one.
            score_threshold: least score of an answer, the empty one included; None keeps all.
            max_seq_length: tokens of a window: query, part of the document, special tokens.
            stride: tokens that neighbouring windows of a document share.
            max_batch_size: limits the tokens of a forward, padding included, to those of so many full
                windows; None leaves the limit to the engine. Changes no answer.
            answers_per_seq: candidates of each window; 20 when None.
            no_answer: whether to add an empty answer (``data=None``) with the chance that there is none.
            calibration_factor: the smaller, the closer all scores are to 0.5.
            overlap_threshold: an answer is dropped when it shares more than this fraction of its characters,
                or of the other's, with a better answer of the same document; None drops none.
            model_kwargs: only ``device_map``, a single device, which saved pipelines of Haystack's reader may
                hold; it overrides ``device``.
            no_answer_score: score of the empty answer. ``product``, as in Haystack: the product of 1 - score
                over the answers kept, so more answers make it smaller. ``null``: the model's
                ``sigmoid(null score - best span)``, the smallest of all documents.
            precision: see ``Reader.from_pretrained``.

        Raises:
            InputError: a value out of range, several devices, or another key of ``model_kwargs``.
        """
        self.model = str(model)
        self.device = device
        self.token = token
        self.top_k = top_k
        self.score_threshold = score_threshold
        self.max_seq_length = max_seq_length
        self.stride = stride
        self.max_batch_size = max_batch_size
        self.answers_per_seq = answers_per_seq
        self.no_answer = no_answer
        self.calibration_factor = calibration_factor
        self.overlap_threshold = overlap_threshold
        self.model_kwargs = model_kwargs
        self.no_answer_score = no_answer_score
        self.precision = precision
        self._options()
        if not (math.isfinite(calibration_factor) and calibration_factor > 0):
            raise InputError(f"calibration_factor is {calibration_factor}; it must be above 0")
        if no_answer_score not in ("product", "null"):
            raise InputError(f"no_answer_score is {no_answer_score!r}; it must be 'product' or 'null'")
        self._device = _device_name(device, model_kwargs or {})
        self._reader: Reader | None = None

    def to_dict(self) -> dict[str, Any]:
        """Every parameter, in a form for YAML."""
        names = [name for name in inspect.signature(type(self).__init__).parameters if name != "self"]
        saved: dict[str, Any] = default_to_dict(self, **{name: getattr(self, name) for name in names})
        return saved

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> ExtractiveReader:
        """The reader that ``to_dict`` described."""
        reader: ExtractiveReader = default_from_dict(cls, data)
        return reader

    def warm_up(self) -> None:
        """Load the model, once.

        Raises:
            InputError: what ``Reader.from_pretrained`` refuses, or a model that the hub does not provide.
        """
        if self._reader is None:
            name = _fetched(self.model, self.token.resolve_value() if self.token else None)
            self._config = pretrained.load_config(name)
            self._reader = Reader.from_pretrained(name, device=self._device, precision=self.precision)

    @component.output_types(answers=list[ExtractedAnswer])
    def run(
        self,
        query: str,
        documents: list[Document],
        top_k: int | None = None,
        score_threshold: float | Literal["init"] | None = "init",
        max_seq_length: int | None = None,
        stride: int | None = None,
        max_batch_size: int | None = None,
        answers_per_seq: int | None = None,
        no_answer: bool | None = None,
        overlap_threshold: float | Literal["init"] | None = "init",
    ) -> dict[str, list[ExtractedAnswer]]:
        """Find answers in documents.

        The last eight arguments replace the constructor's in this run. None keeps the constructor's value;
        for the two thresholds ``"init"`` keeps it and None means no threshold.

        Args:
            query: what to ask.
            documents: where to look.
            top_k: most answers, besides the empty one.
            score_threshold: least score of an answer.
            max_seq_length: tokens of a window.
            stride: tokens that neighbouring windows share.
            max_batch_size: limits the tokens of a forward to those of so many full windows.
            answers_per_seq: candidates of each window.
            no_answer: whether to add an empty answer.
            overlap_threshold: largest fraction that an answer may share with a better one.

        Returns:
            ``{"answers": […]}``, best first; empty without documents. For each answer
            ``document.content[document_offset.start:document_offset.end] == data``, and
            ``meta["answer_page_number"]`` is the document's ``page_number`` plus the form feeds before it.

        Raises:
            InputError: an empty query, one that leaves its document no room, a value out of range, or a
                window longer than the model reaches.
        """
        given = {
            "top_k": top_k,
            "max_seq_length": max_seq_length,
            "stride": stride,
            "max_batch_size": max_batch_size,
            "answers_per_seq": answers_per_seq,
            "no_answer": no_answer,
        }
        thresholds = {"score_threshold": score_threshold, "overlap_threshold": overlap_threshold}
        options = self._options(
            **{name: value for name, value in given.items() if value is not None},
            **{name: value for name, value in thresholds.items() if value != "init"},
        )
        if not query.strip():
            raise InputError("the query is empty; ask something")
        if not documents:
            return {"answers": []}
        self.warm_up()
        found, na_prob = self._read(query, documents, options)
        best = ranked(found, [document.id for document in documents], options)
        answers = [self._answer(query, documents[each.document], each) for each in best]
        if options.no_answer:
            product = math.prod(1 - answer.score for answer in answers)
            score = product if self.no_answer_score == "product" else na_prob
            answers.append(ExtractedAnswer(query=query, score=score))
            answers.sort(key=lambda answer: answer.score, reverse=True)
        least = -math.inf if options.score_threshold is None else options.score_threshold
        return {"answers": [answer for answer in answers if answer.score >= least]}

    def _options(self, **changes: Any) -> RunOptions:
        """The constructor's options with some changed, checked."""
        return RunOptions(**{field.name: getattr(self, field.name) for field in fields(RunOptions)} | changes)

    def _read(
        self, query: str, documents: Sequence[Document], options: RunOptions
    ) -> tuple[list[Found], float]:
        """The candidates of all windows, document by document, and the smallest ``na_prob`` of a document."""
        assert self._reader is not None
        for document in documents:
            if document.content is None:
                logger.warning("document %s has no content and is left out", document.id)
        shown = [number for number, document in enumerate(documents) if document.content is not None]
        contents = [str(documents[number].content) for number in shown]
        pretrained.check_window(self.model, self._config, options.max_seq_length)
        # Queries are not cut, so any valid limit of their length will do.
        window = WindowConfig(max_seq_len=options.max_seq_length, doc_stride=options.stride, max_query_len=1)
        reader = self._reader.windowed(window)
        windows = reader.windower.windows([(query, content) for content in contents])
        tokens = options.max_batch_size and options.max_batch_size * options.max_seq_length
        starts, ends = reader.engine.logits(windows, tokens)
        found, na_prob = candidates(windows, contents, starts, ends, options.answers_per_seq or 20)
        return [each._replace(document=shown[each.document]) for each in found], na_prob

    def _answer(self, query: str, document: Document, found: Found) -> ExtractedAnswer:
        content, page = document.content or "", document.meta.get("page_number")
        meta = {}
        if isinstance(page, int):
            meta["answer_page_number"] = page + content.count("\f", 0, found.start)
        elif page is not None:
            logger.warning("document %s: page_number is %r, not a whole number; left out", document.id, page)
        return ExtractedAnswer(
            query=query,
            score=sigmoid(self.calibration_factor * found.logit),
            data=content[found.start : found.end],
            document=document,
            document_offset=ExtractedAnswer.Span(found.start, found.end),
            meta=meta,
        )


def _device_name(device: ComponentDevice | None, model_kwargs: dict[str, Any]) -> str:
    """The device as torch names it, or ``auto``."""
    others = sorted(model_kwargs.keys() - {"device_map"})
    if others:
        raise InputError(
            f"model_kwargs holds {', '.join(others)}; only device_map is taken "
            "(precision= says how the model computes)"
        )
    chosen = model_kwargs.get("device_map")
    if chosen is None:
        chosen = "auto" if device is None else device.to_hf()
    if not isinstance(chosen, (str, int)):
        raise InputError(f"device is {chosen}; the model runs on one device, give one")
    return f"cuda:{chosen}" if isinstance(chosen, int) else chosen


def _fetched(name: str, token: str | None) -> str:
    """``name``, or with a token the folder into which the hub's model was fetched."""
    if token is None or Path(name).is_dir():
        return name
    try:
        return faults.patiently(
            name, lambda: snapshot_download(name, token=token, allow_patterns=_MODEL_FILES)
        )
    except HFValidationError:  # a folder that is not there, or a URL
        return name
    except OSError as error:
        mistake = f"{name}: could not be fetched ({pretrained.first_line(error)})"
        raise faults.refused(name, error, mistake) from None
