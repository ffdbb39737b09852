"""Reading of run directories: scores, predictions, curves, progress, costs and configs of the runs of a study."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from auris.errors import MissingFileError, UserError, shorten
from auris.files import read_metadata
from auris.metrics import records
from auris.metrics.measures import find_measure
from auris.metrics.records import Prediction, ResultRow
from auris.results.cells import frame_rows

if TYPE_CHECKING:  # pandas and tensorboard are imported only in functions that use them, so that --help is fast
    import pandas as pd


FileContent = dict[str, Any]
"""The content of a JSON or YAML file of a run."""


class RunPrediction(NamedTuple):
    """A prediction, together with the run and the benchmark that it belongs to."""

    arm: str
    seed: int
    benchmark: str
    prediction: Prediction


def collect(root: str | Path) -> pd.DataFrame:
    """Return the result rows of all runs of a study (`runs/<study>`), as they are in the files."""
    import pandas as pd

    return pd.DataFrame([row.to_json() for _, _, run in list_runs(root) for row in read_results(run)])


def read_results(run: str | Path) -> list[ResultRow]:
    """Return the rows of a run's `results.jsonl`; empty if the run is not evaluated."""
    path = Path(run) / "results.jsonl"
    return records.read_records(path, ResultRow) if path.exists() else []


def predictions(root: str | Path) -> pd.DataFrame:
    """Return all predictions of a study, with the additional columns `arm`, `seed` and `benchmark`."""
    import pandas as pd

    rows = [row for arm, seed, run in list_runs(root) for row in read_predictions(run, arm, seed)]
    return pd.DataFrame(
        {**vars(row.prediction), "arm": row.arm, "seed": row.seed, "benchmark": row.benchmark} for row in rows
    )


def read_predictions(run: str | Path, arm: str, seed: int) -> list[RunPrediction]:
    """Return the predictions of one run.

    Raises:
        UserError: A prediction occurs twice in a file, or has a wrong number of statistics for its metric.
    """
    predictions = []
    for path in sorted(Path(run).glob("predictions/*.jsonl")):
        keys = set()
        for row in records.read_records(path, Prediction):
            key = (row.group, row.metric, row.id)
            if key in keys:
                raise UserError(f"{path}: row {shorten(row.id)} ({row.group}, {row.metric}) occurs more than once")
            stat_names = find_measure(row.metric).stats
            if len(row.stats) != len(stat_names):
                raise UserError(
                    f"{path}: {row.metric} needs the statistics {stat_names}, but the row {shorten(row.id)} has the "
                    f"values {row.stats}"
                )
            keys.add(key)
            predictions.append(RunPrediction(arm, seed, path.stem, row))
    return predictions


def curves(root: str | Path) -> pd.DataFrame:
    """Return the TensorBoard scalars of all runs of a study, with the columns arm, seed, tag, step, value."""
    return read_scalars(list_runs(root))


def read_scalars(runs: Iterable[tuple[str, int, Path]]) -> pd.DataFrame:
    """Return the TensorBoard scalars of runs as `curves` does, given the arm, seed and directory of each run."""
    import pandas as pd
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    rows = []
    for arm, seed, run in runs:
        if any(run.glob("events.out.tfevents*")):
            events = EventAccumulator(str(run), size_guidance={"scalars": 0}).Reload()  # 0 means to keep every point
            tags = events.Tags()["scalars"]
            assert isinstance(tags, list)
            for tag in tags:
                rows += [(arm, seed, tag, event.step, event.value) for event in events.Scalars(tag)]
    frame = pd.DataFrame(rows, columns=["arm", "seed", "tag", "step", "value"])
    # A run that is resumed from a checkpoint logs the steps after this checkpoint again.
    return frame.drop_duplicates(["arm", "seed", "tag", "step"], keep="last", ignore_index=True)


def list_runs(root: str | Path) -> list[tuple[str, int, Path]]:
    """Return the arm, seed and directory of each run of a study.

    Raises:
        MissingFileError: The directory does not exist, or it contains no runs.
    """
    root = Path(root)
    if not root.is_dir():
        raise MissingFileError(f"there is no study at {root}; {list_studies(root.parent)}")
    runs = [(path.parent.name, int(path.name[5:]), path) for path in root.glob("*/seed_*") if path.name[5:].isdigit()]
    if not runs:
        raise MissingFileError(f"{root} contains no runs (<arm>/seed_<n>/); {list_studies(root.parent)}")
    return sorted(runs)


def list_studies(runs: Path) -> str:
    """Return a list of the existing studies as text for messages."""
    names = sorted({path.parent.parent.name for path in runs.glob("*/*/seed_*")})
    return f"studies in {runs}: {', '.join(names)}" if names else f"{runs} contains no study yet"


def sort_arms(root: str | Path, arms: Iterable[str]) -> list[str]:
    """Return arms in the order of `study.yaml`. The first arm is the one with which the other arms are compared.

    Arms that `study.yaml` does not list come last. They are sorted word by word: qwen_audio before qwen2_audio.
    """
    listed = list(read_metadata(Path(root) / "study.yaml").get("arms", ()))
    return sorted(arms, key=lambda arm: (listed.index(arm) if arm in listed else len(listed), arm.split("_")))


def question(root: str | Path) -> str:
    """Return the question that a study asks; empty if `study.yaml` contains none."""
    return read_metadata(Path(root) / "study.yaml").get("question", "")


def status(root: str | Path) -> pd.DataFrame:
    """Return the progress of each run, with the columns arm, seed, state, step, of, benchmarks.

    The state is waiting, training, trained or evaluated. `of` is the total number of steps, and `benchmarks` lists the
    benchmarks on which the run is evaluated.
    """
    import pandas as pd

    rows = []
    for arm, seed, run in list_runs(root):
        progress, finished = (read_metadata(run / f"{name}.json") for name in ("progress", "finished"))
        benchmarks = sorted({row.benchmark for row in read_results(run)})
        state = "trained" if finished else "training" if progress else "waiting"
        steps = (finished.get("steps", progress.get("step", 0)), progress.get("max_steps", finished.get("steps", 0)))
        rows.append((arm, seed, "evaluated" if benchmarks else state, *steps, ", ".join(benchmarks)))
    frame = pd.DataFrame(rows, columns=["arm", "seed", "state", "step", "of", "benchmarks"])
    order = {arm: index for index, arm in enumerate(sort_arms(root, frame["arm"].unique()))}
    return frame.sort_values("arm", key=lambda arm: arm.map(order), kind="stable", ignore_index=True)


def unevaluated(root: str | Path) -> list[str]:
    """Return a line about the progress of each run that is not evaluated."""
    frame = status(root)
    rows = frame[frame["state"] != "evaluated"].itertuples()
    return [f"{row.arm}, seed {row.seed}: {row.state}, step {row.step} of {row.of}" for row in rows]


def costs(root: str | Path) -> pd.DataFrame:
    """Return the cost of training each arm, averaged over the seeds; NaN for values that the runs have not recorded.

    Columns: arm, `audio tokens per second` (of audio), `parameters` (number of all parameters), `learning` (number of
    trainable parameters), `FLOP` (useful operations: matrix products for real tokens and frames), `tokens`, `hours of
    audio`, and `minutes` (duration of the last session of the training).
    """
    import pandas as pd

    rows = []
    for arm, seed, run in list_runs(root):
        environment, finished = (read_metadata(run / f"{name}.json") for name in ("environment", "finished"))
        if finished:
            keys = ("audio_tokens_per_second", "parameters", "trained", "operations", "tokens", "hours")
            rows.append((arm, seed, *(environment.get(key, np.nan) for key in keys), finished["seconds"] / 60))
    columns = ["audio tokens per second", "parameters", "learning", "FLOP", "tokens", "hours of audio", "minutes"]
    frame = pd.DataFrame(rows, columns=["arm", "seed", *columns])
    means = frame.groupby("arm", sort=False)[columns].mean()
    return means.loc[sort_arms(root, means.index)].reset_index()


def hparams(root: str | Path) -> pd.DataFrame:
    """Return the config values in which the runs of a study differ; the columns are arm, seed and the config keys."""
    import pandas as pd

    configs = {}
    for arm, seed, run in list_runs(root):
        # Without keys, pandas 2 returns no row.
        [config] = frame_rows(pd.json_normalize(read_metadata(run / "recipe.yaml"))) or [{}]
        configs[arm, seed] = config
    ignored = {"study", "arm", "seed", "run_dir", "runs_dir", "checkpoint"}
    keys = {
        key for config in configs.values() for key in config if key not in ignored and not key.startswith("weights.")
    }
    differing_keys = [key for key in sorted(keys) if len({str(config.get(key)) for config in configs.values()}) > 1]
    rows = [
        {"arm": arm, "seed": seed, **{key: config.get(key) for key in differing_keys}}
        for (arm, seed), config in configs.items()
    ]
    return pd.DataFrame(rows, columns=["arm", "seed", *differing_keys])


def write_hparams(root: str | Path) -> None:
    """Write `hparams` and scores for TensorBoard's HPARAMS page to the directory of each run, replacing earlier files.

    The page shows scores on validation rows, and for evaluated runs also scores on test rows.
    """
    # The type checker cannot see the classes of these modules, because they are generated at import.
    from tensorboard.compat.proto.event_pb2 import Event  # pyrefly: ignore[missing-module-attribute]
    from tensorboard.compat.proto.summary_pb2 import Summary  # pyrefly: ignore[missing-module-attribute]
    from tensorboard.plugins.hparams import summary_v2 as hp
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    rows = {(row["arm"], row["seed"]): row for row in frame_rows(hparams(root))}
    runs = list_runs(root)
    tags = sorted({tag for tag in curves(root)["tag"] if tag.startswith("val/")})
    tags += sorted({_test_tag(row) for _, _, run in runs for row in read_results(run)})
    for arm, seed, run in runs:
        for old in run.glob("events.out.tfevents*.hparams"):
            old.unlink()
        values = {key: _to_hparam(value) for key, value in rows[arm, seed].items()}
        writer = EventFileWriter(str(run), filename_suffix=".hparams")
        config = hp.hparams_config_pb([hp.HParam(key) for key in values], [hp.Metric(tag) for tag in tags])
        for summary in (config, hp.hparams_pb(values, trial_id=f"{arm}/{seed}")):
            writer.add_event(Event(summary=summary))
        for row in read_results(run):
            point = Summary.Value(tag=_test_tag(row), simple_value=row.value)
            writer.add_event(Event(summary=Summary(value=[point])))
        writer.close()


def reproduce(run: str | Path) -> str:
    """Return a shell script that repeats a run: checkout of the commit, check of the data, training and evaluations.

    Comments in the script state the versions and the device.

    Raises:
        MissingFileError: The directory has no recipe.yaml.
    """
    run = Path(run)
    if not (run / "recipe.yaml").is_file():
        raise MissingFileError(
            f"{run} is not a run directory (it has no recipe.yaml): set reproduce=runs/<study>/<arm>/seed_<n>"
        )
    environment, evaluations = read_metadata(run / "environment.json"), read_metadata(run / "evaluations.json")
    packages = ("python", "torch", "lightning", "transformers", "torchaudio", "hydra-core", "numpy")
    lines = [f"# {run}", f"git checkout {_describe_commit(environment)}"]
    lines.append("# " + ", ".join(f"{name} {environment[name]}" for name in packages if name in environment))
    if environment:
        ranks, threads = environment["ranks"], environment["threads"]
        device = f"{ranks} processes, {threads} threads, {environment['device']}, {environment['precision']}"
        lines.append(f"# {device}; in any other setup, sums are rounded differently")
    lines += _checksum_lines(environment)
    config = read_metadata(run / "recipe.yaml")
    initial_weights = [path for path in (config.get("checkpoint"), *(config.get("weights") or {}).values()) if path]
    lines += [f"# initial weights come from: auris results reproduce={shlex.quote(path)}" for path in initial_weights]
    if environment.get("command"):
        lines.append(f"OMP_NUM_THREADS={environment['threads']} {environment['command']}")
    else:
        lines.append(f"# no command is recorded; the resolved config is {run / 'recipe.yaml'}")
    for name, evaluation in evaluations.items():
        lines += [
            f"# benchmark {name}, at commit {evaluation['commit']}",
            *_checksum_lines(evaluation),
            evaluation["command"],
        ]
    return "\n".join(lines)


def _describe_commit(environment: FileContent) -> str:
    """Return the commit, followed by a shell comment if the commit does not describe the code completely."""
    commit = str(environment.get("commit", "unknown"))
    if commit.endswith("-dirty"):
        return f"{commit.removesuffix('-dirty')}  # the working tree had uncommitted changes"
    return commit if commit != "unknown" else "...  # the commit is not recorded"


def _checksum_lines(content: FileContent) -> list[str]:
    """Return shell commands that check the manifests in `content["data"]` with `sha256sum --check`.

    The digest of a manifest does not cover the audio files that the manifest lists. Digests of shards and Parquet data
    sets cover several files, which sha256sum cannot check, so they are listed as comments.
    """
    digests = content.get("data", {})
    files = [f"{digest}  {path}" for path, digest in digests.items() if path.endswith((".jsonl", ".txt"))]
    lines = ["sha256sum --check <<'END'", *files, "END"] if files else []
    return lines + [f"# {path}: {digest}" for path, digest in digests.items() if not path.endswith((".jsonl", ".txt"))]


def _to_hparam(value: Any) -> bool | float | str:
    return value if isinstance(value, (bool, int, float, str)) else str(value)


def _test_tag(row: ResultRow) -> str:
    return f"test/{row.benchmark}/{row.task}/{row.metric}"


def join(items: Iterable[object]) -> str:
    """Return items as text, separated by commas."""
    return ", ".join(str(item) for item in items)
