r"""Train a student on labels, a teacher's layers, or its predictions.

    ray job submit --working-dir . -- python jobs/distill.py --output s3://…/teacher \
        --data s3://…/windows --student FacebookAI/roberta-base --objective labels --workers 4 --use-gpu

or a whole recipe, or some stages of it (``--recipe NAME --help`` lists them, and how to change them):

    ray job submit --working-dir . -- python jobs/distill.py --recipe tinyroberta --output s3://…/run \
        --data s3://…/train.json --stage intermediate student --student.learning-rate 1e-4

Run again, it continues; finished, it says so. The last line of its output is a JSON summary.
"""

from tinyqa_ray.cli.main import run_job
from tinyqa_ray.configs import DistillConfig
from tinyqa_ray.distill import distill

if __name__ == "__main__":
    run_job(distill, DistillConfig, recipes=True)
