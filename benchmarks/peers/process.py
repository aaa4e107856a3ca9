"""A contestant's process, seen from the benchmark."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_BENCHMARKS = Path(__file__).parent.parent
_LOG_LINES = 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Reply:
    """What one request took and gave."""

    seconds: float
    cpu_seconds: float
    """Of all threads of the process: what else the machine does counts for less here."""
    pairs: int
    versions: dict[str, str]
    result: Any
    """Text of the best answer of each pair; of ``tinyqa_shares`` its figures."""


class Process:
    """A contestant that stays loaded between requests."""

    def __init__(self, module: str, job: dict[str, Any], python: str = sys.executable) -> None:
        """Start ``python -m peers.<module>`` with a job (see ``protocol.serve``)."""
        self._name = module
        self._folder = tempfile.TemporaryDirectory()
        job_file = Path(self._folder.name) / "job.json"
        job_file.write_text(json.dumps(job), encoding="utf-8")
        self._log = Path(self._folder.name) / "stderr"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [python, "-m", f"peers.{module}", str(job_file)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                encoding="utf-8",
                cwd=_BENCHMARKS,
                env=_environment(job["threads"], own=python == sys.executable),
            )

    def ask(self, workload: str, *, batch_size: int = 1, limit: int | None = None) -> Reply:
        """Run a workload, or its first ``limit`` queries.

        Raises:
            RuntimeError: the process died; with the end of what it wrote.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        request = {"workload": workload, "batch_size": batch_size, "limit": limit}
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            code = self._process.wait()
            end = "\n".join(self._log.read_text(errors="replace").splitlines()[-_LOG_LINES:])
            raise RuntimeError(f"the process of {self._name} ended with {code}:\n{end}")
        return Reply(**json.loads(line))

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *error: object) -> None:
        with self._process:
            self._process.kill()
        self._folder.cleanup()


def _environment(threads: int, *, own: bool) -> dict[str, str]:
    """The same threads for everyone, no telemetry, no network; PYTHONPATH is ours, not a peer's."""
    environment = {name: value for name, value in os.environ.items() if own or name != "PYTHONPATH"}
    environment |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS"), str(threads))
    quiet = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "TRANSFORMERS_VERBOSITY": "error"}
    return {**environment, **quiet, "HF_HUB_OFFLINE": "1", "HAYSTACK_TELEMETRY_ENABLED": "False"}
