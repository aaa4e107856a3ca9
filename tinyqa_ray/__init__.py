"""Small extractive question-answering models: distilled, run over corpora and served on Ray."""

__version__ = "0.1.0"
