"""Overhead of training with `trainer.fit` over plain torch: loader, logging, callbacks and progress file.

Both sides train the same weights on the same packs and take turns within one run. After each stretch of steps of
`trainer.fit`, its last callback repeats the same steps in plain torch. The start and end of the run and validation are
not measured.
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
from benchmarks.models import PRESETS, TRAINED, Preset, parse_lengths

__all__ = ["CHOICES", "PRESETS", "report"]

CHOICES = {"trained": tuple(TRAINED)}
# Errors of the loss, which is near 9, and of the vector of all weights after the last step. The two sides round
# differently, because plain torch divides by the number of tokens before backward instead of afterwards, and AdamW
# amplifies rounding errors of small gradients.
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
    """Report the relative overhead: CPU seconds of `trainer.fit` / CPU seconds of plain torch - 1, for each stretch.

    A stretch is a series of `stretch` consecutive steps; a run has `stretches` of them. The first stretch is not used,
    because the optimizer allocates its moments there.
    """
    if stretches < 2 or min(rows, stretch) < 1:
        raise SettingError(
            f"stretches={stretches} stretch={stretch} rows={rows}: expected 2 or more stretches, 1 or more steps in a "
            "stretch, and 1 or more rows"
        )
    with tempfile.TemporaryDirectory(prefix="auris-fit-") as name:
        folder, steps = Path(name), stretch * stretches
        write_rows(folder, 2 * rows, parse_lengths(lengths), seed)
        run_config = _run_config(preset, folder, trained=trained, rows=rows, steps=steps, seed=seed)
        racer = Racer(run_config, stretch)
        module, data = train.build(run_config)
        trainer = train.build_trainer(run_config, Path(run_config["run_dir"]), Preemption(), module.net)
        trainer.callbacks.append(racer)
        train.silence_messages()
        # On a terminal, the cost of the progress bar is measured, but the bar is not shown.
        with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(MeasuringDone):
            trainer.fit(module, data)
    fitted, bare_weights = (torch.nn.utils.parameters_to_vector(net.parameters()) for net in (module, racer.bare))
    ratios = [fit / bare - 1 for fit, bare in racer.seconds[1:]]
    fit, bare = (median(times) / stretch for times in zip(*racer.seconds[1:], strict=True))
    return Report(
        figures={
            "overhead": {"median": median(ratios), "min": min(ratios), "max": max(ratios)},
            "rounds": len(ratios),
            "cpu_seconds_of_a_step": {"fit": fit, "bare": bare},
        },
        errors={"loss": max(racer.errors), "weights": ((fitted - bare_weights).norm() / bare_weights.norm()).item()},
        limits=LIMITS,
    )


def _run_config(preset: Preset, folder: Path, *, trained: str, rows: int, steps: int, seed: int) -> dict[str, Any]:
    """Return the config of a run with the sizes of the preset, composed as for `auris train`."""
    sizes = {
        "model.encoder.n_mels": preset.n_mels,
        "model.encoder.width": preset.encoder_width,
        "model.encoder.n_layers": preset.encoder_layers,
        "model.encoder.n_heads": preset.encoder_heads,
        "model.llm.config.model_type": preset.llm_type,
        "model.llm.config.tie_word_embeddings": preset.has_tied_head,
        "model.llm.config.hidden_size": preset.llm_width,
        "model.llm.config.num_hidden_layers": preset.llm_layers,
        "model.llm.config.num_attention_heads": preset.llm_heads,
        "model.llm.config.num_key_value_heads": preset.llm_kv_heads,
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
        "max_steps": steps + 1,  # the additional step is not taken, so the end of the run is not timed
        "runs_dir": folder / "runs",
        "seed": seed,
        "trainer.accelerator": "cpu",
        "trainer.precision": "32-true",
        "+trainer.limit_val_batches": 0,
    }
    return config.resolve(config.compose([f"{key}={value}" for key, value in {**sizes, **run}.items()]))


class MeasuringDone(Exception):  # noqa: N818  an event, not an error
    """Raised to end the run after the last measured stretch."""


class Racer(L.Callback):
    """Repeats each stretch of steps without Lightning. It must be the last callback.

    Attributes:
        bare: A second module with the same initial weights, trained in plain torch.
        seconds: CPU seconds of `trainer.fit` and of plain torch, for each stretch.
        losses: Losses of `trainer.fit`, for each step.
        errors: Absolute differences of the losses, for each step.
    """

    def __init__(self, run_config: dict[str, Any], stretch: int):
        self.bare, self.data = train.build(run_config)
        self.stretch, self.steps = stretch, run_config["max_steps"] - 1
        self.seconds: list[tuple[float, float]] = []
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
        """Take one step in plain torch (forward, backward, clipping, optimizer, schedule) and return the loss."""
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
