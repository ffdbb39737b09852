"""`auris evaluate checkpoint=RUN`: answers to a test manifest, scored per task, with intervals.

Writes `predictions/<benchmark>.jsonl` and the benchmark's lines of `results.jsonl` into the run directory (formats: see
`auris.results`). Nothing is left out of a score silently: a row that cannot be read is counted, named and listed.

Under torchrun the processes answer shares of the rows in turn. The first one alone keeps the answers, in the order in
which one process would have given them, and scores and writes; so their number shows in no file.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track

from auris import config
from auris.data import long_audio
from auris.data.batches import by_length, pack
from auris.data.lengths import measure
from auris.data.manifests import Manifest, read_manifests
from auris.data.pairs import PairSamples, VerdictSamples
from auris.data.rows import Row, language
from auris.data.samples import AudioSamples, ChatSamples, Samples
from auris.errors import AudioError, RowError, UsageError, UserError
from auris.evaluation import answer_cache, audio_ablation, benchmarks, judging, summary
from auris.evaluation.distributed import Ranks, joined
from auris.evaluation.predictions import about, accepted, metrics, preferred, score
from auris.inference import load as pretrained
from auris.metrics import published
from auris.metrics.judges import air_bench
from auris.metrics.judges.rating import Judge
from auris.metrics.row_stats import check
from auris.model.generation import Generation
from auris.model.pack import to_device
from auris.model.weights import checkpoint_dir
from auris.text import tasks
from auris.text.prompts import Prompt, TagPrompt
from auris.training import provenance
from auris.training.objectives.dpo import answer_logps


def evaluate(made: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Answer and score; returns the result rows that were written: none on processes that help another."""
    with joined(made["accelerator"]) as ranks:
        return _evaluate_all(made, ranks, Console(quiet=not ranks.is_first))


def _evaluate_all(made: Mapping[str, Any], ranks: Ranks, console: Console) -> list[dict[str, Any]]:
    judge = config.build(made["judge"]) if ranks.is_first else None
    if made["rescore"] is not None:
        return rescore(made, judge, console) if ranks.is_first else []
    if made["checkpoint"] is None:
        raise UsageError("expected checkpoint=... or rescore=... on the command line (see --help)")
    members = [{**made, "benchmark": benchmark} for benchmark in benchmarks.members(made["benchmark"])]
    benchmarks.check(member["benchmark"] for member in members)
    heard = audio_ablation.kinds(made["audio"])
    model = pretrained.load(made["checkpoint"], which=made["which"], device=made["accelerator"])
    weights = answer_cache.weights_of(model.net) if ranks.is_first else None
    results = []
    for member in members:
        for audio in heard:
            results += _evaluate(model, {**member, "audio": audio, "weights": weights}, judge, console, ranks)
    if not ranks.is_first:
        return []
    for name in made["benchmark"].get("tables", ()):
        console.print(benchmarks.table(name, results))
        for note in published.notes(name, results):
            console.print(note, markup=False, highlight=False, soft_wrap=True)
    return results


def rescore(made: Mapping[str, Any], judge: AnyJudge | None, console: Console) -> list[dict[str, Any]]:
    """Score the answers that a run has kept once more, of all its evaluations; no model is loaded."""
    run_dir = Path(made["rescore"])
    results = []
    evaluations = answer_cache.noted(run_dir)
    if judge is None and (names := [name for name, facts in evaluations.items() if facts["judged"]]):
        raise UserError(f"rescore={run_dir}: {', '.join(names)} had a judge: give it too (judge=recorded, rule, ...)")
    for name, facts in evaluations.items():
        parts = [(part, [file[key] for key in part["keys"]]) for part, file in _files(run_dir, facts["parts"])]
        results += _report(name, facts, parts, made, judge, run_dir, console)
    return results


def _files(
    run_dir: Path, parts: Sequence[Mapping[str, Any]]
) -> Iterator[tuple[Mapping[str, Any], answer_cache.Answers]]:
    for part in parts:
        yield part, answer_cache.read(run_dir / answer_cache.FOLDER / part["file"])


def _evaluate(
    model: pretrained.AudioModel, made: Mapping[str, Any], judge: AnyJudge | None, console: Console, ranks: Ranks
) -> list[dict[str, Any]]:
    """One benchmark, with its recordings or what `audio` has instead."""
    manifests = read_manifests(benchmarks.sources(made["benchmark"]), key="data.test")
    name = audio_ablation.name(made["benchmark"]["name"] or "+".join(one.stem for one in manifests), made["audio"])
    data = {str(manifest.path): manifest.digest for manifest in manifests}
    manifests = audio_ablation.alter(manifests, made["audio"], made["seed"])
    run_dir = _results_dir(made, model.recipe)
    parts, skipped = [], {}
    for kind in KINDS:
        of_kind = [replace(m, rows=tuple(row for row in m.rows if _kind(row) == kind)) for m in manifests]
        of_kind = [manifest for manifest in of_kind if manifest.rows]
        if of_kind:
            part, answers, left_out = _answer(model, kind, of_kind, made, run_dir / answer_cache.FOLDER, console, ranks)
            parts.append((part, answers))
            skipped |= left_out
    if not ranks.is_first:
        return []
    trained = {key: model.recipe[key] for key in ("study", "arm", "seed")}
    facts = {"benchmark": dict(made["benchmark"]), "version": _version(model), "audio": made["audio"]}
    facts |= {"asked": benchmarks.asked_otherwise(made, _version(model)), "judged": judge is not None}
    facts |= {"trained": trained, "skipped": skipped, "parts": [part for part, _ in parts]}
    answer_cache.note(run_dir / answer_cache.FOLDER, name, facts)
    results = _report(name, facts, parts, made, judge, run_dir, console)
    _note(run_dir, name, data)
    return results


def _report(
    name: str,
    facts: Mapping[str, Any],
    parts: Sequence[tuple[Mapping[str, Any], Sequence[answer_cache.Answer]]],
    made: Mapping[str, Any],
    judge: AnyJudge | None,
    run_dir: Path,
    console: Console,
) -> list[dict[str, Any]]:
    """Score the answers of an evaluation, write the scores and show them."""
    benchmark, rows, predictions, skipped = facts["benchmark"], [], [], dict(facts["skipped"])
    for part, answers in parts:
        answered, found, unrated = _score(part, answers, benchmark, judge, console)
        rows += answered
        predictions += found
        skipped |= unrated
    lines = benchmarks.official_lines(benchmark.get("script"), facts["version"], predictions, rows)
    predictions = benchmarks.in_parts(predictions, rows, benchmark.get("parts", ()))
    predictions.sort(key=lambda prediction: (prediction["group"], prediction["metric"]))
    signatures = judging.signatures(judge) if any("judge" in one["metric"] for one in predictions) else {}
    results = summary.summarise(predictions, facts["trained"], name, made["bootstrap"], made["seed"], signatures)
    results = [{**row, "signature": "|".join([row["signature"], *facts.get("asked", ())])} for row in results]
    if facts["audio"] != audio_ablation.AS_IS:
        base = _read_lines(run_dir / "predictions" / f"{name.rpartition('@')[0]}.jsonl")
        results += summary.drops(results, predictions, base)
    with answer_cache.in_turn(run_dir / answer_cache.FOLDER):
        _write(run_dir, name, predictions, results)
    if lines:
        _write_lines(run_dir / "official" / f"{name}.jsonl", lines)
    made_by = [f"{metric}: {by}" for metric, by in signatures.items()]
    notes = [*summary.credits(rows), *made_by, *map(benchmarks.note, lines)]
    summary.show(console, name, results, skipped, notes)
    return results


def _version(model: pretrained.AudioModel) -> str:
    """Whose scripts ask as the model is asked: v1 Qwen-Audio's, v2 Qwen2-Audio's."""
    return "v1" if isinstance(model.prompt, TagPrompt) else "v2"


AnyJudge = Judge | air_bench.Judge

KINDS = ("task", "chat", "preference")
"""Kinds of rows: asked as in pre-training, asked in ChatML, and pairs of answers of which the better is known."""


def _kind(row: Row) -> str:
    code = row.labels.get("task")
    return code if code in KINDS else "task"


def _view(
    model: pretrained.AudioModel,
    kind: str,
    policy: str,
    style: Mapping[str, Any] | None = None,
    wording: str | None = None,
) -> Samples:
    """How rows of a kind are seen. Task rows as the model was trained to see them, or as its base model was, unless
    another style of prompting is given; without one, in a benchmark's own `wording` if it has any."""
    view = _seen(model, kind, policy, style)
    if kind == "task" and wording and not style and isinstance(view.prompt, Prompt):
        view.prompt = view.prompt.asking(wording)
    return view


def _seen(model: pretrained.AudioModel, kind: str, policy: str, style: Mapping[str, Any] | None) -> Samples:
    made = model.recipe
    if kind == "task" and made["data"]["view"] in ("audio", "text", "transcript"):
        made = {**made, "prompt": style or made["prompt"]}
        return config.build_samples(made, model.net, model.tokenizer, long_audio=policy, train=False)
    asked = config.build(style) or model.prompt
    views = {"task": (AudioSamples, asked), "chat": (ChatSamples, model.dialogue)}
    view, prompt = views.get(kind, (PairSamples, model.dialogue))
    facts = {"tokenizer": model.tokenizer, "geometry": model.net.geometry, "seed": made["seed"]}
    return view(prompt=prompt, long_audio=policy, **facts)


def _answer(
    model: pretrained.AudioModel,
    kind: str,
    manifests: Sequence[Manifest],
    made: Mapping[str, Any],
    folder: Path,
    console: Console,
    ranks: Ranks,
) -> tuple[dict[str, Any], list[answer_cache.Answer], dict[str, str]]:
    """Answers to rows of one kind, those that are not kept yet from the model: where they are, they, and why some rows
    have none. On processes that help another nothing of it is known."""
    wording = made["benchmark"].get("prompt", {}).get(_version(model))
    view = _view(model, kind, made["long_audio"], made["prompt"], wording)
    manifests, whole = in_windows(manifests, view)
    rows = [row for manifest in manifests for row in manifest.rows]
    settings = model.settings(chat=kind == "chat", **_decoding(made, _version(model)))
    ask = partial(_ask, model, view, rows, kind, settings, made["seed"])
    if not ranks.is_first:
        [shares, *_] = ranks.exchange(None)
        for _ in _give(ask, shares, ranks):
            pass
        return {}, [], {}
    lengths = measure(manifests, view, Path(model.recipe["data"]["cache_dir"]))
    skipped = {rows[number].id: reason for number, reason in lengths.problems.items()}
    if kind != "preference":
        _check_metrics(view.asked(row) for number, row in enumerate(rows) if number not in lengths.problems)
    decoding = {} if kind == "preference" else {**asdict(settings), "stop": sorted(settings.stop)}
    decoding |= {"seed": made["seed"]} if settings.do_sample else {}
    facts = {"kind": kind, "weights": made["weights"], "prompt": answer_cache.prompt_of(view), "decoding": decoding}
    file = answer_cache.Answers(folder, facts)
    keys = {number: answer_cache.key_of(row) for number, row in enumerate(rows) if number not in lengths.problems}
    new = np.array([number in keys and keys[number] not in file for number in range(len(rows))], dtype=bool)
    told = "" if kind == "preference" else f" by {settings}"
    console.print(f"{kind} rows: {new.sum()} answers{told}; {len(keys) - new.sum()} are kept", highlight=False)
    packs = by_length(replace(lengths, tokens=np.where(new, lengths.tokens, 0)), made["token_budget"])
    shares = [packs[start : start + SHARE] for start in range(0, len(packs), SHARE)]
    ranks.exchange(shares)
    given = _give(ask, shares, ranks)
    for said, left_out in track(given, "answering", total=len(shares), console=console, disable=not shares):
        skipped |= left_out
        file.add({keys[number]: _said(view, rows[number], *of_row, kind, model) for number, of_row in said.items()})
    answered = [key for key in keys.values() if key in file]
    part = {"kind": kind, "file": file.path.name, "keys": answered, "whole": whole}
    return part, [file[key] for key in answered], skipped


# Of rows by their numbers, what was said, undecoded, with the log-odds of a verdict; and why others could not be asked.
Given = tuple[dict[int, tuple[Any, float | None]], dict[str, str]]
Share = Sequence[Sequence[int]]


# Packs, sorted by length, that a process answers together: rows of the next one take the places of those that end. What
# a row is computed beside thus follows from the rows alone, and not from how many processes there are.
SHARE = 4
REFILL = 1 / 4  # of the places are free before they are taken: prompts one by one would use a GPU badly


def _give(ask: Callable[[Share], Given], shares: Sequence[Share], ranks: Ranks) -> Iterator[Given]:
    """What is said to each share, in their order; each process asks one of `world` and knows the others' from them."""
    for start in range(0, len(shares), ranks.world):
        mine = shares[start + ranks.rank : start + ranks.rank + 1]
        yield from (given for of_rank in ranks.exchange([ask(share) for share in mine]) for given in of_rank)


def _ask(
    model: pretrained.AudioModel,
    view: Samples,
    rows: Sequence[Row],
    kind: str,
    settings: Generation,
    seed: int,
    share: Share,
) -> Given:
    waiting = _Waiting(rows, view, share, model.device)
    said: dict[int, Any] = {}
    with torch.no_grad():
        if kind == "preference":
            while (batch := waiting.take(prompt_only=False)) is not None:
                said |= zip(batch["rows"], answer_logps(model.net, batch)[0].tolist(), strict=True)
        elif (batch := waiting.take()) is not None:
            # The same draws for a row in whatever pack it stands.
            generator = torch.Generator().manual_seed(seed)
            found = model.objective.answer(model.net, batch, settings, generator=generator, more=waiting.take)
            said = dict(zip(waiting.taken, found, strict=True))
    odds: dict[int, float] = {}
    for numbers in share:
        odds |= log_odds(model, view, rows, [n for n in numbers if n in said and _is_verdict(view, rows[n])])
    return {number: (of_row, odds.get(number)) for number, of_row in said.items()}, waiting.skipped


class _Waiting:
    """Rows to be asked, taken from the front. `taken` are the numbers of those that were, `skipped` says why others
    could not be."""

    def __init__(self, rows: Sequence[Row], view: Samples, share: Share, device: torch.device):
        self.rows, self.view, self.device = rows, view, device
        self.places = deque((number, len(numbers)) for numbers in share for number in numbers)
        self.taken: list[int] = []
        self.skipped: dict[str, str] = {}

    def take(self, going: int = 0, *, prompt_only: bool = True) -> dict[str, Any] | None:
        """A pack of the next rows, as many as find a place beside those that go on: so many rows at a time as the pack
        has in which the first of them is. None: for them there is no place yet, or there are no more."""
        while self.places:
            _, most = self.places[0]
            if most - going < REFILL * most:
                return None
            numbers = [(self.places.popleft()[0], None) for _ in range(min(most - going, len(self.places)))]
            batch = pack(self.rows, numbers, self.view, prompt_only=prompt_only)
            self.skipped |= dict(batch["skipped"])
            if batch["rows"]:
                self.taken += batch["rows"]
                return to_device(batch, self.device)
        return None


def _said(
    view: Samples, row: Row, said: Any, odds: float | None, kind: str, model: pretrained.AudioModel
) -> answer_cache.Answer:
    if kind == "preference":
        return answer_cache.Answer(row, said)
    row = view.asked(row)
    text = model.tokenizer.decode(said, control=tasks.find(row.labels["task"]).answer.tagged)
    return answer_cache.Answer(row, text, odds)


def _score(
    part: Mapping[str, Any],
    answers: Sequence[answer_cache.Answer],
    benchmark: Mapping[str, Any],
    judge: AnyJudge | None,
    console: Console,
) -> tuple[list[Row], list[dict[str, Any]], dict[str, str]]:
    """The rows that were answered, predictions about them, and why a judge gave some no points."""
    if part["kind"] == "preference":
        return [one.row for one in answers], [preferred(one.row, one.said) for one in answers], {}
    answered = join({one.row.id: (one.row, one.said) for one in answers}, part["whole"])
    predictions = score(answered, benchmark.get("metrics", ())) + [
        accepted(one.row, one.odds) for one in answers if one.odds is not None
    ]
    rows = [row for row, _ in answered.values()]
    if part["kind"] != "chat" or judge is None:
        return rows, predictions, {}
    rated, unrated = judging.rate(answered, judge, about, console)
    return rows, predictions + rated, unrated


MAX_NEW_TOKENS = 64  # of an answer, where neither the user nor the benchmark says


def _decoding(made: Mapping[str, Any], version: str) -> dict[str, Any]:
    """The command line's settings, then the benchmark's."""
    given = {key: value for key, value in made["generation"].items() if value is not None}
    return {"max_new_tokens": MAX_NEW_TOKENS, **made["benchmark"].get("generation", {}).get(version, {}), **given}


def _check_metrics(rows: Iterable[Row]) -> None:
    """Before the first answer: a package that a score needs may be missing."""
    for metric, spoken in sorted({(metric, language(row)) for row in rows for metric in metrics(row)}):
        check(metric, spoken)


def _is_verdict(view: Samples, row: Row) -> bool:
    """Whether a row is asked to accept or reject what is heard, so that a threshold may decide as well as an answer."""
    return type(view) is AudioSamples and tasks.find(row.labels["task"]).choices == VerdictSamples.VERDICTS


def log_odds(
    model: pretrained.AudioModel, view: Samples, rows: Sequence[Row], numbers: Sequence[int]
) -> dict[int, float]:
    """Of each of these rows, asked as in `view`, log p(yes) - log p(no) of the whole answers."""
    if not numbers:
        return {}
    facts = {"tokenizer": view.tokenizer, "prompt": view.prompt, "geometry": view.geometry}
    view = VerdictSamples(**facts, long_audio=view.long_audio)
    batch = to_device(pack(rows, [(number, None) for number in numbers], view), model.device)
    with torch.no_grad():
        yes, no = answer_logps(model.net, batch)[0].unbind(1)
    return dict(zip(batch["rows"], (yes - no).tolist(), strict=True))


def in_windows(manifests: Sequence[Manifest], view: Samples) -> tuple[list[Manifest], dict[str, list[str]]]:
    """Under `long_audio=window`, transcripts of long clips as rows of overlapping windows; which rows these were."""
    whole: dict[str, list[str]] = {}

    def is_transcript(row: Row) -> bool:
        return view.asked(row).labels["task"] in tasks.TRANSCRIPTS

    def parts(row: Row) -> list[Row]:
        try:
            pieces = long_audio.split(row, is_transcript) if view.long_audio == "window" and view.has_audio else [row]
        except (AudioError, RowError):
            return [row]  # measuring it will name the reason
        if len(pieces) > 1:
            whole[row.id] = [piece.id for piece in pieces]
        return pieces

    return [replace(m, rows=tuple(piece for row in m.rows for piece in parts(row))) for m in manifests], whole


def join(asked: Mapping[str, tuple[Row, str]], whole: Mapping[str, Sequence[str]]) -> dict[str, tuple[Row, str]]:
    """The answers to windows as answers to their rows; a row of which a window is missing has none."""
    joined = dict(asked)
    for name, pieces in whole.items():
        heard = [joined.pop(piece, None) for piece in pieces]
        if None not in heard:
            row = replace(heard[0][0], id=name)
            joined[name] = (row, long_audio.merge([answer for _, answer in heard], language(row)))
    return joined


def _results_dir(made: Mapping[str, Any], trained: Mapping[str, Any]) -> Path:
    """A run's own directory; for what auris has not trained here, one among the runs."""
    path = Path(made["checkpoint"])
    if (path / checkpoint_dir.FOLDER).is_dir():
        return path
    if checkpoint_dir.is_checkpoint(path) and path.resolve().parent.name == checkpoint_dir.FOLDER:
        return path.resolve().parents[1]
    return Path(made["runs_dir"]) / trained["study"] / path.resolve().name / f"seed_{trained['seed']}"


def _write(
    run_dir: Path, benchmark: str, predictions: Sequence[Mapping[str, Any]], results: Sequence[Mapping[str, Any]]
) -> None:
    """The benchmark's predictions, and its lines of results.jsonl in the place of earlier ones."""
    _write_lines(run_dir / "predictions" / f"{benchmark}.jsonl", predictions)
    file = run_dir / "results.jsonl"
    earlier = _read_lines(file) if file.is_file() else []
    _write_lines(file, [*(row for row in earlier if row["benchmark"] != benchmark), *results])


def _read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def _note(run_dir: Path, benchmark: str, data: Mapping[str, str]) -> None:
    """How the benchmark was run, for `auris results reproduce=RUN`."""
    file = run_dir / "evaluations.json"
    facts = {"command": provenance.command("evaluate"), "commit": provenance.provenance()["commit"]}
    with answer_cache.in_turn(run_dir / answer_cache.FOLDER):
        notes = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        checkpoint_dir.replace(file, json.dumps(notes | {benchmark: {**facts, "data": dict(data)}}, indent=1))


def _write_lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".tmp")
    partial.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    partial.replace(path)


def run(made: config.Config) -> None:
    """Run `auris evaluate`."""
    evaluate(made)
