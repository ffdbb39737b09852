"""The sound of test rows: found again from what a run has noted, and put into a page.

Nothing that reads audio or rows is imported before a row's sound is needed: it would import torch.

A row's clips are those that it was answered by (`auris.evaluation.answer_cache`), or else those of the rows that the
evaluation or the run's recipe names. What cannot be found, read or afforded is said where its player would stand.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import soundfile

from auris.errors import AudioError, MissingFileError
from auris.files import read_yaml

if TYPE_CHECKING:
    from auris.data.rows import Clip, Row


@dataclass(frozen=True)
class Player:
    """A clip in a page: its sound as a data URI, or why there is none; `again`: where the page has it already."""

    name: str
    seconds: float | None = None
    source: str = ""
    missing: str = ""
    again: str = ""
    anchor: str = ""


class Players:
    """The sound of one page, within a limit. FLAC at 16 kHz: exactly what a model hears, and every browser plays it."""

    def __init__(self, megabytes: int):
        self.megabytes, self.left = megabytes, megabytes * 1_000_000
        self.left_out = self.lost = 0
        self._made: dict[tuple[str, float | None, float | None], Player] = {}

    def play(self, clip: Clip) -> Player:
        from auris import audio

        key = (str(clip.path), clip.offset, clip.duration)
        if known := self._made.get(key):
            return Player(known.name, known.seconds, again=known.anchor)
        name = Path(str(clip.path)).name
        try:
            wave = clip.read()
        except AudioError as error:
            self.lost += 1
            return Player(name, missing=f"its recording is gone or cannot be read: {error}")
        file = io.BytesIO()
        soundfile.write(file, wave, audio.SAMPLE_RATE, format="FLAC", subtype="PCM_16")
        source = f"data:audio/flac;base64,{base64.b64encode(file.getvalue()).decode()}"
        seconds = len(wave) / audio.SAMPLE_RATE
        if len(source) > self.left:
            self.left_out += 1
            return Player(name, seconds, missing=f"left out: a page holds audio_mb={self.megabytes} MB of sound")
        self.left -= len(source)
        self._made[key] = Player(name, seconds, source, anchor=f"clip-{len(self._made) + 1}")
        return self._made[key]

    @property
    def notes(self) -> list[str]:
        told = []
        if self.left_out:
            told.append(
                f"{self.left_out} clips were left out, the page holds {self.megabytes} MB of sound at most: "
                "audio_mb=N for more"
            )
        if self.lost:
            told.append(f"{self.lost} clips are gone or cannot be read; each says why where its player would stand")
        return told


def find(run_dir: Path, benchmark: str, ids: Collection[str]) -> tuple[dict[str, Row], list[str]]:
    """Rows of an evaluation by their ids, and what hindered finding others, in words.

    What was heard otherwise, as `meld@shuffled`, is in no manifest: of it only what the run has kept is known.
    """
    from auris.data.manifests import read_manifests
    from auris.evaluation import answer_cache

    known = answer_cache.load_rows(run_dir, benchmark)
    found = {name: known[name] for name in ids if name in known}
    there = {name for name, row in found.items() if all(Path(str(clip.path)).is_file() for clip in row.clips)}
    wanted, notes = set(ids) - there, []
    if not wanted or "@" in benchmark:
        return found, notes
    try:
        for manifest in read_manifests(_sources(run_dir, benchmark), key="data.test"):
            for row in manifest.rows:
                if row.id in wanted:
                    found[row.id] = row
    except (ValueError, FileNotFoundError) as error:
        notes.append(
            f"{benchmark}: its rows, and so its sound, were not all found again ({error}); relative paths count from "
            "the directory in which this page was made"
        )
    return found, notes


def _sources(run_dir: Path, benchmark: str) -> list[Any]:
    """Where an evaluation says that its rows lie, or else the run's recipe."""
    from auris.evaluation import answer_cache

    if evaluation := answer_cache.load_evaluations(run_dir).get(benchmark):
        return evaluation.benchmark.manifests()
    file = run_dir / "recipe.yaml"
    if not file.is_file():
        raise MissingFileError(
            f"{run_dir} names no rows: neither {answer_cache.CACHE_DIR}/{benchmark}.json nor recipe.yaml"
        )
    return read_yaml(file)["data"]["test"]


def heard(benchmark: str) -> str:
    """How the sound of a benchmark was changed, in words."""
    from auris.evaluation import audio_ablation

    changed = {
        audio_ablation.SILENCE: "silence as long as its recording",
        audio_ablation.SHUFFLED: "another row's recording",
    }
    return changed.get(benchmark.rpartition("@")[2], "") if "@" in benchmark else ""
