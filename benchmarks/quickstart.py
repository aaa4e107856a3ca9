"""How long the quickstart takes, stage by stage, and what its models score.

python benchmarks/quickstart.py
"""

import tempfile
import time
from dataclasses import asdict

from machine import no_options, show

from tinyqa_ray.cli import console
from tinyqa_ray.recipes import run
from tinyqa_ray.recipes.quickstart import quickstart


def main() -> None:
    """Run every stage in a fresh folder."""
    no_options(__doc__)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as output, console.native_noise_in_a_file():
        results = run.run(quickstart(), output)
    reports = {result.name: asdict(result.report) for result in results}
    teacher, student = reports["teacher-evaluation"], reports["student-evaluation"]
    show(
        "quickstart",
        {
            "minutes": round((time.perf_counter() - began) / 60, 2),
            "seconds": {result.name: round(result.seconds, 1) for result in results},
            "teacher": teacher,
            "student": student,
            "student_speed_over_teacher": round(student["questions_per_s"] / teacher["questions_per_s"], 2),
        },
    )


if __name__ == "__main__":
    main()
