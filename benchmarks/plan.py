"""Seconds and megabytes needed to plan a run over very many rows, for the first start and for later starts.

Each phase runs in its own process, so that its peak memory can be measured. There is no peer.
"""

from __future__ import annotations

import io
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from rich.console import Console

from auris.audio import Geometry
from auris.data.datamodule import AudioDataModule
from auris.data.samples import AudioSamples
from auris.data.shards import pack
from auris.text.prompts import NaturalPrompt
from auris.text.tokenizer import Tokenizer
from benchmarks import Report

WORDS = "the cat sat on a mat and red foxes jump over lazy dogs while rain falls in spring over city streets at night"


@dataclass(frozen=True)
class Preset:
    """A simulated corpus.

    Attributes:
        rows: Number of rows.
        with_sound: Whether the rows are packed into shards, with one second of audio each, and are also read in random
            order.
    """

    rows: int
    with_sound: bool = False


PRESETS = {"1m": Preset(1_000_000), "shards": Preset(20_000, with_sound=True)}


def report(preset: Preset) -> Report:
    """Report the seconds and MB of each phase, and print them as soon as the phase is done."""
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), preset)
        phases = {}
        for name in PHASES if preset.with_sound else list(PHASES)[:-1]:  # the last phase reads audio
            phases[name] = _run_in_process(Path(folder), name)
            values = ", ".join(f"{unit} {value:,.4g}" for unit, value in phases[name].items())
            print(f"  {name}: {values}", flush=True)
    return Report(figures={"rows": preset.rows, "cores": len(os.sched_getaffinity(0)), "phases": phases})


def write(folder: Path, preset: Preset) -> None:
    """Write rows of 2 to 16 seconds and 5 to 40 words, a tokenizer for them, and shards if the preset has audio."""
    draw = random.Random(0)
    words = WORDS.split()
    Tokenizer.train((" ".join(draw.choices(words, k=40)) for _ in range(1000)), vocab_size=600).save(folder / "tokens")
    with (folder / "rows.jsonl").open("w") as lines:
        for number in range(preset.rows):
            row = {"id": f"clip-{number:09d}", "audio": "one.flac" if preset.with_sound else f"{number}.flac"}
            row |= {"task": "asr", "language": "en", "text": " ".join(draw.choices(words, k=draw.randint(5, 40)))}
            row |= {} if preset.with_sound else {"duration": round(draw.uniform(2, 16), 2)}
            lines.write(json.dumps(row) + "\n")
    if preset.with_sound:
        noise = np.random.default_rng(0).normal(0, 0.05, 16_000)
        soundfile.write(folder / "one.flac", noise, 16_000)
        quiet = Console(file=io.StringIO())
        pack(str(folder / "rows.jsonl"), folder / "shards", rows_per_shard=4096, processes=None, console=quiet)


def _run_in_process(folder: Path, name: str) -> dict[str, float]:
    completed = subprocess.run(
        [sys.executable, "-m", "benchmarks.plan", str(folder), name], stdout=subprocess.PIPE, check=True
    )
    return json.loads(completed.stdout.splitlines()[-1])


def _data(folder: Path, **overrides: Any) -> AudioDataModule:
    source = folder / "shards" if (folder / "shards").is_dir() else folder / "rows.jsonl"
    samples = AudioSamples(
        tokenizer=Tokenizer.load(folder / "tokens"), prompt=NaturalPrompt(), geometry=Geometry(n_mels=128, pool=2)
    )
    settings = {"rows_per_step": 128, "token_budget": 8192, "max_steps": 1, "cache_dir": str(folder / "cache")}
    # The data module requires at least one validation row.
    valid = [{"path": str(source), "limit": 1}]
    return AudioDataModule(
        samples=samples, valid_samples=samples, train=[str(source)], valid=valid, **{**settings, **overrides}
    )


def _start(folder: Path, **overrides: Any) -> AudioDataModule:
    """Do everything until the rows of the first step on 8 ranks are known."""
    data = _data(folder, **overrides)
    data.setup("fit")
    data.plan.packs(0, world=8, rank=0)
    return data


def _random_rows(folder: Path) -> dict[str, float]:
    """Return the milliseconds to read a row with its audio from shards in random order, and to read an audio file."""
    data = _start(folder)
    numbers = np.random.default_rng(0).integers(len(data.rows), size=2000).tolist()
    start = time.perf_counter()
    for number in numbers:
        data.rows[number].clips[0].path.read()
    stored = time.perf_counter() - start
    start = time.perf_counter()
    for _ in numbers:
        (folder / "one.flac").read_bytes()
    as_files = time.perf_counter() - start
    return {"ms a row": 1000 * stored / len(numbers), "ms a file": 1000 * as_files / len(numbers)}


PHASES: Mapping[str, Callable[[Path], Any]] = {
    "first start": _start,
    "later start": _start,
    "later start, full packs": lambda folder: _start(folder, rows_per_step=None, packs_per_step=8),
    "random rows": _random_rows,
}


def _cpu_seconds() -> float:
    """Return the CPU seconds of this process and of its child processes that have ended."""
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def _megabytes() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


def phase(folder: Path, name: str) -> dict[str, float]:
    """Run a phase in this process and return its measurements."""
    memory_before, start, cpu_before = _megabytes(), time.perf_counter(), _cpu_seconds()
    result = PHASES[name](folder)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    measurements = {
        "seconds": time.perf_counter() - start,
        "CPU seconds": _cpu_seconds() - cpu_before,
        "MB": peak - memory_before,  # peak memory in addition to that of the imported modules
        "MB in all": peak,
    }
    return measurements | (result if isinstance(result, dict) else {})


if __name__ == "__main__":
    print(json.dumps(phase(Path(sys.argv[1]), sys.argv[2])))
