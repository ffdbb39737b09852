"""Speed of a run: counters in TensorBoard (`speed/...`), on the progress bar and in the final report.

Useful operations are those that the rows need, computed once: real tokens and frames, logits (and the last layer except
for its keys and values) where there is a label, the pairs that attention computes. Padding, recomputation and reference
models are not useful. Counts are sums over all ranks.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import lightning as L
from torch import Tensor

from auris.training import cost
from auris.training.cost import LOAD
from auris.training.provenance import WINDOW, device_name

Mark = Mapping[str, float]
"""Totals of this session at the end of a step: `steps` and `seconds` of training, without validation; `tokens`,
`audio_seconds` and `flops`; `computed`, tokens and frames, useful and idle ones, and `idle`, those that belong to no
row; `waited`, seconds that ranks waited for data, of each step those of the rank that waited longest."""


class Throughput(L.Callback):
    """Measures speed over the last steps during a run, and over the whole session at its end.

    The first step of a session, which pays for warm-up, and validation are left out.

    Args:
        peak_flops: peak FLOP/s of one device; None looks it up in `cost.PEAK_FLOPS`.
    """

    def __init__(self, peak_flops: float | None = None) -> None:
        self.setting = peak_flops
        self.peak, self.source = cost.peak_flops("", "", peak_flops)
        self.flops_per: dict[str, int] = {}  # useful operations of one unit of each field of a load
        self.totals = dict.fromkeys(("tokens", "audio_seconds", "flops"), 0.0)  # of the whole run
        self.marks: list[Mark] = []
        self.first: Mark | None = None
        self.now: Mark = {}
        self.peak_bytes = 0.0
        self.devices = 1
        self.paused = 0.0
        self.validating: float | None = None  # since when

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.devices = trainer.world_size
        self.peak, self.source = cost.peak_flops(device_name(module.device), str(trainer.precision), self.setting)
        stage = cost.Stage.of(module.objective, module.trainable)
        self.flops_per = {name: cost.training_flops(module.net, stage, cost.Load(**{name: 1})) for name in LOAD}

    def on_validation_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.validating = time.perf_counter()

    def on_train_batch_start(self, *_: Any) -> None:
        if self.validating is not None:  # what other callbacks do at its end is part of the pause
            self.paused += time.perf_counter() - self.validating

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, *_: Any) -> None:
        self._count(outputs)
        rates = self.rates(self.marks[0], self.marks[-1])
        shown = {"tokens/s": "tokens_per_s", "h/h": "audio_hours_per_hour", "MFU": "mfu", "wait": "data_wait"}
        for name, key in shown.items():
            if key in rates:
                module.log(name, rates[key], prog_bar=True, logger=False)
        module.log("train/audio_hours", self.totals["audio_seconds"] / 3600)
        module.log("train/flops", self.totals["flops"])
        if rates and trainer.global_step % trainer.log_every_n_steps == 0:
            for logger in trainer.loggers:
                named = {f"speed/{name}": value for name, value in rates.items()}
                logger.log_metrics(named, trainer.global_step - 1)  # steps are numbered from 0 in Lightning's curves

    def _count(self, outputs: Mapping[str, Tensor]) -> None:
        counts = {name: float(outputs[name]) for name in (*LOAD, "idle", "audio_seconds")}
        step = {
            "steps": 1,
            "tokens": counts["tokens"],
            "audio_seconds": counts["audio_seconds"],
            "flops": sum(self.flops_per.get(name, 0) * counts[name] for name in LOAD),
            "computed": counts["tokens"] + counts["frames"] + counts["idle"],
            "idle": counts["idle"],
            # Waiting for the first batch after a validation is part of the pause.
            "waited": 0.0 if self.validating is not None else float(outputs["waited"].max()),
        }
        self.validating = None
        self.peak_bytes = max(self.peak_bytes, float(outputs["peak_bytes"].max()))
        self.totals = {name: total + step[name] for name, total in self.totals.items()}
        now = {name: self.now.get(name, 0) + number for name, number in step.items()}
        self.now = now | {"seconds": time.perf_counter() - self.paused}
        self.first = self.first or self.now
        self.marks = [*self.marks[-WINDOW:], self.now]

    def rates(self, start: Mark, end: Mark) -> dict[str, float]:
        """Return the speeds between two marks, or nothing if no time lies between them. Shares are 0 to 1."""
        done = {name: end[name] - start[name] for name in end}
        seconds = done["seconds"]
        if seconds <= 0:
            return {}
        flops = done["flops"] / seconds
        rates = {
            "tokens_per_s": done["tokens"] / seconds,
            "audio_hours_per_hour": done["audio_seconds"] / seconds,
            "seconds_per_step": seconds / done["steps"],
            "useful_tflops": flops / 1e12,
            "padding": done["idle"] / max(1.0, done["computed"]),
            "data_wait": done["waited"] / seconds,
            "peak_memory_gib": self.peak_bytes / cost.GIB,
        }
        return rates | ({} if self.peak is None else {"mfu": flops / self.devices / self.peak})

    def session(self) -> dict[str, float]:
        """Return the speeds over all steps of this session except the first."""
        return {} if self.first is None else self.rates(self.first, self.now)

    def report(self) -> str:
        """Describe the session in a sentence."""
        rates = self.session()
        if not rates:
            return "speed: not known from fewer than two steps"
        mfu = f"MFU left out, as {self.source} (peak_flops=FLOP/s of one device gives it)"
        if self.peak is not None:
            mfu = f"MFU {100 * rates['mfu']:.1f} % of {self.peak / 1e12:.4g} TFLOP/s a device (by {self.source})"
        return (
            f"speed over {self.now['steps'] - 1} steps on {self.devices} ranks: {rates['tokens_per_s']:,.0f} tokens/s, "
            f"{rates['audio_hours_per_hour']:,.1f} h of audio an hour, {rates['useful_tflops']:.3g} useful TFLOP/s, "
            f"{mfu}; padding {100 * rates['padding']:.2f} %, waiting for data {100 * rates['data_wait']:.1f} % of the "
            f"time, {rates['peak_memory_gib']:.2f} GiB of memory at most on a rank"
        )

    def state_dict(self) -> dict[str, float]:
        return self.totals

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.totals = state
