"""What arrives of a teacher's answers in a vocabulary that it does not read, and what students learn of it.

python benchmarks/vocabularies.py --train train.json --dev dev.json --teachers TEACHER … --students byte-level

Two vocabularies are learned from the texts of --train: byte-level BPE, as RoBERTa has, and SentencePiece
pieces, as XLM-RoBERTa and DeBERTa-v3 have, both cased. A student of either is the encoder with other
embeddings: those of a token are the mean of what the encoder has for the token's text. Stages lie under
--work: a run that was cut goes on when called again with the same options.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from machine import machine, show
from peers.inputs import evenly
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoModel, PreTrainedTokenizerFast

from tinyqa_ray.cli import console
from tinyqa_ray.configs import DistillConfig, EvaluateConfig, TeacherLogitsConfig, WindowConfig
from tinyqa_ray.core import storage
from tinyqa_ray.core.bundled import MODEL, asset
from tinyqa_ray.core.cluster import quiet_models
from tinyqa_ray.core.errors import InputError
from tinyqa_ray.datasets import squad
from tinyqa_ray.datasets.normalised import normalize_answer
from tinyqa_ray.datasets.windows import Windower, Windows
from tinyqa_ray.engines.load import load_engine
from tinyqa_ray.evaluate import measure
from tinyqa_ray.models import families, pretrained
from tinyqa_ray.reader.spans import readings
from tinyqa_ray.recipes import run
from tinyqa_ray.recipes.recipe import Recipe
from tinyqa_ray.teacher_logits.projection import Projector

WINDOW = WindowConfig(max_seq_len=256, doc_stride=96, max_query_len=64)
ANSWER_TOKENS = 40
SPECIAL = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "unk_token": "[UNK]"}


def byte_level(texts: list[str], tokens: int) -> Tokenizer:
    """Byte-level BPE, as of GPT-2 and RoBERTa."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=tokens,
        initial_alphabet=alphabet,
        special_tokens=[*SPECIAL.values()],
        show_progress=False,
    )
    made.train_from_iterator(texts, trainer)
    return made


def sentencepiece(texts: list[str], tokens: int) -> Tokenizer:
    """Pieces of a unigram model, as of SentencePiece."""
    made = Tokenizer(models.Unigram())
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=tokens, unk_token="[UNK]", special_tokens=[*SPECIAL.values()], show_progress=False
    )
    made.train_from_iterator(texts, trainer)
    return made


KINDS: dict[str, Callable[[list[str], int], Tokenizer]] = {
    "byte-level": byte_level,
    "sentencepiece": sentencepiece,
}


def main() -> None:
    """Project the teachers' logits, train students on them where asked to, print and keep the figures."""
    arguments = _arguments()
    quiet_models()
    work = Path(arguments.work).expanduser().absolute()
    paragraphs = squad.read_squad(arguments.train)
    texts = [each.context for each in paragraphs]
    texts += [question.question for each in paragraphs for question in each.questions]
    students = {kind: _student(arguments, kind, texts, work / kind) for kind in KINDS}
    asked = measure.spread(measure.questions_of(arguments.dev), arguments.questions)
    figures: dict[str, Any] = {
        **{name: getattr(arguments, name) for name in ("tokens", "questions", "epochs", "batch_size")},
        "projected": [row for teacher in arguments.teachers for row in _projected(teacher, students, asked)],
        "trained": [],
    }
    if arguments.students:
        learned = evenly(paragraphs, arguments.paragraphs)
        squad.write_json(learned, str(work / "train.json"))
        figures["learned_questions"] = sum(len(each.questions) for each in learned)
        figures["trained"] = _trained(arguments, students, work)
    if arguments.output:
        storage.write_json(arguments.output, {"benchmark": "vocabularies", **figures, "machine": machine()})
    for part in ("projected", "trained"):
        if rows := figures[part]:
            Console(stderr=True).print(_table(part, rows))
    show("vocabularies", figures)


def _student(arguments: argparse.Namespace, kind: str, texts: list[str], folder: Path) -> str:
    """An encoder that reads another vocabulary; made once."""
    if not (folder / "config.json").is_file():
        own = pretrained.load_tokenizer(arguments.encoder)
        model, _ = pretrained.load_weights(AutoModel, arguments.encoder, "encoder")
        made = KINDS[kind](texts, arguments.tokens)
        template = {"single": "[CLS] $A [SEP]", "pair": "[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1"}
        special = [(token, made.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
        made.post_processor = processors.TemplateProcessing(**template, special_tokens=special)
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, **SPECIAL)
        before = model.get_input_embeddings().weight.detach()
        after = before.mean(0).repeat(len(tokenizer), 1)
        for token, place in tokenizer.get_vocab().items():
            text = made.decoder.decode([token])
            pieces = (
                [own.convert_tokens_to_ids(token)]
                if token in SPECIAL.values()
                else own(text, add_special_tokens=False)["input_ids"]
            )
            if pieces:
                after[place] = before[pieces].mean(0)
        model.resize_token_embeddings(len(tokenizer))
        with torch.no_grad():
            model.get_input_embeddings().weight.copy_(after)
        model.config.pad_token_id = tokenizer.pad_token_id
        tokenizer.save_pretrained(folder)
        model.save_pretrained(folder)
    return str(folder)


def _projected(teacher: str, students: dict[str, str], asked: list[measure.Asked]) -> list[dict[str, Any]]:
    """What a teacher answers in its own vocabulary, and what is left of that in the students'."""
    engine, config = load_engine(teacher, device="cpu")
    tokenizer = pretrained.load_tokenizer(teacher)
    pairs = [(each.question.question, each.context) for each in asked]
    windows = Windower(tokenizer, WINDOW).windows(pairs)
    own = _scored(asked, windows, *engine.logits(windows))
    name = Path(teacher).name
    rows = [{"teacher": name, "vocabulary": "its own", "windows": len(windows), **_figures(own)}]
    projector = Projector(engine, tokenizer, families.max_window_tokens(config), WINDOW)
    for kind, folder in students.items():
        windows = Windower(pretrained.load_tokenizer(folder), WINDOW).windows(pairs)
        made = projector.logits(windows, pairs, None)
        found = _scored(asked, windows, made.starts, made.ends)
        same = [
            normalize_answer(text) == normalize_answer(own.predictions[question])
            for question, text in found.predictions.items()
        ]
        rows.append(
            {
                "teacher": name,
                "vocabulary": kind,
                "windows": len(windows),
                **_figures(found),
                "same_answer_percent": round(100 * fmean(same), 1),
                "starts_on_border_percent": round(100 * float(made.start_on_border.mean()), 1),
                "ends_on_border_percent": round(100 * float(made.end_on_border.mean()), 1),
            }
        )
    return rows


def _scored(asked: Sequence[measure.Asked], windows: Windows, starts: Any, ends: Any) -> measure.Scored:
    found = readings(windows, starts, ends, max_answer_tokens=ANSWER_TOKENS)
    return measure.Scored.of(asked, found)


def _figures(scored: measure.Scored) -> dict[str, float | None]:
    found = scored.summary(1.0)
    return {name: round(getattr(found, name) or 0.0, 2) for name in ("forced_exact", "forced_f1")}


def _trained(arguments: argparse.Namespace, students: dict[str, str], work: Path) -> list[dict[str, Any]]:
    """Scores of students by labels alone, and by the predictions of each teacher beside them."""
    recipe = _experiment(arguments, {kind: students[kind] for kind in arguments.students}, work)
    with console.native_noise_in_a_file(), console.StageProgress(Console(stderr=True)) as bars:
        results = run.run(recipe, str(work / "trained"), bars.starting, bars.done)
    reports: dict[str, Any] = {result.name: result.report for result in results}
    rows = []
    for name, report in reports.items():
        if name.endswith("-evaluation"):
            official = storage.read_json(str(work / "trained" / name / "metrics.json"))["official"]
            kind, taught_by = name.removesuffix("-evaluation").split("-by-")
            rows.append(
                {
                    "vocabulary": kind,
                    "taught_by": taught_by,
                    "forced_exact": round(report.forced_exact, 2),
                    "forced_f1": round(report.forced_f1, 2),
                    "best_f1": round(official["best_f1"], 2),
                    "always_abstain": round(report.always_abstain, 2),
                }
            )
    return rows


def _experiment(arguments: argparse.Namespace, students: dict[str, str], work: Path) -> Recipe:
    stages: dict[str, Any] = {}
    for kind, student in students.items():
        for teacher in (None, *(arguments.taught_by or arguments.teachers)):
            taught_by = Path(teacher).name if teacher else "labels"
            name = f"{kind}-by-{taught_by}"
            stages[f"{name}-windows"] = TeacherLogitsConfig(
                data=str(work / "train.json"),
                tokenizer=student,
                teachers=(teacher,) if teacher else (),
                window=WINDOW,
            )
            stages[name] = DistillConfig(
                data=f"@{name}-windows",
                student=student,
                objective=("prediction",) if teacher else ("labels",),
                distillation_weight=0.75,
                temperature=1.5,
                epochs=arguments.epochs,
                batch_size=arguments.batch_size,
                learning_rate=arguments.learning_rate,
                attention_dropout=0.0,
                checkpoint_steps=100,
            )
            stages[f"{name}-evaluation"] = EvaluateConfig(model=f"@{name}/model", data=arguments.dev)
    return Recipe(name="vocabularies", stages=tuple(stages.items()))


def _table(title: str, rows: Sequence[dict[str, Any]]) -> Table:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    table = Table(*columns, title=title)
    for row in rows:
        table.add_row(*(str(row.get(name, "")) for name in columns))
    return table


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    add = parser.add_argument
    add("--train", default=asset("squad2_train.json"), help="SQuAD JSON to learn from (bundled excerpt)")
    add("--dev", default=asset("squad2_dev.json"), help="SQuAD JSON to measure on (bundled excerpt)")
    add("--questions", type=int, default=300, help="most of --dev that teachers answer (300)")
    add("--teachers", nargs="+", default=[MODEL], help=f"folders or hub ids ({MODEL})")
    add("--encoder", help="of the students: a folder or hub id (MiniLM, of the extra quickstart)")
    add("--tokens", type=int, default=20_000, help="of the vocabularies, at most (20000)")
    add("--students", nargs="*", choices=[*KINDS], default=[], help="to be trained (none)")
    add("--taught-by", nargs="+", default=[], help="the teachers of students (all teachers)")
    add("--paragraphs", type=int, default=200, help="most of --train that students learn from (200)")
    add("--epochs", type=float, default=2.0, help="of students (2)")
    add("--batch-size", type=int, default=16, help="windows a step (16)")
    add("--learning-rate", type=float, default=3e-4, help="of students (3e-4)")
    add("--work", default="runs/benchmarks/vocabularies", help="folder of students and stages")
    add("--output", help="JSON file for the figures")
    arguments = parser.parse_args()
    arguments.encoder = arguments.encoder or pretrained.default_encoder()
    return arguments


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(f"vocabularies: {error}")
