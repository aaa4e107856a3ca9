r"""Measure a model on SQuAD 2.0 questions, or several on public test sets (``--suite``, ``--suite-folder``).

    ray job submit --working-dir . -- python jobs/evaluate.py --output s3://…/evaluation \
        --model s3://…/student/model --data rajpurkar/squad_v2:validation

Run again, it continues; finished, it says so. The last line of its output is a JSON summary.
"""

from tinyqa_ray.cli.main import run_job
from tinyqa_ray.configs import EvaluateConfig
from tinyqa_ray.evaluate import evaluate

if __name__ == "__main__":
    run_job(evaluate, EvaluateConfig, suites=True)
