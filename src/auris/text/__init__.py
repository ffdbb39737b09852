"""Tasks, answer formats, prompts and the tokenizer, which turn rows and dialogues into tokens and answers into labels.

The package does not import torch.
"""
