"""F1 of a model and of its int8 export on questions that neither was made with.

python benchmarks/int8_f1.py --model FOLDER --calibration train.json --data dev.json
"""

import argparse
import json
import tempfile
from pathlib import Path

from machine import machine, show

from tinyqa_ray.configs import EvaluateConfig, ExportConfig
from tinyqa_ray.evaluate import evaluate
from tinyqa_ray.export import export


def main() -> None:
    """Export, evaluate both, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", required=True, help="folder with a question-answering head")
    parser.add_argument("--calibration", required=True, help="SQuAD JSON to export with")
    parser.add_argument("--data", required=True, help="SQuAD JSON to measure on")
    parser.add_argument("--format", choices=["openvino", "onnx"], default="openvino")
    parser.add_argument("--weight-bits", type=int, choices=[7, 8], default=7)
    parser.add_argument(
        "--max-f1-drop", type=float, default=0.5, help="points that the export may lose (0.5)"
    )
    parser.add_argument("--output", help="JSON file for the figures")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        int8 = str(Path(folder) / "int8")
        config = ExportConfig(
            model=arguments.model,
            calibration=arguments.calibration,
            format=None if arguments.format == "openvino" else arguments.format,
            weight_bits=arguments.weight_bits,
            max_f1_drop=arguments.max_f1_drop,
        )
        export(config, int8)
        reports = {
            name: evaluate(EvaluateConfig(model=model, data=arguments.data), str(Path(folder) / name))
            for name, model in (("fp32", arguments.model), ("int8-evaluation", int8))
        }
    figures = {
        name.removesuffix("-evaluation"): {
            "forced_f1": round(report.forced_f1 or 0.0, 2),
            "f1_at_threshold": round(report.f1, 2),
        }
        for name, report in reports.items()
    }
    questions = next(iter(reports.values())).questions
    made = {
        "model": Path(arguments.model).name,
        "format": arguments.format,
        "weight_bits": arguments.weight_bits,
        "questions": questions,
        **figures,
        "lost": {name: round(figures["fp32"][name] - figures["int8"][name], 2) for name in figures["int8"]},
    }
    if arguments.output:
        text = json.dumps({"benchmark": "int8_f1", **made, "machine": machine()}, indent=2)
        Path(arguments.output).write_text(text + "\n")
    show("int8_f1", made)


if __name__ == "__main__":
    main()
