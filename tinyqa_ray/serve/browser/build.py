"""Writes the folder of a page that reads in the browser: page, JavaScript, WebAssembly and model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from tinyqa_ray.core import forms, storage
from tinyqa_ray.core.errors import InputError
from tinyqa_ray.datasets.windows import PairTemplate, Windower
from tinyqa_ray.engines.exported import ONNX_FILES, export_format
from tinyqa_ray.engines.load import fitting_window
from tinyqa_ray.engines.onnx_engine import OnnxEngine
from tinyqa_ray.models import families, hub, pretrained
from tinyqa_ray.models.settings import has_file, read_settings
from tinyqa_ray.serve.browser import runtime
from tinyqa_ray.serve.browser.characters import characters

_SCRIPTS = ("worker.js", "reader.js", "spans.js", "wordpiece.js")
_SETTINGS = ("no_answer_threshold", "temperature", "score_shift", "rank_temperatures", "rank_shifts")
_SWITCH = '<html lang="en" data-reader="reader/worker.js">'
# The page itself asks nobody but its own server, for its own files.
_POLICY = (
    "default-src 'none'; script-src 'self' 'unsafe-inline'; worker-src 'self'; connect-src 'self'; "
    "style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class BrowserPage:
    """What was written."""

    output: str
    model: str
    precision: str
    megabytes: float
    """Of all files; the first visit fetches them."""


def build(model: str, output: str, *, precision: str = "int8") -> BrowserPage:
    """Write a page that answers questions in the browser, without a server that computes.

    The folder holds all that the page needs and can be served by anything that serves files. Its ``model`` is
    laid out as transformers.js expects it. Tokens, windows, spans and scores are those of ``Reader``.

    Args:
        model: an ONNX export, or a model, of which the form is made: int8 of the shipped model only, as that
            of others needs calibration data.
        output: local folder; a page of an earlier build is replaced.
        precision: ``int8``, or ``fp32``: four times the bytes of the matrices, no loss of F1.

    Raises:
        InputError: no such model or form, a tokenizer that the page does not know, npm is not installed.
        StoreError: npm's registry cannot be reached.
    """
    if not storage.is_local(output):
        raise InputError(f"{output}: is not a local folder; build the page here, then copy the folder there")
    found = export_format(model)
    if found == "openvino":
        raise InputError(f"{model}: is an export to OpenVINO; the page needs one of --format onnx")
    # Browsers run on other processors than this one.
    exported = model if found else forms.made(hub.at_commit(model), f"onnx-{precision}", portable=True)
    file = ONNX_FILES[precision]
    if not has_file(exported, file):
        raise InputError(f"{model}: has no {file}; export it with --format onnx --precision {precision}")
    made = Path(output)
    # Last comes the page: a folder without it was not finished.
    (made / "index.html").unlink(missing_ok=True)
    for name, data in _files(model, exported, file, precision):
        storage.write_atomic(str(made / name), data)
    size = sum(each.stat().st_size for each in made.rglob("*") if each.is_file())
    return BrowserPage(output=output, model=model, precision=precision, megabytes=round(size / 1e6, 1))


def _files(model: str, exported: str, file: str, precision: str) -> Iterator[tuple[str, bytes]]:
    about = _about(model, exported, file, precision)  # first: it refuses what the page cannot read
    here = files("tinyqa_ray.serve")
    for name in _SCRIPTS:
        yield f"reader/{name}", (here / "browser" / name).read_bytes()
    library = runtime.runtime()
    for name in runtime.FILES:
        yield f"reader/ort/{name}", (library / name).read_bytes()
    with pretrained.readable(exported) as folder:
        for name in (file, "config.json", "tokenizer.json", "tokenizer_config.json", "tinyqa.json"):
            yield f"model/{name}", (Path(folder) / name).read_bytes()
    yield "model/browser.json", json.dumps(about).encode()
    page = (here / "page.html").read_text(encoding="utf-8")
    assert page.count('<html lang="en">') == 1, "the page has its switch there"
    policy = f'<meta charset="utf-8">\n<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
    page = page.replace('<html lang="en">', _SWITCH).replace('<meta charset="utf-8">', policy)
    yield "index.html", page.encode()


def _about(model: str, exported: str, file: str, precision: str) -> dict[str, Any]:
    """All that the page's JavaScript has to know of the model."""
    config = pretrained.load_config(exported)
    tokenizer = pretrained.load_tokenizer(exported)
    document = json.loads(tokenizer.backend_tokenizer.to_str())
    _check(model, document)
    window = fitting_window(families.max_window_tokens(config))
    settings = read_settings(exported)
    backend = tokenizer.backend_tokenizer
    pieces = document["model"]
    return {
        "model": model,
        "parameters": OnnxEngine.load(exported, file, config).parameters,
        "precision": precision,
        "file": f"model/{file}",
        "bytes": storage.size(storage.join(exported, file)),
        "window": {"max_seq_len": window.max_seq_len, "doc_stride": window.doc_stride},
        "template": _template(Windower(tokenizer, window, cut_questions=False).template),
        "settings": {name: value for name, value in asdict(settings).items() if name in _SETTINGS},
        "wordpiece": {
            "prefix": pieces["continuing_subword_prefix"],
            "unknown_id": pieces["vocab"][pieces["unk_token"]],
            "longest_word": pieces["max_input_chars_per_word"],
        },
        "characters": characters(backend.normalizer, backend.pre_tokenizer),
    }


def _check(model: str, document: dict[str, Any]) -> None:
    """Refuse a tokenizer that ``wordpiece.js`` does not do."""
    kinds = [(document[part] or {}).get("type") for part in ("normalizer", "pre_tokenizer", "model")]
    if kinds != ["BertNormalizer", "BertPreTokenizer", "WordPiece"]:
        raise InputError(
            f"{model}: its tokenizer is {', '.join(map(str, kinds))}; the page knows BERT's WordPiece only"
        )
    own = [each["content"] for each in document["added_tokens"] if not each["special"]]
    if own:
        raise InputError(
            f"{model}: its tokenizer has added words ({', '.join(own[:3])}), which the page has not"
        )


def _template(template: PairTemplate) -> dict[str, Any]:
    parts = ("before", "between", "after")
    return {
        "ids": {part: getattr(template, part).tolist() for part in parts},
        "types": {
            **{part: getattr(template, f"{part}_types").tolist() for part in parts},
            "question": template.question_type,
            "context": template.context_type,
        },
    }
