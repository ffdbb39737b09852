"""auris: a research codebase for large audio-language models in the Qwen-Audio line."""

__version__ = "0.1.0"
