"""A server of the Model Context Protocol, whose tools answer with places; extra ``mcp``.

tinyqa mcp --files papers                                 # over stdio, as desktop programs start it
tinyqa mcp --index out/index --transport http --port 8001    # http://127.0.0.1:8001/mcp
"""

from __future__ import annotations

import functools
import hmac
import inspect
import os
from collections.abc import Callable
from typing import Any, Literal

from tinyqa_ray.configs import McpConfig
from tinyqa_ray.core.errors import InputError
from tinyqa_ray.core.version import __version__
from tinyqa_ray.integrations.evidence import Found
from tinyqa_ray.integrations.library import Library

try:
    from mcp.server import MCPServer
    from mcp.server.mcpserver.exceptions import ToolError
    from mcp.types import ToolAnnotations
except ImportError as error:
    raise InputError("tinyqa mcp needs the MCP SDK; pip install 'tinyqa-ray[mcp]'") from error

KEY = "TINYQA_API_KEY"
"""Environment variable with the key that HTTP requests must carry, if set."""
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_ABOUT = (
    "Quotes answers to questions from texts, word for word, with the place of each, or says that the texts "
    "hold none. It adds nothing of its own: ask short, factual questions in whole sentences."
)


def server(library: Library) -> MCPServer[Any]:
    """The server, with a tool for each kind of source that the library has."""
    made: MCPServer[Any] = MCPServer("tinyqa", instructions=_ABOUT, version=__version__, log_level="WARNING")

    def add(tool: Callable[..., Any]) -> None:
        hints = ToolAnnotations(read_only_hint=True, idempotent_hint=True, open_world_hint=False)
        made.add_tool(_told(tool), annotations=hints)

    def ask_texts(question: str, texts: list[str], top_k: int = 3) -> Found:
        """Find the answer to a question in texts, quoted word for word, best first."""
        return library.ask_texts(question, texts, top_k)

    def ask_files(question: str, paths: list[str], top_k: int = 3) -> Found:
        """Find the answer to a question in files (PDF, DOCX, PPTX, HTML, Markdown, EPUB, text).

        Paths are relative to the folder of this server. Answers say their page and, in PDFs, their boxes.
        """
        return library.ask_files(question, paths, top_k)

    def ask_corpus(question: str, top_k: int = 3) -> Found:
        """Find the answer to a question in the indexed corpus of this server, best first."""
        return library.ask_corpus(question, top_k)

    def find_answers(words: str, most: int = 5) -> list[Found]:
        """Look up questions that this server's corpus was asked before, by their words, with the answers."""
        assert library.answered is not None
        return library.answered.find(words, most)

    add(ask_texts)
    if library.config.files is not None:
        add(ask_files)
    if library.corpus is not None:
        add(ask_corpus)
    if library.answered is not None:
        add(find_answers)
    return made


def _told(tool: Callable[..., Any]) -> Callable[..., Any]:
    """The tool, whose ``InputError`` the caller reads; other errors stay in the log."""

    @functools.wraps(tool)
    def called(**given: Any) -> Any:
        try:
            return tool(**given)
        except InputError as error:
            raise ToolError(str(error)) from None

    called.__signature__ = inspect.signature(tool, eval_str=True)  # type: ignore[attr-defined]
    return called


def run(
    config: McpConfig, transport: Literal["stdio", "http"], host: str = "127.0.0.1", port: int = 8001
) -> None:
    """Serve until stdin ends (stdio) or a signal comes (streamable HTTP, at ``/mcp``).

    Raises:
        InputError: see ``Library``; or the host is open to others, and there is no key.
    """
    key = os.environ.get(KEY, "").strip()
    if transport == "http" and host not in _LOOPBACK and not key:
        raise InputError(f"host {host} is open to others; set a key in {KEY}, or listen on 127.0.0.1")
    made = server(Library(config))
    if transport == "stdio":
        made.run("stdio")
        return
    import uvicorn

    app = made.streamable_http_app(host=host, json_response=True, stateless_http=True)
    uvicorn.run(Keyed(app, key) if key else app, host=host, port=port, log_level="warning")


class Keyed:
    """An ASGI application that refuses requests without the key (``Authorization: Bearer KEY``)."""

    def __init__(self, app: Any, key: str) -> None:
        self._app = app
        self._wanted = f"Bearer {key}".encode()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass a request on, or answer it with 401."""
        given = dict(scope.get("headers", ())).get(b"authorization", b"")
        if scope["type"] != "http" or hmac.compare_digest(given, self._wanted):
            await self._app(scope, receive, send)
            return
        headers = [(b"content-type", b"text/plain"), (b"www-authenticate", b"Bearer")]
        await send({"type": "http.response.start", "status": 401, "headers": headers})
        await send({"type": "http.response.body", "body": b"the key is absent or wrong"})
