"""Files sent as ``multipart/form-data`` → a request; and where its answers stand in them."""

from __future__ import annotations

import contextlib
import importlib.util
import re
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pydantic import ValidationError
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request

from tinyqa_ray.configs import DocumentLimits, LimitConfig
from tinyqa_ray.core.errors import InputError
from tinyqa_ray.documents import Document, UnreadableError, format_of, marked_picture, read_isolated
from tinyqa_ray.serve import schemas
from tinyqa_ray.serve.errors import MediaTypeError, RequestError

FORM = re.compile(r"multipart/form-data", re.IGNORECASE)
FILES = "files"
_TEXTS = ("questions", "contexts")
"""Fields that may come several times; all others come once."""
_ONE = ("question", "top_k", "min_score", "evidence", "no_answer", "max_answer_len", "pictures")
_UNPACKED_BYTES = 1 << 26
_PAGES = 2000
_CORE_S = 10.0
"""Seconds of a core that a file may take."""
_MEMORY_BYTES = 1 << 30
_PICTURE_S = 5.0
"""Seconds that a picture may take; an answer goes without one that takes longer."""
_LETTERS_A_TOKEN = 16
"""Most characters of a token, roughly: a document of more is over the limit of tokens for certain."""
_AROUND = 400
"""Most characters of a paragraph that are shown on either side of an answer."""


@dataclass(frozen=True, slots=True)
class Upload:
    """A request made of a form."""

    request: schemas.AnswerRequest
    names: tuple[str, ...]
    """Of its contexts: names of files, and positions of texts."""
    documents: tuple[Document | None, ...]
    """Of its contexts; None for those that came as texts."""
    unreadable: tuple[schemas.UnreadableFile, ...]
    pdfs: dict[int, bytes]
    """The files of which pictures are wanted, by position."""


def is_form(content_type: str) -> bool:
    """Whether a body of this type may hold files."""
    return FORM.fullmatch(content_type.partition(";")[0].strip()) is not None


async def read_form(request: Request, limits: LimitConfig) -> tuple[dict[str, Any], list[tuple[str, bytes]]]:
    """The fields of a form, and its files by name.

    Raises:
        RequestError: a field is unknown or comes twice, or the body is no form.
    """
    if importlib.util.find_spec("python_multipart") is None:
        raise MediaTypeError("this server lacks the extra 'documents', which reads files; send JSON")
    most = limits.max_contexts + limits.max_questions + len(_ONE)
    try:
        form = await request.form(
            max_files=limits.max_contexts, max_fields=most, max_part_size=limits.max_body_bytes
        )
    except HTTPException as error:
        raise RequestError(f"the form cannot be read ({error.detail})") from None
    return _fields(form), [
        (each.filename or "file.txt", await each.read())
        for each in form.getlist(FILES)
        if isinstance(each, UploadFile)
    ]


def _fields(form: FormData) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, value in form.multi_items():
        if isinstance(value, UploadFile) != (name == FILES):
            raise RequestError(f"{name[:100]}: send files as {FILES!r}, and everything else as text")
        if name == FILES:
            continue
        if name in _TEXTS:
            values.setdefault(name, []).append(value)
        elif name in values or name not in _ONE:
            raise RequestError(
                f"{name[:100]}: comes twice, or is unknown; fields are {', '.join((*_ONE, *_TEXTS))}"
            )
        else:
            values[name] = _value(name, str(value))
    return values


def _value(name: str, text: str) -> Any:
    """The value of a field, whose text is JSON for numbers and for true and false."""
    if name in ("no_answer", "pictures", "evidence") and text in ("true", "false"):
        return text == "true"
    if name in ("top_k", "max_answer_len") and re.fullmatch(r"\d{1,9}", text):
        return int(text)
    if name == "min_score" and re.fullmatch(r"[01](\.\d{1,17})?|\.\d{1,17}", text):
        return float(text)
    if name == "top_k" and text == "all":
        return text
    if name == "question":
        return text
    is_number = name in ("top_k", "min_score", "max_answer_len")
    raise RequestError(f"{name}: is not a {'number' if is_number else 'true or false'}")


def read_upload(fields: dict[str, Any], files: Sequence[tuple[str, bytes]], limits: LimitConfig) -> Upload:
    """The request of a form; files that cannot be read are left out and named.

    All files together may take ``limits.timeout_s``; those that are left then are named as unread.

    Raises:
        RequestError: no file can be read, or a field is wrong.
    """
    end = time.monotonic() + limits.timeout_s
    texts = fields.pop("contexts", [])
    pictures = fields.pop("pictures", False)
    pdfs = {}
    names = [str(place) for place in range(len(texts))]
    documents: list[Document | None] = [None] * len(texts)
    unreadable = []
    for name, data in files:
        document, error = _document(name, data, limits, end - time.monotonic())
        if document is None:
            unreadable.append(schemas.UnreadableFile(document_id=name, error=str(error)))
        else:
            if pictures and format_of(name) == "pdf":
                pdfs[len(names)] = data
            names.append(name)
            documents.append(document)
    if not names:
        wrong = "; ".join(f"{each.document_id}: {each.error}" for each in unreadable[:3])
        raise RequestError(wrong or f"nothing to read; send {FILES} or contexts")
    contexts = [*texts, *(each.text for each in documents if each is not None)]
    try:
        request = schemas.AnswerRequest.model_validate({**fields, "contexts": contexts})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"][:1])
        words = str(first["msg"]).removeprefix("Value error, ")
        raise RequestError(f"{where}: {words}" if where else words) from None
    return Upload(request, tuple(names), tuple(documents), tuple(unreadable), pdfs)


def _document(
    name: str, data: bytes, limits: LimitConfig, seconds: float
) -> tuple[Document | None, str | None]:
    if seconds <= 0:
        return None, "the file was not read, since those before it took all of the time"
    own = DocumentLimits(
        max_file_bytes=limits.max_body_bytes,
        max_unpacked_bytes=_UNPACKED_BYTES,
        max_file_characters=limits.max_request_tokens * _LETTERS_A_TOKEN,
        max_file_pages=_PAGES,
        max_file_core_s=_CORE_S,
        max_file_s=seconds,
        max_file_memory_bytes=_MEMORY_BYTES,
    )
    try:
        return read_isolated(name, data, own), None
    except UnreadableError as error:
        return None, f"the file {error}"
    except InputError as error:  # of an unknown format, or one whose library is not installed
        return None, str(error)


def placed(found: schemas.AnswerResponse, upload: Upload) -> schemas.AnswerResponse:
    """The answers with the names of their files, and where they stand in them."""
    several = [each.answers for each in found.results or ()] + [found.answers or []]
    for answer in (each for answers in several for each in answers):
        if answer.document_id is None:
            continue
        place = int(answer.document_id)
        answer.document_id = upload.names[place]
        document = upload.documents[place]
        if document is not None and answer.answer is not None:
            _place(answer, document, upload.pdfs.get(place))
        for each in answer.places or ():
            _name_place(each, upload)
    if upload.unreadable:
        found.unreadable = list(upload.unreadable)
    return found


def _name_place(place: schemas.Place, upload: Upload) -> None:
    at = int(place.document_id or 0)
    place.document_id = upload.names[at]
    if (document := upload.documents[at]) is not None:
        place.page = document.places.page(place.start)
        place.boxes = _boxes(document, place)


def _boxes(document: Document, found: schemas.Place | schemas.FoundAnswer) -> list[schemas.Box] | None:
    boxes = document.places.boxes(found.start, found.end)
    return [schemas.Box(**asdict(box)) for box in boxes] or None


def _place(answer: schemas.FoundAnswer, document: Document, pdf: bytes | None) -> None:
    text = document.text
    answer.page = document.places.page(answer.start)
    boxes = document.places.boxes(answer.start, answer.end)
    answer.boxes = _boxes(document, answer)
    first, last = max(0, answer.start - _AROUND), min(len(text), answer.end + _AROUND)
    if pdf is not None and boxes:
        own = DocumentLimits(
            max_file_core_s=_PICTURE_S, max_file_s=_PICTURE_S, max_file_memory_bytes=_MEMORY_BYTES
        )
        with contextlib.suppress(UnreadableError):
            answer.picture = marked_picture(pdf, boxes, own)
    before, after = text.rfind("\n\n", first, answer.start), text.find("\n\n", answer.end, last)
    first = before + 2 if before >= 0 else first
    answer.paragraph = text[first : after if after >= 0 else last]
    answer.paragraph_start = first
