"""Public test sets and folders of test data: their parts, and the questions of each."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from tinyqa_ray.core import names, storage
from tinyqa_ray.core.errors import InputError
from tinyqa_ray.datasets import hub, mrqa, squad
from tinyqa_ray.datasets.squad import Paragraph

_ENDINGS = (".json", ".jsonl", ".ndjson", ".parquet")


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """Where one or several parts of a suite are read."""

    part: str
    data: str
    """A hub id with configuration and split, or a file."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """Test data that gets figures of its own."""

    suite: str
    name: str
    paragraphs: Sequence[Paragraph]
    accepted: Mapping[str, Sequence[str]]
    """Answers that count as right, by question id, where they are not those that are in the contexts."""


HUB: Mapping[str, tuple[Source, ...]] = {
    "squad2": (Source(part="squad2", data="rajpurkar/squad_v2:validation"),),
    "squad1": (Source(part="squad1", data="rajpurkar/squad:validation"),),
    "xquad-en": (Source(part="xquad-en", data="google/xquad:xquad.en:validation"),),
    # The answers of its test split are not public.
    "adversarial_qa": tuple(
        Source(part=name, data=f"UCLNLP/adversarial_qa:{name}:validation")
        for name in ("dbidaf", "dbert", "droberta")
    ),
    "squadshifts": tuple(
        Source(part=name, data=f"ludwigschmidt/squadshifts:{name}:test")
        for name in ("new_wiki", "nyt", "reddit", "amazon")
    ),
    # Its validation split is in the domains of its training data, its test split in others.
    "mrqa": tuple(Source(part=split, data=f"mrqa-workshop/mrqa:{split}") for split in ("validation", "test")),
}
"""Sources of the named suites. MRQA's are cut into its twelve subsets."""


def parts(suites: Sequence[str], folder: str | None) -> Iterator[Part]:
    """The parts of the named suites, then those of a folder's files, read one after the other.

    Raises:
        InputError: something cannot be read, is not of SQuAD's or MRQA's form, or the folder has no data.
    """
    for suite in suites:
        for source in HUB[suite]:
            yield from _of_hub(suite, source)
    if folder is not None:
        suite = names.display_name(folder)
        for file in files(folder):
            name = str(PurePosixPath(file.removeprefix(folder).lstrip("/")).with_suffix(""))
            yield Part(suite=suite, name=name, paragraphs=squad.read_squad(file), accepted={})


def files(folder: str) -> list[str]:
    """Files of test data in a folder and the folders in it, sorted by name.

    Raises:
        InputError: there is no such folder, or it has none.
    """
    if storage.kind(folder) != "folder":
        raise InputError(f"{folder}: no such folder; suite_folder is a folder of files in SQuAD's format")
    found = [file for file in storage.list_files(folder, recursive=True) if file.endswith(_ENDINGS)]
    if not found:
        raise InputError(f"{folder}: has no file that ends with {', '.join(_ENDINGS)}")
    return found


def _of_hub(suite: str, source: Source) -> Iterator[Part]:
    """The part of a source, or one for each subset of MRQA's."""
    rows = list(hub.rows(source.data))
    # Answers are compared as text, so that a wrong offset in public data does not matter.
    paragraphs = squad.from_hub_rows(rows, source.data)
    if not all(map(mrqa.is_mrqa, rows)):
        yield Part(suite=suite, name=source.part, paragraphs=paragraphs, accepted={})
        return
    accepted = {row["qid"]: row["answers"] for row in rows}
    for subset, same in itertools.groupby(sorted(paragraphs, key=_title), _title):
        yield Part(suite=suite, name=f"{source.part}/{subset}", paragraphs=list(same), accepted=accepted)


def _title(paragraph: Paragraph) -> str:
    return paragraph.title
