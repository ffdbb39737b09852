"""`alignment.json` of an aligner's run: how its audio tokens spell transcripts, for the text stage that follows.

All counts are over the validation rows of the last validation. Tokens are ids of the language model's vocabulary, and
keys of JSON objects are strings.

* `repeats`: {number of consecutive audio tokens that spell one token: number of times}.
* `blanks`: {number of blanks between two tokens: number of times}; 0 is included. `blanks_at_start` and `blanks_at_end`
  are the same before the first and after the last token.
* `confusions`: {token of the transcript: {token that was read: number of times}}, correct readings included, from the
  Levenshtein alignment of both token sequences. `deletions` is {token of the transcript: number of times} and
  `insertions` is {token that was read: number of times}.
* `blank`: id of the blank, the audio pad. `rows`: number of rows. `step`: number of steps taken.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, cast

import jiwer
import lightning as L
import torch
from torch import nn

from auris import files
from auris.config import Config
from auris.data.batches import EvaluationBatch
from auris.data.datamodule import AudioDataModule
from auris.data.stretch import ALIGNMENT_FILE
from auris.errors import UserError
from auris.model.distributed import gather
from auris.training.lightning_types import audio_module
from auris.training.objectives.align import Align

_FIELDS = ("repeats", "blanks", "blanks_at_start", "blanks_at_end", "deletions", "insertions", "confusions")


def check_config(objective: nn.Module, config: Config) -> None:
    """Raise UserError if an alignment would train the language model with whose embeddings it compares."""
    if isinstance(objective, Align) and any(name.partition(".")[0] == "llm" for name in config["trainable"]):
        raise UserError(
            f"trainable={config['trainable']}: the objective Align compares with the embeddings of a frozen language "
            "model, expected trainable=[pooling,projector]"
        )


def set_classes(objective: Align, data: AudioDataModule) -> None:
    """Make the tokens in the transcripts of all training and validation rows the classes of an alignment."""
    samples, tokens = data.valid_samples, set()
    for rows, lengths in ((data.rows, data.lengths), (data.valid_rows, data.valid_lengths)):
        for row, n_tokens in zip(rows, lengths.tokens, strict=True):
            if n_tokens and not row.problem:
                tokens.update(samples.encode(row, (), None).ids.tolist())
    objective.set_tokens(tokens)


Counts = dict[str, Counter]
"""Counts by field of the file. The keys of `confusions` are pairs of token ids."""


def count_path(path: Sequence[int], transcript: Sequence[int], *, blank: int) -> Counts:
    """Count how a path spells a transcript.

    Args:
        path: Token ids of the best class at each position of a clip.
        transcript: Token ids of the transcript.
        blank: Id of the blank.
    """
    counts: Counts = {field: Counter() for field in _FIELDS}
    read: list[int] = []
    n_blanks = 0
    for token, run in groupby(path):
        length = len(list(run))
        if token == blank:
            n_blanks = length
            continue
        counts["blanks" if read else "blanks_at_start"][n_blanks] += 1
        counts["repeats"][length] += 1
        read.append(token)
        n_blanks = 0
    counts["blanks_at_end"][n_blanks] += 1  # all positions, if the path has no tokens
    spelled, expected = (" ".join(map(str, tokens)) for tokens in (read, transcript))
    for chunk in jiwer.process_words(expected, spelled).alignments[0]:
        reference = transcript[chunk.ref_start_idx : chunk.ref_end_idx]
        hypothesis = read[chunk.hyp_start_idx : chunk.hyp_end_idx]
        if chunk.type == "delete":
            counts["deletions"].update(reference)
        elif chunk.type == "insert":
            counts["insertions"].update(hypothesis)
        else:
            counts["confusions"].update(zip(reference, hypothesis, strict=True))
    return counts


class AlignmentReport(L.Callback):
    """Callback that writes `alignment.json` at the end of each validation.

    Args:
        run_dir: Directory of the run.
    """

    def __init__(self, run_dir: str | Path):
        self.path = Path(run_dir) / ALIGNMENT_FILE
        self.counts: Counts = {}
        self.n_rows = 0

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Forget the counts of the previous validation."""
        self.counts, self.n_rows = {field: Counter() for field in _FIELDS}, 0

    @torch.no_grad()
    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any = None,
        batch_idx: int = 0,
        dataloader_idx: int = 0,
    ) -> None:
        """Count the paths of a pack."""
        module, pack = audio_module(pl_module), cast("EvaluationBatch", batch)["answered"]
        objective = cast("Align", module.objective)  # the callback is part of experiment=align
        transcripts = pack["ids"].split(pack["cu_seqlens"].diff().tolist())
        for path, transcript in zip(objective.best_paths(module.net, pack), transcripts, strict=False):
            counts = count_path(objective.tokens(path), transcript.tolist(), blank=objective.pad)
            for field, counter in counts.items():
                self.counts[field].update(counter)
            self.n_rows += 1

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Add the counts of all ranks and write the file on the first rank."""
        totals: Counts = {field: Counter() for field in _FIELDS}
        n_rows = 0
        for counts, n_rows_of_rank in gather((self.counts, self.n_rows)):
            n_rows += n_rows_of_rank
            for field, counter in counts.items():
                totals[field].update(counter)
        confusions: dict[int, dict[int, int]] = {}
        for (reference, hypothesis), n in sorted(totals.pop("confusions").items()):
            confusions.setdefault(reference, {})[hypothesis] = n
        if trainer.is_global_zero:
            blank = cast("Align", audio_module(pl_module).objective).pad
            distributions = {field: dict(sorted(counter.items())) for field, counter in totals.items()}
            content = {"step": trainer.global_step, "rows": n_rows, "blank": blank, **distributions}
            files.write_json(self.path, {**content, "confusions": confusions}, indent=None)
