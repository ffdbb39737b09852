"""Choice of the precision of a run with `trainer.precision=auto`.

On a GPU it is bf16-mixed. On a CPU with instructions for bf16 (AMX, AVX512-BF16), a measurement of the model's matrix
products decides. Other CPUs emulate bf16 and are slower with it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.benchmark import Timer

from auris import compat, files
from auris.config import Config
from auris.training.strategy import Processes

MIN_SPEEDUP = 1.1  # a smaller gain is not worth the rounding
N_TOKENS = 512  # number of tokens of the products that are timed
SECONDS_PER_SHAPE = 0.05  # minimum time of measurement for each shape and precision


@dataclass(frozen=True)
class PrecisionChoice:
    """A precision as Lightning names it, and why it was chosen."""

    precision: str
    reason: str

    def __str__(self) -> str:
        return f"precision {self.precision}: {self.reason}"


def choose_precision(trainer: Config, net: nn.Module, environment_file: Path) -> PrecisionChoice:
    """Choose the precision of a run.

    Args:
        trainer: The section `trainer` of the config.
        net: The model, which may be on the meta device.
        environment_file: File in which an earlier start of the run has recorded its precision. A measurement is not
            repeated, because its result might differ.
    """
    if trainer["precision"] != "auto":
        return PrecisionChoice(trainer["precision"], "as set by trainer.precision")
    if trainer["accelerator"] in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        return PrecisionChoice("bf16-mixed", "the default on a GPU")
    if not compat.has_bf16_instructions():
        return PrecisionChoice("32-true", "this CPU has no instructions for bf16 (AMX or AVX512-BF16)")
    if Processes.from_config(trainer).world > 1:
        return PrecisionChoice("32-true", "the default of several processes on CPUs (or set trainer.precision)")
    if recorded := files.read_metadata(environment_file).get("precision"):
        return PrecisionChoice(recorded, "as measured when the run was first started")
    speedup = measure_speedup(net)
    return PrecisionChoice(
        "bf16-mixed" if speedup >= MIN_SPEEDUP else "32-true",
        f"the matrix products of this model are {speedup:.1f} times as fast in bf16 as in float32 on this CPU",
    )


def measure_speedup(net: nn.Module) -> float:
    """Return the time of the products of a net's linear layers in float32, divided by their time in bf16-mixed.

    Forward and backward are timed once for each shape. The casts of weights to bf16 are included.
    """
    shapes = Counter((layer.in_features, layer.out_features) for layer in net.modules() if isinstance(layer, nn.Linear))
    float32, bf16 = (
        sum(number * _time_linear(*shape, is_bf16=is_bf16) for shape, number in shapes.items())
        for is_bf16 in (False, True)
    )
    return float32 / bf16


def _time_linear(n_inputs: int, n_outputs: int, *, is_bf16: bool) -> float:
    """Return the seconds of forward and backward of a linear layer with float32 weights."""
    # Not random, because drawing would change the random numbers that the run draws.
    x, weight = torch.ones(N_TOKENS, n_inputs, requires_grad=True), torch.ones(n_outputs, n_inputs, requires_grad=True)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=is_bf16):
            y = F.linear(x, weight)
        y.backward(torch.ones_like(y))

    timer = Timer("step()", globals={"step": step}, num_threads=torch.get_num_threads())
    return timer.blocked_autorange(min_run_time=SECONDS_PER_SHAPE).median
