r"""Run a whole recipe, from data to a measured student, or some of its stages.

    ray job submit --working-dir . -- python jobs/pipeline.py --recipe tinyroberta --output s3://…/run \
        --data s3://…/train.json --dev s3://…/dev.json --student.learning-rate 1e-4

``--recipe NAME --help`` lists the stages, and how to change them. Run again, it continues; finished, it says
so. The last line of its output is a JSON summary.
"""

from tinyqa_ray.cli.main import run_pipeline

if __name__ == "__main__":
    run_pipeline()
