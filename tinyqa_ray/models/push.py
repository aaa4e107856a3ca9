"""Uploads a model's folder, with its card and settings, to the Hugging Face hub."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from tinyqa_ray.core import bundled, faults
from tinyqa_ray.core.errors import InputError
from tinyqa_ray.models import hub, pretrained
from tinyqa_ray.models.settings import FILE, read_settings, write_settings

_REPLACED = ("model.safetensors", "model-*.safetensors", "model.safetensors.index.json", FILE)
"""Files deleted on the hub if the folder does not have them: other weights, or their settings."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pushed:
    """What was uploaded, and where it is now."""

    repo: str
    url: str
    files: tuple[str, ...]
    """Names, sorted."""


def push(
    model: str, repo: str, *, settings: str | None = None, private: bool = False, message: str | None = None
) -> Pushed:
    """Upload a model's folder: configuration, tokenizer, safetensors, card (README.md) and settings.

    Checkpoints, pickles, hidden files and folders in it are not uploaded.

    Args:
        model: local folder or URL of a folder.
        repo: its id on the hub; created if it does not exist.
        settings: output of an evaluation, or a settings file; those beside the model when not given.
        private: show it to its owners only.
        message: what the commit says.

    Raises:
        InputError: the folder is no model, settings cannot be read, the repository is public although it
            should be private, or the hub cannot be reached or does not let us write.
    """
    if hub.is_id(bundled.located(model)):
        raise InputError(f"{model}: no such model folder")
    with pretrained.readable(model) as folder, tempfile.TemporaryDirectory() as links:
        pretrained.refuse_pickles(model, folder)
        files = [*pretrained.files_beside_weights(folder), *Path(folder).glob("*.safetensors*")]
        if not any(file.name.startswith(("tokenizer", "vocab")) for file in files):
            raise InputError(f"{model}: has no tokenizer; save one beside the model (tokenizer.json)")
        for file in files:
            (Path(links) / file.name).symlink_to(file.absolute())
        fitted = read_settings(model, settings)  # settings beside the model must be valid, too
        if settings is not None:
            (Path(links) / FILE).unlink(missing_ok=True)
            write_settings(links, fitted)
        url = _uploaded(links, repo, private, message or f"Upload {Path(model).name} with tinyqa")
        names = sorted(path.name for path in Path(links).iterdir())
    return Pushed(repo=repo, url=url, files=tuple(names))


def _uploaded(folder: str, repo: str, private: bool, message: str) -> str:
    """Upload the folder's files, and return the address of ``repo``."""
    from huggingface_hub import HfApi, RepoUrl

    api = HfApi()

    def upload() -> tuple[RepoUrl, bool]:
        # None, not False, if others may see it: an organisation's repositories may be private by default.
        made = api.create_repo(repo, private=private or None, exist_ok=True)
        seen = private and not api.repo_info(made.repo_id).private
        if not seen:
            api.upload_folder(
                repo_id=made.repo_id,
                folder_path=folder,
                commit_message=message,
                delete_patterns=list(_REPLACED),
            )
        return made, seen

    try:
        made, seen = faults.patiently(repo, upload)
    except Exception as error:
        # The client's transport has errors of its own, which differ between its versions.
        mistake = f"{repo}: could not be uploaded ({hub.reason(error)})"
        raise faults.refused(repo, error, mistake) from None
    if seen:
        raise InputError(
            f"{made.repo_id}: is there already and public; make it private on its page, or leave --private"
        )
    return str(made)
