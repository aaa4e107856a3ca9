"""Tokenizers, models and SQuAD data so small that a test makes them in a moment, without a network."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Literal

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    AutoModel,
    AutoTokenizer,
    BertConfig,
    BertForQuestionAnswering,
    BertTokenizerFast,
    RobertaConfig,
    RobertaForQuestionAnswering,
    RobertaTokenizerFast,
)

Family = Literal["bert", "roberta"]

# Context, two (question, answer) pairs that it answers, and a question that it does not.
_FACTS: tuple[tuple[str, str, tuple[tuple[str, str], tuple[str, str]], str], ...] = (
    (
        "Lighthouse",
        "The lighthouse on Gull Point was built in 1871 by Edith Marlow. It stands 34 metres tall, and its "
        "lamp could be seen from eighteen miles away. Keepers lived in it until 1968.",
        (("Who built the lighthouse?", "Edith Marlow"), ("How tall is the lighthouse?", "34 metres")),
        "What colour is the lighthouse painted?",
    ),
    (
        "Lighthouse",
        "A storm broke the lamp in March 1902. The keepers burned barrels of oil on the beach for nine "
        "nights, and no ship was lost. A plaque in the harbour remembers their work.",
        (("When did the storm break the lamp?", "March 1902"), ("What did they burn?", "barrels of oil")),
        "How many ships were lost in 1915?",
    ),
    (
        "Bread",
        "Rye bread keeps for a week because its dough is sour. The bakers of Tarn mix flour, water and salt "
        "in the evening and bake at five in the morning in ovens of brick.",
        (("Why does rye bread keep?", "its dough is sour"), ("When do they bake?", "five in the morning")),
        "Who invented the toaster?",
    ),
    (
        "River",
        "The river Oll rises in the Hern hills, flows for 212 kilometres, and meets the sea near Vasby. Its "
        "largest island, Stone Ear, is home to 400 people and one school.",
        (("Where does the Oll rise?", "the Hern hills"), ("How long is the river?", "212 kilometres")),
        "Which bridge crosses the Oll at its source?",
    ),
    (
        "Owl",
        "The little owl hunts at dusk. It eats beetles, worms and mice, and it nests in holes of old trees; "
        "a pair raises three to five chicks, which fly after thirty days.",
        (("When does the owl hunt?", "at dusk"), ("Where does it nest?", "holes of old trees")),
        "How much does a snowy owl weigh?",
    ),
    (
        "Café",
        "The café « Été » opened in Zürich in 1999 — its owner, Zoë Müller, came from São Paulo. A cup of "
        "coffee cost 3.50 francs then; today it costs almost twice as much.",
        (("Who owns the café?", "Zoë Müller"), ("What did a coffee cost?", "3.50 francs")),
        "Which tea is served with breakfast?",
    ),
    (
        "Chess",
        "In chess a pawn that reaches the last row becomes a queen, a rook, a bishop or a knight. Players "
        "almost always choose the queen, the strongest piece on the board.",
        (("Which piece is the strongest?", "the queen"), ("What reaches the last row?", "a pawn")),
        "Who was the first champion of chess?",
    ),
    (
        "Train",
        "The night train from Lund to Berlin leaves at 22:40 and arrives at 08:52. It carries nine sleeping "
        "cars, and passengers may bring a bicycle if they book a place for it.",
        (("When does the train leave?", "22:40"), ("How many sleeping cars are there?", "nine")),
        "What does a ticket cost for a child?",
    ),
)


def squad_document(paragraphs: int = 8) -> dict[str, Any]:
    """A SQuAD 2.0 document of at most 8 paragraphs; each has two answers and an unanswerable question."""
    articles: dict[str, list[dict[str, Any]]] = {}
    for number, (title, context, answered, unanswered) in enumerate(_FACTS[:paragraphs]):
        questions: list[dict[str, Any]] = [
            {
                "id": f"q{number}-{i}",
                "question": question,
                "is_impossible": False,
                "answers": [{"text": answer, "answer_start": context.index(answer)}],
            }
            for i, (question, answer) in enumerate(answered)
        ]
        questions.append(
            {"id": f"q{number}-none", "question": unanswered, "is_impossible": True, "answers": []}
        )
        articles.setdefault(title, []).append({"context": context, "qas": questions})
    data = [{"title": title, "paragraphs": rows} for title, rows in articles.items()]
    return {"version": "v2.0", "data": data}


def write_squad(path: str | Path, paragraphs: int = 8) -> str:
    """Write ``squad_document`` as JSON and return the path."""
    Path(path).write_text(json.dumps(squad_document(paragraphs), ensure_ascii=False), encoding="utf-8")
    return str(path)


def _texts() -> list[str]:
    return [text for _, context, asked, none in _FACTS for text in (context, none, *(q for q, _ in asked))]


def wordpiece_tokenizer() -> Any:
    """An uncased BERT tokenizer with a few hundred pieces: every letter, and most words whole."""
    words = sorted({word for text in _texts() for word in re.findall(r"[a-z]+|[^a-z\s]", text.lower())})
    letters = sorted({letter for word in words for letter in word})
    whole = [word for number, word in enumerate(words) if number % 4 or len(word) < 6]
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    # Not trained: the trainer's ties fall differently in every process, and so would a model's answers.
    pieces = [*special, *letters, *(f"##{letter}" for letter in letters), *whole]
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    return BertTokenizerFast(vocab=vocabulary, do_lower_case=True)


def bytelevel_tokenizer() -> Any:
    """A cased RoBERTa tokenizer: byte-level BPE with a few hundred pieces, trimmed offsets."""
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trained.train_from_iterator(
        _texts(),
        trainers.BpeTrainer(
            vocab_size=500, special_tokens=special, initial_alphabet=alphabet, show_progress=False
        ),
    )
    merges = [tuple(pair) for pair in json.loads(trained.to_str())["model"]["merges"]]
    return RobertaTokenizerFast(vocab=trained.get_vocab(), merges=merges, trim_offsets=True)


def save_qa_model(
    folder: str | Path,
    family: Family = "bert",
    layers: int = 2,
    hidden: int = 32,
    heads: int = 4,
    seed: int = 0,
) -> str:
    """Save a random question-answering model (safetensors) with its tokenizer, and return the folder.

    Its weights are drawn wide enough for logits that differ clearly between tokens.
    """
    tokenizer = wordpiece_tokenizer() if family == "bert" else bytelevel_tokenizer()
    sizes: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": 2 * hidden,
        "initializer_range": 0.3,
        "pad_token_id": tokenizer.pad_token_id,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if family == "bert":
            model = BertForQuestionAnswering(BertConfig(max_position_embeddings=512, **sizes))
        else:
            model = RobertaForQuestionAnswering(
                RobertaConfig(max_position_embeddings=514, type_vocab_size=1, **sizes)
            )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def write_sentence_encoder(model: str, folder: Path) -> Path:
    """The encoder of a tiny model, stored as sentence-transformers stores one; returns ``folder``."""
    AutoModel.from_pretrained(model).save_pretrained(folder)
    AutoTokenizer.from_pretrained(model).save_pretrained(folder)
    (folder / "modules.json").write_text("[]")
    return folder
