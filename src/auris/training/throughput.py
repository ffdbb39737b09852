"""Speed of a run: curves in TensorBoard (`speed/...`), values on the progress bar, and a final report.

A session is the time since the run was last started. Only useful operations are counted, each of them once:

* operations for the tokens and frames of rows (in the last layer of the LLM, operations other than those for keys and
  values are counted only at positions with a label);
* operations for logits at positions with a label;
* operations for the pairs of query and key in attention.

Operations for padding, recomputation and reference models are not counted. Counts are sums over all ranks.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import lightning as L
from torch import Tensor

from auris.training import cost
from auris.training.cost import WORKLOAD_FIELDS
from auris.training.lightning_types import audio_module, is_log_step
from auris.training.provenance import WINDOW_STEPS, device_name

Totals = Mapping[str, float]
"""Totals of a session at the end of a step.

Keys: `steps` and `seconds` of training without validation; `tokens`, `audio_seconds` and `flops`; `computed`, the
number of all tokens and frames; `idle`, the number of tokens and frames that belong to no row; `waited`, the seconds
that a rank waited for data, summed over steps, from the rank that waited longest in each step.
"""


class Throughput(L.Callback):
    """Callback that measures speed over recent steps during a run, and over the whole session at the end.

    Validation is left out, and so is the first step of a session, which includes warm-up.

    Args:
        peak_flops: Peak FLOP/s of one device; None takes it from `cost.PEAK_FLOPS`.
    """

    def __init__(self, peak_flops: float | None = None) -> None:
        self.setting = peak_flops
        self.peak, self.peak_note = cost.find_peak_flops("", "", peak_flops)
        self.flops_per: dict[str, int] = {}  # field of `cost.Workload` -> useful operations per token, frame or pair
        self.totals = dict.fromkeys(("tokens", "audio_seconds", "flops"), 0.0)  # totals of the whole run
        self.recent: list[Totals] = []  # totals after each of the last WINDOW_STEPS + 1 steps
        self.first: Totals | None = None  # totals after the first step of the session
        self.latest: Totals = {}  # totals after the latest step
        self.peak_bytes = 0.0
        self.devices = 1
        self.paused = 0.0  # seconds of validation in the session
        self.validating_since: float | None = None  # start of the current validation by time.perf_counter()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Look up the peak FLOP/s of the device, and compute the useful operations per token, frame and pair."""
        module = audio_module(pl_module)
        self.devices = trainer.world_size
        name, precision = device_name(module.device), str(trainer.precision)
        self.peak, self.peak_note = cost.find_peak_flops(name, precision, self.setting)
        stage = cost.Stage.of(module.objective, module.trainable, has_cached_frames=module.has_cached_frames)
        self.flops_per = {
            name: cost.count_training_flops(module.net, stage, cost.Workload(**{name: 1})) for name in WORKLOAD_FIELDS
        }

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop the clock."""
        self.validating_since = time.perf_counter()

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Restart the clock after a validation. The pause includes what other callbacks do after the validation."""
        if self.validating_since is not None:
            self.paused += time.perf_counter() - self.validating_since

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any = None, batch_idx: int = 0
    ) -> None:
        """Count a step, show its speed on the progress bar and log the speed if this step is logged."""
        self._count(outputs)
        rates = self.compute_rates(self.recent[0], self.recent[-1])
        progress_bar = {"tokens/s": "tokens_per_s", "h/h": "audio_hours_per_hour", "MFU": "mfu", "wait": "data_wait"}
        for name, key in progress_bar.items():
            if key in rates:
                pl_module.log(name, rates[key], prog_bar=True, logger=False)
        pl_module.log("train/audio_hours", self.totals["audio_seconds"] / 3600)
        pl_module.log("train/flops", self.totals["flops"])
        if rates and is_log_step(trainer):
            metrics = {f"speed/{name}": rate for name, rate in rates.items()}
            for logger in trainer.loggers:
                logger.log_metrics(metrics, trainer.global_step - 1)  # Lightning numbers the steps of its curves from 0

    def _count(self, outputs: Mapping[str, Tensor]) -> None:
        """Add a step to the totals."""
        counts = {name: float(outputs[name]) for name in (*WORKLOAD_FIELDS, "idle", "audio_seconds")}
        step = {
            "steps": 1,
            "tokens": counts["tokens"],
            "audio_seconds": counts["audio_seconds"],
            "flops": sum(self.flops_per.get(name, 0) * counts[name] for name in WORKLOAD_FIELDS),
            "computed": counts["tokens"] + counts["frames"] + counts["idle"],
            "idle": counts["idle"],
            # The wait for the first batch after a validation is part of the pause.
            "waited": 0.0 if self.validating_since is not None else float(outputs["waited"].max()),
        }
        self.validating_since = None
        self.peak_bytes = max(self.peak_bytes, float(outputs["peak_bytes"].max()))
        self.totals = {name: total + step[name] for name, total in self.totals.items()}
        latest = {name: self.latest.get(name, 0) + number for name, number in step.items()}
        self.latest = latest | {"seconds": time.perf_counter() - self.paused}
        self.first = self.first or self.latest
        self.recent = [*self.recent[-WINDOW_STEPS:], self.latest]

    def compute_rates(self, start: Totals, end: Totals) -> dict[str, float]:
        """Return the speeds between two steps by name; empty if no time has passed. Shares are fractions."""
        difference = {name: end[name] - start[name] for name in end}
        seconds = difference["seconds"]
        if seconds <= 0:
            return {}
        flops_per_second = difference["flops"] / seconds
        rates = {
            "tokens_per_s": difference["tokens"] / seconds,
            "audio_hours_per_hour": difference["audio_seconds"] / seconds,
            "seconds_per_step": seconds / difference["steps"],
            "useful_tflops": flops_per_second / 1e12,
            "padding": difference["idle"] / max(1.0, difference["computed"]),
            "data_wait": difference["waited"] / seconds,
            "peak_memory_gib": self.peak_bytes / cost.GIB,
        }
        return rates | ({} if self.peak is None else {"mfu": flops_per_second / self.devices / self.peak})

    def session_rates(self) -> dict[str, float]:
        """Return the speeds over all steps of the session except the first step."""
        return {} if self.first is None else self.compute_rates(self.first, self.latest)

    def format_report(self) -> str:
        """Describe the session in a sentence."""
        rates = self.session_rates()
        if not rates:
            return "speed: unknown, because measuring it takes at least two steps"
        mfu = f"no MFU because {self.peak_note} (set peak_flops to the FLOP/s of one device)"
        if self.peak is not None:
            mfu = f"MFU {100 * rates['mfu']:.1f} % of {self.peak / 1e12:.4g} TFLOP/s per device ({self.peak_note})"
        return (
            f"speed over {self.latest['steps'] - 1} steps on {self.devices} ranks: "
            f"{rates['tokens_per_s']:,.0f} tokens/s, {rates['audio_hours_per_hour']:,.1f} hours of audio per hour, "
            f"{rates['useful_tflops']:.3g} useful TFLOP/s, {mfu}; padding {100 * rates['padding']:.2f} %, "
            f"waiting for data {100 * rates['data_wait']:.1f} % of the time, "
            f"peak memory {rates['peak_memory_gib']:.2f} GiB per rank"
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the totals of the whole run."""
        return self.totals

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the totals of the whole run."""
        self.totals = state_dict
