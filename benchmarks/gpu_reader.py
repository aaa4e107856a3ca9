"""Windows per second on a GPU: with and without padding, compiled, ONNX Runtime, and a plain loop.

PYTHONPATH=. python benchmarks/gpu_reader.py

It needs a checkout, torch and transformers; neither Ray nor the network. The model has random weights in the
shape of BERT-base, or is that of --model. Tokens are made up; lengths are 40 + 344 Beta(2, 4), which lies in
40 to 384 tokens with a mean of about 155, like questions with paragraphs of SQuAD 2.0. A share of the peak
counts the products for real tokens only, against the fastest large bf16 matrix product of the same run.
Differences are the largest ones to logits in fp32. It ends within --minutes, by leaving out rounds; what
cannot run is listed with its reason.
"""

import argparse
import copy
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import show
from numpy.typing import NDArray

from tinyqa_ray.datasets.windows import Tokens, token_budget_batches
from tinyqa_ray.engines.bucketed import ROWS
from tinyqa_ray.engines.engine import Engine, padded
from tinyqa_ray.engines.torch_engine import Layout, TorchEngine
from tinyqa_ray.models import families

Logits = list[NDArray[np.float32]]
Read = Callable[[Tokens, float], tuple[Logits, Logits]]
"""Reads windows; raises ``TooLateError`` when a point in time has passed, where that can happen."""
PLAIN = "plain loop, batches of 32 in order"
SHORTEST, LONGEST, SHAPE = 40, 384, (2.0, 4.0)
SEED, PEAK_SIZE, BUDGET = 13, 8192, 32768
_COMPILING_SHARE = 0.5
"""Share of the time that compiling may take."""


class TooLateError(Exception):
    """The time of a contestant is up."""


def main() -> None:
    """Compare and print."""
    arguments = _arguments()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        print("gpu_reader: no CUDA device here")
        return
    until = time.monotonic() + 60 * arguments.minutes
    device = torch.device(arguments.device)
    dtype = getattr(torch, {"fp16": "float16", "bf16": "bfloat16"}[arguments.precision])
    dtype = dtype if device.type == "cuda" else torch.float32
    network = _network(arguments)
    windows = _windows(arguments.windows, network.config)
    peak = _peak_tflops(device)
    compared = _first(windows, arguments.compared)
    reference = TorchEngine(copy.deepcopy(network), device=arguments.device, layout="padded").logits(compared)
    figures: dict[str, Any] = {}
    skipped: dict[str, str] = {}
    readers: dict[str, Read] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, make in _makers(network, dtype, device, Path(folder)).items():
            late = time.monotonic() + _COMPILING_SHARE * (until - time.monotonic())
            made = _warm(make, windows, late)
            if isinstance(made, str):
                skipped[name] = made
            else:
                readers[name] = made
                figures[name] = {"max_difference": _furthest(made(compared, until), reference)}
        taken = _in_turns(readers, windows, arguments.rounds, until)
    tokens, operations = int(windows.lengths.sum()), _operations(network.config, windows.lengths)
    for name, each in taken.items():
        seconds = statistics.median(each)
        figures[name] |= {
            "windows_per_s": round(len(windows) / seconds, 1),
            "tokens_per_s": round(tokens / seconds),
            "share_of_peak": round(operations / seconds / 1e12 / peak, 4),
            "rounds": len(each),
        }
    for mine in figures.values():
        if PLAIN in figures:
            mine["to_plain_loop"] = round(mine["windows_per_s"] / figures[PLAIN]["windows_per_s"], 2)
    _say(figures, skipped)
    shown = {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "precision": str(dtype).removeprefix("torch."),
        "model": arguments.model or f"random, {arguments.layers}x{arguments.hidden}",
        "windows": len(windows),
        "mean_tokens": round(tokens / len(windows), 1),
        "matrix_peak_tflops": round(peak, 3),
        "matrix_peak_of": "bf16" if device.type == "cuda" else "fp32",
        "spread_of_logits": round(float(np.std(np.concatenate(reference[0]))), 3),
        "engines": figures,
        "skipped": skipped,
    }
    show("gpu_reader", shown)


def _warm(make: Callable[[], Read], windows: Tokens, late: float) -> Read | str:
    """A contestant that has read the windows once, or why it cannot."""
    try:
        read = make()
        read(windows, late)
    except Exception as error:  # every library has its own; the others are measured all the same
        return (str(error).splitlines() or [type(error).__name__])[0][:200]
    return read


def _in_turns(readers: dict[str, Read], windows: Tokens, rounds: int, until: float) -> dict[str, list[float]]:
    """Seconds of each contestant in each round; after the first round, those that there is time for."""
    taken: dict[str, list[float]] = {name: [] for name in readers}
    for number in range(rounds):
        for name, read in readers.items():
            if number and time.monotonic() + taken[name][0] > until:
                continue
            began = time.perf_counter()
            read(windows, float("inf"))
            taken[name].append(time.perf_counter() - began)
    return taken


def _makers(
    network: Any, dtype: torch.dtype, device: torch.device, folder: Path
) -> dict[str, Callable[[], Read]]:
    """What makes each contestant, by name."""

    def ours(layout: Layout, rows: int | None = None) -> Read:
        engine = TorchEngine(copy.deepcopy(network).to(dtype), device=device.type, layout=layout)
        if not engine.name.endswith(layout):
            raise ValueError(engine.name)
        return lambda windows, late: _in_batches(engine, windows, rows, late)

    def compiled() -> Read:
        if device.type == "cpu":
            raise ValueError("is for GPUs")
        return ours("bucketed", ROWS[0])

    return {
        PLAIN: lambda: _plain_loop(copy.deepcopy(network).to(dtype).to(device).eval()),
        "ours, padded": lambda: ours("padded"),
        "ours, unpadded": lambda: ours("unpadded"),
        f"ours, compiled by length, batches of {ROWS[0]}": compiled,
        "ONNX Runtime, fused": lambda: _onnx_runtime(network, device, folder),
    }


def _in_batches(engine: Engine, windows: Tokens, rows: int | None, late: float) -> tuple[Logits, Logits]:
    """Read windows, longest first, in batches of the engine's own sizes or of so many rows."""
    if rows is None:
        return engine.logits(windows)
    order = np.argsort(-windows.lengths, kind="stable")
    starts: Logits = [np.empty(0, np.float32)] * len(windows)
    ends = list(starts)
    batches = [order[begin : begin + rows] for begin in range(0, len(order), rows)]
    for batch, start, end in engine.run(windows, batches):
        for row, window in enumerate(batch):
            tokens = windows.lengths[window]
            starts[window], ends[window] = start[row, :tokens].copy(), end[row, :tokens].copy()
        if time.monotonic() > late:
            raise TooLateError("compiling took too long; give more --minutes")
    return starts, ends


def _plain_loop(model: Any) -> Read:
    """What a person would write with transformers: windows as they come, 32 at a time."""
    names = families.input_names(model)

    @torch.inference_mode()
    def read(windows: Tokens, late: float) -> tuple[Logits, Logits]:
        starts: Logits = []
        ends: Logits = []
        for begin in range(0, len(windows), 32):
            batch = np.arange(begin, min(begin + 32, len(windows)))
            ids, mask, types = padded(windows, batch, model.config.pad_token_id or 0)
            values = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
            output = model(**{name: torch.from_numpy(values[name]).to(model.device) for name in names})
            start, end = (each.float().cpu().numpy() for each in (output.start_logits, output.end_logits))
            starts += [row[:length] for row, length in zip(start, windows.lengths[batch], strict=True)]
            ends += [row[:length] for row, length in zip(end, windows.lengths[batch], strict=True)]
        return starts, ends

    return read


def _onnx_runtime(network: Any, device: torch.device, folder: Path) -> Read:
    """ONNX Runtime, with its own fusions for transformers, in fp16 on a GPU; batches as our padded ones."""
    import onnxruntime

    wanted = f"{device.type.upper()}ExecutionProvider"
    if wanted not in onnxruntime.get_available_providers():
        raise ValueError(f"the installed ONNX Runtime has no {wanted}; install onnxruntime-gpu")
    from onnxruntime.transformers.optimizer import optimize_model

    names = families.input_names(network)
    file = str(folder / "model.onnx")
    _write_onnx(network, names, file)
    config = network.config
    fused = optimize_model(file, "bert", config.num_attention_heads, config.hidden_size)
    if device.type == "cuda":
        fused.convert_float_to_float16(keep_io_types=True)
    fused.save_model_to_file(file)
    session = onnxruntime.InferenceSession(file, providers=[wanted])
    if session.get_providers()[0] != wanted:
        raise ValueError(f"ONNX Runtime could not start its {wanted}")
    pad_id, kinds = network.config.pad_token_id or 0, {each.name: each.type for each in session.get_inputs()}

    def read(windows: Tokens, late: float) -> tuple[Logits, Logits]:
        starts: Logits = [np.empty(0, np.float32)] * len(windows)
        ends = list(starts)
        for batch in token_budget_batches(windows.lengths, BUDGET if device.type == "cuda" else 1024):
            ids, mask, types = padded(windows, batch, pad_id)
            values = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
            given = {
                name: values[name].astype(np.int32 if "int32" in kind else np.int64)
                for name, kind in kinds.items()
            }
            start, end = session.run(["start_logits", "end_logits"], given)
            for row, window in enumerate(batch):
                tokens = windows.lengths[window]
                starts[window], ends[window] = start[row, :tokens].copy(), end[row, :tokens].copy()
        return starts, ends

    return read


def _write_onnx(network: Any, names: tuple[str, ...], file: str) -> None:
    class Plain(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = copy.deepcopy(network)
            self.model.set_attn_implementation("eager")  # what the fusions know

        def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            output = self.model(**dict(zip(names, inputs, strict=True)))
            return output.start_logits, output.end_logits

    example = tuple(torch.ones(2, 16, dtype=torch.int64) for _ in names)
    outputs = ["start_logits", "end_logits"]
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            Plain().eval(),
            example,
            file,
            dynamo=False,
            input_names=list(names),
            output_names=outputs,
            dynamic_axes={name: {0: "batch", 1: "sequence"} for name in (*names, *outputs)},
            opset_version=17,
        )


def _network(arguments: argparse.Namespace) -> Any:
    if arguments.model:
        from tinyqa_ray.models import pretrained

        return pretrained.load_qa_model(arguments.model).eval()
    from transformers import BertConfig, BertForQuestionAnswering

    torch.manual_seed(SEED)
    sizes = {"hidden_size": arguments.hidden, "intermediate_size": 4 * arguments.hidden}
    heads = arguments.hidden // 64
    config = BertConfig(num_hidden_layers=arguments.layers, num_attention_heads=heads, **sizes)
    network = BertForQuestionAnswering(config).eval()
    for parameter in network.parameters():
        if parameter.dim() > 1:  # wider than at the start of a training, so that attention matters
            torch.nn.init.normal_(parameter, std=0.04)
    return network


def _windows(count: int, config: Any) -> Tokens:
    draw = np.random.default_rng(SEED)
    lengths = np.rint(SHORTEST + (LONGEST - SHORTEST) * draw.beta(*SHAPE, count)).astype(int)
    ids = [draw.integers(1000, config.vocab_size, length).astype(np.int32) for length in lengths]
    return Tokens(ids, [(np.arange(len(each)) > 14).astype(np.int32) for each in ids])


def _first(windows: Tokens, count: int) -> Tokens:
    return Tokens(windows.input_ids[:count], windows.type_ids[:count])


def _operations(config: Any, lengths: NDArray[np.int32]) -> float:
    """Operations of the matrix products for the real tokens of all windows; two for each multiplication."""
    tokens = lengths.astype(np.float64)
    hidden, inner = config.hidden_size, config.intermediate_size
    each = 2 * tokens * (4 * hidden**2 + 2 * hidden * inner) + 4 * tokens**2 * hidden
    return float(config.num_hidden_layers * each.sum())


def _peak_tflops(device: torch.device) -> float:
    """The fastest of several large matrix products, in 10¹² operations a second; bf16 on a GPU, else fp32."""
    on_gpu = device.type == "cuda"
    size, times = (PEAK_SIZE, 10) if on_gpu else (1024, 2)
    dtype = torch.bfloat16 if on_gpu else torch.float32
    one, two = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    best_s = float("inf")
    for _ in range(5):
        began = time.perf_counter()
        for _ in range(times):
            one @ two
        if on_gpu:
            torch.cuda.synchronize()
        best_s = min(best_s, (time.perf_counter() - began) / times)
    return 2 * size**3 / best_s / 1e12


def _furthest(found: tuple[Logits, Logits], reference: tuple[Logits, Logits]) -> float:
    """The largest difference of a logit."""
    pairs = [pair for sides in zip(found, reference, strict=True) for pair in zip(*sides, strict=True)]
    largest = max(float(np.abs(mine - wanted).max()) for mine, wanted in pairs)
    assert np.isfinite(largest), "logits are not finite"
    return float(f"{largest:.2g}")


def _say(figures: dict[str, Any], skipped: dict[str, str]) -> None:
    for name, mine in figures.items():
        facts = ", ".join(f"{key} {value}" for key, value in mine.items())
        print(f"{name}: {facts}", file=sys.stderr)
    for name, reason in skipped.items():
        print(f"{name}: left out: {reason}", file=sys.stderr)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    add = parser.add_argument
    add("--device", default="cuda", choices=["cuda", "cpu"], help="cpu: to try the script, in fp32 (cuda)")
    add("--precision", default="fp16", choices=["fp16", "bf16"], help="of every contestant on a GPU (fp16)")
    add("--windows", type=int, default=16384, help="a multiple of 64 (16384)")
    add("--compared", type=int, default=512, help="windows whose logits are compared with fp32 (512)")
    add("--model", help="folder of a model; random weights when not given")
    add("--layers", type=int, default=12, help="of random weights (12)")
    add("--hidden", type=int, default=768, help="of random weights, a multiple of 64 (768)")
    add("--rounds", type=int, default=5, help="most rounds; the median counts (5)")
    add("--minutes", type=float, default=4.5, help="that the run may take; rounds are left out for it (4.5)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
