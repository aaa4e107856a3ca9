r"""Multiply SQuAD paragraphs by answer-safe copies.

    ray job submit --working-dir . -- python jobs/augment.py --output s3://…/augmented \
        --data rajpurkar/squad_v2:train --embeddings FacebookAI/roberta-base

Run again, it continues; finished, it says so. The last line of its output is a JSON summary.
"""

from tinyqa_ray.augment import augment
from tinyqa_ray.cli.main import run_job
from tinyqa_ray.configs import AugmentConfig

if __name__ == "__main__":
    run_job(augment, AugmentConfig)
