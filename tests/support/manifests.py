"""Small audio files, manifests of them, and a tokenizer."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from auris.audio import SAMPLE_RATE, Geometry
from auris.data.manifests import read_manifests
from auris.data.rows import Row
from auris.data.samples import AudioSamples, Samples
from auris.text.prompts import NaturalPrompt
from auris.text.tokenizer import Tokenizer

GEOMETRY = Geometry(n_mels=16, pool=2)

TEXTS = ["Detect the language and recognize the speech: ", "the cat sat on the mat", "ein Hund schläft", "猫は寝る"]


@cache
def tokenizer() -> Tokenizer:
    """Return a byte-level tokenizer with a few merges. It is cached, so callers must not modify it."""
    return Tokenizer.train(TEXTS, vocab_size=300)


def write_wave(path: Path, seconds: float, *, rate: int = SAMPLE_RATE) -> Path:
    """Write a tone whose pitch depends on its length."""
    time = np.arange(round(seconds * rate)) / rate
    soundfile.write(path, 0.3 * np.sin(2 * np.pi * (200 + 40 * seconds) * time), rate)
    return path


def write_manifest(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def speech_rows(
    folder: Path, seconds: list[float], *, with_duration: bool = True, prefix: str = "r"
) -> list[dict[str, Any]]:
    """Write audio files to a folder and return manifest rows of English speech recognition.

    Args:
        folder: Folder of the audio files.
        seconds: Length of each file.
        with_duration: Whether rows have a `duration`.
        prefix: Start of the row ids and file names.
    """
    rows = []
    for number, length in enumerate(seconds):
        write_wave(folder / f"{prefix}{number}.wav", length)
        row = {"id": f"{prefix}{number}", "audio": f"{prefix}{number}.wav", "task": "asr", "language": "en"}
        row["text"] = " ".join(["the cat sat"] * (1 + number % 3))
        rows.append(row | ({"duration": length} if with_duration else {}))
    return rows


def read_row(folder: Path, **fields: Any) -> Row:
    """Write a manifest of one row and read it. `fields` replace the defaults, which are those of an English ASR row."""
    row = {"id": "row", "task": "asr", "language": "en", "text": "the cat sat on the mat", **fields}
    (manifest,) = read_manifests([write_manifest(folder / "one.jsonl", [row])])
    return manifest.rows[0]


def read_fields(folder: Path, fields: dict[str, Any]) -> Row:
    """Write a manifest of one row with these fields, in any form, and read it."""
    (manifest,) = read_manifests([write_manifest(folder / "rows.jsonl", [{"id": "row", **fields}])])
    return manifest.rows[0]


def make_sample_builder(kind: type[Samples] = AudioSamples, **settings: Any) -> Samples:
    return kind(**{"tokenizer": tokenizer(), "prompt": NaturalPrompt(), "geometry": GEOMETRY} | settings)
