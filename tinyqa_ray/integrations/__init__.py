"""The reader inside other frameworks."""
