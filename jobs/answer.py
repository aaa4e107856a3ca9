r"""Answer questions about a corpus of documents.

    ray job submit --working-dir . -- python jobs/answer.py --output s3://…/answers \
        --model s3://…/student/model --documents s3://…/documents.jsonl --questions s3://…/questions.jsonl

Run again, it continues; finished, it says so. The last line of its output is a JSON summary.
"""

from tinyqa_ray.answer import answer
from tinyqa_ray.cli.main import run_job
from tinyqa_ray.configs import AnswerConfig

if __name__ == "__main__":
    run_job(answer, AnswerConfig)
