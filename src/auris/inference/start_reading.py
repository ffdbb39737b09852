"""The start reading of a model: the same model with the published language model that its training started from.

Its answers to questions without audio, and its loss on text, show what training changed in the language model.
"""

from __future__ import annotations

from auris.config import Config
from auris.errors import UserError
from auris.inference.audio_model import AudioModel
from auris.model.weights.identify import ModelSource, identify
from auris.model.weights.loading import InitialWeights


def read_by_start(model: AudioModel) -> AudioModel:
    """Replace the language model of a model by the one with which its training started, and return the model.

    Args:
        model: The model. Its net is changed.

    Raises:
        UserError: The training started from random weights.
    """
    source = _find_start(model.config)
    if source is None:
        raise UserError(
            f"reading=start: the language model of {model.name} was trained from random weights, expected a run that "
            "started from a published one (weights.llm=DIR)"
        )
    label = f"reading=start: {source.path}"
    weights = InitialWeights(source=source.open_tensors(), layout=source.layout, parts=["llm"], label=label)
    weights.load(model.net, seed=model.config["seed"])
    return model


def _find_start(config: Config) -> ModelSource | None:
    """Return the published language model at the start of a chain of runs."""
    path = (config.get("weights") or {}).get("llm") or config.get("checkpoint")
    source = None if path is None else identify(path)
    return _find_start(source.config) if source is not None and source.kind in ("run", "checkpoint") else source
