"""The text reading of a model: what its language model says if it is given the transcript in place of the sound.

Its errors are those of the language model alone: what would be left if the model heard every word.
"""

from __future__ import annotations

from dataclasses import replace

from auris.config import Config, build
from auris.errors import UserError
from auris.inference.audio_model import AudioModel
from auris.model.weights.identify import identify
from auris.text.chat import Chat
from auris.training.objectives.ctc import PathObjective


def read_text(model: AudioModel) -> AudioModel:
    """Return a model that is given the text of a row in place of its clips (`data.samples.TextSamples`).

    The text is stretched as in the text stage of the language model. Without such a stage, the stretch is the default.
    A model of dialogues gets the prompts of its base model.

    Args:
        model: The model.

    Raises:
        UserError: The model was trained on CTC, so it has no answers of a language model.
    """
    if isinstance(model.objective, PathObjective):
        raise UserError(f"reading=text: {model.name} was trained on CTC, expected a model that answers prompts")
    data = {**model.config["data"], "view": "text", "stretch": _find_stretch(model.config)}
    config = {**model.config, "data": data}
    if isinstance(build(config["prompt"]), Chat):
        config["prompt"] = {"_target_": f"{type(model.prompt).__module__}.{type(model.prompt).__name__}"}
    return replace(model, config=config)


def _find_stretch(config: Config) -> Config | None:
    """Return the stretch of the text stage that a model or its initial language model was trained in."""
    if config["data"]["view"] == "text":
        return config["data"].get("stretch")
    path = (config.get("weights") or {}).get("llm") or config.get("checkpoint")
    source = None if path is None else identify(path)
    return _find_stretch(source.config) if source is not None and source.kind in ("run", "checkpoint") else None
