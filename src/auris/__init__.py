"""auris: a research codebase for large audio-language models in the Qwen-Audio line.

`auris.load(path)` gives a trained model that answers (`auris.inference.load`); it is imported when it is first asked
for.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name == "load":
        return import_module("auris.inference.load").load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
