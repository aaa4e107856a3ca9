"""A stage's output folder: its configuration, its report, and whether it is finished.

A stage writes its files in place and ``_SUCCESS.json`` last, in one atomic write: a folder without it is
unfinished, and no later stage reads it. ``_STARTED.json`` prevents an interrupted run from being continued
with another configuration or other inputs, ``_INPUTS.json`` keeps the hashes of the inputs, and a lock
prevents two runs from working in the folder at once.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from tinyqa_ray.core import bundled, locks, names, storage
from tinyqa_ray.core.contents import Contents
from tinyqa_ray.core.errors import InputError
from tinyqa_ray.core.version import versions

SUCCESS = "_SUCCESS.json"
STARTED = "_STARTED.json"
INPUTS = "_INPUTS.json"
SETTINGS = "settings"
"""Key, among a stage's inputs, of the fitted settings (threshold, temperature) of the models it asks."""

_log = logging.getLogger(__name__)

Progress = Callable[..., None]
"""Called with the units done, the total number of units and, by some stages, ``note``: a few words on the
state of the work."""

Report = TypeVar("Report")
Config = TypeVar("Config")


def execution(default: Any) -> Any:
    """A config field that says how a stage runs (actors, threads), not what it makes.

    Such a field is left out of the fingerprint, so that a run can be continued on another machine.
    """
    return dataclasses.field(default=default, metadata={"execution": True})


def identity_fields(config: Any) -> dict[str, Any]:
    """The fields of a config that decide what a stage makes, as plain JSON values."""
    fields = _identity(type(config))
    return _json({field.name: getattr(config, field.name) for field in fields}, fields)


def _identity(kind: type) -> list[dataclasses.Field[Any]]:
    fields = dataclasses.fields(kind)
    return [field for field in fields if not field.metadata.get("execution")]


def _json(values: dict[str, Any], fields: Sequence[dataclasses.Field[Any]]) -> dict[str, Any]:
    """Values of fields as they come back from JSON."""
    floats = {field.name for field in fields if "float" in str(field.type)}
    kept = {name: _float(value) if name in floats else value for name, value in values.items()}
    plain: dict[str, Any] = json.loads(json.dumps(kept, default=_plain))
    return plain


def _float(value: Any) -> Any:
    """Turn whole numbers into floats: a recipe's 2 equals the shell's 2.0, but JSON tells them apart."""
    if isinstance(value, tuple):
        return tuple(map(_float, value))
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return identity_fields(value)
    raise TypeError(f"a config holds {value!r}, which is not JSON")


def for_workers(config: Config, *inputs: str) -> Config:
    """The config with absolute paths in its fields ``inputs``, since a worker has another current folder.

    A value that is not a file or folder (a hub id, None) stays as it is. An input may be a tuple of paths.
    """
    paths = {name: _for_worker(getattr(config, name)) for name in inputs}
    return dataclasses.replace(config, **paths)  # type: ignore[type-var]


def _for_worker(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(_for_worker, value))
    return value if value is None or storage.kind(value) == "absent" else storage.absolute(value)


def fingerprint(config: Any) -> str:
    """Twelve hex digits that identify a config: equal configs have equal digits on every machine."""
    document = {"config": type(config).__name__, **identity_fields(config)}
    text = json.dumps(document, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def with_present_names(kind: type, document: Mapping[str, Any]) -> dict[str, Any]:
    """The document of a stage with the present names of its config's fields, and only those that count now.

    Args:
        kind: class of the stage's config. If fields were renamed, its ``RENAMED`` maps old names to new ones.
        document: content of ``_STARTED.json`` or ``_SUCCESS.json``; its fingerprint, which was computed with
            the old names, stays.
    """
    renamed: Mapping[str, str] = getattr(kind, "RENAMED", {})
    # An old name may also be the present name of another field. It means that field if the document already
    # has the new name.
    names = {
        old: new
        for old, new in renamed.items()
        if old not in renamed.values() or new not in document["config"]
    }
    parts = {
        part: {names.get(name, name): value for name, value in document[part].items()}
        for part in ("config", "inputs")
    }
    # A field of execution may have been one of identity when the run began.
    for field in dataclasses.fields(kind):
        if field.metadata.get("execution"):
            parts["config"].pop(field.name, None)
    return {**document, **parts}


def stage_name(config: Any) -> str:
    """Name of the stage of a config or its class: ``teacher-logits`` for ``TeacherLogitsConfig``."""
    kind = config if isinstance(config, type) else type(config)
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "-", kind.__name__.removesuffix("Config")).lower()


class Stage:
    """The run of a stage in its folder."""

    def __init__(
        self, output: str, config: Any, inputs: Mapping[str, str], scratch: Sequence[str] = ()
    ) -> None:
        self.output = storage.absolute(output)
        self.config = config
        self.inputs = dict(inputs)
        self.scratch = tuple(scratch)
        self.name = stage_name(config)
        self.began = time.monotonic()
        self.commits: dict[str, str] = {}
        """Commit of each hub id that the run loads, by the id as it was given."""
        self.lock = locks.Lock()
        self.look()

    def look(self) -> None:
        """Read what earlier runs left in the folder, and refuse a run of another config."""
        self.success: dict[str, Any] | None = (
            storage.read_json(self.path(SUCCESS)) if is_finished(self.output) else None
        )
        earlier = self._earlier()
        self.fingerprint: str = fingerprint(self.config) if earlier is None else earlier["fingerprint"]
        """Fingerprint of the config that began the run; since then inputs may have moved and fields may have
        been renamed."""
        self._check(earlier)
        self.commits = dict((earlier or {}).get("commits", {}))

    @property
    def finished(self) -> bool:
        """Whether an earlier run published this folder."""
        return self.success is not None

    def path(self, *parts: str) -> str:
        """A path within the folder."""
        return storage.join(self.output, *parts)

    def report(self, kind: type[Report]) -> Report:
        """The report that the finished stage published."""
        assert self.success is not None
        values = self.success["report"].items()
        # JSON has no tuples.
        return kind(**{name: tuple(each) if isinstance(each, list) else each for name, each in values})

    def publish(self, report: Report) -> Report:
        """Mark the folder as finished, delete what is no longer needed, and return the report.

        Raises:
            InputError: another run has taken the folder over.
        """
        self.lock.check()
        document = {
            **self._identity(),
            "report": dataclasses.asdict(report),  # type: ignore[call-overload]
            "seconds": round(time.monotonic() - self.began, 3),
            "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "versions": versions(),
        }
        storage.write_json(self.path(SUCCESS), document)
        self.success = document
        self.clean()
        return report

    def has_leftovers(self) -> bool:
        """Whether there is anything that ``clean`` would delete."""
        return any(storage.kind(self.path(name)) == "folder" for name in self.scratch) or bool(
            storage.leftovers(self.output)
        )

    def clean(self) -> None:
        """Delete what only an unfinished run needs, and what killed writes left behind."""
        for name in self.scratch:
            storage.delete_folder(self.path(name))
        storage.delete_leftovers(self.output)

    def _identity(self) -> dict[str, Any]:
        return {
            "stage": self.name,
            "fingerprint": self.fingerprint,
            "config": identity_fields(self.config),
            "inputs": self.inputs,
            **({"commits": self.commits} if self.commits else {}),
        }

    def _earlier(self) -> dict[str, Any] | None:
        """The document of an earlier run, if there was one, with present field names."""
        started = self.path(STARTED)
        found = self.success or (storage.read_json(started) if storage.kind(started) == "file" else None)
        return None if found is None else with_present_names(type(self.config), found)

    def _check(self, earlier: dict[str, Any] | None) -> None:
        """Refuse a folder that holds the run of another config, or files that no run made."""
        if earlier is None:
            is_file = storage.kind(self.output) == "file"
            if is_file or not all(map(locks.is_lock, storage.names_in(self.output))):
                raise InputError(
                    f"{self.output}: holds files, but no run of tinyqa; choose a new or empty --output"
                )
            return
        if SETTINGS in self.inputs and SETTINGS not in earlier["inputs"]:
            raise InputError(
                f"{self.output}: holds a run of an older version of tinyqa, which did not write down the "
                "threshold of its model; its results can be read, but the run cannot be continued: choose "
                "another --output, or delete the folder"
            )
        differences = _differences(earlier, self._identity(), _defaults(type(self.config)))
        if differences:
            raise InputError(
                f"{self.output}: holds a run with other settings ({'; '.join(differences)}); "
                "choose another --output, or delete the folder"
            )

    def start(self) -> None:
        """Write ``_STARTED.json``, unless an interrupted run of the same config did."""
        if storage.kind(self.path(STARTED)) == "absent":
            storage.write_json(self.path(STARTED), self._identity())

    def pin(self, identity: str, commit: str) -> None:
        """Keep which commit a hub id stands for in this run; a run that is continued loads the same."""
        self.commits[identity] = commit
        storage.write_json(self.path(STARTED), self._identity())

    def withdraw(self) -> None:
        """Delete the folder if the run failed before it made a single file."""
        notes = {self.path(name) for name in (STARTED, INPUTS)}
        files = storage.list_files(self.output, recursive=True)
        if not self.finished and notes.issuperset(file for file in files if not locks.is_lock(file)):
            storage.delete_folder(self.output)


@contextlib.contextmanager
def stage(
    output: str,
    config: Any,
    inputs: tuple[str, ...] = (),
    extra: Mapping[str, str] | None = None,
    scratch: Sequence[str] = (),
    whole: tuple[str, ...] = (),
) -> Iterator[Stage]:
    """Open the folder of a stage, and hold it until the stage ends.

    A finished folder is not held, and its inputs are not read again if their names, sizes and times are the
    same as when the run ended.

    Args:
        output: the stage's folder, local or a URL.
        config: the stage's frozen config.
        inputs: names of the config's fields that hold paths whose content counts (a field may be None
            or a tuple of paths).
        extra: identities of other content that decides the result, by name.
        scratch: folders within the stage's folder that are deleted when the stage is finished.
        whole: names of those ``inputs`` in whose folders ``.md`` files count, too.

    Raises:
        InputError: the folder belongs to another config, to other inputs, or to something else, or another
            run works in it.
    """
    known = Contents(storage.join(output, INPUTS))
    content: dict[str, str] = dict(extra or {})
    for name in inputs:
        value = getattr(config, name)
        paths = value if isinstance(value, tuple) else (value,)
        content[name] = ", ".join(
            known.identity(bundled.source(path), whole=name in whole) for path in paths if path is not None
        )
    current = Stage(output, config, content, scratch)
    if current.finished:
        _tidy(current, known)
        yield current
        return
    with locks.held(current.output) as lock:
        current.lock = lock
        current.look()  # another run may have ended in the meantime
        if not current.finished:
            current.start()
            known.save()
        try:
            yield current
        except InputError:
            current.withdraw()
            raise


def _tidy(finished: Stage, known: Contents) -> None:
    """Clean up if a run was killed after its last write; do nothing if it still runs or we may not write."""
    if not (known.outdated or finished.has_leftovers()):
        return
    try:
        with locks.held(finished.output):
            finished.clean()
            known.save()
    except InputError as error:
        _log.info("%s: was not cleaned up: %s", finished.output, error)


def is_finished(folder: str) -> bool:
    """Whether a stage published this folder."""
    return storage.kind(storage.join(folder, SUCCESS)) == "file"


def require_finished(folder: str, *made_by: str) -> dict[str, Any]:
    """The published document of a stage folder that another stage reads.

    Args:
        folder: the stage's folder.
        made_by: names of the stages that may have made it.

    Raises:
        InputError: the folder is absent, unfinished, or was made by another stage.
    """
    names = " or ".join(f"'{name}'" for name in made_by)
    if storage.kind(folder) != "folder":
        raise InputError(f"{folder}: no such folder; give the --output of a finished {names} stage")
    success = storage.join(folder, SUCCESS)
    if not is_finished(folder):
        raise InputError(
            f"{folder}: has no {SUCCESS}, so its stage is unfinished; run that stage again first"
        )
    document: dict[str, Any] = storage.read_json(success)
    if document.get("stage") not in made_by:
        raise InputError(f"{folder}: was made by '{document.get('stage')}'; give the --output of {names}")
    return document


def _defaults(kind: type) -> dict[str, Any]:
    """Defaults of a config's fields, as ``identity_fields`` gives values."""
    fields = [field for field in _identity(kind) if field.default is not dataclasses.MISSING]
    return _json({field.name: field.default for field in fields}, fields)


def _differences(
    earlier: Mapping[str, Any], now: Mapping[str, Any], defaults: Mapping[str, Any]
) -> list[str]:
    """What two runs differ in; a field that the earlier run's version did not have had its default there."""
    if earlier["stage"] != now["stage"]:
        return [f"stage {earlier['stage']} there, {now['stage']} here"]
    found = []
    for part in ("config", "inputs"):
        before = {**defaults, **earlier[part]} if part == "config" else earlier[part]
        for name in sorted({*before, *now[part]}):
            there, here = before.get(name), now[part].get(name)
            # A changed path counts only if its content changed as well.
            moved = part == "config" and name in earlier["inputs"] and name in now["inputs"]
            if _with_full_ids(there) != _with_full_ids(here) and not moved:
                label = f"content of {name}" if part == "inputs" else name
                found.append(f"{label} {there!r} there, {here!r} here")
    return found


def _with_full_ids(value: Any) -> Any:
    """A value of a config or identity of inputs, with hub ids as they are today; runs wrote older ones."""
    if isinstance(value, list):
        return [_with_full_ids(each) for each in value]
    return ", ".join(map(names.full_id, value.split(", "))) if isinstance(value, str) else value
