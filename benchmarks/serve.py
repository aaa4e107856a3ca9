"""Requests per second and latencies of the server, beside its bare engine and beside a plain server.

python benchmarks/serve.py --model FOLDER --documents passages.jsonl --questions questions.jsonl

All on the loopback, bounded in count and time; the callers are a process of their own on the same cores.
Parts: ``saturation``, callers who never pause, in turns with the bare engine on such windows, and against a
FastAPI server that takes one request at a time, also with ten passages a request and with Serve's own proxy;
``latency``, requests that come by chance at shares of that pace, and at twice of it; ``mixed``, short
requests alone and beside documents of thousands of tokens; ``soak``, the memory over minutes at half of that
pace.
"""

import argparse
import contextlib
import os
import random
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from machine import machine, show
from peers import inputs
from peers.process import Process
from peers.served import Callers, Load, Server, callers, served

from tinyqa_ray.core import bundled, storage
from tinyqa_ray.core.cluster import quiet_models
from tinyqa_ray.core.errors import InputError

SEED = 13
SHARES = (0.5, 0.8, 2.0)
"""Of saturation, at which requests come by chance."""
PASSAGES = 10
"""Of a request in the part with several."""
_SHORT_CHARACTERS, _LONG_CHARACTERS = 150, 16_000
"""About 40 and 4,000 tokens."""
ROUNDS = 3
"""Of callers who never pause, with the bare engine before and after each."""
_SOAK_PARTS = 10
_WARM_UP = 20
_SERVES_OWN = {
    f"RAY_SERVE_{name}": "0" for name in ("ENABLE_HA_PROXY", "ENABLE_DIRECT_INGRESS", "THROUGHPUT_OPTIMIZED")
}
"""Serve's proxy and actor calls, in place of HAProxy and gRPC."""

Pairs = list[tuple[str, list[str]]]


def main() -> None:
    """Measure, then print and keep the figures."""
    arguments = _arguments()
    quiet_models()
    drawn = inputs.workloads(
        arguments.documents, arguments.questions, pairs=arguments.requests, corpus_documents=1, seed=SEED
    )["pairs"]
    figures: dict[str, Any] = {"requests": len(drawn), "clients": arguments.clients}
    with tempfile.TemporaryDirectory() as name, callers() as calling:
        models = inputs.model_and_export(
            arguments.model, arguments.calibration, Path(name), export_it=not arguments.skip_int8
        )
        plain = _plain(arguments, models["torch fp32"], drawn, calling)
        figures["plain server"] = plain
        for precision, folder in models.items():
            found = _measured(folder, drawn, calling, arguments)
            found["ratio_to_plain_server"] = round(
                found["saturation"]["requests_per_s"] / plain["requests_per_s"], 2
            )
            figures[precision] = found
    if arguments.output:
        storage.write_json(arguments.output, {"benchmark": "serve", **figures, "machine": machine()})
    show("serve", figures)


def _measured(folder: str, drawn: Pairs, calling: Callers, arguments: Any) -> dict[str, Any]:
    """All parts, of one model."""
    found: dict[str, Any] = {}
    command = [
        "-m",
        "tinyqa_ray",
        "serve",
        "--model",
        folder,
        "--precision",
        inputs.as_it_is(folder),
        "--port",
    ]
    bodies = _bodies(drawn)
    several = _bodies(_with_passages(drawn))
    parts = {"saturation": bodies, f"saturation, {PASSAGES} passages": several}
    with _engine(folder, drawn, arguments) as engine, served(command, calling) as server:
        found |= _beside_engine(engine, server, parts, calling, arguments)
        pace = found["saturation"]["requests_per_s"]
        before = server.megabytes()
        for share in SHARES:
            load = _repeated(bodies, arguments.seconds * pace * share)
            name = f"latency at {share:.0%}"
            answered = calling.run(server.url, load, kind="opened", rate=pace * share)
            found[name] = {"rate": round(pace * share, 2), **answered}
            print(f"{name}: {found[name]}", file=sys.stderr)
        found["memory_mb"] = {"before": before, "after": server.megabytes()}
        found["mixed"] = _mixed(server, bodies, calling, pace, arguments)
        print(f"mixed: {found['mixed']}", file=sys.stderr)
        if arguments.soak_seconds:
            found["soak"] = _soaked(server, bodies, calling, 0.5 * pace, arguments.soak_seconds)
            print(f"soak: {found['soak']}", file=sys.stderr)
    parts = {"saturation, Serve's own proxy": bodies}
    with (
        _engine(folder, drawn, arguments) as engine,
        served(command, calling, environment=_SERVES_OWN) as server,
    ):
        return found | _beside_engine(engine, server, parts, calling, arguments)


def _beside_engine(
    engine: Process, server: Server, parts: dict[str, list[Load]], calling: Callers, arguments: Any
) -> dict[str, Any]:
    """Each part as the round with the median share of the engine, which runs alone before and after it.

    A machine that others use is not equally fast all the time: a share is of paces measured within a minute.
    """
    found = {}
    for part, bodies in parts.items():
        rounds, some = [], -(-len(bodies) // ROUNDS)
        before = _pace(engine, arguments)
        for number in range(ROUNDS):
            load = bodies[number * some : (number + 1) * some]
            answered = _saturated(server, load, calling, arguments)
            after = _pace(engine, arguments)
            share = 2 * answered["pairs_per_s"] / (before + after)
            own = {"engine_pairs_per_s": [before, after], "share_of_engine": round(share, 3)}
            rounds.append({**answered, **own})
            print(f"{part}: {rounds[-1]}", file=sys.stderr)
            before = after
        rounds.sort(key=lambda each: each["share_of_engine"])
        shares = [each["share_of_engine"] for each in rounds]
        found[part] = {**rounds[ROUNDS // 2], "shares_of_engine": shares}
    return found


def _bodies(drawn: Pairs) -> list[Load]:
    return [{"question": question, "contexts": contexts} for question, contexts in drawn]


def _with_passages(drawn: Pairs) -> Pairs:
    """A tenth as many requests, each with the passages of ten: as many pairs."""
    groups = [drawn[start : start + PASSAGES] for start in range(0, len(drawn), PASSAGES)]
    return [(group[0][0], [context for _, contexts in group for context in contexts]) for group in groups]


def _repeated(bodies: list[Load], count: float) -> list[Load]:
    return [bodies[number % len(bodies)] for number in range(max(1, int(count)))]


def _saturated(server: Server, bodies: list[Load], calling: Callers, arguments: Any) -> dict[str, Any]:
    answered = calling.run(server.url, bodies, kind="closed", clients=arguments.clients)
    pairs = sum(len(body["contexts"]) for body in bodies)
    paces = {"requests_per_s": len(bodies), "pairs_per_s": pairs}
    return {**{name: round(count / answered["seconds"], 2) for name, count in paces.items()}, **answered}


def _soaked(
    server: Server, bodies: list[Load], calling: Callers, rate: float, seconds: float
) -> dict[str, Any]:
    """Memory after each tenth of the time, and what came of all requests."""
    memory, statuses = [server.megabytes()], dict[str, int]()
    for _ in range(_SOAK_PARTS):
        load = _repeated(bodies, rate * seconds / _SOAK_PARTS)
        answered = calling.run(server.url, load, kind="opened", rate=rate)
        for status, count in answered["statuses"].items():
            statuses[status] = statuses.get(status, 0) + count
        memory.append(server.megabytes())
    return {"seconds": seconds, "rate": round(rate, 2), "statuses": statuses, "memory_mb": memory}


def _mixed(
    server: Server, bodies: list[Load], calling: Callers, pace: float, arguments: Any
) -> dict[str, Any]:
    """Short requests alone, and beside long ones that take half of the model's time."""
    text = " ".join(body["contexts"][0] for body in bodies)
    short = [{**body, "contexts": [body["contexts"][0][:_SHORT_CHARACTERS]]} for body in bodies]
    places = range(0, len(text) - _LONG_CHARACTERS, _LONG_CHARACTERS // 3)
    long = [
        {**body, "contexts": [text[start : start + _LONG_CHARACTERS]]}
        for body, start in zip(bodies, places, strict=False)
    ]
    # As many characters a second as half of the saturated pace.
    characters = sum(len(body["contexts"][0]) for body in bodies) / len(bodies)
    long_rate = 0.5 * pace * characters / _LONG_CHARACTERS
    rate = 0.2 * pace
    count = max(50, int(arguments.seconds * rate))
    load = [short[number % len(short)] for number in range(count)]
    # Enough of them to last longer than the short ones.
    many = [long[number % len(long)] for number in range(int(3 * arguments.seconds * long_rate) + 5)]
    alone = calling.run(server.url, load, kind="opened", rate=rate)
    beside = {"url": server.url, "bodies": many, "kind": "opened", "rate": long_rate}
    mixed = calling.run(server.url, load, kind="opened", rate=rate, beside=beside)
    return {
        "short_per_s": round(rate, 2),
        "long_per_s": round(long_rate, 3),
        "alone": alone,
        "beside_long": mixed,
        "p95_ratio": round(mixed["latency_ms"]["p95"] / alone["latency_ms"]["p95"], 2),
    }


def _plain(arguments: argparse.Namespace, model: str, drawn: Pairs, calling: Callers) -> dict[str, Any]:
    some = _bodies(drawn[: max(1, len(drawn) // 3)])
    command = ["-m", "peers.plain_server", model]
    with served(command, calling, str(arguments.threads)) as server:
        made = _saturated(server, some, calling, arguments)
    print(f"plain server: {made}", file=sys.stderr)
    return made


@contextlib.contextmanager
def _engine(model: str, drawn: Pairs, arguments: argparse.Namespace) -> Iterator[Process]:
    """The bare engine, in a process of its own."""
    job = {"model": model, "threads": arguments.threads, "workloads": {"pairs": drawn}}
    with Process("tinyqa_engine", job) as process:
        process.ask("pairs", limit=_WARM_UP)
        yield process


def _pace(engine: Process, arguments: argparse.Namespace) -> float:
    """Pairs per second of the bare engine, on as many as a round of the server's."""
    reply = engine.ask("pairs", limit=-(-arguments.requests // ROUNDS))
    return round(reply.pairs / reply.seconds, 2)


def _arguments() -> argparse.Namespace:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    add = parser.add_argument
    add("--model", default=bundled.asset(bundled.MODEL), help="local folder (the package's model)")
    add("--calibration", default=bundled.asset("squad2_train.json"), help="SQuAD JSON for the int8 export")
    add("--documents", default=bundled.asset("corpus_documents.jsonl"), help="JSONL of id, text")
    add("--questions", default=bundled.asset("corpus_questions.jsonl"), help="JSONL of question, document_id")
    add("--requests", type=int, default=1500, help="of the part on saturation (1500)")
    add("--clients", type=int, default=16, help="callers who never pause (16)")
    add("--seconds", type=float, default=30.0, help="of each load that comes by chance (30)")
    add("--threads", type=int, default=cores, help="of the engine and the plain server (all cores)")
    add("--soak-seconds", type=float, default=0.0, help="of the soak (none)")
    add("--skip-int8", action="store_true", help="the model as it is alone")
    add("--output", help="JSON file for the figures")
    return parser.parse_args()


if __name__ == "__main__":
    random.seed(SEED)
    try:
        main()
    except InputError as error:
        sys.exit(f"serve: {error}")
