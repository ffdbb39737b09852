"""Use of a trained model: load it, generate responses, chat, align words, export it, inspect it."""
