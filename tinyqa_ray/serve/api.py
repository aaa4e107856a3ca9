"""The HTTP application: routes, their documentation, and every error in one form."""

from __future__ import annotations

import importlib.resources
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from fastapi import FastAPI, Request, Security
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, Response
from fastapi.routing import APIRoute
from fastapi.security import HTTPBearer
from starlette.exceptions import HTTPException
from starlette.routing import Match
from starlette.types import Scope

from tinyqa_ray.configs import LimitConfig
from tinyqa_ray.core.version import __version__
from tinyqa_ray.serve import schemas, uploads
from tinyqa_ray.serve.errors import RequestError, UnhealthyError
from tinyqa_ray.serve.gate import Gate, State, problem
from tinyqa_ray.serve.metrics import Figures, Metrics, text
from tinyqa_ray.serve.service import EngineInfo, Service

_FILE_THREADS = 2
"""Forms whose files are read at the same time, each in a process of its own."""
_TYPES = {404: "NotFound", 405: "MethodNotAllowed"}
_WORDS = {
    401: "The key is absent or wrong.",
    413: "The body is too large.",
    415: "The content type of the body is neither JSON nor a form with files.",
    422: "The request cannot be answered as it is.",
    429: "Too many tokens are waiting already; try again after Retry-After seconds.",
    503: "The server is starting or going down, or the model failed.",
    504: "The request took too long.",
}
_PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"model": schemas.Problem, "description": words} for status, words in _WORDS.items()
}
_CSP = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def create_api(
    service: Service,
    engine: Callable[[], Awaitable[EngineInfo]],
    metrics: Metrics,
    *,
    every: Callable[[], Awaitable[Iterable[Figures]]],
    key: bytes | None = None,
    state: State | None = None,
) -> Gate:
    """Make the application.

    Args:
        service: answers the requests.
        engine: tells what runs the model; raises ``RequestError`` while nothing does.
        metrics: where requests are counted.
        every: the figures of every replica, for ``/metrics``.
        key: the key that requests must carry; None when they need none.
        state: whether the server is going down; an open server's when not given.
    """
    api = FastAPI(
        title="tinyqa_ray",
        version=__version__,
        description="Answers to questions, found in the passages that come with them.",
        redoc_url=None,
    )
    state = state or State()
    _add_errors(api, metrics)
    # Without a key the document must not mention one: clients generated from it would ask for it.
    guarded = [Security(HTTPBearer(auto_error=False, description="The server's key."))] if key else []
    page = importlib.resources.files("tinyqa_ray.serve").joinpath("page.html").read_text(encoding="utf-8")

    # Apart from the threads that cut windows: a slow file delays only other files.
    readers = ThreadPoolExecutor(_FILE_THREADS, "files")

    async def answer_files(request: Request) -> Response:
        """Answer from the files of a form; see ``uploads``."""
        limits = service.config.limits
        fields, files = await uploads.read_form(request, limits)
        upload = await service.off_the_loop(uploads.read_upload, fields, files, limits, threads=readers)
        found = await service.answer(upload.request)
        found = await service.off_the_loop(uploads.placed, found, upload, threads=readers)
        return Response(found.model_dump_json(exclude_unset=True), media_type="application/json")

    # Before the route for JSON, which takes what is no form, and whose words describe both.
    api.router.add_api_route(
        "/v1/answer",
        answer_files,
        methods=["POST"],
        dependencies=guarded,
        include_in_schema=False,
        route_class_override=_FormRoute,
    )

    @api.post(
        "/v1/answer",
        dependencies=guarded,
        responses=_PROBLEMS,
        response_model=schemas.AnswerResponse,
        summary="Answer",
    )
    async def answer(request: schemas.AnswerRequest) -> Response:
        """Answer one question, or several, from the passages given.

        Files (PDF, DOCX, PPTX, HTML, Markdown, EPUB, UTF-8 text) are read where they are sent as
        multipart/form-data: `files`, once for each, beside `question` or `questions` and, where wanted,
        `contexts`, `top_k`, `min_score`, `evidence`, `no_answer`, `max_answer_len` and `pictures` (of PDF
        pages). Their answers say
        their page, their boxes on the page of a PDF, and their paragraph. A browser must send the header
        X-Requested-With with such a form.
        """
        found = await service.answer(request)
        return Response(found.model_dump_json(exclude_unset=True), media_type="application/json")

    @api.post(
        "/",
        dependencies=guarded,
        responses=_PROBLEMS,
        response_model=schemas.InferenceAnswer | list[schemas.InferenceAnswer],
        summary="Answer, in the Hugging Face Inference schema",
    )
    async def infer(request: schemas.InferenceRequest) -> Any:
        """Answer as transformers' question-answering pipeline does."""
        return await service.infer(request)

    @api.get("/health", responses=_some(503, 504), summary="Whether requests are answered")
    async def health() -> dict[str, str]:
        """200 while a warm model is there; 503 before, after its last replica died, and while going down."""
        if state.now != "open":
            raise UnhealthyError("the server is going down")
        if service.config.min_replicas > 0:  # else there may be no replica until a request comes
            await engine()
        return {"status": "ok"}

    @api.get("/info", dependencies=guarded, responses=_some(401, 503, 504), summary="What answers")
    async def info() -> schemas.Info:
        """The model, its engine, its settings, and the limits."""
        return service.info(await engine())

    @api.get(
        "/metrics",
        dependencies=guarded,
        responses=_some(401, 503, 504),
        response_class=Response,
        summary="Metrics",
    )
    async def show_metrics() -> Response:
        """Counts and times of every replica, in Prometheus' format."""
        return Response(text(await every()), media_type="text/plain; version=0.0.4; charset=utf-8")

    @api.get("/", include_in_schema=False)
    async def show_page() -> HTMLResponse:
        return HTMLResponse(page, headers={"Content-Security-Policy": _CSP})

    limits = service.config.limits
    _document_limits(api, limits)
    return Gate(
        api,
        key=key,
        max_body_bytes=limits.max_body_bytes,
        timeout_s=limits.timeout_s,
        metrics=metrics,
        state=state,
    )


class _FormRoute(APIRoute):
    """A route that takes only requests with forms."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Whether a request is for this route."""
        kind = dict(scope.get("headers", ())).get(b"content-type", b"").decode("latin-1")
        return super().matches(scope) if uploads.is_form(kind) else (Match.NONE, {})


def _some(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: _PROBLEMS[status] for status in statuses}


def _document_limits(api: FastAPI, limits: LimitConfig) -> None:
    """Write the most questions and contexts of a request into the OpenAPI document, which is cached."""
    fields = api.openapi()["components"]["schemas"]["AnswerRequest"]["properties"]
    fields["contexts"]["maxItems"] = limits.max_contexts
    (several,) = (each for each in fields["questions"]["anyOf"] if each.get("type") == "array")
    several["maxItems"] = limits.max_questions


def _add_errors(api: FastAPI, metrics: Metrics) -> None:
    """Give every error the same form."""

    def shown(error: RequestError) -> Response:
        metrics.failed(error.error_type)
        status, headers, body = problem(error)
        return Response(body, status, headers, "application/json")

    @api.exception_handler(RequestError)
    async def refused(_: Request, error: RequestError) -> Response:
        return shown(error)

    @api.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        return shown(RequestError(_first(error)))

    @api.exception_handler(HTTPException)
    async def other(_: Request, error: HTTPException) -> Response:
        if error.status_code == 400:  # FastAPI's status for a body that is not UTF-8
            return shown(RequestError("the body cannot be read; send JSON in UTF-8"))
        made = RequestError(str(error.detail))
        made.status, made.error_type = error.status_code, _TYPES.get(error.status_code, "Http")
        return shown(made)


def _first(error: RequestValidationError) -> str:
    """The most specific error in one line, without the value, which may be long or not UTF-8."""
    # The deepest one: if a value may have two types, it belongs to the type that was meant.
    first = max(error.errors(), key=lambda each: len(each["loc"]))
    parts = [str(part) for part in first["loc"] if part != "body"]
    if not parts and first["type"] in ("missing", "model_attributes_type"):
        return "the body is not a JSON object; send one"
    # If a value may have two types, pydantic's location also names the type, which is left out.
    where = ".".join(part for part in parts if part.isdigit() or (part.islower() and "[" not in part))
    words = str(first["msg"]).removeprefix("Value error, ")
    line = f"{where}: {words}" if where else words
    return line.encode("utf-8", "replace").decode()
