"""Text in place of a clip: the tokens of its transcript, stretched to resemble the clip's audio tokens.

A token is repeated while it is spoken, and blanks (audio pad tokens) stand between tokens. `UniformStretch` draws both
numbers from ranges. `MeasuredStretch` draws them as an aligner (`experiment=align`) reads speech, with its errors.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from auris.errors import MissingFileError, UserError
from auris.files import digest

ALIGNMENT_FILE = "alignment.json"  # of an aligner's run (`training.alignment`)
# Longer pauses of the measured ones are shortened to this quantile. The plan of a run reserves room for the longest
# pause after each token, so a few pauses between sentences would leave packs almost empty.
_LONGEST_QUANTILE = 0.95


class Stretch(Protocol):
    """Stretches the tokens of a transcript.

    Attributes:
        prefix: Text before a transcript, which determines the token of its first word.
        fingerprint: Changes if planned lengths change.
    """

    prefix: str
    fingerprint: str

    def __call__(self, tokens: Sequence[int], blank: int, rng: np.random.Generator, *, train: bool) -> list[int]:
        """Return the stretched tokens. With `train`, a transcript may contain errors of reading."""
        ...

    def max_length(self, n_tokens: int) -> int:
        """Return the largest number of tokens to which `n_tokens` tokens can be stretched."""
        ...


class UniformStretch:
    """Draws the number of repeats of each token, and of blanks around tokens, from ranges.

    Args:
        repeats: Lowest and highest number of repeats of a token.
        blanks: Lowest and highest number of blanks before the first token and after each token.
    """

    prefix = ""

    def __init__(self, repeats: Sequence[int] = (1, 8), blanks: Sequence[int] = (0, 4)) -> None:
        for name, (lowest, highest) in {"repeats": repeats, "blanks": blanks}.items():
            if lowest > highest:
                raise UserError(f"data.stretch.{name}=[{lowest},{highest}]: expected the lowest number first")
        self.repeats, self.blanks = tuple(repeats), tuple(blanks)
        self.fingerprint = f"uniform {self.repeats} {self.blanks}"

    def __call__(self, tokens: Sequence[int], blank: int, rng: np.random.Generator, *, train: bool) -> list[int]:
        """Return each token repeated, with blanks around it."""
        n_blanks = rng.integers(self.blanks[0], self.blanks[1] + 1, size=len(tokens) + 1)
        n_repeats = rng.integers(self.repeats[0], self.repeats[1] + 1, size=len(tokens))
        return _interleave(tokens, n_repeats.tolist(), n_blanks.tolist(), blank)

    def max_length(self, n_tokens: int) -> int:
        """Return the length if every number is the highest one."""
        return self.repeats[1] * n_tokens + self.blanks[1] * (n_tokens + 1)


class MeasuredStretch:
    """Draws repeats, blanks and errors from the counts of an aligner.

    In training, a share of the transcripts has errors: each token is read as another one, or not at all, with the
    frequency of the aligner's validation rows. A token that is absent from these rows is read wrong with the mean
    frequency, as one of all tokens that were read in error. Tokens that the aligner inserts are ignored.

    Args:
        aligner: Directory of an aligner's run.
        misread: Share of the transcripts with errors.

    Raises:
        UserError: There is no `alignment.json`, or the aligner reads nothing.
    """

    prefix = " "  # as in the transcripts that the aligner was trained on (`samples.SpokenSamples`)

    def __init__(self, aligner: str | Path | None, misread: float = 0.5) -> None:
        if aligner is None:
            raise UserError("data.stretch.aligner=null: expected a run of experiment=align (or data/stretch=uniform)")
        path = Path(aligner) / ALIGNMENT_FILE
        if not path.is_file():
            raise MissingFileError(
                f"data.stretch.aligner={aligner}: expected a run of experiment=align, which writes {ALIGNMENT_FILE} "
                "when it validates"
            )
        content = path.read_text()
        counts = json.loads(content)
        if not counts["repeats"]:
            raise UserError(f"data.stretch.aligner={aligner}: it reads no token in any validation row, train it longer")
        self.misread = misread
        self.fingerprint = f"measured {digest([content])}"
        self._repeats = _Numbers(counts["repeats"])
        self._blanks = _Numbers(counts["blanks"] or {"0": 1})  # empty if each row has one token
        self._start, self._end = (_Numbers(counts[f"blanks_at_{edge}"]) for edge in ("start", "end"))
        self._readings: dict[int, _Readings] = {}
        errors: Counter[int | None] = Counter()
        n_tokens = 0
        for token in counts["confusions"].keys() | counts["deletions"].keys():
            reads: Counter[int | None] = Counter(
                {int(read): n for read, n in counts["confusions"].get(token, {}).items()}
            )
            reads[None] = counts["deletions"].get(token, 0)
            self._readings[int(token)] = _Readings(reads)
            n_tokens += reads.total()
            errors.update({read: n for read, n in reads.items() if read != int(token)})
        self._errors, self._error_rate = _Readings(errors), errors.total() / n_tokens

    def __call__(self, tokens: Sequence[int], blank: int, rng: np.random.Generator, *, train: bool) -> list[int]:
        """Return each token as the aligner would read it, repeated, with blanks around it."""
        if train and rng.random() < self.misread:
            tokens = self._misread(tokens, rng)
        gaps = [*self._start.draw(1, rng), *self._blanks.draw(max(0, len(tokens) - 1), rng), *self._end.draw(1, rng)]
        if not tokens:
            gaps = gaps[:1]
        return _interleave(tokens, self._repeats.draw(len(tokens), rng), gaps, blank)

    def max_length(self, n_tokens: int) -> int:
        """Return the length if every number is the highest one."""
        gaps = self._start.highest + self._blanks.highest * max(0, n_tokens - 1) + self._end.highest
        return self._repeats.highest * n_tokens + gaps

    def _misread(self, tokens: Sequence[int], rng: np.random.Generator) -> list[int]:
        reads = (self._read(token, rng) for token in tokens)
        return [read for read in reads if read is not None]

    def _read(self, token: int, rng: np.random.Generator) -> int | None:
        if token in self._readings:
            return self._readings[token].draw(rng)
        return self._errors.draw(rng) if rng.random() < self._error_rate else token


class _Numbers:
    """Distribution of a number, without its longest tail."""

    def __init__(self, counts: Mapping[str, int]) -> None:
        values, n = np.array([int(value) for value in counts]), np.array([*counts.values()], dtype=float)
        order = values.argsort()
        values, n = values[order], n[order]
        self.highest = int(values[np.searchsorted(n.cumsum() / n.sum(), _LONGEST_QUANTILE)])
        self._values, self._shares = np.minimum(values, self.highest), n / n.sum()

    def draw(self, size: int, rng: np.random.Generator) -> list[int]:
        """Draw numbers."""
        return rng.choice(self._values, size=size, p=self._shares).tolist()


class _Readings:
    """Distribution of what a token is read as; None if it is not read."""

    def __init__(self, counts: Counter[int | None]) -> None:
        self._tokens = [*counts]
        self._shares = np.array([*counts.values()], dtype=float) / max(1, counts.total())

    def draw(self, rng: np.random.Generator) -> int | None:
        """Draw a reading."""
        return self._tokens[rng.choice(len(self._tokens), p=self._shares)]


def _interleave(tokens: Sequence[int], n_repeats: Sequence[int], n_blanks: Sequence[int], blank: int) -> list[int]:
    """Return each token `n_repeats` times, with `n_blanks` before the first one and after each of them."""
    stretched = [blank] * n_blanks[0]
    for token, repeat, after in zip(tokens, n_repeats, n_blanks[1:], strict=True):
        stretched += [token] * repeat + [blank] * after
    return stretched
