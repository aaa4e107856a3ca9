r"""Export a model for CPUs, or as smaller safetensors, and check what that costs in F1.

    ray job submit --working-dir . -- python jobs/export.py --output s3://…/student-fp16 \
        --model s3://…/student/model --settings s3://…/evaluation --format safetensors --precision fp16

It runs in the job's own process. Finished, it says so. The last line of its output is a JSON summary.
"""

from tinyqa_ray.cli.main import run_job
from tinyqa_ray.configs import ExportConfig
from tinyqa_ray.export import export

if __name__ == "__main__":
    run_job(export, ExportConfig)
