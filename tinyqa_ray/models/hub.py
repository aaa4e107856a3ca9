"""Models on the Hugging Face hub: their files, and what to do about the hub's errors, in one line."""

from __future__ import annotations

import dataclasses
import functools
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from tinyqa_ray.core import bundled, faults, names, stage_folder
from tinyqa_ray.core.errors import StoreError

_log = logging.getLogger(__name__)

Config = TypeVar("Config")

_COMMIT = re.compile(r"[0-9a-f]{40}")
_FILES = ("*.json", "*.txt", "*.model", "*.jinja", "*.md", "LICENSE*")
"""A model's files but its weights: configuration, tokenizer, settings, card."""
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
_LOG_IN = "log in with `hf auth login`"
_NOT_REACHED = ("ConnectError", "ConnectTimeout", "ConnectionError", "ProxyError", "ReadTimeout")
"""Names of errors that the hub's client raises without a network; their library depends on its version."""


def is_id(name: str) -> bool:
    """Whether ``name`` is neither a folder nor a URL, and may be the id of a model on the hub."""
    found = names.hub_id(name)
    return found is not None and found[1] is None


def parted(name: str) -> tuple[str, str | None]:
    """The id of a model without its revision, and the revision: ``deepset/x@v1`` is ``deepset/x`` of v1."""
    return name.partition("@")[0], names.hub_revision(name)


@functools.cache
def commit(name: str, *, is_data: bool = False) -> str | None:
    """The commit that a model's or data set's id means now, the same as long as this process lives.

    Args:
        name: id, with a revision or without.
        is_data: whether it is a data set.

    Returns:
        40 hex digits; without the network, those that the cache holds; None if neither knows the id.

    Raises:
        StoreError: the hub did not serve.
    """
    from huggingface_hub import HfApi, try_to_load_from_cache

    repository, revision = parted(name.partition(":")[0] if is_data else name)
    if revision is not None and _COMMIT.fullmatch(revision):
        return revision
    kind = "dataset" if is_data else "model"
    try:
        found = faults.patiently(
            name, lambda: HfApi().repo_info(repository, revision=revision, repo_type=kind).sha
        )
    except StoreError:
        raise
    except Exception:  # as in ``fetched``
        kept = try_to_load_from_cache(repository, "config.json", revision=revision, repo_type=kind)
        return Path(kept).parent.name if isinstance(kept, str) else None
    return None if found is None else str(found)


def pinned(config: Config, stage: stage_folder.Stage, *models: str, data: Sequence[str] = ()) -> Config:
    """The config with the commit of each hub id (``deepset/x@<40 hex digits>``), for all nodes the same.

    The commits are kept in the stage's folder, so a run that is continued loads what it began with.

    Args:
        config: of the stage.
        stage: where the commits are kept.
        models: fields that name models; each may hold None, or a tuple of names.
        data: fields that name data.
    """

    def kept(name: str, is_data: bool) -> str | None:
        if stage.commits.get(name) is None and (found := commit(name, is_data=is_data)) is not None:
            stage.pin(name, found)
        return stage.commits.get(name)

    return _with_commits(config, kept, models, data)


def at_commits(config: Config, *models: str) -> Config:
    """The config with the commit that each hub id means now, for all nodes the same; keeps none of them.

    Args:
        config: names models; not that of a stage, for which ``pinned`` is.
        models: fields that name models; each may hold None, or a tuple of names.

    Raises:
        StoreError: the hub did not serve.
    """
    return _with_commits(config, lambda name, is_data: commit(name, is_data=is_data), models, ())


def _with_commits(
    config: Config, find: Callable[[str, bool], str | None], models: Sequence[str], data: Sequence[str]
) -> Config:
    """The config with the commit of each hub id; ``find`` is given an id, and whether it is of data."""

    def pin(value: Any, is_data: bool) -> Any:
        if isinstance(value, tuple):
            return tuple(pin(each, is_data) for each in value)
        return None if value is None else _with_commit(value, is_data, find)

    fields = [(name, False) for name in models] + [(name, True) for name in data]
    changed = {name: pin(getattr(config, name), is_data) for name, is_data in fields}
    return dataclasses.replace(config, **changed)  # type: ignore[type-var]


def at_commit(name: str) -> str:
    """A model's hub id with the commit that it means now; any other name, or an unknown id, as it is.

    Raises:
        StoreError: the hub did not serve.
    """
    return _with_commit(name, False, lambda name, is_data: commit(name, is_data=is_data))


def _with_commit(name: str, is_data: bool, find: Callable[[str, bool], str | None]) -> str:
    if bundled.source(name) != name or names.hub_id(name) is None:
        return name
    found = find(name, is_data)
    if found is None:
        return name  # loading it will say what is wrong
    identity, colon, split = name.partition(":")
    return f"{parted(identity)[0]}@{found}{colon}{split}"


def snapshot(name: str, *, weights: bool) -> str:
    """Folder, in the hub's cache, with a model's files at one commit.

    Transformers is given this folder and not the id, so that it neither takes a busy hub for a missing file
    nor asks the hub's service to convert pickled weights.

    Args:
        name: id, with a revision or without.
        weights: whether the safetensors are fetched as well; pickles never are.

    Raises:
        InputError: no such model, no permission to read it, or no network and no copy.
        StoreError: the hub did not serve.
    """
    from huggingface_hub import snapshot_download

    repository, revision = parted(name)
    wanted = [*_FILES, *(["*.safetensors"] if weights else [])]

    def fetch() -> str:
        return str(
            snapshot_download(
                repository,
                revision=commit(name) or revision,
                allow_patterns=wanted,
                ignore_patterns=["*/*"],
            )
        )

    try:
        return faults.patiently(name, fetch)
    except Exception as error:  # as in ``fetched``
        raise faults.refused(name, error, f"{name}: no model could be loaded ({reason(error)})") from None


def fetched(name: str, file: str) -> str | None:
    """Path of a file of a model, in the hub's cache; None where the model has no such file.

    Without the network, only the cache is asked. If it holds the model but does not tell whether the
    model has the file, a warning says so, and None is returned.

    Raises:
        InputError: no such model, or no permission to read it.
    """
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, HFValidationError, LocalEntryNotFoundError

    repository, revision = parted(name)
    try:
        return str(faults.patiently(name, lambda: hf_hub_download(repository, file, revision=revision)))
    except LocalEntryNotFoundError:
        # The cache gives a path, a marker if the file is known to be absent, or None if nothing is known.
        absent = try_to_load_from_cache(repository, file, revision=revision) is not None
        if not absent and isinstance(
            try_to_load_from_cache(repository, "config.json", revision=revision), str
        ):
            _warn_unknown(name, file)
        return None
    except (EntryNotFoundError, HFValidationError):
        return None
    except Exception as error:
        # The client's transport has errors of its own, which differ between its versions.
        raise faults.refused(name, error, f"{name}: {file} could not be read ({reason(error)})") from None


@functools.cache
def _warn_unknown(name: str, file: str) -> None:
    """Warn, once per process, that a model may have a file that is not cached."""
    _log.warning(
        "%s: the hub cannot be reached, and its cache does not tell whether the model has a %s; defaults are "
        "used (run once with the network, or give --settings)",
        name,
        file,
    )


def pickles_only(name: str) -> list[str]:
    """Names of a model's pickled weights if the hub has no others of it, else empty; empty in offline mode.

    Raises:
        InputError: the hub cannot be reached, has no such model, or does not let us read it.
    """
    from huggingface_hub import list_repo_files, try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError, OfflineModeIsEnabled

    repository, revision = parted(name)
    cached = (try_to_load_from_cache(repository, file, revision=revision) for file in _WEIGHTS)
    if any(isinstance(each, str) for each in cached):
        return []
    try:
        files = faults.patiently(name, lambda: list_repo_files(repository, revision=revision))
    except (OfflineModeIsEnabled, HFValidationError):
        return []  # loading will say what is wrong
    except Exception as error:  # as in ``fetched``
        raise faults.refused(name, error, f"{name}: no model could be loaded ({reason(error)})") from None
    if any(file.endswith(".safetensors") for file in files):
        return []
    return sorted(file for file in files if file.endswith(".bin") and "/" not in file)


def reason(error: BaseException) -> str:
    """The text of an error in one line; for an error of the hub, what to do about it."""
    from huggingface_hub import errors

    for each in _chain(error):
        if isinstance(each, errors.GatedRepoError):
            return f"the hub asks for its terms to be accepted on its page there; then {_LOG_IN}"
        if isinstance(each, errors.RepositoryNotFoundError):
            return f"the hub has no such model, or it is private; check the id, or {_LOG_IN}"
        if isinstance(each, errors.LocalTokenNotFoundError):
            return f"the hub wants to know who asks; {_LOG_IN}"
        if isinstance(each, errors.HfHubHTTPError) and each.response.status_code in (401, 403):
            return f"the hub does not allow it; {_LOG_IN}, with a token that may do it"
        if isinstance(each, errors.OfflineModeIsEnabled):
            return "the hub is not asked, since HF_HUB_OFFLINE is set, and its cache lacks it; unset it"
        if isinstance(each, errors.LocalEntryNotFoundError) or type(each).__name__ in _NOT_REACHED:
            return "the hub cannot be reached, and its cache lacks it; check the network"
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error after the errors that caused it, the first cause first."""
    behind = error.__cause__ or error.__context__
    if behind is not None:
        yield from _chain(behind)
    yield error
