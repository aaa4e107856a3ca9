r"""Write windows of tokens with labels and a teacher's logits.

    ray job submit --working-dir . -- python jobs/teacher_logits.py --output s3://…/windows \
        --data s3://…/augmented --tokenizer FacebookAI/roberta-base \
        --teachers deepset/roberta-large-squad2 --num-gpus 1

Run again, it continues; finished, it says so. The last line of its output is a JSON summary.
"""

from tinyqa_ray.cli.main import run_job
from tinyqa_ray.configs import TeacherLogitsConfig
from tinyqa_ray.teacher_logits import teacher_logits

if __name__ == "__main__":
    run_job(teacher_logits, TeacherLogitsConfig)
