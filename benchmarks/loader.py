"""From FLAC to packed batches on one core: shards and packs of auris, against a collator that pads clips to 30 s.

The peer does the same as ms-swift and LLaMA-Factory: it decodes the files one by one, runs the extractor of
transformers over the batch, and pads ids to the longest row. (LLaMA-Factory computes the features twice. Here they are
computed once, which favours the peer.)
"""

from __future__ import annotations

import io
import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import torch
import transformers
from rich.console import Console
from torch import Tensor
from transformers import WhisperFeatureExtractor

from auris.audio import SAMPLE_RATE, Geometry, n_frames_with_padding
from auris.data import shards
from auris.data.batches import StepDataset
from auris.data.datamodule import AudioDataModule
from auris.data.samples import AudioSamples
from auris.text.prompts import NaturalPrompt
from auris.text.tokenizer import Tokenizer
from benchmarks import Comparison
from benchmarks.models import parse_lengths
from benchmarks.plan import WORDS

N_MELS = 128
LIMITS = {"features": 1e-6, "rows": 0.0}


@dataclass(frozen=True)
class Preset:
    rows: int


PRESETS = {"flac": Preset(128)}


def compare(preset: Preset, *, lengths: str = "2-16", batch: int = 16, seed: int = 0) -> Comparison:
    """Read all rows once on both sides, in the steps of one plan.

    Features are compared on the frames that auris computes.
    """
    directory = tempfile.TemporaryDirectory(prefix="auris-loader-")  # exists as long as the functions that refer to it
    folder = Path(directory.name)
    write_rows(folder, preset.rows, parse_lengths(lengths), seed)
    samples = AudioSamples(
        tokenizer=Tokenizer.load(folder / "tokens"), prompt=NaturalPrompt(), geometry=Geometry(n_mels=N_MELS, pool=2)
    )
    data = AudioDataModule(
        samples=samples,
        valid_samples=samples,
        train=[str(folder / "shards")],
        valid=[{"path": str(folder / "shards"), "limit": 1}],
        rows_per_step=min(batch, preset.rows),
        token_budget=8192,
        max_steps=max(1, preset.rows // batch),
        cache_dir=str(folder / "cache"),
    )
    data.setup("fit")
    steps = StepDataset(data.rows, data.plan, samples, 1, 0)
    extractor = WhisperFeatureExtractor(feature_size=N_MELS)
    batches = [[row for row, _ in data.plan.step(k)] for k in range(data.max_steps)]

    def auris_batches() -> list[list[dict]]:
        return [steps[k] for k in range(data.max_steps)]

    def collate_padded(batch: list[int]) -> dict[str, Tensor]:
        rows = [data.rows[number] for number in batch]
        ids = [torch.from_numpy(samples.encode(row, samples.audio_lengths(row), None).ids) for row in rows]
        clips = [soundfile.read(Path(directory.name) / f"{row.id}.flac", dtype="float32")[0] for row in rows]
        features = extractor(clips, sampling_rate=SAMPLE_RATE, return_tensors="pt").input_features
        return {"input_ids": torch.nn.utils.rnn.pad_sequence(ids, batch_first=True), "input_features": features}

    def peer_batches() -> list[dict[str, Tensor]]:
        return [collate_padded(batch) for batch in batches]

    packs = [pack for step in auris_batches() for pack in step]
    expected: dict[int, Tensor] = {}
    for batch_rows, padded in zip(batches, peer_batches(), strict=True):
        expected |= dict(zip(batch_rows, padded["input_features"], strict=True))
    missing = expected.keys() ^ {row for pack in packs for row in pack["rows"]}
    return Comparison(
        peer=f"files, transformers {transformers.__version__} WhisperFeatureExtractor and padding, as in ms-swift",
        run_auris=auris_batches,
        run_peer=peer_batches,
        errors={"features": max(_difference(pack, expected) for pack in packs), "rows": float(len(missing))},
        limits=LIMITS,
        work={"audio_seconds": sum(pack["audio_seconds"] for pack in packs)},
    )


def _difference(pack: dict, expected: Mapping[int, Tensor]) -> float:
    """Return the largest difference of the features of a pack with one clip per row; NaN if any feature is NaN."""
    clips = pack["mel"].split([n_frames_with_padding(n) for n in pack["frames"].tolist()], dim=1)
    errors = [
        (clip - expected[row][:, : clip.shape[1]]).abs().max() for row, clip in zip(pack["rows"], clips, strict=True)
    ]
    return torch.stack(errors).max().item()


def write_rows(folder: Path, rows: int, durations: tuple[float, float], seed: int) -> None:
    """Write rows with audio and text as files with a manifest, a tokenizer for them, and the same rows as shards."""
    draw = np.random.default_rng(seed)
    words = WORDS.split()
    Tokenizer.train((" ".join(draw.choice(words, 40)) for _ in range(200)), vocab_size=600).save(folder / "tokens")
    with (folder / "rows.jsonl").open("w") as lines:
        for number in range(rows):
            duration = draw.uniform(*durations)
            # Brown noise. FLAC compresses it about as much as speech, unlike white noise.
            wave = np.cumsum(draw.normal(0, 1e-3, int(duration * SAMPLE_RATE)))
            soundfile.write(folder / f"{number}.flac", wave.clip(-1, 1), SAMPLE_RATE)
            text = " ".join(draw.choice(words, max(1, round(2.5 * duration))))
            row = {"id": str(number), "audio": f"{number}.flac", "task": "asr", "language": "en", "text": text}
            lines.write(json.dumps(row) + "\n")
    quiet = Console(file=io.StringIO())
    shards.pack(str(folder / "rows.jsonl"), folder / "shards", rows_per_shard=64, processes=1, console=quiet)
