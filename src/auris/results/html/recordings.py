"""Audio of test rows, located from the files of a run and embedded in a page.

Modules that read audio or rows are imported only when audio is needed, because they import torch.

A row's clips are those in the answer cache (`auris.evaluation.answer_cache`), otherwise those in the manifests of the
evaluation or of the run's config. If a clip is missing, unreadable or too large, the page says so instead of its
player.
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
    """Audio player of a clip.

    Attributes:
        name: Name of the audio file.
        seconds: Duration of the clip.
        source: The audio as a data URI.
        missing: Why there is no audio.
        repeats: Anchor of the first player of the same clip on the page.
        anchor: Anchor of this player.
    """

    name: str
    seconds: float | None = None
    source: str = ""
    missing: str = ""
    repeats: str = ""
    anchor: str = ""


class Players:
    """The audio of one page, up to a limit.

    Clips are FLAC at 16 kHz, which is exactly the model's input and can be played by every browser.

    Args:
        megabytes: Maximum size of the audio on the page.
    """

    def __init__(self, megabytes: int):
        self.megabytes, self.left = megabytes, megabytes * 1_000_000
        self.left_out = self.lost = 0
        self._players: dict[tuple[str, float | None, float | None], Player] = {}

    def play(self, clip: Clip) -> Player:
        """Return a player of a clip."""
        from auris import audio

        key = (str(clip.path), clip.offset, clip.duration)
        if first := self._players.get(key):
            return Player(first.name, first.seconds, repeats=first.anchor)
        name = Path(str(clip.path)).name
        try:
            wave = clip.read()
        except AudioError as error:
            self.lost += 1
            return Player(name, missing=f"its recording is missing or cannot be read: {error}")
        file = io.BytesIO()
        soundfile.write(file, wave, audio.SAMPLE_RATE, format="FLAC", subtype="PCM_16")
        source = f"data:audio/flac;base64,{base64.b64encode(file.getvalue()).decode()}"
        seconds = len(wave) / audio.SAMPLE_RATE
        if len(source) > self.left:
            self.left_out += 1
            return Player(name, seconds, missing=f"left out: the page is limited to {self.megabytes} MB of audio")
        self.left -= len(source)
        self._players[key] = Player(name, seconds, source, anchor=f"clip-{len(self._players) + 1}")
        return self._players[key]

    @property
    def notes(self) -> list[str]:
        """Sentences about clips without audio."""
        notes = []
        if self.left_out:
            notes.append(
                f"{self.left_out} clips were left out, because the page is limited to {self.megabytes} MB of audio: "
                "set audio_mb=N for more"
            )
        if self.lost:
            notes.append(f"{self.lost} clips are missing or cannot be read; the reason is given in place of the player")
        return notes


def find(run_dir: Path, benchmark: str, ids: Collection[str]) -> tuple[dict[str, Row], list[str]]:
    """Return the rows of an evaluation by id, and notes about rows that cannot be found.

    Rows with replaced audio, such as those of `meld@shuffled`, are in no manifest. They are taken from the answer cache
    only.
    """
    from auris.data.manifests import read_manifests
    from auris.evaluation import answer_cache

    cached = answer_cache.load_rows(run_dir, benchmark)
    rows = {name: cached[name] for name in ids if name in cached}
    complete = {name for name, row in rows.items() if all(Path(str(clip.path)).is_file() for clip in row.clips)}
    missing, notes = set(ids) - complete, []
    if not missing or "@" in benchmark:
        return rows, notes
    try:
        for manifest in read_manifests(_manifests(run_dir, benchmark), key="data.test"):
            for row in manifest.rows:
                if row.id in missing:
                    rows[row.id] = row
    except (ValueError, FileNotFoundError) as error:
        notes.append(
            f"{benchmark}: not all rows and audio files could be found ({error}); relative paths are relative to the "
            "directory in which this page was written"
        )
    return rows, notes


def _manifests(run_dir: Path, benchmark: str) -> list[Any]:
    """Return the manifests of an evaluation; if it is not recorded, those of the run's config."""
    from auris.evaluation import answer_cache

    if evaluation := answer_cache.load_evaluations(run_dir).get(benchmark):
        return evaluation.benchmark.manifests()
    file = run_dir / "recipe.yaml"
    if not file.is_file():
        raise MissingFileError(
            f"{run_dir} has no record of its rows: neither {answer_cache.CACHE_DIR}/{benchmark}.json nor recipe.yaml"
        )
    return read_yaml(file)["data"]["test"]


def describe_replaced_audio(benchmark: str) -> str:
    """Return by what the audio of a benchmark was replaced; empty if it was not."""
    from auris.evaluation import audio_ablation

    descriptions = {
        audio_ablation.SILENCE: "silence of the same length",
        audio_ablation.SHUFFLED: "another row's recording",
    }
    return descriptions.get(benchmark.rpartition("@")[2], "") if "@" in benchmark else ""
