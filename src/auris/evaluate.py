"""`python -m auris.evaluate checkpoint=RUN`: answers to a test manifest, scored per task, with intervals.

Writes `predictions/<benchmark>.jsonl` and the benchmark's lines of `results.jsonl` into the run directory (formats: see
`auris.results`). Nothing is left out of a score silently: a row that cannot be read is counted, named and listed.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import torch
from omegaconf import DictConfig
from rich.console import Console
from rich.progress import track

from auris import benchmarks, environment, judged, kept, pretrained, recipe, reporting, snapshots, tasks
from auris.audio import AudioError
from auris.data import listening, long_audio
from auris.data.datamodule import by_length, group, language, pack
from auris.data.datamodule import metric as own_metric
from auris.data.lengths import measure
from auris.data.manifests import Manifest, read_manifests
from auris.data.pairs import PairSamples, VerdictSamples
from auris.data.rows import Row
from auris.data.samples import AudioSamples, ChatSamples, RowError, Samples
from auris.objectives.dpo import answer_logps
from auris.prompts import Prompt, TagPrompt
from auris.scoring import air_bench, published
from auris.scoring.judge import Judge
from auris.scoring.metrics import check, row_stats


def evaluate(made: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Answer and score; returns the result rows that were written."""
    console = Console()
    judge = recipe.build(made["judge"])
    if made["rescore"] is not None:
        return rescore(made, judge, console)
    if made["checkpoint"] is None:
        raise ValueError("expected checkpoint=... or rescore=... on the command line (see --help)")
    members = [{**made, "benchmark": benchmark} for benchmark in benchmarks.members(made["benchmark"])]
    benchmarks.check(member["benchmark"] for member in members)
    heard = listening.kinds(made["audio"])
    model = pretrained.load(made["checkpoint"], which=made["which"], device=made["accelerator"])
    weights = kept.weights_of(model.net)
    results = []
    for member in members:
        for audio in heard:
            results += _evaluate(model, {**member, "audio": audio, "weights": weights}, judge, console)
    for name in made["benchmark"].get("tables", ()):
        console.print(benchmarks.table(name, results))
        for note in published.notes(name, results):
            console.print(note, markup=False, highlight=False, soft_wrap=True)
    return results


def rescore(made: Mapping[str, Any], judge: AnyJudge | None, console: Console) -> list[dict[str, Any]]:
    """Score the answers that a run has kept once more, of all its evaluations; no model is loaded."""
    run_dir = Path(made["rescore"])
    results = []
    evaluations = kept.noted(run_dir)
    if judge is None and (names := [name for name, facts in evaluations.items() if facts["judged"]]):
        raise ValueError(f"rescore={run_dir}: {', '.join(names)} had a judge: give it too (judge=recorded, rule, ...)")
    for name, facts in evaluations.items():
        parts = [(part, [file[key] for key in part["keys"]]) for part, file in _files(run_dir, facts["parts"])]
        results += _report(name, facts, parts, made, judge, run_dir, console)
    return results


def _files(run_dir: Path, parts: Sequence[Mapping[str, Any]]) -> Iterator[tuple[Mapping[str, Any], kept.Answers]]:
    for part in parts:
        yield part, kept.read(run_dir / kept.FOLDER / part["file"])


def _evaluate(
    model: pretrained.AudioModel, made: Mapping[str, Any], judge: AnyJudge | None, console: Console
) -> list[dict[str, Any]]:
    """One benchmark, with its recordings or what `audio` has instead."""
    manifests = read_manifests(benchmarks.sources(made["benchmark"]), key="data.test")
    name = listening.name(made["benchmark"]["name"] or "+".join(one.stem for one in manifests), made["audio"])
    data = {str(manifest.path): manifest.digest for manifest in manifests}
    manifests = listening.alter(manifests, made["audio"], made["seed"])
    run_dir = _results_dir(made, model.recipe)
    parts, skipped = [], {}
    for kind in KINDS:
        of_kind = [replace(m, rows=tuple(row for row in m.rows if _kind(row) == kind)) for m in manifests]
        of_kind = [manifest for manifest in of_kind if manifest.rows]
        if of_kind:
            part, answers, left_out = _answer(model, kind, of_kind, made, run_dir / kept.FOLDER, console)
            parts.append((part, answers))
            skipped |= left_out
    trained = {key: model.recipe[key] for key in ("study", "arm", "seed")}
    facts = {"benchmark": dict(made["benchmark"]), "version": _version(model), "audio": made["audio"]}
    facts |= {"judged": judge is not None, "trained": trained, "skipped": skipped, "parts": [part for part, _ in parts]}
    kept.note(run_dir / kept.FOLDER, name, facts)
    results = _report(name, facts, parts, made, judge, run_dir, console)
    _note(run_dir, name, data)
    return results


def _report(
    name: str,
    facts: Mapping[str, Any],
    parts: Sequence[tuple[Mapping[str, Any], Sequence[kept.Answer]]],
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
    signatures = judged.signatures(judge) if any("judge" in one["metric"] for one in predictions) else {}
    results = reporting.summarise(predictions, facts["trained"], name, made["bootstrap"], made["seed"], signatures)
    if facts["audio"] != listening.AS_IS:
        base = _read_lines(run_dir / "predictions" / f"{name.rpartition('@')[0]}.jsonl")
        results += reporting.drops(results, predictions, base)
    _write(run_dir, name, predictions, results)
    if lines:
        _write_lines(run_dir / "official" / f"{name}.jsonl", lines)
    made_by = [f"{metric}: {by}" for metric, by in signatures.items()]
    notes = [*reporting.credits(rows), *made_by, *map(benchmarks.note, lines)]
    reporting.show(console, name, results, skipped, notes)
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


def _view(model: pretrained.AudioModel, kind: str, policy: str, style: Mapping[str, Any] | None = None) -> Samples:
    """How rows of a kind are seen. Task rows as the model was trained to see them, or as its base model was, unless
    another style of prompting is given."""
    made = model.recipe
    if kind == "task" and made["data"]["view"] in ("audio", "text", "transcript"):
        made = {**made, "prompt": style or made["prompt"]}
        return recipe.build_samples(made, model.net, model.tokenizer, long_audio=policy, train=False)
    asked = recipe.build(style) or model.prompt
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
) -> tuple[dict[str, Any], list[kept.Answer], dict[str, str]]:
    """Answers to rows of one kind, those that are not kept yet from the model: where they are, they, and why some rows
    have none."""
    view = _view(model, kind, made["long_audio"], made["prompt"])
    wording = made["benchmark"].get("prompt", {}).get(_version(model))
    if kind == "task" and wording and not made["prompt"] and isinstance(view.prompt, Prompt):
        view.prompt = view.prompt.asking(wording)
    manifests, whole = in_windows(manifests, view)
    rows = [row for manifest in manifests for row in manifest.rows]
    lengths = measure(manifests, view, Path(model.recipe["data"]["cache_dir"]))
    skipped = {rows[number].id: reason for number, reason in lengths.problems.items()}
    if kind != "preference":
        _check_metrics(view.asked(row) for number, row in enumerate(rows) if number not in lengths.problems)
    settings = model.settings(chat=kind == "chat", **_decoding(made, _version(model)))
    decoding = {} if kind == "preference" else {**asdict(settings), "stop": sorted(settings.stop)}
    decoding |= {"seed": made["seed"]} if settings.do_sample else {}
    facts = {"kind": kind, "weights": made["weights"], "prompt": kept.prompt_of(view), "decoding": decoding}
    file = kept.Answers(folder, facts)
    keys = {number: kept.key_of(row) for number, row in enumerate(rows) if number not in lengths.problems}
    new = np.array([number in keys and keys[number] not in file for number in range(len(rows))], dtype=bool)
    told = "" if kind == "preference" else f" by {settings}"
    console.print(f"{kind} rows: {new.sum()} answers{told}; {len(keys) - new.sum()} are kept", highlight=False)
    packs = by_length(replace(lengths, tokens=np.where(new, lengths.tokens, 0)), made["token_budget"])
    for numbers in track(packs, description="answering", console=console, disable=not packs):
        batch = pack(rows, [(number, None) for number in numbers], view, prompt_only=kind != "preference")
        skipped |= dict(batch["skipped"])
        batch = _on(model.device, batch)
        with torch.no_grad():
            if kind == "preference":
                found = answer_logps(model.net, batch)[0].tolist()
            else:
                # The same draws for a row in whatever pack it stands.
                generator = torch.Generator().manual_seed(made["seed"])
                found = model.objective.answer(model.net, batch, settings, generator=generator)
        odds = log_odds(model, view, rows, [number for number in batch["rows"] if _is_verdict(view, rows[number])])
        said = dict(zip(batch["rows"], found, strict=False))  # an empty pack holds one dummy row
        file.add(
            {keys[number]: _said(view, rows[number], said[number], odds.get(number), kind, model) for number in said}
        )
    given = [key for key in keys.values() if key in file]
    part = {"kind": kind, "file": file.path.name, "keys": given, "whole": whole}
    return part, [file[key] for key in given], skipped


def _said(
    view: Samples, row: Row, said: Any, odds: float | None, kind: str, model: pretrained.AudioModel
) -> kept.Answer:
    if kind == "preference":
        return kept.Answer(row, said)
    row = view.asked(row)
    text = model.tokenizer.decode(said, control=tasks.find(row.labels["task"]).tagged)
    return kept.Answer(row, text, odds)


def _score(
    part: Mapping[str, Any],
    answers: Sequence[kept.Answer],
    benchmark: Mapping[str, Any],
    judge: AnyJudge | None,
    console: Console,
) -> tuple[list[Row], list[dict[str, Any]], dict[str, str]]:
    """The rows that were answered, predictions about them, and why a judge gave some no points."""
    if part["kind"] == "preference":
        return [one.row for one in answers], [_preferred(one.row, one.said) for one in answers], {}
    answered = join({one.row.id: (one.row, one.said) for one in answers}, part["whole"])
    predictions = score(answered, benchmark.get("metrics", ())) + [
        _accepted(one.row, one.odds) for one in answers if one.odds is not None
    ]
    rows = [row for row, _ in answered.values()]
    if part["kind"] != "chat" or judge is None:
        return rows, predictions, {}
    rated, unrated = judged.rate(answered, judge, _about, console)
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
    batch = _on(model.device, pack(rows, [(number, None) for number in numbers], view))
    with torch.no_grad():
        yes, no = answer_logps(model.net, batch)[0].unbind(1)
    return dict(zip(batch["rows"], (yes - no).tolist(), strict=True))


def _on(device: torch.device, batch: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value.to(device) if torch.is_tensor(value) else value for key, value in batch.items()}


def _accepted(row: Row, odds: float) -> dict[str, Any]:
    """How likely the row is accepted, and whether it should be."""
    yes, _ = VerdictSamples.VERDICTS
    true = row.labels["text"]
    return {
        **_about(row, "eer"),
        "stats": row_stats("eer", odds, true.strip().lower() == yes, language(row)),
        "hypothesis": f"log odds {odds:.2f}",
        "reference": true,
    }


def _preferred(row: Row, logps: Sequence[float]) -> dict[str, Any]:
    """Whether the chosen answer is the likelier one."""
    chosen, rejected = logps
    return {
        **_about(row, "prefers"),
        "stats": row_stats("prefers", rejected, chosen, language(row)),
        "hypothesis": f"log p {chosen:.2f}, rejected {rejected:.2f}",
        "reference": str(row.labels["chosen"]),
    }


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
    if (path / snapshots.FOLDER).is_dir():
        return path
    if snapshots.is_snapshot(path) and path.resolve().parent.name == snapshots.FOLDER:
        return path.resolve().parents[1]
    return Path(made["runs_dir"]) / trained["study"] / path.resolve().name / f"seed={trained['seed']}"


def score(answered: Mapping[str, tuple[Row, str]], raw: Sequence[str] = ()) -> list[dict[str, Any]]:
    """One prediction per row and metric, with what the row contributes to it.

    `raw`: metrics beside those of the row's task, of the answer as it is.
    """
    classes: dict[str, set[str]] = {}
    for row, _ in answered.values():
        task = tasks.find(row.labels["task"])
        if task.closed:
            classes.setdefault(group(row), set()).add(task.compared(task.render(row.labels)))
    predictions = []
    for name, (row, hypothesis) in answered.items():
        labels = row.labels
        reference = tasks.find(labels["task"]).render(labels)
        known = options(labels) or sorted(classes.get(group(row), ()))
        compared_by = {
            **metrics(row),
            **dict.fromkeys(_CHOICE if options(labels) else (), str),
            **dict.fromkeys(raw, str),
        }
        for metric, compared in compared_by.items():
            if metric == "eer":  # is of scores, not of answers: `log_odds`
                continue
            said, true = compared(hypothesis), compared(labels.get("key", reference))
            if metric == "cider":
                true = labels.get("references", true)
            predictions.append(
                {
                    **_about(row, metric) | {"id": name},
                    "stats": row_stats(metric, said, true, language(row), known),
                    "hypothesis": hypothesis,
                    "reference": reference,
                }
            )
            if "skill" in labels:  # of a dialogue: on a line of its own, beside that of its mode
                predictions.append(predictions[-1] | {"group": f"chat {labels['skill']}"})
    return predictions


_CHOICE = ("choice", "choice_official", "choice_unparsed")


def options(labels: Mapping[str, Any]) -> list[str]:
    """The answers that a question of AIR-Bench's foundation part offers."""
    return [labels[key] for key in ("choice_a", "choice_b", "choice_c", "choice_d") if labels.get(key)]


def metrics(row: Row) -> dict[str, Callable[[str], Any]]:
    """What a row's answer is scored by, each metric with what of the answer it compares."""
    task = tasks.find(row.labels["task"])
    return {own_metric(row): task.compared, **task.also}


def _about(row: Row, metric: str) -> dict[str, Any]:
    speaker = row.labels.get("speaker")
    return {
        "id": row.id,
        "task": row.labels["task"],
        "language": language(row),
        "group": group(row),
        "metric": metric,
        "provenance": row.labels.get("provenance", "unknown"),
        "audio_seconds": sum(clip.duration or 0.0 for clip in row.clips),
        "speaker": speaker if isinstance(speaker, str) else None,
        "recording": "+".join(map(str, row.labels.get("sources") or [clip.path for clip in row.clips])),
    }


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
    """How the benchmark was run, for `auris.results reproduce=RUN`."""
    file = run_dir / "evaluations.json"
    notes = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    facts = {"command": environment.command("auris.evaluate"), "commit": environment.provenance()["commit"]}
    snapshots.replace(file, json.dumps(notes | {benchmark: {**facts, "data": dict(data)}}, indent=1))


def _write_lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".tmp")
    partial.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    partial.replace(path)


def main() -> None:
    sys.argv[1:] = recipe.quote_arguments(sys.argv[1:])
    run()


@hydra.main(config_path=str(recipe.CONFIGS), config_name="evaluate", version_base="1.3")
def run(cfg: DictConfig) -> None:
    try:
        made = recipe.resolve(cfg)
        evaluate(made)
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
