"""`auris align checkpoint=RUN data.test=[FILE] out=FILE.jsonl`: find the time of each word of a transcript.

A model trained with CTC (`experiment=encoder_ctc` or `align`) predicts a token or a blank at each position, which is a
frame of the encoder or an audio token, and `torchaudio.functional.forced_align` finds the most likely path through a
known text. CTC predicts a token at only one or two positions and blanks at all others, so the times on this path are
inaccurate. If the probabilities are divided by the priors of the tokens, tokens fill their actual time (label priors,
Huang et al. 2024, "Less Peaky and More Accurate CTC Forced Alignment").

Shapes: C positions of a clip, V scores per position (tokens and the blank), L tokens of a transcript.
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
from torch import Tensor

from auris import audio
from auris.config import Config
from auris.data import lengths
from auris.data.batches import build_pack, pack_by_length
from auris.data.manifests import read_manifests
from auris.data.prepare.convert import prepare
from auris.data.prepare.tables import RowDict
from auris.data.rows import Row, answer_language
from auris.data.samples import SpokenSamples, TranscriptSamples
from auris.errors import UserError
from auris.inference import load as pretrained
from auris.inference.audio_model import AudioModel
from auris.metrics.normalize import counted_unit
from auris.model.pack import Pack, to_device
from auris.text.console import numbers_table, track
from auris.training.objectives.ctc import PathObjective

FRAME_SECONDS = 1 / audio.ENCODER_RATE  # duration of an encoder frame
PRIOR_PACKS = 16  # number of packs from which priors are estimated, together some minutes of audio


class WordTime(TypedDict):
    """A word with its start and end in seconds, as in the label `words` of a row."""

    word: str
    start: float
    end: float


Times = list[WordTime]
"""The words of a row in order, with their times."""

TIME_KEYS: tuple[Literal["start"], Literal["end"]] = ("start", "end")
"""The keys of a word's times in a `WordTime`."""


@dataclass(frozen=True)
class WordSpan:
    """A word, and its position in a text: the characters `start` to `end` (exclusive)."""

    word: str
    start: int
    end: int


def split_words(text: str, language: str) -> list[WordSpan]:
    """Split a text into the units that have times: words, or characters in a language written without spaces.

    Punctuation around a word is not part of it.
    """
    punctuation = "".join(character for character in set(text) if unicodedata.category(character)[0] == "P")
    spans = []
    for match in re.finditer(r"\S" if counted_unit(language) == "char" else r"\S+", text):
        if word := match[0].strip(punctuation):
            start = match.start() + match[0].index(word)
            spans.append(WordSpan(word, start, start + len(word)))
    return spans


def token_frames(scores: Tensor, ids: Sequence[int], blank: int, seconds: float = FRAME_SECONDS) -> np.ndarray:
    """Return the start and end (exclusive) of each token on the most likely path, in frames (L, 2).

    Blanks between two tokens are divided equally between them, so starts and ends may be fractions of a frame.

    Args:
        scores: (C, V) log-probabilities, minus log-priors.
        ids: classes of the L tokens.
        blank: class of the blank.
        seconds: duration of a frame, for the message of an error.

    Raises:
        UserError: there are too few frames for the tokens, or no tokens.
    """
    targets = torch.as_tensor(ids, dtype=torch.int64)
    n_needed = len(targets) + int((targets.diff() == 0).sum())  # equal neighbours need a blank between them
    if not len(targets):
        raise UserError("the text has no tokens")
    if n_needed > len(scores):
        raise UserError(f"the text needs {n_needed} frames of {1000 * seconds:.0f} ms, but the clip has {len(scores)}")
    path, path_scores = F.forced_align(scores[None].contiguous(), targets[None], blank=blank)
    token_spans = F.merge_tokens(path[0], path_scores[0], blank=blank)
    frames = np.array([(token.start, token.end) for token in token_spans], dtype=float)
    middles = (frames[:-1, 1] + frames[1:, 0]) / 2
    frames[:-1, 1] = frames[1:, 0] = middles
    return frames


def word_times(
    frames: np.ndarray,
    characters: Sequence[tuple[int, int]],
    words: Sequence[WordSpan],
    seconds: float = FRAME_SECONDS,
) -> Times:
    """Return the times of words.

    The time of a token is divided equally among its characters. A character that consists of several tokens lasts from
    the start of the first token to the end of the last.

    Args:
        frames: (L, 2) start and end of each token in frames, as returned by `token_frames`.
        characters: first and last character (exclusive) of each token.
        words: the words, with their positions in the same text.
        seconds: duration of a frame.
    """
    starts: dict[int, float] = {}
    ends: dict[int, float] = {}
    for (first, last), (token_start, token_end) in zip(characters, frames * seconds, strict=True):
        for position in range(first, last):
            duration = (token_end - token_start) / (last - first)
            starts.setdefault(position, token_start + (position - first) * duration)
            ends[position] = token_start + (position - first + 1) * duration
    return [
        {"word": word.word, "start": round(float(starts[word.start]), 3), "end": round(float(ends[word.end - 1]), 3)}
        for word in words
    ]


class Aligner:
    """A model with an objective of CTC, and the priors of its tokens.

    Args:
        model: a model trained with `experiment=encoder_ctc` or `experiment=align`.
        prior_scale: the log-priors are multiplied by this factor and subtracted from the scores; 0: no effect.

    Raises:
        UserError: the model was not trained with CTC.
    """

    def __init__(self, model: AudioModel, *, prior_scale: float):
        if not isinstance(model.objective, PathObjective):
            raise UserError(
                f"checkpoint={model.name} was trained on {type(model.objective).__name__}: expected a run of "
                "experiment=encoder_ctc or experiment=align, which predicts a token for each frame"
            )
        self.model, self.objective, self.prior_scale = model, model.objective, prior_scale
        self.seconds = model.objective.position_seconds(model.net)
        samples_class = SpokenSamples if "spoken" in model.objective.views else TranscriptSamples
        self.samples = samples_class(
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
        """Yield the number of each row in a pack, with the times of its words or with an error if they are unknown."""
        for number, scores in zip(batch["rows"], self._scores(batch), strict=True):
            row = self.samples.scored_row(rows[number])  # with the labels of a transcription row
            text = row.labels["text"]
            scores = scores - self.prior_scale * self._log_prior
            try:
                ids = torch.tensor(self.samples.target_ids(text), device=self.model.device)
                classes = self.objective.classes(ids).tolist()
                frames = token_frames(scores, classes, self.objective.blank, self.seconds)
            except ValueError as error:
                yield number, error
            else:
                words = split_words(text, row.labels["language"])
                yield number, word_times(frames, self.samples.target_spans(text), words, self.seconds)

    @torch.no_grad()
    def _scores(self, batch: Pack) -> list[Tensor]:
        """Return the log-probabilities (C, V) of each clip, without the dummy clip of an empty pack."""
        scores, n_frames = self.objective.scores(self.model.net, to_device(batch, self.model.device))
        return list(scores.cpu().split(n_frames.tolist())[: len(batch["rows"])])


def run(config: Config) -> None:
    """Run `auris align`: write the rows of `data.test` with word times to `out`, and compare them with known times."""
    console = Console()
    if not config["data"]["test"]:
        raise UserError(f"data.test={config['data']['test']}: expected [FILE.jsonl] with transcribed rows")
    model = pretrained.load(config["checkpoint"], which=config["which"], device=config["accelerator"])
    aligner = Aligner(model, prior_scale=config["prior_scale"])
    manifests = read_manifests(config["data"]["test"], key="data.test")
    rows = [row for manifest in manifests for row in manifest.rows]
    row_lengths = lengths.measure_lengths(manifests, aligner.samples, Path(model.config["data"]["cache_dir"]))
    problems = dict(row_lengths.problems)
    packs = pack_by_length(row_lengths, config["token_budget"])

    def read_pack(numbers: Sequence[int]) -> Pack:
        return build_pack(rows, [(number, None) for number in numbers], aligner.samples)

    if packs and config["prior_scale"]:
        # Packs are sorted by length, so taking every n-th pack covers all lengths.
        prior_packs = packs[:: max(1, len(packs) // PRIOR_PACKS)]
        aligner.estimate_priors(
            read_pack(numbers) for numbers in track(prior_packs, "estimating priors", console=console)
        )
    times: dict[int, Times] = {}
    for numbers in track(packs, "aligning", console=console):
        batch = read_pack(numbers)
        reasons = dict(batch["skipped"])
        problems |= {number: reasons[rows[number].id] for number in numbers if rows[number].id in reasons}
        for number, words in aligner.align(rows, batch):
            if isinstance(words, ValueError):
                problems[number] = str(words)
            else:
                times[number] = words
    output_rows = (_output_fields(row, config["task"], times.get(n), problems.get(n)) for n, row in enumerate(rows))
    prepare(output_rows, Path(config["out"]), labels={}, jobs=None, console=console)
    if errors := timing_errors((rows[number], words) for number, words in times.items()):
        print_errors(errors, console)


def _output_fields(row: Row, task: str | None, words: Times | None, problem: str | None) -> RowDict:
    """Return the fields of a row in the output file, with its `words` or, if they are unknown, with its `problem`."""
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

    A row is skipped if its labels have no word times, or times of other words.
    """
    errors: dict[str, list[float]] = {}
    for row, times in aligned:
        true_times = row.labels.get("words") or []
        if [entry["word"] for entry in true_times] != [entry["word"] for entry in times]:
            continue
        pairs = zip(true_times, times, strict=True)
        deviations = [word[key] - true_word[key] for true_word, word in pairs for key in TIME_KEYS]
        errors.setdefault(answer_language(row), []).extend(deviations)
    return {language: np.array(deviations) for language, deviations in sorted(errors.items()) if deviations}


def print_errors(errors: Mapping[str, np.ndarray], console: Console) -> None:
    """Print a table of deviations in milliseconds. `errors` holds them in seconds, by language."""
    title = "errors of word starts and ends compared with the labels, in ms"
    headings = ("language", "times", "median error", "mean error", "90 % below", "median shift")
    table = numbers_table(*headings, title=title)
    groups = {**errors, **({"all": np.concatenate(list(errors.values()))} if len(errors) > 1 else {})}
    for name, deviations in groups.items():
        absolute = 1000 * np.abs(deviations)
        statistics = (np.median(absolute), absolute.mean(), np.quantile(absolute, 0.9), 1000 * np.median(deviations))
        table.add_row(name, str(len(absolute)), *(f"{value:.0f}" for value in statistics))
    console.print(table)
