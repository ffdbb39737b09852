"""Computation of the responses to rows, on all ranks together. Cached responses are reused.

Rows are divided into packs (batches without padding). The ranks take shares of a few packs in turn. Only the first rank
reads and writes the cache. It adds responses in the order in which a single process would compute them, so the cache
does not depend on the number of processes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from rich.console import Console

from auris import config as configs
from auris.config import Config
from auris.data import long_audio
from auris.data.batches import build_pack, pack_by_length
from auris.data.lengths import Lengths
from auris.data.manifests import Manifest
from auris.data.pairs import PairSamples, VerdictSamples
from auris.data.rows import Row
from auris.data.samples import AudioSamples, ChatSamples, Samples
from auris.errors import AudioError, RowError
from auris.evaluation.answer_cache import AnswerCache, Response, row_key
from auris.evaluation.distributed import Ranks
from auris.inference.audio_model import AudioModel
from auris.model.generation import GenerationSettings
from auris.model.pack import Pack, to_device
from auris.model.refill import WaitingRows
from auris.text import tasks
from auris.text.console import track
from auris.text.prompts import Prompt
from auris.training.objectives.dpo import answer_logps
from auris.training.objectives.logps import segment_logps

KINDS = ("task", "chat", "preference", "text")
"""Kinds of rows.

`task` rows are prompted as in pre-training, and `chat` rows (dialogues) are prompted in ChatML. SCORED_KINDS have no
responses, but log-probabilities: `preference` rows are pairs of a chosen and a rejected answer, and `text` rows are the
lines of a `.txt` file.
"""

SCORED_KINDS = ("preference", "text")

# Number of packs in a share. A waiting row takes the place of a finished sequence only within a share. Shares are the
# same for any number of ranks, so the composition of the batches is the same as well.
PACKS_PER_SHARE = 4

Share = Sequence[Sequence[int]]
"""Packs that one rank decodes together; each pack is a list of row numbers."""


@dataclass(frozen=True)
class Request:
    """Rows of one kind, and everything that determines the model's responses to them.

    Attributes:
        kind: One of `KINDS`.
        manifests: The rows. Long rows are split into windows.
        windows: Ids of the windows into which a long row was split, by id of the long row.
        samples: Presents rows to the model.
        generation: The decoding settings.
        seed: Seed with which tokens are sampled.
    """

    kind: str
    manifests: Sequence[Manifest]
    windows: Mapping[str, Sequence[str]]
    samples: Samples
    generation: GenerationSettings
    seed: int

    @property
    def rows(self) -> list[Row]:
        """The rows of all manifests."""
        return [row for manifest in self.manifests for row in manifest.rows]

    @property
    def decoding(self) -> dict[str, Any]:
        """The decoding settings on which responses depend; empty if nothing is decoded."""
        if self.kind in SCORED_KINDS:
            return {}
        settings: dict[str, Any] = {**asdict(self.generation), "stop": sorted(self.generation.stop)}
        return settings | ({"seed": self.seed} if self.generation.do_sample else {})


def select_kind(manifests: Sequence[Manifest], kind: str) -> list[Manifest]:
    """Return the manifests restricted to the rows of one kind, without manifests that have no such rows."""

    def kind_of(row: Row) -> str:
        task = row.labels.get("task")
        return task if task in KINDS else "task"

    restricted = [replace(m, rows=tuple(row for row in m.rows if kind_of(row) == kind)) for m in manifests]
    return [manifest for manifest in restricted if manifest.rows]


# --- prompting ----------------------------------------------------------------------------------------------------


def build_request(
    model: AudioModel,
    kind: str,
    manifests: Sequence[Manifest],
    config: Config,
    wording: str | None,
    decoding: Mapping[str, Any],
) -> Request:
    """Build the request for the rows of one kind.

    Args:
        model: The model to evaluate.
        kind: One of `KINDS`.
        manifests: The rows of this kind.
        config: The config of the command.
        wording: The benchmark's prompt; None if it has none.
        decoding: Decoding settings given by the user or the benchmark.
    """
    samples = build_samples(model, kind, config["long_audio"], config["prompt"], wording)
    manifests, windows = split_long(manifests, samples)
    generation = model.settings(chat=kind == "chat", **decoding)
    return Request(kind, manifests, windows, samples, generation, config["seed"])


def build_samples(
    model: AudioModel, kind: str, policy: str, prompt: Config | None = None, wording: str | None = None
) -> Samples:
    """Build the samples that present rows of one kind to the model.

    Without `prompt` and `wording`, task rows get the prompts with which the model, or its base model, was trained.

    Args:
        model: The model to evaluate.
        kind: One of `KINDS`.
        policy: The policy for long audio (`long_audio` of `Samples`).
        prompt: Config of another prompt style for task rows.
        wording: The benchmark's prompt for task rows. It is ignored if `prompt` is given.
    """
    config = model.config
    # `data.view` states how rows became samples in training. Task rows keep this view in evaluation if it is one of the
    # four views of task rows.
    if kind == "task" and config["data"]["view"] in ("audio", "text", "transcript", "spoken"):
        config = {**config, "prompt": prompt or config["prompt"]}
        samples = configs.build_samples(config, model.net, model.tokenizer, long_audio=policy, train=False)
    else:
        task_prompt = configs.build(prompt) or model.prompt
        classes = {
            "task": (AudioSamples, task_prompt),
            "text": (AudioSamples, model.prompt),
            "chat": (ChatSamples, model.dialogue),
        }
        cls, kind_prompt = classes.get(kind, (PairSamples, model.dialogue))
        samples = cls(
            prompt=kind_prompt,
            long_audio=policy,
            tokenizer=model.tokenizer,
            geometry=model.net.geometry,
            seed=config["seed"],
        )
    if kind == "task" and wording and not prompt and isinstance(samples.prompt, Prompt):
        samples.prompt = samples.prompt.with_wording(wording)
    return samples


def split_long(manifests: Sequence[Manifest], samples: Samples) -> tuple[list[Manifest], dict[str, list[str]]]:
    """Split transcription rows with long audio into overlapping windows, if `long_audio=window`.

    Returns:
        The manifests, and the ids of the windows by id of the long row.
    """
    windows: dict[str, list[str]] = {}
    if samples.long_audio != "window" or not samples.has_audio:
        return list(manifests), windows

    def is_transcription(row: Row) -> bool:
        return samples.scored_row(row).labels["task"] in tasks.TRANSCRIPT_TASKS

    def split(row: Row) -> list[Row]:
        try:
            pieces = long_audio.split_row(row, is_transcription)
        except (AudioError, RowError):
            return [row]  # the error is reported when the row's length is measured
        if len(pieces) > 1:
            windows[row.id] = [piece.id for piece in pieces]
        return pieces

    return [replace(m, rows=tuple(piece for row in m.rows for piece in split(row))) for m in manifests], windows


# --- all ranks together -------------------------------------------------------------------------------------------


def answer_rows(
    model: AudioModel,
    request: Request,
    lengths: Lengths,
    cache: AnswerCache,
    token_budget: int,
    ranks: Ranks,
    console: Console,
) -> tuple[list[str], dict[str, str]]:
    """Answer all usable rows, reusing cached responses.

    Call this function on the first rank, and `assist_first_rank` on all other ranks.

    Args:
        model: The model to evaluate.
        request: The rows and the settings.
        lengths: The lengths of the rows, and the reasons why rows cannot be used.
        cache: The cache for these settings.
        token_budget: Largest number of tokens in a pack.
        ranks: The processes of the command.
        console: Console for the progress bar.

    Returns:
        The cache keys of the responses in the order of the rows, and a dict from row id to the reason why the row has
        no response.
    """
    rows = request.rows
    keys = {number: row_key(row) for number, row in enumerate(rows) if number not in lengths.problems}
    is_new = np.array([number in keys and keys[number] not in cache for number in range(len(rows))], dtype=bool)
    settings = "" if request.kind in SCORED_KINDS else f" with {request.generation}"
    n_new = is_new.sum()
    console.print(f"{request.kind} rows: {n_new} to answer{settings}; {len(keys) - n_new} cached", highlight=False)
    packs = pack_by_length(replace(lengths, tokens=np.where(is_new, lengths.tokens, 0)), token_budget)
    shares = split_into_shares(packs)
    ranks.exchange(shares)  # `assist_first_rank` receives them
    skipped = {rows[number].id: reason for number, reason in lengths.problems.items()}
    results = ranks.map(partial(answer_share, model, request, rows), shares)
    for responses, problems in track(results, "answering", total=len(shares), console=console, disable=not shares):
        skipped |= problems
        cache.add(
            {keys[n]: Response(request.samples.scored_row(rows[n]), *response) for n, response in responses.items()}
        )
    return [key for key in keys.values() if key in cache], skipped


def assist_first_rank(model: AudioModel, request: Request, ranks: Ranks) -> None:
    """Compute responses for the first rank, which calls `answer_rows`."""
    [shares, *_] = ranks.exchange(None)
    for _ in ranks.map(partial(answer_share, model, request, request.rows), shares):
        pass


def split_into_shares(packs: Sequence[Sequence[int]]) -> list[Share]:
    """Split packs, which are lists of row numbers, into shares of PACKS_PER_SHARE packs."""
    return [packs[start : start + PACKS_PER_SHARE] for start in range(0, len(packs), PACKS_PER_SHARE)]


Answers = dict[int, tuple[object, float | None, bool]]
"""(content, yes_no_log_odds, ended_by_length) of responses (`answer_cache.Response`) by row number."""


@torch.no_grad()
def answer_share(
    model: AudioModel, request: Request, rows: Sequence[Row], share: Share
) -> tuple[Answers, dict[str, str]]:
    """Return the responses to the rows of a share, and a dict from row id to the reason why the row has no response."""
    skipped: dict[str, str] = {}

    def read_pack(numbers: Sequence[int]) -> Pack:
        prompt_only = request.kind not in SCORED_KINDS
        batch = build_pack(rows, [(number, None) for number in numbers], request.samples, prompt_only=prompt_only)
        skipped.update(batch["skipped"])
        return to_device(batch, model.device)

    contents: dict[int, object] = {}
    ended_by_length: dict[int, bool] = {}
    waiting = WaitingRows(share, read_pack)
    if request.kind in SCORED_KINDS:
        while (batch := waiting.next_pack()) is not None:
            # Two numbers a row: the log-probabilities of both answers, or that of a text and its number of tokens.
            if request.kind == "preference":
                scores, _ = answer_logps(model.net, batch)
            else:
                scores = torch.stack(segment_logps(model.net, batch, len(batch["rows"])), dim=1)
            contents |= zip(batch["rows"], scores.tolist(), strict=True)
    elif (batch := waiting.next_pack()) is not None:
        # All shares have the same seed, so that the random numbers for a row do not depend on its share.
        generator = torch.Generator().manual_seed(request.seed)
        ids = model.objective.answer(
            model.net, batch, request.generation, generator=generator, next_pack=waiting.next_pack
        )
        for number, answer_ids in zip(waiting.taken, ids, strict=True):
            is_tagged = tasks.get_task(request.samples.scored_row(rows[number]).labels["task"]).answer.has_tags
            contents[number] = model.tokenizer.decode(answer_ids, keep_control_tokens=is_tagged)
            ended_by_length[number] = len(answer_ids) == request.generation.max_new_tokens
    log_odds: dict[int, float] = {}
    for numbers in share:
        verification_rows = [n for n in numbers if n in contents and _is_verification(request.samples, rows[n])]
        log_odds |= yes_no_log_odds(model, request.samples, rows, verification_rows)
    answers = {
        number: (content, log_odds.get(number), ended_by_length.get(number, False))
        for number, content in contents.items()
    }
    return answers, skipped


def _is_verification(samples: Samples, row: Row) -> bool:
    """Return whether a row is a yes/no verification, which a threshold on the log-odds of yes and no can decide too."""
    return type(samples) is AudioSamples and tasks.get_task(row.labels["task"]).choices == VerdictSamples.VERDICTS


@torch.no_grad()
def yes_no_log_odds(
    model: AudioModel, samples: Samples, rows: Sequence[Row], numbers: Sequence[int]
) -> dict[int, float]:
    """Return log p(yes) - log p(no) for verification rows, by row number. p is the probability of a complete answer.

    Args:
        model: The model to evaluate.
        samples: Presents rows to the model.
        rows: All rows.
        numbers: Numbers of the verification rows.
    """
    if not numbers:
        return {}
    verdict_samples = VerdictSamples(
        tokenizer=samples.tokenizer, prompt=samples.prompt, geometry=samples.geometry, long_audio=samples.long_audio
    )
    batch = to_device(build_pack(rows, [(number, None) for number in numbers], verdict_samples), model.device)
    yes, no = answer_logps(model.net, batch)[0].unbind(1)
    return dict(zip(batch["rows"], (yes - no).tolist(), strict=True))
