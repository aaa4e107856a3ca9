"""Which layers a small student should keep: forced F1 of every choice before any training.

python benchmarks/layers.py [--keep 4]

Measured on questions that the student learns from, so that no dev question chooses. The recipe of the
quickstart takes one of the best choices of four.
"""

import argparse
import itertools

from machine import show
from transformers import PreTrainedModel

from tinyqa_ray.configs import EvaluateConfig
from tinyqa_ray.core import bundled
from tinyqa_ray.datasets.windows import Windower
from tinyqa_ray.distill.students import student_from_layers
from tinyqa_ray.engines.torch_engine import TorchEngine
from tinyqa_ray.evaluate import measure
from tinyqa_ray.models import pretrained
from tinyqa_ray.models.settings import ModelSettings
from tinyqa_ray.reader import Reader


def main() -> None:
    """Read the same questions with every choice of layers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=bundled.MODEL, help="teacher: a folder or hub id")
    parser.add_argument("--data", default=bundled.asset("squad2_train.json"), help="SQuAD 2.0 JSON")
    parser.add_argument("--questions", type=int, default=200, help="questions, spread over the data")
    parser.add_argument("--keep", type=int, nargs="+", default=[4], help="numbers of layers to keep")
    options = parser.parse_args()

    how = EvaluateConfig(model=options.model, data=options.data)
    asked = measure.spread(measure.questions_of(options.data), options.questions)
    teacher = pretrained.load_qa_model(options.model)
    windower = Windower(pretrained.load_tokenizer(options.model), how.window)

    def forced_f1(model: PreTrainedModel) -> float:
        reader = Reader(TorchEngine(model, device="cpu"), windower, ModelSettings())
        found, _ = measure.read(reader, asked, how.max_answer_tokens)
        return round(measure.Scored.of(asked, found).summary(1.0).forced_f1 or 0.0, 1)

    whole = forced_f1(teacher)
    layers = range(int(teacher.config.num_hidden_layers))
    choices = [choice for keep in options.keep for choice in itertools.combinations(layers, keep)]
    scored = [(forced_f1(student_from_layers(teacher, choice)), choice) for choice in choices]
    show(
        "layers",
        {
            "questions": len(asked),
            "teacher_forced_f1": whole,
            "choices": [
                {"layers": choice, "forced_f1": score, "ratio": round(score / whole, 3)}
                for score, choice in sorted(scored, reverse=True)
            ],
        },
    )


if __name__ == "__main__":
    main()
