"""`auris align checkpoint=RUN data.test=[FILE] out=FILE.jsonl`: find the time of each word of a transcript.

An encoder trained with CTC predicts a token for each frame, and `torchaudio.functional.forced_align` finds the most
likely path through a known text. CTC predicts a token for only one or two frames of a word and blanks around it, so
these times are inaccurate. Dividing the probabilities by the priors of the tokens makes tokens fill their actual time
(label priors, Huang et al. 2024, "Less Peaky and More Accurate CTC Forced Alignment").

Shapes: C frames of 20 ms, V text tokens and the blank, L tokens of a transcript.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypedDict

import numpy as np
import torch
import torchaudio.functional as F
from rich.console import Console
from rich.progress import track
from torch import Tensor

from auris import audio
from auris.config import Config
from auris.data import lengths
from auris.data.batches import build_pack, pack_by_length
from auris.data.manifests import read_manifests
from auris.data.prepare.convert import prepare
from auris.data.prepare.tables import RowDict
from auris.data.rows import Row, answer_language
from auris.data.samples import TranscriptSamples
from auris.errors import UserError
from auris.inference import load as pretrained
from auris.inference.audio_model import AudioModel
from auris.metrics.normalize import unit
from auris.model.pack import Pack, to_device
from auris.text.console import numbers_table
from auris.training.objectives.ctc import CTC

FRAME_SECONDS = 1 / audio.ENCODER_RATE  # duration of an encoder frame
PRIOR_PACKS = 16  # packs from which priors are estimated, some minutes of audio


class WordTime(TypedDict):
    """A word with its start and end in seconds, as in the label `words` of a row."""

    word: str
    start: float
    end: float


Times = list[WordTime]
"""The words of a row, in order."""

ENDS: tuple[Literal["start"], Literal["end"]] = ("start", "end")
"""The times of a word."""


@dataclass(frozen=True)
class Span:
    """A word at characters `start` to `end` (exclusive) of its text."""

    word: str
    start: int
    end: int


def split(text: str, language: str) -> list[Span]:
    """Split a text into the units that have times: words, or characters in a language written without spaces.

    Punctuation around a word is not part of it.
    """
    punctuation = "".join(character for character in set(text) if unicodedata.category(character)[0] == "P")
    spans = []
    for match in re.finditer(r"\S" if unit(language) == "char" else r"\S+", text):
        if word := match[0].strip(punctuation):
            start = match.start() + match[0].index(word)
            spans.append(Span(word, start, start + len(word)))
    return spans


def token_frames(scores: Tensor, ids: Sequence[int], blank: int) -> np.ndarray:
    """Return the first and last frame (exclusive) of each token (L, 2) on the most likely path.

    Blanks between two tokens are divided equally between them.

    Args:
        scores: (C, V) log-probabilities, minus log-priors.
        ids: ids of the L tokens.
        blank: id of the blank.

    Raises:
        UserError: there are too few frames for the tokens, or no tokens.
    """
    targets = torch.as_tensor(ids, dtype=torch.int64)
    needed = len(targets) + int((targets.diff() == 0).sum())  # a blank separates equal tokens
    if not len(targets) or needed > len(scores):
        raise UserError(
            f"the text needs {needed} frames of {1000 * FRAME_SECONDS:.0f} ms, but the clip has {len(scores)}"
        )
    path, path_scores = F.forced_align(scores[None].contiguous(), targets[None], blank=blank)
    spans = F.merge_tokens(path[0], path_scores[0], blank=blank)
    frames = np.array([(token.start, token.end) for token in spans], dtype=float)
    middles = (frames[:-1, 1] + frames[1:, 0]) / 2
    frames[:-1, 1] = frames[1:, 0] = middles
    return frames


def word_times(frames: np.ndarray, covered: Sequence[tuple[int, int]], words: Sequence[Span]) -> Times:
    """Return the times of words, given the frames of the tokens (L, 2) and the characters that each token covers.

    The characters of a token share its time equally. A character of several tokens has the time of all of them.
    """
    starts: dict[int, float] = {}
    ends: dict[int, float] = {}
    for (first, last), (low, high) in zip(covered, frames * FRAME_SECONDS, strict=True):
        for position in range(first, last):
            share = (high - low) / (last - first)
            starts.setdefault(position, low + (position - first) * share)
            ends[position] = low + (position - first + 1) * share
    return [
        {"word": word.word, "start": round(float(starts[word.start]), 3), "end": round(float(ends[word.end - 1]), 3)}
        for word in words
    ]


class Aligner:
    """An encoder with its CTC head and the priors of its tokens.

    Args:
        model: a model trained with `experiment=encoder_ctc`.
        prior_scale: factor of the log-priors that are subtracted from the scores; 0: none.

    Raises:
        UserError: the model was trained on another objective.
    """

    def __init__(self, model: AudioModel, *, prior_scale: float):
        if not isinstance(model.objective, CTC):
            raise UserError(
                f"checkpoint={model.name} was trained on {type(model.objective).__name__}: expected a run of "
                "experiment=encoder_ctc, which predicts tokens of frames"
            )
        self.model, self.objective, self.prior_scale = model, model.objective, prior_scale
        self.view = TranscriptSamples(
            tokenizer=model.tokenizer, prompt=model.prompt, geometry=model.net.geometry, long_audio="skip"
        )
        self._log_prior: Tensor | float = 0.0

    def estimate_priors(self, packs: Iterable[Pack]) -> None:
        """Set the prior of each token to its mean probability over the frames of these packs."""
        total, n_frames = torch.zeros((), dtype=torch.double), 0
        for batch in packs:
            scores = torch.cat(self._scores(batch))
            total = total + scores.double().exp().sum(0)
            n_frames += len(scores)
        self._log_prior = (total / n_frames).clamp_min(1e-12).log().float()

    def align(self, rows: Sequence[Row], batch: Pack) -> Iterator[tuple[int, Times | ValueError]]:
        """Yield for each row of a pack its number and its words, or the error that explains why there are none."""
        for number, scores in zip(batch["rows"], self._scores(batch), strict=True):
            row = self.view.target_row(rows[number])
            text = row.labels["text"]
            tokenizer, blank = self.model.tokenizer, self.objective.blank
            try:
                frames = token_frames(scores - self.prior_scale * self._log_prior, tokenizer.plain(text), blank)
            except ValueError as error:
                yield number, error
            else:
                yield number, word_times(frames, tokenizer.spans(text), split(text, row.labels["language"]))

    @torch.no_grad()
    def _scores(self, batch: Pack) -> list[Tensor]:
        """Return the log-probabilities of each clip's frames, without the dummy clip of an empty pack."""
        scores, n_frames = self.objective.scores(self.model.net, to_device(batch, self.model.device))
        return list(scores.cpu().split(n_frames.tolist())[: len(batch["rows"])])


def run(config: Config) -> None:
    """Run `auris align`: write the rows of `data.test` with word times to `out`, and compare them with known times."""
    console = Console()
    if not isinstance(config["prior_scale"], (int, float)) or config["prior_scale"] < 0:
        raise UserError(f"prior_scale={config['prior_scale']}: expected 0 or more (1: as published)")
    if not config["data"]["test"]:
        raise UserError(f"data.test={config['data']['test']}: expected [FILE.jsonl] with transcribed rows")
    model = pretrained.load(config["checkpoint"], which=config["which"], device=config["accelerator"])
    aligner = Aligner(model, prior_scale=config["prior_scale"])
    manifests = read_manifests(config["data"]["test"], key="data.test")
    rows = [row for manifest in manifests for row in manifest.rows]
    measured = lengths.measure_lengths(manifests, aligner.view, Path(model.config["data"]["cache_dir"]))
    problems = dict(measured.problems)
    packs = pack_by_length(measured, config["token_budget"])

    def read(numbers: Sequence[int]) -> Pack:
        return build_pack(rows, [(number, None) for number in numbers], aligner.view)

    if packs and config["prior_scale"]:
        spread = packs[:: max(1, len(packs) // PRIOR_PACKS)]  # across all lengths, by which packs are sorted
        aligner.estimate_priors(
            read(numbers) for numbers in track(spread, description="estimating priors", console=console)
        )
    times: dict[int, Times] = {}
    for numbers in track(packs, description="aligning", console=console):
        batch = read(numbers)
        unread = dict(batch["skipped"])
        problems |= {number: unread[rows[number].id] for number in numbers if rows[number].id in unread}
        for number, words in aligner.align(rows, batch):
            if isinstance(words, ValueError):
                problems[number] = str(words)
            else:
                times[number] = words
    written = (_fields(row, config["task"], times.get(n), problems.get(n)) for n, row in enumerate(rows))
    prepare(written, Path(config["out"]), labels={}, jobs=None, console=console)
    if errors := timing_errors((rows[number], words) for number, words in times.items()):
        print_errors(errors, console)


def _fields(row: Row, task: str | None, words: Times | None, problem: str | None) -> RowDict:
    """Return the fields of a row for `prepare`."""
    paths = [clip.path for clip in row.clips]
    fields = {"id": row.id, **row.labels, "audio": paths[0] if len(paths) == 1 else paths}
    for clip in row.clips[:1]:
        seconds = {"offset": clip.offset, "duration": clip.duration}
        fields |= {key: value for key, value in seconds.items() if value is not None}
    if problem is not None:
        return {**fields, "problem": problem}
    return {**fields, "words": words, **({} if task is None else {"task": task})}


def timing_errors(aligned: Iterable[tuple[Row, Times]]) -> dict[str, np.ndarray]:
    """Return, by language, the deviations of word starts and ends from the labels of the rows, in seconds.

    Rows without times or with other words are skipped.
    """
    errors: dict[str, list[float]] = {}
    for row, times in aligned:
        true = row.labels.get("words") or []
        if [entry["word"] for entry in true] != [entry["word"] for entry in times]:
            continue
        pairs = zip(true, times, strict=True)
        deviations = [word[end] - label[end] for label, word in pairs for end in ENDS]
        errors.setdefault(answer_language(row), []).extend(deviations)
    return {spoken: np.array(deviations) for spoken, deviations in sorted(errors.items()) if deviations}


def print_errors(errors: Mapping[str, np.ndarray], console: Console) -> None:
    """Print a table of the deviations (in seconds, by language), in milliseconds."""
    title = "word starts and ends compared with the labels, in ms"
    table = numbers_table("language", "times", "median error", "mean", "90 % below", "median shift", title=title)
    groups = {**errors, **({"all": np.concatenate(list(errors.values()))} if len(errors) > 1 else {})}
    for name, deviations in groups.items():
        distances = 1000 * np.abs(deviations)
        figures = (np.median(distances), distances.mean(), np.quantile(distances, 0.9), 1000 * np.median(deviations))
        table.add_row(name, str(len(distances)), *(f"{figure:.0f}" for figure in figures))
    console.print(table)
