"""Peak memory of a training step above weights and gradients: each side in a process of its own.

The ratio is ours over the peer's, so below 1 auris needs less.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from auris.data.collate import collate
from auris.training.objectives.next_token import NextToken
from benchmarks import Report
from benchmarks.models import PRESETS, TRAINED, Preset, models, padded, samples, train, waves

__all__ = ["CHOICES", "PRESETS", "report"]

CHOICES = {"trained": tuple(TRAINED)}
LIMITS = {"loss": 1e-5, "gradient's norm": 1e-4}
# glibc gives back what is freed, large and small, so that memory in use is what the process holds.
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0", "MALLOC_ARENA_MAX": "1"}


def report(preset: Preset, *, lengths: str = "2-8", trained: str = "all", clips: int = 4, seed: int = 0) -> Report:
    """MB of both sides in their second step, and how far their losses and their gradients' norms are apart."""
    waves(lengths, clips, seed)  # what is wrong with the settings is said here
    settings = {"preset": asdict(preset), "lengths": lengths, "trained": trained, "clips": clips, "seed": seed}
    ours, theirs = (_in_a_process(settings | {"side": side}) for side in ("ours", "theirs"))
    return Report(
        peer=f"transformers {transformers.__version__} Qwen2AudioForConditionalGeneration",
        figures={"ratio": ours["MB"] / theirs["MB"], "MB": {"ours": ours["MB"], "peer": theirs["MB"]}},
        errors={
            "loss": abs(ours["loss"] - theirs["loss"]),
            "gradient's norm": abs(ours["norm"] / theirs["norm"] - 1),
        },
        limits=LIMITS,
    )


def _in_a_process(settings: Mapping[str, Any]) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.memory", json.dumps(settings)],
        stdout=subprocess.PIPE,
        check=True,
        env=os.environ | ALLOCATOR,
    )
    return json.loads(done.stdout.splitlines()[-1])


def measure(*, side: str, preset: Preset, lengths: str, trained: str, clips: int, seed: int) -> dict[str, float]:
    """Loss, norm of the gradient and peak MB of one side's step, here."""
    wave = waves(lengths, clips, seed)
    ours, theirs = models(preset, seed)
    train(ours, theirs, trained)
    rows = samples(wave, ours.geometry, preset.vocab_size, seed)
    pack, inputs = collate(rows, geometry=ours.geometry), padded(rows, wave)
    objective = NextToken()
    net: nn.Module = ours if side == "ours" else theirs
    del ours, theirs

    def loss_of() -> Tensor:
        if side == "ours":
            return objective(net, pack)[0] / objective.count(pack)
        return net(**inputs, use_cache=False).loss

    loss_of().backward()  # the libraries' own buffers, and the gradients, are there from now on
    learned = [parameter for parameter in net.parameters() if parameter.grad is not None]
    for parameter in learned:
        parameter.grad.zero_()
    gc.collect()
    before = _resident()
    _forget_peak()
    loss = loss_of()
    loss.backward()
    peak = _peak() - before
    norm = torch.stack([parameter.grad.norm() for parameter in learned]).norm()
    return {"loss": loss.item(), "norm": norm.item(), "MB": peak}


def _resident() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


def _forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")  # proc(5): the peak is what is held now


def _peak() -> float:
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024


if __name__ == "__main__":
    torch.set_num_threads(1)
    given = json.loads(sys.argv[1])
    print(json.dumps(measure(**given | {"preset": Preset(**given["preset"])})))
