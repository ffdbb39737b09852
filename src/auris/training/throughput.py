"""How fast a run is: counters in TensorBoard (`speed/...`), on the progress bar, and in its final report.

Useful is what the rows need, computed once: real tokens and frames, logits (and of the last layer all but keys and
values) where a label stands, the pairs that attention looks at; nothing padded, nothing recomputed, no reference model.
Counts are sums over all ranks.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import lightning as L
from torch import Tensor

from auris.errors import UserError
from auris.inference import inspect
from auris.training.provenance import WINDOW, device_name, stage_of

# FLOP/s of one device in dense bfloat16 products with float32 sums, by words of its name: of devices whose number in
# Lightning's table (lightning.fabric.utilities.throughput) agrees. That table has the H200s with sparsity, twice as
# much; here the SXM one is as its H100, which has the same cores. What is not here has no MFU, as a wrong peak makes a
# wrong one.
PEAKS = {
    "H200": 989.4e12,
    "H200 NVL": 835.5e12,
    "H100 HBM3": 989.4e12,  # SXM
    "H100 PCIe": 756e12,
    "A100": 312e12,
    "L4": 121e12,
    "L40": 181e12,
}
HALF = ("bf16", "16")  # how precisions begin whose peak is that of the table
# Sums of a step that its speed is made of (`work.counts`).
LOAD = ("tokens", "frames", "scored", "token_pairs", "frame_pairs")


def peak_of(device: str, precision: str, given: float | None = None) -> tuple[float | None, str]:
    """FLOP/s of one device at its best, and where the number is from; or None, and why there is none.

    Args:
        device: its name, as torch has it; of a CPU anything.
        precision: as Lightning names it.
        given: the setting `peak_flops`.

    Raises ValueError for a setting that is no speed.
    """
    if given is not None:
        if isinstance(given, bool) or not isinstance(given, (int, float)) or not 0 < given < float("inf"):
            raise UserError(f"peak_flops={given}: expected FLOP/s of one device, as 989e12, or null")
        return float(given), "peak_flops"
    words = set(re.split(r"[\s-]+", device))
    found = [name for name in PEAKS if set(name.split()) <= words]
    if not found or "MIG" in words:
        return None, f"the peak of {device} is not known"
    if not precision.startswith(HALF):
        return None, f"the peak of {device} in {precision} is not known"
    return PEAKS[max(found, key=lambda name: len(name.split()))], device


@dataclass(frozen=True, kw_only=True)
class Mark:
    """All that was counted up to the end of a step, in this session."""

    steps: int = 0
    seconds: float = 0.0  # of training: validation is left out
    tokens: float = 0.0
    audio_seconds: float = 0.0
    flops: float = 0.0
    computed: float = 0.0  # tokens and frames, useful and idle ones
    idle: float = 0.0
    waited: float = 0.0  # seconds that the rank which waited longest for data did, step by step


class Throughput(L.Callback):
    """Speeds over the last steps while a run goes on, and over all of its session when it ends.

    Left out are the first step of a session, which pays for warm-up, and validation.

    Args:
        peak_flops: FLOP/s of one device at its best; None: by `PEAKS`.
    """

    def __init__(self, peak_flops: float | None = None) -> None:
        self.peak_flops = peak_flops
        self.peak, self.source = peak_of("", "", peak_flops)
        self.of: dict[str, int] = {}  # useful operations of one of each of LOAD
        self.tokens = self.audio_seconds = 0.0  # of the whole run
        self.flops: float | None = 0.0
        self.marks: list[Mark] = []
        self.first: Mark | None = None
        self.now = Mark()
        self.peak_bytes = 0.0
        self.devices = 1
        self.paused = 0.0
        self.validating: float | None = None  # since when

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.devices = trainer.world_size
        self.peak, self.source = peak_of(device_name(module.device), str(trainer.precision), self.peak_flops)
        loads = {name: inspect.Load(**{**dict.fromkeys(LOAD, 0), name: 1}) for name in LOAD}
        self.of = {name: inspect.work(module.net, stage_of(module), load) for name, load in loads.items()}
        if self.flops is None:
            met = inspect.Load.of_rows(self.tokens, self.audio_seconds)
            self.flops = float(inspect.work(module.net, stage_of(module), met))

    def on_validation_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.validating = time.perf_counter()

    def on_train_batch_start(self, *_: Any) -> None:
        if self.validating is not None:  # what other callbacks do when it ends is still part of it
            self.paused += time.perf_counter() - self.validating

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, *_: Any) -> None:
        self._count(outputs)
        rates = self.rates(self.marks[0], self.marks[-1])
        shown = {"tokens/s": "tokens_per_s", "h/h": "audio_hours_per_hour", "MFU": "mfu", "wait": "data_wait"}
        for name, key in shown.items():
            if key in rates:
                module.log(name, rates[key], prog_bar=True, logger=False)
        module.log("train/audio_hours", self.audio_seconds / 3600)
        module.log("train/flops", self.flops)
        if rates and trainer.global_step % trainer.log_every_n_steps == 0:
            for logger in trainer.loggers:
                named = {f"speed/{name}": value for name, value in rates.items()}
                logger.log_metrics(named, trainer.global_step - 1)  # steps are numbered from 0 in Lightning's curves

    def _count(self, outputs: Mapping[str, Tensor]) -> None:
        step = {name: float(outputs[name]) for name in (*LOAD, "idle", "audio_seconds")}
        flops = sum(self.of.get(name, 0) * step[name] for name in LOAD)
        self.tokens += step["tokens"]
        self.audio_seconds += step["audio_seconds"]
        self.flops += flops
        self.peak_bytes = max(self.peak_bytes, float(outputs["peak_bytes"].max()))
        # The first batch after a validation was waited for in a pause.
        waited = 0.0 if self.validating is not None else float(outputs["waited"].max())
        self.validating = None
        before = self.now
        self.now = Mark(
            steps=before.steps + 1,
            seconds=time.perf_counter() - self.paused,
            tokens=before.tokens + step["tokens"],
            audio_seconds=before.audio_seconds + step["audio_seconds"],
            flops=before.flops + flops,
            computed=before.computed + step["tokens"] + step["frames"] + step["idle"],
            idle=before.idle + step["idle"],
            waited=before.waited + waited,
        )
        self.first = self.first or self.now
        self.marks = [*self.marks[-WINDOW:], self.now]

    def rates(self, start: Mark, end: Mark) -> dict[str, float]:
        """Speeds between two marks; none where no time lies between them. Shares are 0 to 1."""
        seconds = end.seconds - start.seconds
        if seconds <= 0:
            return {}
        flops = (end.flops - start.flops) / seconds
        found = {
            "tokens_per_s": (end.tokens - start.tokens) / seconds,
            "audio_hours_per_hour": (end.audio_seconds - start.audio_seconds) / seconds,
            "seconds_per_step": seconds / (end.steps - start.steps),
            "useful_tflops": flops / 1e12,
            "padding": (end.idle - start.idle) / max(1.0, end.computed - start.computed),
            "data_wait": (end.waited - start.waited) / seconds,
            "peak_memory_gib": self.peak_bytes / inspect.GIB,
        }
        return found | ({} if self.peak is None else {"mfu": flops / self.devices / self.peak})

    def session(self) -> dict[str, float]:
        """Speeds over all steps of this session but its first one."""
        return {} if self.first is None else self.rates(self.first, self.now)

    def report(self) -> str:
        """A session for a person."""
        rates = self.session()
        if not rates:
            return "speed: not known from fewer than two steps"
        mfu = f"MFU left out, as {self.source} (peak_flops=FLOP/s of one device gives it)"
        if self.peak is not None:
            mfu = f"MFU {100 * rates['mfu']:.1f} % of {self.peak / 1e12:.4g} TFLOP/s a device (by {self.source})"
        return (
            f"speed over {self.now.steps - 1} steps on {self.devices} ranks: {rates['tokens_per_s']:,.0f} tokens/s, "
            f"{rates['audio_hours_per_hour']:,.1f} h of audio an hour, {rates['useful_tflops']:.3g} useful TFLOP/s, "
            f"{mfu}; padding {100 * rates['padding']:.2f} %, waiting for data {100 * rates['data_wait']:.1f} % of the "
            f"time, {rates['peak_memory_gib']:.2f} GiB of memory at most on a rank"
        )

    def state_dict(self) -> dict[str, float]:
        return {"tokens": self.tokens, "audio_seconds": self.audio_seconds, "flops": self.flops}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.tokens, self.audio_seconds = state["tokens"], state["audio_seconds"]
        self.flops = state.get("flops")  # of a run from before they were counted: by its tokens and audio
