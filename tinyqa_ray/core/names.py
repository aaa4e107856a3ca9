"""Names of models, files and folders for output that others read."""

from __future__ import annotations

import re

from tinyqa_ray.core import storage

_HUB_ID = re.compile(r"(\w[\w.-]*(?:/\w[\w.-]*)?)(?:@(\w[\w./-]*))?(?::(?:[\w.-]+:)?(\w+))?")
_FULL_IDS = {
    "bert-base-uncased": "google-bert/bert-base-uncased",
    "roberta-base": "FacebookAI/roberta-base",
    "squad_v2": "rajpurkar/squad_v2",
}
"""Hub ids from before each had an owner; the hub still leads from the short one to the full one."""
_FILE = re.compile(r"\.(jsonl?|parquet|txt|csv|gz)$")


def hub_id(source: str) -> tuple[str, str | None] | None:
    """Hub id and split of a source (``rajpurkar/squad_v2:train``); None for a file, folder or URL.

    A configuration may stand between them: ``google/xquad:xquad.en:validation``. A revision
    (``rajpurkar/squad_v2@main:train``) is left out; see ``hub_revision``.
    """
    match = _HUB_ID.fullmatch(source)
    if match is None or _FILE.search(source) or storage.kind(source) != "absent":
        return None
    return match[1], match[3]


def hub_revision(source: str) -> str | None:
    """The revision (branch, tag or commit) that a hub id names; None where it names none."""
    match = _HUB_ID.fullmatch(source)
    return None if match is None else match[2]


def full_id(source: str) -> str:
    """A source in which a hub id of old, such as ``squad_v2:train``, has its owner; others are unchanged."""
    end = min(place for mark in "@:" if (place := (source + mark).find(mark)) >= 0)
    return _FULL_IDS.get(source[:end], source[:end]) + source[end:]


def display_name(source: str) -> str:
    """A source's name without parent folders: a hub id whole, ``/home/a/student/model`` as ``student``."""
    if hub_id(source):
        return source
    scheme, _, rest = source.rpartition("://")
    parts = [part for part in re.split(r"[/\\]+", rest) if part not in ("", ".", "..", "~")]
    if scheme and len(parts) > 1:  # remove a URL's host, which may contain a password
        del parts[0]
    if parts[1:] and parts[-1] == "model":
        parts.pop()
    begin = len(parts) - 1
    while begin > 0 and re.fullmatch(r"best|checkpoints|step-\d+", parts[begin]):
        begin -= 1
    return "/".join(parts[begin:]).rpartition("@")[2] if parts else "this folder"
