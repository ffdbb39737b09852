"""Typed access to the trainer and the LightningModule that Lightning passes to callbacks and strategies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, cast

if TYPE_CHECKING:
    import lightning as L
    import torch

    from auris.data.datamodule import AudioDataModule
    from auris.model.audio_lm import AudioLM
    from auris.training.objectives.objective import Objective
    from auris.training.sharding import Meshes


class _TrainerAttributes(Protocol):
    """Attributes that Lightning sets on every Trainer without declaring them."""

    datamodule: AudioDataModule
    callbacks: list[L.Callback]
    log_every_n_steps: int


class AudioModule(Protocol):
    """The attributes of `AudioLMModule` that callbacks and strategies use. Importing the class would be circular."""

    net: AudioLM
    objective: Objective
    trainable: Sequence[str]
    optim: Mapping[str, Any]
    max_steps: int
    meshes: Meshes | None

    @property
    def has_cached_frames(self) -> bool:
        """Whether the output of the encoder's frozen blocks is cached."""
        ...

    @property
    def device(self) -> torch.device:
        """The device of the parameters."""
        ...


def datamodule(trainer: L.Trainer) -> AudioDataModule:
    """Return the data module that a trainer is using."""
    return cast("_TrainerAttributes", trainer).datamodule


def trainer_callbacks(trainer: L.Trainer) -> list[L.Callback]:
    """Return all callbacks of a trainer."""
    return cast("_TrainerAttributes", trainer).callbacks


def is_log_step(trainer: L.Trainer) -> bool:
    """Return whether metrics are logged after the current step (`trainer.log_every_n_steps`)."""
    return trainer.global_step % cast("_TrainerAttributes", trainer).log_every_n_steps == 0


def audio_module(pl_module: L.LightningModule) -> AudioModule:
    """Return the LightningModule of a run with the type `AudioModule`. No other class is trained."""
    return cast("AudioModule", pl_module)
