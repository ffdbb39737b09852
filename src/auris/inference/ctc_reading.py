"""The CTC reading of a model: what its audio tokens spell by themselves, without the language model."""

from __future__ import annotations

from dataclasses import replace

from auris.errors import UserError
from auris.inference import load as pretrained
from auris.inference.audio_model import AudioModel
from auris.training.objectives.ctc import PathObjective


def read_by_ctc(model: AudioModel) -> AudioModel:
    """Return a model that responds with the best path of CTC through its audio tokens.

    A model that was trained on CTC is returned unchanged. A model that started from an aligner keeps its own projector,
    and is read with the sharpness, blank and tokens of that aligner.

    Args:
        model: The model.

    Raises:
        UserError: The model was not trained on CTC, and did not start from an aligner.
    """
    if isinstance(model.objective, PathObjective):
        return model
    config = {**model.config, "data": {**model.config["data"], "view": "spoken"}}
    return replace(model, objective=_load_aligner(model, "ctc").objective, config=config)


def read_by_aligner(model: AudioModel) -> AudioModel:
    """Return the aligner that a model started from, with the names of the model's run.

    Unlike `read_by_ctc`, it reads the audio tokens of the aligner's own projector, as it was before the model was
    trained. A model that was trained on CTC is returned unchanged.

    Args:
        model: The model.

    Raises:
        UserError: The model was not trained on CTC, and did not start from an aligner.
    """
    if isinstance(model.objective, PathObjective):
        return model
    aligner = _load_aligner(model, "aligner")
    names = {key: model.config[key] for key in ("study", "arm", "seed")}
    return replace(aligner, config={**aligner.config, **names})


def _load_aligner(model: AudioModel, reading: str) -> AudioModel:
    path = (model.config.get("weights") or {}).get("projector")
    aligner = None if path is None else pretrained.load(path, device=model.device)
    if aligner is None or not isinstance(aligner.objective, PathObjective) or "spoken" not in aligner.objective.views:
        raise UserError(
            f"reading={reading}: {model.name} was trained with weights.projector={path or 'null'}, expected a run of "
            "experiment=align or one that started from it (weights.projector=RUN)"
        )
    return aligner
