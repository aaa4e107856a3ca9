"""What the tests of kills share: stages as commands and configs, processes to kill, outputs to compare."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import tiny
import torch
import tyro
from peers.group_session import GroupSession
from transformers import AutoModelForQuestionAnswering

from tinyqa_ray.answer import answer
from tinyqa_ray.augment import augment
from tinyqa_ray.configs import AnswerConfig, AugmentConfig, DistillConfig, TeacherLogitsConfig, WindowConfig
from tinyqa_ray.distill.batches import WindowData
from tinyqa_ray.distill.loop import train
from tinyqa_ray.distill.session import LocalSession
from tinyqa_ray.teacher_logits import teacher_logits
from tinyqa_ray.teacher_logits.window_dataset import window_files

PARAGRAPHS = 64
PASSES = ("augment", "teacher-logits")
SHARDS = {"augment": "paragraphs", "teacher-logits": "windows", "answer": "answers"}
"""Folder of each pass's shards."""
DEADLINE_S = 240


def commands(folder: Path, model: str) -> dict[str, list[str]]:
    """Passes over the same data, one paragraph a shard; ``--output`` is to be added."""
    data = folder / "data.json"
    document = tiny.squad_document()
    articles = []
    for number in range(PARAGRAPHS // 8):
        text = json.dumps(document["data"], ensure_ascii=False)
        # Ids are q0-0, q0-none, …; contexts end in a sentence.
        text = text.replace('"id": "q', f'"id": "{number}q').replace('.", "qas"', f'. Page {number}.", "qas"')
        articles += json.loads(text)
    data.write_text(json.dumps({"version": "v2.0", "data": articles}), encoding="utf-8")
    paragraphs = [paragraph for article in articles for paragraph in article["paragraphs"]]
    asked = [{"question": each["qas"][0]["question"], "context": each["context"]} for each in paragraphs]
    pairs = folder / "pairs.jsonl"
    pairs.write_text("\n".join(map(json.dumps, asked)), encoding="utf-8")
    shared = ["--data", str(data), "--rows-per-shard", "1"]
    window = ["--max-seq-len", "64", "--doc-stride", "16", "--max-query-len", "16"]
    models = ["--tokenizer", model, "--teachers", model]
    return {
        "augment": ["augment", *shared, "--embeddings", model, "--copies", "10"],
        "teacher-logits": ["teacher-logits", *shared, *window, *models, "--threads", "1"],
        "answer": [
            *["answer", "--pairs", str(pairs), "--model", model, *window],
            *["--rows-per-shard", "1", "--threads", "1", "--jsonl", "True"],
        ],
    }


def run(command: Sequence[str], output: Path) -> None:
    """Run a pass in this process, on the Ray that it has."""
    configs: dict[str, tuple[type[Any], Callable[[Any, str], object]]] = {
        "augment": (AugmentConfig, augment),
        "teacher-logits": (TeacherLogitsConfig, teacher_logits),
        "answer": (AnswerConfig, answer),
    }
    config, stage = configs[command[0]]
    flat = (tyro.conf.OmitArgPrefixes, tyro.conf.FlagConversionOff)
    stage(tyro.cli(config, args=command[1:], config=flat), str(output))


def training(folder: Path, data: str, steps: int, *, dropout: float) -> DistillConfig:
    """A training stage of so many steps: windows with logits, a teacher of two layers, a student of one."""
    teacher = tiny.save_qa_model(folder / "teacher", seed=2)
    student = tiny.save_qa_model(folder / "student", layers=1, seed=1)
    file = Path(student) / "config.json"
    rates = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    file.write_text(json.dumps({**json.loads(file.read_text()), **rates}))
    window = WindowConfig(max_seq_len=64, doc_stride=8, max_query_len=20)
    windows = str(folder / "windows")
    teacher_logits(TeacherLogitsConfig(data=data, teachers=(teacher,), window=window, threads=1), windows)
    return DistillConfig(
        data=windows,
        student=student,
        teacher=teacher,
        objective=("intermediate", "prediction"),
        batch_size=4,
        epochs=steps * 4 / len(WindowData(window_files(windows), 0)),
        learning_rate=1e-3,
        log_steps=5,
        threads=1,
    )


def weights(model: Path) -> dict[str, torch.Tensor]:
    """Tensors of a model folder, by name."""
    return dict(AutoModelForQuestionAnswering.from_pretrained(model).state_dict())


def unlike(model: Path, other: Path) -> list[str]:
    """Names of weights that only one model has, or that differ in a bit."""
    left, right = weights(model), weights(other)
    same = {name for name in left.keys() & right.keys() if torch.equal(left[name], right[name])}
    return sorted((left.keys() | right.keys()) - same)


def trained_without_ray(config: DistillConfig, output: Path) -> Path:
    """Train in this process or, with several workers, in a group of processes; returns the model folder.

    The model is in ``output/model``, the curve in ``output/metrics.jsonl``, as a stage leaves them.
    """
    work, metrics = output / "work", str(output / "metrics.jsonl")
    work.mkdir(parents=True)
    if config.workers == 1:
        threads = torch.get_num_threads()
        train(config, LocalSession(work), metrics)
        torch.set_num_threads(threads)
    else:
        group = (config, work, metrics, output / "meeting")
        torch.multiprocessing.spawn(_train_in_group, group, nprocs=config.workers)
    (checkpoint,) = work.glob("step-*")
    return (checkpoint / "model").rename(output / "model")


def _train_in_group(rank: int, config: DistillConfig, folder: Path, metrics: str, meeting: Path) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{meeting}", rank=rank, world_size=config.workers
    )
    train(config, GroupSession(folder), metrics)
    torch.distributed.destroy_process_group()


def assert_close(model: Path, other: Path, but: tuple[str, ...]) -> None:
    """Compare weights to 1e-4, except those whose names end in one of ``but``."""
    found = weights(model)
    for name, tensor in weights(other).items():
        if not name.endswith(but):
            torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-4)


def rows(output: Path) -> list[dict[str, float]]:
    """What a training stage has logged so far."""
    file = output / "metrics.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def curve(output: Path) -> list[dict[str, float]]:
    """The rows without what depends on the clock."""
    timed = ("samples_per_s", "tokens_per_s")
    return [{name: row[name] for name in row if name not in timed} for row in rows(output)]


def shard_files(name: str, output: Path) -> list[Path]:
    """The shards that a pass has finished."""
    folder = output / SHARDS[name]
    return sorted(path for path in folder.glob("part-*") if path.suffix != ".tmp")


def content(output: Path) -> dict[str, bytes | dict[str, Any]]:
    """Every file of a pass; of its marker what is not a time, and no leftover of a killed write."""
    found: dict[str, bytes | dict[str, Any]] = {
        str(path.relative_to(output)): path.read_bytes()
        for path in sorted(output.rglob("*"))
        # When what the inputs held is noted depends on how long ago they were written.
        if path.is_file() and path.suffix != ".tmp" and path.name not in ("_SUCCESS.json", "_INPUTS.json")
    }
    marker = json.loads((output / "_SUCCESS.json").read_text())
    if marker["stage"] == "answer":  # its page tells how long documents took
        del found["report.html"]
    found["_SUCCESS.json"] = {name: marker[name] for name in marker.keys() - {"seconds", "finished"}}
    return found


def differing(one: Path, other: Path) -> list[str]:
    """Names of files that only one output has, or that are not the same in both."""
    left, right = content(one), content(other)
    return sorted(name for name in {*left, *right} if left.get(name) != right.get(name))


def wait_for(what: str, met: Callable[[], Any], timeout_s: float = DEADLINE_S) -> Any:
    """The first true value of ``met``; fails by name at the deadline."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        if value := met():
            return value
        time.sleep(0.002)
    raise AssertionError(f"waited {timeout_s:g} s in vain for {what}")


@contextlib.contextmanager
def kill_midway(name: str, output: Path, rng: random.Random, kill: Callable[[], None]) -> Iterator[None]:
    """Call ``kill`` at a random moment of the pass that runs in the block: some shards finished, most not."""
    at = rng.randrange(1, PARAGRAPHS // 2)
    print(f"{name}: to be killed with {at} of {PARAGRAPHS} shards finished")
    trouble: list[BaseException] = []

    def wait_and_kill() -> None:
        try:
            wait_for(f"{at} shards in {output}", lambda: len(shard_files(name, output)) >= at)
            assert len(shard_files(name, output)) < PARAGRAPHS, "all shards appeared at once"
            kill()
        except BaseException as error:
            trouble.append(error)

    thread = threading.Thread(target=wait_and_kill, daemon=True)
    thread.start()
    yield
    thread.join(DEADLINE_S)
    assert not thread.is_alive()
    if trouble:
        raise trouble[0]


class Process(NamedTuple):
    """A process of this machine, as /proc shows it."""

    number: int
    parent: int
    began: int
    """Tells it from a later one of the same number."""
    line: str


def processes() -> list[Process]:
    """Every live process of this machine."""
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            stat = (folder / "stat").read_text().rpartition(")")[2].split()
            line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if stat[0] != "Z":
                found.append(Process(int(folder.name), int(stat[1]), int(stat[19]), line))
    return found


def descendants(root: int) -> list[Process]:
    """The processes that descend from ``root``: another run's are left alone."""
    everyone = processes()
    found: list[Process] = []
    nearest = {root}
    while nearest:
        children = [process for process in everyone if process.parent in nearest]
        nearest = {process.number for process in children}
        found += children
    return found


def is_actor(line: str) -> bool:
    """Whether a command line is that of an actor which works shards."""
    return line.startswith("ray::") and "_ShardWorker" in line


def is_other_worker(line: str) -> bool:
    """Whether a command line is that of any other worker of Ray."""
    return line.startswith("ray::") and "Agent" not in line and not is_actor(line)


def is_train_worker(line: str) -> bool:
    """Whether a command line is that of a worker of Ray Train."""
    return line.startswith("ray::") and "RayTrainWorker" in line


def kill_one(chosen: Callable[[str], bool], rng: random.Random) -> None:
    """SIGKILL a random process among those that descend from this one and whose command line is chosen."""
    victims = wait_for(
        "a process to kill",
        lambda: [process for process in descendants(os.getpid()) if chosen(process.line)],
    )
    victim = rng.choice(victims)
    print(f"to be killed: {victim.line}")
    os.kill(victim.number, signal.SIGKILL)


class Driver:
    """A process that runs Python with a Ray of its own; at the end of ``with`` nothing of it is left."""

    def __init__(self, *arguments: str, environment: Mapping[str, str] | None = None) -> None:
        """Start it with ``arguments`` of the Python interpreter.

        Its environment is this process's, with the path of its modules, unless another is given.
        """
        # Not below pytest's folder, whose path is too long for Ray's sockets.
        self._folder = tempfile.mkdtemp(prefix="fire")
        # A file, not a pipe: what Ray starts may hold a pipe open after the driver is dead.
        self._printed = Path(self._folder) / "printed"
        ours = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        with self._printed.open("w") as printed:
            self.process = subprocess.Popen(
                [sys.executable, *arguments],
                stdout=printed,
                stderr=subprocess.STDOUT,
                env={**(ours if environment is None else environment), "RAY_TMPDIR": self._folder},
            )
        self._started: set[tuple[int, int]] = set()
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()

    def result(self) -> tuple[int, str]:
        """Exit code and what was printed, once it has ended."""
        return self.process.wait(DEADLINE_S), self._printed.read_text()

    def kill_all(self) -> None:
        """SIGKILL every process that it started, and then itself: a machine that loses its power."""
        # Standing still, it cannot notice, and nobody asks what it started of a dead parent.
        self.process.send_signal(signal.SIGSTOP)
        while left := descendants(self.process.pid):
            for process in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.number, signal.SIGKILL)
        self.process.kill()

    def __enter__(self) -> Driver:
        return self

    def __exit__(self, *error: object) -> None:
        self.process.kill()
        self.process.wait()
        self._watcher.join()
        # Ray has most of them end by themselves, some after half a minute.
        for process in processes():
            if (process.number, process.began) in self._started:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.number, signal.SIGKILL)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _watch(self) -> None:
        # Once the driver is dead, nobody can tell any more what it started.
        while self.process.poll() is None:
            self._started.update((process.number, process.began) for process in descendants(self.process.pid))
            time.sleep(0.2)
