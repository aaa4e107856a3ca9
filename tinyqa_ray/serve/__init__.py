"""Answering live questions: an HTTP application on Ray Serve."""
