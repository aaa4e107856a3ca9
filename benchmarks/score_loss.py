"""The attention-score loss from Gram matrices against the same loss from T x T maps, forward and backward.

python benchmarks/score_loss.py
"""

import statistics
import time
from collections.abc import Callable

import torch
from machine import show

from tinyqa_ray.distill.losses import attention_loss, score_loss
from tinyqa_ray.distill.taps import attention_scores

ROWS, WIDTH, HEADS, REPEATS = 8, 768, 12, 7


def seconds(step: Callable[[], torch.Tensor], inputs: list[torch.Tensor]) -> float:
    """Median seconds of a forward and backward."""
    taken = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        torch.autograd.grad(step(), inputs[:2])
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)


def main() -> None:
    """Time both forms at the lengths of short and of full windows."""
    torch.manual_seed(0)
    ratios = {}
    for tokens in (128, 384):
        vectors = [torch.randn(ROWS, tokens, WIDTH, requires_grad=i < 2) for i in range(4)]
        mask, pairs = torch.ones(ROWS, tokens, dtype=torch.bool), ROWS * tokens**2

        def maps(
            vectors: list[torch.Tensor] = vectors, mask: torch.Tensor = mask, pairs: int = pairs
        ) -> torch.Tensor:
            student, teacher = (attention_scores(vectors[i], vectors[i + 1], HEADS) for i in (0, 2))
            return attention_loss(student, teacher, mask, pairs)

        def gram(
            vectors: list[torch.Tensor] = vectors, mask: torch.Tensor = mask, pairs: int = pairs
        ) -> torch.Tensor:
            return score_loss((vectors[0], vectors[1]), (vectors[2], vectors[3]), mask, HEADS, pairs)

        plain, ours = seconds(maps, vectors), seconds(gram, vectors)
        difference = abs(float(maps()) - float(gram())) / float(maps())
        ratios[str(tokens)] = {
            "maps_s": round(plain, 4),
            "gram_s": round(ours, 4),
            "ratio": round(plain / ours, 2),
            "relative_difference": difference,
        }
    show(
        "score_loss",
        {"rows": ROWS, "width": WIDTH, "heads": HEADS, "threads": torch.get_num_threads(), "tokens": ratios},
    )


if __name__ == "__main__":
    main()
