"""Audio of test rows, which is found through the files of a run and embedded in a page.

Rows and the paths of their clips come from the answer cache (`auris.evaluation.answer_cache`). If they are not there,
they come from the manifests of the evaluation, or from the manifests in the config of the run. If a clip is missing,
unreadable or too large, the page states this instead of showing a player.

Modules that read audio or rows are imported only when audio is needed, because they import torch.
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
from auris.metrics.records import AS_IS, SHUFFLED, SILENCE, EvaluationName

if TYPE_CHECKING:
    from auris.data.rows import Clip, Row


@dataclass(frozen=True)
class Player:
    """Audio player of a clip.

    Attributes:
        name: Name of the audio file.
        seconds: Duration of the clip.
        source: The audio as a data URI; empty if there is none.
        missing: The reason why the page does not contain the audio; otherwise empty.
        repeats: If the page already has a player of this clip, the anchor of that player; otherwise empty.
        anchor: Anchor of this player.
    """

    name: str
    seconds: float | None = None
    source: str = ""
    missing: str = ""
    repeats: str = ""
    anchor: str = ""


class Players:
    """The audio players of one page, with a limit on the size of the audio.

    Clips are encoded as FLAC at 16 kHz, which contains exactly the model's input and can be played by every browser.

    Args:
        megabytes: Maximum size of the audio on the page.
    """

    def __init__(self, megabytes: int):
        self.megabytes, self.bytes_left = megabytes, megabytes * 1_000_000
        self.n_left_out = self.n_unreadable = 0
        self._players: dict[tuple[str, float | None, float | None], Player] = {}

    def play(self, clip: Clip) -> Player:
        """Return a player for a clip.

        The player contains no audio if the page already has the audio or has no space left for it, or if the clip
        cannot be read.
        """
        from auris import audio

        key = (str(clip.path), clip.offset, clip.duration)
        if first := self._players.get(key):
            return Player(first.name, first.seconds, repeats=first.anchor)
        name = Path(str(clip.path)).name
        try:
            wave = clip.read()
        except AudioError as error:
            self.n_unreadable += 1
            return Player(name, missing=f"the recording is missing or cannot be read: {error}")
        file = io.BytesIO()
        soundfile.write(file, wave, audio.SAMPLE_RATE, format="FLAC", subtype="PCM_16")
        source = f"data:audio/flac;base64,{base64.b64encode(file.getvalue()).decode()}"
        seconds = len(wave) / audio.SAMPLE_RATE
        if len(source) > self.bytes_left:
            self.n_left_out += 1
            return Player(name, seconds, missing=f"left out: the page is limited to {self.megabytes} MB of audio")
        self.bytes_left -= len(source)
        self._players[key] = Player(name, seconds, source, anchor=f"clip-{len(self._players) + 1}")
        return self._players[key]

    @property
    def notes(self) -> list[str]:
        """Sentences about clips whose audio is not on the page."""
        notes = []
        if self.n_left_out:
            notes.append(
                f"{self.n_left_out} clips were left out, because the page is limited to {self.megabytes} MB of audio: "
                "set audio_mb=N to embed more audio"
            )
        if self.n_unreadable:
            notes.append(
                f"{self.n_unreadable} clips are missing or cannot be read; the reason is given in place of the player"
            )
        return notes


def find_rows(run_dir: Path, benchmark: str, ids: Collection[str]) -> tuple[dict[str, Row], list[str]]:
    """Return the rows of an evaluation by id, and notes about rows that cannot be found.

    Manifests do not contain rows with replaced audio, such as the rows of `meld@shuffled`, so these rows are
    searched for only in the answer cache.

    Args:
        run_dir: The run's directory.
        benchmark: The benchmark of the evaluation.
        ids: Ids of the rows to find.
    """
    from auris.data.manifests import read_manifests
    from auris.evaluation import answer_cache

    cached = answer_cache.load_rows(run_dir, benchmark)
    rows = {row_id: cached[row_id] for row_id in ids if row_id in cached}
    ids_with_audio = {
        row_id for row_id, row in rows.items() if all(Path(str(clip.path)).is_file() for clip in row.clips)
    }
    missing, notes = set(ids) - ids_with_audio, []
    if not missing or EvaluationName.parse(benchmark).audio != AS_IS:
        return rows, notes
    try:
        for manifest in read_manifests(_manifests(run_dir, benchmark), key="data.test"):
            for row in manifest.rows:
                if row.id in missing:
                    rows[row.id] = row
    except (ValueError, FileNotFoundError) as error:
        notes.append(
            f"{benchmark}: some rows or audio files could not be found ({error}); relative paths start from the "
            "directory in which `auris report` was started"
        )
    return rows, notes


def _manifests(run_dir: Path, benchmark: str) -> list[Any]:
    """Return the manifests of an evaluation; if the run has no record of it, the test manifests of the run's config."""
    from auris.evaluation import answer_cache

    if evaluation := answer_cache.load_evaluations(run_dir).get(benchmark):
        return evaluation.benchmark.manifests()
    file = run_dir / "recipe.yaml"
    if not file.is_file():
        raise MissingFileError(
            f"{run_dir} does not state its test rows: there is neither {answer_cache.CACHE_DIR}/{benchmark}.json nor "
            "recipe.yaml"
        )
    return read_yaml(file)["data"]["test"]


def describe_replaced_audio(benchmark: str) -> str:
    """Return what replaced the audio of a benchmark, as text; empty if the audio was not replaced."""
    descriptions = {SILENCE: "silence of the same length", SHUFFLED: "another row's recording"}
    return descriptions.get(EvaluationName.parse(benchmark).audio, "")
