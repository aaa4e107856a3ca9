"""The attention-score loss from Gram matrices against the same loss from T x T maps, forward and backward.

python benchmarks/score_loss.py
"""

import statistics
import time
from collections.abc import Callable

import torch
from machine import no_options, show

from tinyqa_ray.distill.activation_recorder import attention_scores
from tinyqa_ray.distill.losses import attention_loss, prefers_gram, score_loss

ROWS, HEADS, REPEATS = 8, 12, 7
LENGTHS = (64, 96, 128, 192, 256, 384)


def seconds(step: Callable[[], torch.Tensor], inputs: list[torch.Tensor]) -> float:
    """Median seconds of a forward and backward."""
    taken = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        torch.autograd.grad(step(), inputs[:2])
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)


def timed(tokens: int, width: int) -> dict[str, float]:
    """Both forms at one length and one width."""
    vectors = [torch.randn(ROWS, tokens, width, requires_grad=i < 2) for i in range(4)]
    mask, pairs = torch.ones(ROWS, tokens, dtype=torch.bool), ROWS * tokens**2

    def maps() -> torch.Tensor:
        student, teacher = (attention_scores(vectors[i], vectors[i + 1], HEADS) for i in (0, 2))
        return attention_loss(student, teacher, mask, pairs)

    def gram() -> torch.Tensor:
        return score_loss((vectors[0], vectors[1]), (vectors[2], vectors[3]), mask, HEADS, pairs)

    plain, ours = seconds(maps, vectors), seconds(gram, vectors)
    expected, found = float(maps().detach()), float(gram().detach())
    return {
        "maps_s": round(plain, 4),
        "gram_s": round(ours, 4),
        "ratio": round(plain / ours, 2),
        "gram_chosen": prefers_gram(tokens, width // HEADS),
        "relative_difference": abs(expected - found) / expected,
    }


def main() -> None:
    """Time both forms from short to full windows, with heads of 32 and of 64."""
    no_options(__doc__)
    torch.manual_seed(0)
    figures = {
        f"heads of {width // HEADS}": {str(tokens): timed(tokens, width) for tokens in LENGTHS}
        for width in (384, 768)
    }
    show("score_loss", {"rows": ROWS, "heads": HEADS, "threads": torch.get_num_threads(), **figures})


if __name__ == "__main__":
    main()
