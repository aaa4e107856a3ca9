"""A worker of ``exchange.py``: exchanges gradients of a student, and counts bytes and seconds.

python benchmarks/peers/exchange_worker.py JOB

The forward pass is replaced by one whose backward pass gives every trained parameter a gradient at once, so
that what is measured is the exchange alone: DistributedDataParallel's buckets, hooks and rows as in training.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from transformers import RobertaConfig, RobertaForQuestionAnswering

sys.path.insert(0, str(Path(__file__).parents[1]))
from peers.group_session import GroupSession
from tinyqa_ray.configs import DistillConfig
from tinyqa_ray.distill.batches import Batch, Order, WindowData, micro_batches
from tinyqa_ray.distill.objectives import DistillationModule
from tinyqa_ray.distill.strategies import DataParallel
from tinyqa_ray.teacher_logits.window_dataset import window_files


def measured(job: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """Bytes that this worker sent in a step and seconds of a step, the median of several, in one setting."""
    torch.manual_seed(0)
    student = RobertaForQuestionAnswering(
        RobertaConfig(
            vocab_size=50265, max_position_embeddings=514, type_vocab_size=1, num_hidden_layers=job["layers"]
        )
    )
    config = DistillConfig(
        data=job["windows"],
        student="random",
        objective=("labels",),
        workers=dist.get_world_size(),
        batch_size=job["batch_size"],
        **settings,
    )
    module = DistillationModule(student, config, None)
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    words = student.get_input_embeddings().weight

    def light(batch: Batch) -> dict[str, torch.Tensor]:
        """Gradients of noise; of the word embeddings in the rows of the batch's tokens."""
        parts = [(p * torch.randn_like(p)).sum() for p in trained if p is not words]
        if words.requires_grad:
            parts.append(student.get_input_embeddings()(batch.input_ids).sum())
        return {"label": torch.stack(parts).sum() * 1e-4}

    data = WindowData(window_files(job["windows"]), 1)
    order = Order(data.lengths, job["batch_size"], 4.0, 0)
    session = GroupSession(Path(job["folder"]))
    strategy = DataParallel(module, config, session)
    module.forward = light  # type: ignore[method-assign]
    sent, seconds, touched = [], [], []
    for step in range(job["steps"] + 1):
        (rows,) = micro_batches(order.batch(step), session.rank, session.world_size, 1)
        terms = strategy.forward(data.batch(rows, order.batch(step)), last=True)
        known = torch.from_numpy(data.words(order.batch(step))) if strategy.needs_words else None
        dist.barrier()
        before, began = _sent(job["interface"]), time.perf_counter()
        strategy.backward(torch.stack(list(terms.values())).sum(), last=True)
        strategy.finish(known)
        dist.barrier()
        seconds.append(time.perf_counter() - began)
        sent.append(_sent(job["interface"]) - before)
        touched.append(data.batch(order.batch(step), order.batch(step)).input_ids.unique().numel())  # type: ignore[no-untyped-call]
        strategy.optimizer.zero_grad(set_to_none=True)
    # The first step draws what the others have.
    sent, seconds = sorted(sent[1:]), sorted(seconds[1:])
    return {
        "sent_mb": sent[len(sent) // 2] / 1e6 / job["workers_on_interface"],
        "seconds": seconds[len(seconds) // 2],
        "touched_rows": sorted(touched[1:])[len(touched[1:]) // 2],
        "trained_parameters": sum(parameter.numel() for parameter in trained),
    }


def _sent(interface: str) -> int:
    """Bytes that an interface of this network namespace has sent."""
    lines = Path("/proc/net/dev").read_text().splitlines()
    (line,) = (line for line in lines if line.strip().startswith(f"{interface}:"))
    return int(line.split(":")[1].split()[8])


def main() -> None:
    """Measure every setting of the job, in its order, and write the figures of the first worker."""
    job = json.loads(Path(sys.argv[1]).read_text())
    torch.set_num_threads(1)
    dist.init_process_group("gloo", job["rendezvous"], rank=job["rank"], world_size=2)
    found = {}
    for name, settings in job["settings"].items():
        found[name] = measured(job, settings)
        if job["rank"] == 0:
            print(name, found[name], file=sys.stderr, flush=True)
    Path(job["result"]).write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
