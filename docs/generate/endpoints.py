"""The reference of the server, from its OpenAPI document."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

from starlette.testclient import TestClient

from tinyqa_ray.configs import ServeConfig
from tinyqa_ray.serve.api import create_api
from tinyqa_ray.serve.metrics import Metrics

ABOUT = """# HTTP

The server's own OpenAPI document, as a page. A running server shows it at `/docs`, and gives it at
`/openapi.json`. Where a key is set, requests send it as `Authorization: Bearer KEY`. Every error has the form
of [`Problem`](#problem).
"""


def page() -> str:
    """The page, in Markdown."""
    found = document()
    parts = [ABOUT]
    for path, methods in found["paths"].items():
        for method, call in methods.items():
            parts.append(_call(method.upper(), path, call))
    schemas = {
        name: schema
        for name, schema in found["components"]["schemas"].items()
        if name not in ("HTTPValidationError", "ValidationError")
    }
    parts += ["## Schemas\n", *(_schema(name, schema) for name, schema in sorted(schemas.items()))]
    return "\n".join(parts)


def document() -> dict[str, Any]:
    """The OpenAPI document of a server with the default limits and no key; no model is loaded for it."""

    async def absent() -> Any:
        raise AssertionError("nothing is asked")

    service = cast(Any, SimpleNamespace(config=SimpleNamespace(limits=ServeConfig().limits)))
    api = create_api(service, absent, Metrics(), every=absent)
    return cast(dict[str, Any], TestClient(api).get("/openapi.json").json())


def _call(method: str, path: str, call: dict[str, Any]) -> str:
    lines = [f"## {method} {path}\n", f"**{call['summary']}.** {call.get('description', '')}\n"]
    if "requestBody" in call:
        (content,) = call["requestBody"]["content"].values()
        lines.append(f"Body: {_type(content['schema'])}, as `application/json`.\n")
    lines += ["| status | meaning | body |", "|---|---|---|"]
    for status, response in sorted(call["responses"].items()):
        (kind, content), *_ = response.get("content", {"": {}}).items() or [("", {})]
        body = _type(content["schema"]) if content.get("schema") else kind
        lines.append(f"| {status} | {_line(response['description'])} | {body} |")
    return "\n".join(lines) + "\n"


def _schema(name: str, schema: dict[str, Any]) -> str:
    needed = schema.get("required", ())
    lines = [
        f"### {name}\n",
        f"{schema.get('description', '')}\n",
        "| field | type | meaning |",
        "|---|---|---|",
    ]
    for field, about in schema.get("properties", {}).items():
        words = [about.get("description", ""), *_bounds(about)]
        if field in needed:
            words.append("Must be there.")
        elif about.get("default") is not None:
            words.append(
                f"`{about['default']}` when absent.".replace("True", "true").replace("False", "false")
            )
        lines.append(f"| `{field}` | {_type(about)} | {_line(' '.join(word for word in words if word))} |")
    return "\n".join(lines) + "\n"


def _type(schema: dict[str, Any]) -> str:
    """A schema's type in words, with links to other schemas."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(_type(each) for each in schema["anyOf"]))
    if schema.get("type") == "array":
        return f"list of {_type(schema['items'])}"
    return str(schema.get("type", "anything"))


def _bounds(schema: dict[str, Any]) -> Iterator[str]:
    """What a schema, or the one that is not null of several, asks of a value."""
    chosen = next((each for each in schema.get("anyOf", ()) if each.get("type") != "null"), schema)
    words = {"minimum": "least", "maximum": "most", "minItems": "fewest items", "maxItems": "most items"}
    said = [f"{meaning} {chosen[key]}" for key, meaning in words.items() if key in chosen]
    if said:
        yield f"{', '.join(said).capitalize()}."


def _line(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
