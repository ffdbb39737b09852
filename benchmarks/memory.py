"""Peak memory of a training step, in addition to weights and gradients. Each side has its own process.

The ratio is the memory of auris divided by that of the peer, so below 1 auris needs less.
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
from benchmarks.models import PRESETS, TRAINED, Preset, freeze_untrained, models, padded, samples, waves

__all__ = ["CHOICES", "PRESETS", "report"]

CHOICES = {"trained": tuple(TRAINED)}
LIMITS = {"loss": 1e-5, "gradient's norm": 1e-4}
# glibc returns freed memory to the system, so the resident memory of the process is the memory in use.
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0", "MALLOC_ARENA_MAX": "1"}


def report(preset: Preset, *, lengths: str = "2-8", trained: str = "all", clips: int = 4, seed: int = 0) -> Report:
    """Report the peak memory of both sides in their second step. The errors are those of losses and gradient norms."""
    waves(lengths, clips, seed)  # invalid settings raise SettingError here, before a process is started
    settings = {"preset": asdict(preset), "lengths": lengths, "trained": trained, "clips": clips, "seed": seed}
    auris_side, peer_side = (_measure_in_process(settings | {"side": side}) for side in ("auris", "peer"))
    return Report(
        peer=f"transformers {transformers.__version__} Qwen2AudioForConditionalGeneration",
        figures={
            "ratio": auris_side["MB"] / peer_side["MB"],
            "MB": {"ours": auris_side["MB"], "peer": peer_side["MB"]},
        },
        errors={
            "loss": abs(auris_side["loss"] - peer_side["loss"]),
            "gradient's norm": abs(auris_side["norm"] / peer_side["norm"] - 1),
        },
        limits=LIMITS,
    )


def _measure_in_process(settings: Mapping[str, Any]) -> dict[str, float]:
    completed = subprocess.run(
        [sys.executable, "-m", "benchmarks.memory", json.dumps(settings)],
        stdout=subprocess.PIPE,
        check=True,
        env=os.environ | ALLOCATOR,
    )
    return json.loads(completed.stdout.splitlines()[-1])


def measure(*, side: str, preset: Preset, lengths: str, trained: str, clips: int, seed: int) -> dict[str, float]:
    """Return loss, gradient norm and peak MB of a step of one side, measured in this process."""
    clip_waves = waves(lengths, clips, seed)
    auris_net, peer_net = models(preset, seed)
    freeze_untrained(auris_net, peer_net, trained)
    rows = samples(clip_waves, auris_net.geometry, preset.vocab_size, seed)
    pack, inputs = collate(rows, geometry=auris_net.geometry), padded(rows, clip_waves, preset.n_mels)
    objective = NextToken()
    net: nn.Module = auris_net if side == "auris" else peer_net
    del auris_net, peer_net

    def compute_loss() -> Tensor:
        if side == "auris":
            return objective(net, pack)[0] / objective.count(pack)
        return net(**inputs, use_cache=False).loss

    compute_loss().backward()  # allocates the gradients and the buffers of the libraries, which are not counted
    parameters = [parameter for parameter in net.parameters() if parameter.grad is not None]
    for parameter in parameters:
        parameter.grad.zero_()
    gc.collect()
    before = _resident_megabytes()
    _reset_peak()
    loss = compute_loss()
    loss.backward()
    peak = _peak_megabytes() - before
    norm = torch.stack([parameter.grad.norm() for parameter in parameters]).norm()
    return {"loss": loss.item(), "norm": norm.item(), "MB": peak}


def _resident_megabytes() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


def _reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")  # proc(5): resets the peak to the current resident memory


def _peak_megabytes() -> float:
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024


if __name__ == "__main__":
    torch.set_num_threads(1)
    settings = json.loads(sys.argv[1])
    print(json.dumps(measure(**settings | {"preset": Preset(**settings["preset"])})))
