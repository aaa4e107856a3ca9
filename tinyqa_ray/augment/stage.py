"""The augmentation stage: paragraphs → paragraphs × copies, on Ray Data."""

from __future__ import annotations

from tinyqa_ray.augment.report import AugmentReport
from tinyqa_ray.configs import AugmentConfig
from tinyqa_ray.core import stage_folder


def augment(
    config: AugmentConfig, output: str, progress: stage_folder.Progress | None = None
) -> AugmentReport:
    """Multiply the paragraphs of ``config.data`` into Parquet under ``output``; continues an interrupted run.

    Writes ``paragraphs/*.parquet`` (schema ``squad.PARAGRAPHS``; copy 0 is the original),
    ``neighbours.parquet`` (the nearest words of every word) and ``report.html``.

    Raises:
        InputError: data, models or word vectors cannot be read, or the folder belongs to another run.
    """
    inputs = ("data", "masked_lm", "word_vectors", "embeddings", "teacher")
    with stage_folder.stage(output, config, inputs=inputs) as stage:
        if stage.finished:
            return stage.report(AugmentReport)
        from tinyqa_ray.augment.work import work

        return stage.publish(work(config, stage, progress))
