"""Models on the Hugging Face hub: their files, and what to do about the hub's errors, in one line."""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator

from tinyqa_ray.core import names
from tinyqa_ray.core.errors import InputError

_log = logging.getLogger(__name__)

_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
_LOG_IN = "log in with `hf auth login`"
_NOT_REACHED = ("ConnectError", "ConnectTimeout", "ConnectionError", "ProxyError", "ReadTimeout")
"""Names of errors that the hub's client raises without a network; their library depends on its version."""


def is_id(name: str) -> bool:
    """Whether ``name`` is neither a folder nor a URL, and may be the id of a model on the hub."""
    found = names.hub_id(name)
    return found is not None and found[1] is None


def fetched(name: str, file: str) -> str | None:
    """Path of a file of a model, in the hub's cache; None where the model has no such file.

    Without the network, only the cache is asked. If it holds the model but does not tell whether the
    model has the file, a warning says so, and None is returned.

    Raises:
        InputError: no such model, or no permission to read it.
    """
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, HFValidationError, LocalEntryNotFoundError

    try:
        return str(hf_hub_download(name, file))
    except LocalEntryNotFoundError:
        # The cache gives a path, a marker if the file is known to be absent, or None if nothing is known.
        absent = try_to_load_from_cache(name, file) is not None
        if not absent and isinstance(try_to_load_from_cache(name, "config.json"), str):
            _warn_unknown(name, file)
        return None
    except (EntryNotFoundError, HFValidationError):
        return None
    except Exception as error:
        # The client's transport has errors of its own, which differ between its versions.
        raise InputError(f"{name}: {file} could not be read ({reason(error)})") from None


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

    if any(isinstance(try_to_load_from_cache(name, file), str) for file in _WEIGHTS):
        return []
    try:
        files = list_repo_files(name)
    except (OfflineModeIsEnabled, HFValidationError):
        return []  # loading will say what is wrong
    except Exception as error:  # as in ``fetched``
        raise InputError(f"{name}: no model could be loaded ({reason(error)})") from None
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
