"""auris: a research codebase for large audio-language models like Qwen-Audio and Qwen2-Audio.

`auris.load(path)` loads a trained model for inference, `auris.results` reads the directories of training runs, and
`auris.inspection` analyses a model. These names are imported on first use.
"""

from importlib import import_module
from typing import Any

# For each name, its module and the attribute of the module; None stands for the module itself.
_LAZY = {
    "load": ("auris.inference.load", "load"),
    "results": ("auris.results", None),
    "inspection": ("auris.inference.inspection", None),
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return import_module("importlib.metadata").version("auris")
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _LAZY[name]
    try:
        return getattr(import_module(module), attribute) if attribute else import_module(module)
    except ModuleNotFoundError as error:
        from auris.metrics.optional_packages import explain_missing_module

        raise explain_missing_module(error, f"auris.{name}") from None
