"""Models by name: their weights, tokenizers and settings, from a folder, a URL or the hub."""
