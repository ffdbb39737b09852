"""`auris evaluate`: evaluate a checkpoint on a test set and write the scores to the run's `results.jsonl`.

The steps, in order:

1. `benchmarks` lists the manifests of the test set; `audio_ablation` may replace the audio of their rows.
2. `answering` gets responses to the rows, from the `answer_cache` or from the model on all ranks (`distributed`).
3. `predictions` computes what each response contributes to each score; `judging` adds the scores that a judge gives.
4. `summary` computes result rows (scores with intervals) from the predictions, and prints them.

Rows that cannot be used are counted and listed. Only the first rank scores and writes. It writes these files to the run
directory (formats: `auris.metrics.records`): `predictions/<benchmark>.jsonl`, `results.jsonl`,
`official/<benchmark>.jsonl`, `evaluations.json`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console

from auris import config as configs
from auris.config import Config
from auris.data.lengths import measure_lengths
from auris.data.manifests import read_manifests
from auris.data.samples import prompt_digest
from auris.errors import UsageError, UserError
from auris.evaluation import (
    answer_cache,
    answering,
    audio_ablation,
    benchmarks,
    judging,
    predictions,
    summary,
    transcripts,
)
from auris.evaluation.answer_cache import CACHE_DIR, evaluation_lock
from auris.evaluation.distributed import Ranks, join_ranks
from auris.evaluation.summary import Identity
from auris.files import read_json, write_json, write_jsonl
from auris.inference import load as pretrained
from auris.inference.audio_model import AudioModel
from auris.inference.ctc_reading import read_by_aligner, read_by_ctc
from auris.inference.start_reading import read_by_start
from auris.inference.text_reading import read_text
from auris.metrics import records
from auris.metrics.judges.judge import Judge
from auris.metrics.measures import table_position
from auris.metrics.records import ALIGNER, AS_IS, CTC, DECODER, START, TEXT, EvaluationName, Prediction, ResultRow
from auris.model.weights import checkpoint_dir
from auris.model.weights.tensors import weights_digest
from auris.text.prompts import TagPrompt
from auris.training import provenance
from auris.training.preemption import Preemption

MAX_NEW_TOKENS = 64  # largest number of tokens of a response, unless the user or the benchmark sets another

_STOPPED = "evaluation stopped by {}: the same command continues it with the responses so far, which are cached"


# Functions that return the model of a reading, given the model to evaluate.
_MODELS = {CTC: read_by_ctc, ALIGNER: read_by_aligner, TEXT: read_text, START: read_by_start}


@dataclass(frozen=True)
class _Job:
    """Objects that all evaluations of a command share. The judge is None on ranks other than the first."""

    config: Config
    judge: Judge | None
    ranks: Ranks
    console: Console


def run(config: Config) -> None:
    """Run `auris evaluate`."""
    evaluate(config)


def evaluate(config: Config) -> list[ResultRow]:
    """Evaluate a checkpoint on a benchmark or on all benchmarks of a group, or score cached responses (`rescore`).

    Returns:
        The result rows that were written; empty on ranks other than the first.

    Raises:
        UserError: No row could be scored.
    """
    with Preemption(_STOPPED), join_ranks(config["accelerator"]) as ranks:
        judge = configs.build(config["judge"]) if ranks.is_first else None
        job = _Job(config, judge, ranks, Console(quiet=not ranks.is_first))
        if config["rescore"] is not None:
            results = _rescore(job, Path(config["rescore"])) if ranks.is_first else []
            return _require_results(results, ranks)
        if config["checkpoint"] is None:
            raise UsageError("expected checkpoint=... or rescore=... on the command line (see --help)")
        members = benchmarks.list_members(config["benchmark"])
        benchmarks.check_files(members)
        reading = _reading(config)
        audio_kinds = audio_ablation.audio_kinds(config["audio"])
        model = pretrained.load(config["checkpoint"], which=config["which"], device=config["accelerator"])
        if reading in _MODELS:
            model = _MODELS[reading](model)
        weights = weights_digest(model.net) if ranks.is_first else ""
        if ranks.is_first and reading in (CTC, ALIGNER):
            weights += weights_digest(model.objective)
        results: list[ResultRow] = []
        for benchmark in members:
            for audio in audio_kinds:
                results += _evaluate(job, model, weights, benchmark, reading, audio)
        _require_results(results, ranks)
        for table_name in config["benchmark"].get("tables", ()) if ranks.is_first else ():
            summary.print_published(job.console, table_name, results)
        return results


def _require_results(results: list[ResultRow], ranks: Ranks) -> list[ResultRow]:
    """Return the result rows; raise UserError if the first rank has none."""
    if ranks.is_first and not results:
        raise UserError("no row could be scored; the reasons are listed above")
    return results


def _reading(config: Config) -> str | None:
    """Return the name of the reading, one of `records.READINGS`; None for the model's own responses.

    Raises:
        UsageError: A setting has no effect.
        UserError: The file of transcripts cannot be used.
    """
    reading, audio = config["reading"], config["audio"]
    if config["audio_rows"] is not None and audio == AS_IS:
        raise UsageError("audio_rows has no effect with audio=as_is: expected audio=silence, shuffled or all")
    if reading in (None, CTC, ALIGNER, START):
        return reading
    if audio != AS_IS:
        raise UsageError(f"audio={audio} has no effect with reading={reading}, which uses no audio: set audio=as_is")
    if reading == TEXT:
        return TEXT
    settings = {
        "prompt": config["prompt"],
        **{f"generation.{key}": value for key, value in config["generation"].items()},
    }
    if unused := [name for name, value in settings.items() if value]:
        raise UsageError(f"{', '.join(unused)}: expected no such setting with reading={reading}, which are transcripts")
    transcripts.read_transcripts(Path(reading))  # fails before a model is loaded
    return DECODER


def _evaluate(
    job: _Job, model: AudioModel, weights: str, benchmark: benchmarks.Benchmark, reading: str | None, audio: str
) -> list[ResultRow]:
    """Answer and score one benchmark with one kind of audio.

    Args:
        job: The objects shared by all evaluations.
        model: The model to evaluate.
        weights: Digest of the model's weights; empty on ranks other than the first.
        benchmark: The benchmark.
        reading: One of `records.READINGS`, or None.
        audio: One of `records.AUDIO_KINDS`.
    """
    config = job.config
    manifests = read_manifests(benchmark.manifests(), key="data.test")
    benchmark_name = benchmark.name or "+".join(Path(manifest.path).stem for manifest in manifests)
    name = str(EvaluationName(benchmark_name, reading, audio))
    if reading == TEXT and (others := [kind for kind in answering.KINDS[1:] if answering.select_kind(manifests, kind)]):
        raise UserError(f"reading=text: {benchmark_name} has {' and '.join(others)} rows, expected only rows of tasks")
    if benchmark.sets:
        manifests = benchmarks.name_sets(manifests)
    digests = {str(manifest.path): manifest.digest for manifest in manifests}
    manifests = audio_ablation.replace_audio(manifests, audio, config["seed"], config["audio_rows"])
    run_dir = _run_dir(config, model.config)
    # Qwen-Audio (v1) is prompted with tags, Qwen2-Audio (v2) in natural language.
    version = "v1" if isinstance(model.prompt, TagPrompt) else "v2"
    user_settings = {key: value for key, value in config["generation"].items() if value is not None}
    decoding = {"max_new_tokens": MAX_NEW_TOKENS, **benchmark.generation.get(version, {}), **user_settings}
    parts: list[answer_cache.Part] = []
    skipped: dict[str, str] = {}
    for kind in answering.KINDS:
        selected = answering.select_kind(manifests, kind)
        if selected and reading == DECODER:
            if job.ranks.is_first:
                part, reasons = transcripts.answer_from_file(
                    Path(config["reading"]), kind, selected, run_dir / CACHE_DIR
                )
                parts.append(part)
                skipped |= reasons
        elif selected:
            request = answering.build_request(model, kind, selected, config, benchmark.prompt.get(version), decoding)
            if not job.ranks.is_first:
                answering.assist_first_rank(model, request, job.ranks)
                continue
            part, reasons = _answer(job, model, weights, request, run_dir)
            parts.append(part)
            skipped |= reasons
    if not job.ranks.is_first:
        return []
    evaluation = answer_cache.Evaluation(
        benchmark=benchmark,
        version=version,
        audio=audio,
        changes=benchmark.deviations(version, config["prompt"], user_settings),
        judged=job.judge is not None,
        run={"study": model.config["study"], "arm": model.config["arm"], "seed": model.config["seed"]},
        skipped=skipped,
        parts=parts,
    )
    answer_cache.save_evaluation(run_dir / CACHE_DIR, name, evaluation)
    results = _score(job, run_dir, name, evaluation)
    _record_command(run_dir, name, digests)
    return results


def _answer(
    job: _Job, model: AudioModel, weights: str, request: answering.Request, run_dir: Path
) -> tuple[answer_cache.Part, dict[str, str]]:
    """Answer the rows of one kind.

    Returns:
        The part of the evaluation, which states where the responses are cached, and a dict from row id to the reason
        why the row has no response.
    """
    kind, samples = request.kind, request.samples
    lengths = measure_lengths(request.manifests, samples, Path(model.config["data"]["cache_dir"]))
    if kind not in answering.SCORED_KINDS:
        usable_rows = (row for number, row in enumerate(request.rows) if number not in lengths.problems)
        predictions.check_metrics(map(samples.scored_row, usable_rows))
    settings = {"kind": kind, "weights": weights, "prompt": prompt_digest(samples), "decoding": request.decoding}
    cache = answer_cache.AnswerCache(run_dir / CACHE_DIR, settings)
    token_budget = job.config["token_budget"]
    keys, skipped = answering.answer_rows(model, request, lengths, cache, token_budget, job.ranks, job.console)
    return answer_cache.Part(kind=kind, file=cache.path.name, keys=keys, windows=request.windows), skipped


def _rescore(job: _Job, run_dir: Path) -> list[ResultRow]:
    """Score the cached responses of all evaluations of a run, without loading a model."""
    evaluations = answer_cache.load_evaluations(run_dir)
    if not evaluations:
        raise UserError(f"rescore={run_dir}: no cached responses; run auris evaluate checkpoint=... first")
    judged_names = [name for name, evaluation in evaluations.items() if evaluation.judged]
    if judged_names and job.judge is None:
        raise UserError(
            f"rescore={run_dir}: a judge rated the responses of {', '.join(judged_names)}: set a judge, for example "
            "judge=recorded or judge=rule"
        )
    return [row for name, evaluation in evaluations.items() for row in _score(job, run_dir, name, evaluation)]


def _score(job: _Job, run_dir: Path, name: str, evaluation: answer_cache.Evaluation) -> list[ResultRow]:
    """Score the responses of an evaluation, write the scores and print them.

    Args:
        job: The objects shared by all evaluations.
        run_dir: The run directory.
        name: Name of the evaluation.
        evaluation: The record of the evaluation.
    """
    benchmark, skipped = evaluation.benchmark, dict(evaluation.skipped)
    rows, all_predictions = [], []
    for part in evaluation.parts:
        responses = answer_cache.load_responses(run_dir, part)
        if part.kind not in answering.SCORED_KINDS:
            responses = predictions.merge_windows(responses, part.windows)
        rows += [response.row for response in responses]
        all_predictions += predictions.predict(part.kind, responses, benchmark.metrics)
        if part.kind == "chat" and job.judge is not None:
            ratings, unrated = judging.rate_responses(responses, job.judge, job.console)
            all_predictions += ratings
            skipped |= unrated
    official_scores = summary.official_scores(benchmark.script, evaluation.version, all_predictions, rows)
    all_predictions = predictions.split_by_subset(all_predictions, rows, benchmark.parts, benchmark.sets)
    all_predictions.sort(key=lambda prediction: (prediction.group, table_position(prediction.metric)))
    is_judged = any("judge" in prediction.metric for prediction in all_predictions)
    signatures = job.judge.signatures if job.judge and is_judged else {}
    n_resamples, seed = job.config["bootstrap"], job.config["seed"]
    identity: Identity = {**evaluation.run, "benchmark": name}
    results = summary.summarise(all_predictions, identity, n_resamples, seed, signatures, evaluation.changes)
    if evaluation.audio != AS_IS:
        name_with_own_audio = str(EvaluationName.parse(name)._replace(audio=AS_IS))
        with_own_audio = records.read_records(_predictions_file(run_dir, name_with_own_audio), Prediction)
        results += summary.compute_drops(results, all_predictions, with_own_audio)
    if results:
        _write_results(run_dir, name, all_predictions, results)
    if official_scores:
        write_jsonl(run_dir / "official" / f"{name}.jsonl", map(asdict, official_scores))
    judge_notes = [f"{metric}: {judge_signature}" for metric, judge_signature in signatures.items()]
    notes = [*summary.credit_lines(rows), *judge_notes, *map(summary.format_official_score, official_scores)]
    summary.print_results(job.console, name, results, skipped, notes)
    return results


# --- the run directory --------------------------------------------------------------------------------------------


def _run_dir(config: Config, model_config: Config) -> Path:
    """Return the run directory that a checkpoint belongs to, or a new directory in `runs_dir` if there is none."""
    path = Path(config["checkpoint"])
    if (path / checkpoint_dir.FOLDER).is_dir():
        return path
    if checkpoint_dir.is_checkpoint(path) and path.resolve().parent.name == checkpoint_dir.FOLDER:
        return path.resolve().parents[1]
    return Path(config["runs_dir"]) / model_config["study"] / path.resolve().name / f"seed_{model_config['seed']}"


def _predictions_file(run_dir: Path, name: str) -> Path:
    return run_dir / "predictions" / f"{name}.jsonl"


def _write_results(
    run_dir: Path, name: str, all_predictions: Sequence[Prediction], results: Sequence[ResultRow]
) -> None:
    """Write the predictions of an evaluation, and replace its result rows in `results.jsonl`."""
    with evaluation_lock(run_dir / CACHE_DIR):
        records.write_records(_predictions_file(run_dir, name), all_predictions)
        file = run_dir / "results.jsonl"
        other_rows = (
            [row for row in records.read_records(file, ResultRow) if row.benchmark != name] if file.is_file() else []
        )
        records.write_records(file, [*other_rows, *results])


def _record_command(run_dir: Path, name: str, digests: Mapping[str, str]) -> None:
    """Record the command of an evaluation for `auris results reproduce=RUN`.

    Args:
        run_dir: The run directory.
        name: Name of the evaluation.
        digests: Digests of the manifests by path.
    """
    file = run_dir / "evaluations.json"
    entry = {
        "command": provenance.format_command_line("evaluate"),
        "commit": provenance.find_versions()["commit"],
        "data": digests,
    }
    with evaluation_lock(run_dir / CACHE_DIR):
        recorded = read_json(file) if file.is_file() else {}
        write_json(file, recorded | {name: entry})
