"""Tasks, answer formats, prompts and the tokenizer: rows and dialogues to text and back. Imports no torch."""
