r"""Put SQuAD data of several sources together, some articles left out, with questions made unanswerable.

    ray job submit --working-dir . -- python jobs/gather.py --output s3://…/gathered \
        --data rajpurkar/squad_v2:train s3://…/more.json --made-unanswerable 0.5

Finished, it says so. The last line of its output is a JSON summary.
"""

from tinyqa_ray.cli.main import run_job
from tinyqa_ray.configs import GatherConfig
from tinyqa_ray.gather import gather

if __name__ == "__main__":
    run_job(gather, GatherConfig)
