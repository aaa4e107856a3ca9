"""Answers on line: an HTTP application on Ray Serve."""
