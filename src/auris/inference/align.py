"""`auris align checkpoint=RUN data.test=[FILE] out=FILE.jsonl`: when each word of a transcript is said.

An encoder trained with CTC says which token each frame holds, and `torchaudio.functional.forced_align` finds the
likeliest way through a known text. CTC fires for a frame or two somewhere within a word and is silent around it, so its
own times are poor; scores are divided by how likely each token is anywhere (label priors, Huang et al. 2024, "Less
Peaky and More Accurate CTC Forced Alignment"), after which tokens fill the time that is theirs.

Shapes: C frames of 20 ms, V text tokens and the blank, L tokens of a transcript.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import numpy as np
import torch
import torchaudio.functional as F
from rich.console import Console
from rich.progress import track
from torch import Tensor

from auris import audio
from auris.config import Config
from auris.data import lengths
from auris.data.batches import pack, pack_by_length
from auris.data.manifests import read_manifests
from auris.data.prepare.convert import prepare
from auris.data.rows import Row, language
from auris.data.samples import TranscriptSamples
from auris.errors import UserError
from auris.inference import load as pretrained
from auris.inference.audio_model import AudioModel
from auris.metrics.normalize import unit
from auris.model.pack import Pack, to_device
from auris.text.answer_formats import Labels
from auris.text.console import numbers_table
from auris.training.objectives.ctc import CTC

FRAME_SECONDS = 1 / audio.ENCODER_RATE  # seconds of an encoder frame
PRIOR_PACKS = 16  # the first ones tell how likely each token is anywhere; some minutes of sound


class WordTime(TypedDict):
    """A word and when it is said, in seconds, as in a row's label `words`."""

    word: str
    start: float
    end: float


Times = list[WordTime]
"""The words of a row, in order."""


@dataclass(frozen=True)
class Span:
    """A word in its text: characters `start` to before `end`."""

    word: str
    start: int
    end: int


def split(text: str, language: str) -> list[Span]:
    """What of a text carries times: words, or in a language written without spaces its characters.

    Punctuation around a word is no part of it.
    """
    punctuation = "".join(character for character in set(text) if unicodedata.category(character)[0] == "P")
    spans = []
    for match in re.finditer(r"\S" if unit(language) == "char" else r"\S+", text):
        if word := match[0].strip(punctuation):
            start = match.start() + match[0].index(word)
            spans.append(Span(word, start, start + len(word)))
    return spans


def token_frames(scores: Tensor, ids: Sequence[int], blank: int) -> np.ndarray:
    """From which frame each token stands to before which (L, 2): the likeliest path, and of the blanks between two
    tokens half for each.

    Args:
        scores: (C, V), log-probabilities, less their priors.

    Raises:
        ValueError: there are too few frames for the tokens, or no token.
    """
    ids = torch.as_tensor(ids, dtype=torch.int64)
    needed = len(ids) + int((ids.diff() == 0).sum())  # a blank stands between equal ones
    if not len(ids) or needed > len(scores):
        raise UserError(f"its text takes {needed} frames of {1000 * FRAME_SECONDS:.0f} ms, the clip has {len(scores)}")
    path, path_scores = F.forced_align(scores[None].contiguous(), ids[None], blank=blank)
    found = F.merge_tokens(path[0], path_scores[0], blank=blank)
    frames = np.array([(token.start, token.end) for token in found], dtype=float)
    middles = (frames[:-1, 1] + frames[1:, 0]) / 2
    frames[:-1, 1] = frames[1:, 0] = middles
    return frames


def word_times(frames: np.ndarray, covered: Sequence[tuple[int, int]], words: Sequence[Span]) -> Times:
    """Times of words, from the frames of the tokens (L, 2) and the characters that each token covers.

    Where a token covers several characters, each has an equal share of its time; a character that several tokens spell
    has the time of all of them.
    """
    starts: dict[int, float] = {}
    ends: dict[int, float] = {}
    for (first, last), (low, high) in zip(covered, frames * FRAME_SECONDS, strict=True):
        for place in range(first, last):
            share = (high - low) / (last - first)
            starts.setdefault(place, low + (place - first) * share)
            ends[place] = low + (place - first + 1) * share
    return [
        {"word": word.word, "start": round(float(starts[word.start]), 3), "end": round(float(ends[word.end - 1]), 3)}
        for word in words
    ]


class Aligner:
    """An encoder with its CTC head, and how likely it holds each token to be anywhere.

    Args:
        model: trained with `experiment=encoder_ctc`.
        prior_scale: how much of the log-prior is taken from the scores; 0: none.

    Raises:
        ValueError: the model was trained on something else.
    """

    def __init__(self, model: AudioModel, *, prior_scale: float):
        if not isinstance(model.objective, CTC):
            raise UserError(
                f"checkpoint={model.name} was trained on {type(model.objective).__name__}: expected a run of "
                "experiment=encoder_ctc, whose frames tell tokens"
            )
        self.model, self.prior_scale = model, prior_scale
        self.view = TranscriptSamples(
            tokenizer=model.tokenizer, prompt=model.prompt, geometry=model.net.geometry, long_audio="skip"
        )
        self._log_prior: Tensor | float = 0.0

    def estimate_priors(self, packs: Iterable[Pack]) -> None:
        """Take the mean probability of each token over the frames of these packs for its prior."""
        total, n_frames = 0.0, 0
        for batch in packs:
            scores = torch.cat(self._scores(batch))
            total = total + scores.double().exp().sum(0)
            n_frames += len(scores)
        self._log_prior = (total / n_frames).clamp_min(1e-12).log().float()

    def align(self, rows: Sequence[Row], batch: Pack) -> Iterator[tuple[int, Times | ValueError]]:
        """Of each row of a pack its number and its words, or why it has none."""
        for number, scores in zip(batch["rows"], self._scores(batch), strict=True):
            row = self.view.target_row(rows[number])
            text = row.labels["text"]
            tokenizer, blank = self.model.tokenizer, self.model.objective.blank
            try:
                frames = token_frames(scores - self.prior_scale * self._log_prior, tokenizer.plain(text), blank)
            except ValueError as error:
                yield number, error
            else:
                yield number, word_times(frames, tokenizer.spans(text), split(text, row.labels["language"]))

    @torch.no_grad()
    def _scores(self, batch: Pack) -> list[Tensor]:
        """Log-probabilities of each clip's frames; without the dummy clip of an empty pack."""
        scores, n_frames = self.model.objective.scores(self.model.net, to_device(batch, self.model.device))
        return list(scores.cpu().split(n_frames.tolist())[: len(batch["rows"])])


def run(made: Config) -> None:
    """Run `auris align`: write the rows of `data.test` with word times to `out`, and compare those that have times."""
    console = Console()
    if not isinstance(made["prior_scale"], (int, float)) or made["prior_scale"] < 0:
        raise UserError(f"prior_scale={made['prior_scale']}: expected 0 or more (1: as published)")
    if not made["data"]["test"]:
        raise UserError(f"data.test={made['data']['test']}: expected [FILE.jsonl], rows with a transcript")
    model = pretrained.load(made["checkpoint"], which=made["which"], device=made["accelerator"])
    aligner = Aligner(model, prior_scale=made["prior_scale"])
    manifests = read_manifests(made["data"]["test"], key="data.test")
    rows = [row for manifest in manifests for row in manifest.rows]
    measured = lengths.measure(manifests, aligner.view, Path(model.config["data"]["cache_dir"]))
    problems = dict(measured.problems)
    packs = pack_by_length(measured, made["token_budget"])

    def read(numbers: Sequence[int]) -> Pack:
        return pack(rows, [(number, None) for number in numbers], aligner.view)

    if packs and made["prior_scale"]:
        spread = packs[:: max(1, len(packs) // PRIOR_PACKS)]  # packs go by length
        aligner.estimate_priors(read(numbers) for numbers in track(spread, description="listening", console=console))
    times: dict[int, Times] = {}
    for numbers in track(packs, description="aligning", console=console):
        batch = read(numbers)
        unread = dict(batch["skipped"])
        problems |= {number: unread[rows[number].id] for number in numbers if rows[number].id in unread}
        for number, found in aligner.align(rows, batch):
            if isinstance(found, ValueError):
                problems[number] = str(found)
            else:
                times[number] = found
    written = (_fields(row, made["task"], times.get(n), problems.get(n)) for n, row in enumerate(rows))
    prepare(written, Path(made["out"]), labels={}, jobs=None, console=console)
    if errors := timing_errors((rows[number], found) for number, found in times.items()):
        print_errors(errors, console)


def _fields(row: Row, task: str | None, words: Times | None, problem: str | None) -> Labels:
    """Return the fields of a row for `prepare`."""
    paths = [clip.path for clip in row.clips]
    fields = {"id": row.id, **row.labels, "audio": paths[0] if len(paths) == 1 else paths}
    for clip in row.clips[:1]:
        seconds = {"offset": clip.offset, "duration": clip.duration}
        fields |= {key: value for key, value in seconds.items() if value is not None}
    if problem is not None:
        return {**fields, "problem": problem}
    return {**fields, "words": words, **({} if task is None else {"task": task})}


def timing_errors(found: Iterable[tuple[Row, Times]]) -> dict[str, np.ndarray]:
    """By language, how far each word's start and end lie from the row's own, in seconds; without rows that have no
    times, or other words."""
    errors: dict[str, list[float]] = {}
    for row, times in found:
        true = row.labels.get("words") or []
        if [entry["word"] for entry in true] != [entry["word"] for entry in times]:
            continue
        pairs = zip(true, times, strict=True)
        of_row = [mine[end] - theirs[end] for theirs, mine in pairs for end in ("start", "end")]
        errors.setdefault(language(row), []).extend(of_row)
    return {spoken: np.array(of_language) for spoken, of_language in sorted(errors.items()) if of_language}


def print_errors(errors: Mapping[str, np.ndarray], console: Console) -> None:
    title = "starts and ends of words against the rows' own, in ms"
    table = numbers_table("language", "times", "median error", "mean", "90 % below", "median shift", title=title)
    everything = {**errors, **({"all": np.concatenate(list(errors.values()))} if len(errors) > 1 else {})}
    for name, of_language in everything.items():
        far = 1000 * np.abs(of_language)
        figures = (np.median(far), far.mean(), np.quantile(far, 0.9), 1000 * np.median(of_language))
        table.add_row(name, str(len(far)), *(f"{figure:.0f}" for figure in figures))
    console.print(table)
