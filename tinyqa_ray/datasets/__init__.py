"""What models learn from and are measured on: SQuAD data and plain text, and the windows made of them."""
