"""What training through Lightning costs over the bare steps: loader, logging, callbacks and progress file included.

Both train the same weights on the same packs, in turn within one run: after every stretch of steps of `trainer.fit`,
its last callback takes the same steps with torch alone. Left out are start and end of a run, and validation.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import lightning as L
import torch

from auris import config
from auris.data.batches import StepDataset
from auris.training import run as train
from auris.training.module import AudioLMModule
from auris.training.preemption import Preemption
from benchmarks import Report, SettingError
from benchmarks.loader import write_rows
from benchmarks.models import PRESETS, TRAINED, Preset, seconds

__all__ = ["CHOICES", "PRESETS", "report"]

CHOICES = {"trained": tuple(TRAINED)}
# Of the loss, near 9, and of all weights together after all steps: the bare steps divide by the count before backward,
# not behind it, and AdamW makes much of the rounding of small gradients.
LIMITS = {"loss": 1e-5, "weights": 1e-4}


def report(
    preset: Preset,
    *,
    lengths: str = "2-8",
    trained: str = "all",
    rows: int = 8,
    stretch: int = 2,
    stretches: int = 6,
    seed: int = 0,
) -> Report:
    """CPU seconds of `trainer.fit` over those of the bare steps, less one, by stretches of steps.

    The first stretch is left out: it makes the optimizer's moments.
    """
    if stretches < 2 or min(rows, stretch) < 1:
        raise SettingError(
            f"stretches={stretches} stretch={stretch} rows={rows}: expected 2 or more stretches, of 1 or more"
        )
    with tempfile.TemporaryDirectory(prefix="auris-fit-") as name:
        folder, steps = Path(name), stretch * stretches
        write_rows(folder, 2 * rows, seconds(lengths), seed)
        made = _recipe(preset, folder, trained=trained, rows=rows, steps=steps, seed=seed)
        racer = Racer(made, stretch)
        module, data = train.build(made)
        trainer = train.build_trainer(made, Path(made["run_dir"]), Preemption())
        trainer.callbacks.append(racer)
        train.quiet()
        with (
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.suppress(MeasuringDone),
        ):  # the bar is drawn, and not seen
            trainer.fit(module, data)
    ours, theirs = (torch.nn.utils.parameters_to_vector(one.parameters()) for one in (module, racer.bare))
    ratios = [fit / bare - 1 for fit, bare in racer.seconds[1:]]
    fit, bare = (median(times) / stretch for times in zip(*racer.seconds[1:], strict=True))
    return Report(
        figures={
            "overhead": {"median": median(ratios), "min": min(ratios), "max": max(ratios)},
            "rounds": len(ratios),
            "cpu_seconds_of_a_step": {"fit": fit, "bare": bare},
        },
        errors={"loss": max(racer.errors), "weights": ((ours - theirs).norm() / theirs.norm()).item()},
        limits=LIMITS,
    )


def _recipe(preset: Preset, folder: Path, *, trained: str, rows: int, steps: int, seed: int) -> dict[str, Any]:
    """A run as a user starts it, at the preset's sizes."""
    sizes = {
        "model.encoder.width": preset.encoder_width,
        "model.encoder.n_layers": preset.encoder_layers,
        "model.encoder.n_heads": preset.encoder_heads,
        "model.llm.config.hidden_size": preset.llm_width,
        "model.llm.config.num_hidden_layers": preset.llm_layers,
        "model.llm.config.num_attention_heads": preset.llm_heads,
        "model.llm.config.num_key_value_heads": preset.llm_heads,
        "model.llm.config.intermediate_size": preset.llm_ffn,
        "model.vocab_rows": preset.vocab_size,
    }
    run = {
        "experiment": "qwen2_audio_pretrain",
        "scale": "tiny",
        "data": "manifest",
        "data.train": f"[{folder}/shards]",
        "data.valid": f"[{{path: {folder}/shards, limit: 1}}]",
        "data.cache_dir": folder / "cache",
        "data.rows_per_step": rows,
        "tokenizer": folder / "tokens",
        "trainable": f"[{','.join(TRAINED[trained])}]",
        "optim.layer_decay": 1.0,
        "optim.warmup_steps": 1,
        "max_steps": steps + 1,  # one that is not taken: a run's end is not timed
        "runs_dir": folder / "runs",
        "seed": seed,
        "trainer.accelerator": "cpu",
        "+trainer.limit_val_batches": 0,
    }
    return config.resolve(config.compose([f"{key}={value}" for key, value in {**sizes, **run}.items()]))


class MeasuringDone(Exception):  # noqa: N818  an event, not an error
    """All stretches are measured: the run ends at this step."""


class Racer(L.Callback):
    """Takes the steps of a run once more, without Lightning, after every stretch of them. To stand last."""

    def __init__(self, made: dict[str, Any], stretch: int):
        self.bare, self.data = train.build(made)
        self.stretch, self.steps = stretch, made["max_steps"] - 1
        self.seconds: list[tuple[float, float]] = []  # of each stretch: of fit, of the bare steps
        self.losses: list[float] = []
        self.errors: list[float] = []

    def on_fit_start(self, trainer: L.Trainer, module: AudioLMModule) -> None:
        self.bare.configure_model()
        [self.adamw], [self.schedule] = self.bare.configure_optimizers()
        self.data.setup("fit")
        packs = StepDataset(self.data.rows, self.data.plan, self.data.samples, 1, 0)
        self.packs = [packs[step] for step in range(self.steps)]

    def on_train_start(self, trainer: L.Trainer, module: AudioLMModule) -> None:
        self.started = time.process_time()

    def on_train_batch_end(self, trainer: L.Trainer, module: AudioLMModule, outputs: Any, *_: Any) -> None:
        self.losses.append(float(outputs["loss"]))
        if len(self.losses) % self.stretch:
            return
        fit = time.process_time() - self.started
        start = time.process_time()
        losses = [self._step(self.packs[step]) for step in range(len(self.losses) - self.stretch, len(self.losses))]
        self.seconds.append((fit, time.process_time() - start))
        self.errors += [abs(a - b) for a, b in zip(losses, self.losses[-self.stretch :], strict=True)]
        if len(self.losses) == self.steps:
            raise MeasuringDone
        self.started = time.process_time()

    def _step(self, packs: list[dict]) -> float:
        """Forward, backward, clipping, optimizer and schedule, as torch's own tutorials have them."""
        objective, net = self.bare.objective, self.bare.net
        count = sum(objective.count(pack) for pack in packs)
        total = 0.0
        for pack in packs:
            loss = objective(net, pack)[0] / count
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(net.parameters(), self.bare.optim["clip"])
        self.adamw.step()
        self.adamw.zero_grad()
        self.schedule.step()
        return total
