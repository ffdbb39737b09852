"""Reading of run directories: scores, predictions, curves, progress, costs and configs of a study's runs."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from auris.errors import MissingFileError, UserError
from auris.files import read_metadata
from auris.metrics import records
from auris.metrics.measures import measure
from auris.metrics.records import Prediction, ResultRow
from auris.results.cells import lines_of

if TYPE_CHECKING:  # pandas and tensorboard are imported where they are used, so that --help is quick
    import pandas as pd


Facts = dict[str, Any]
"""The content of a JSON or YAML file of a run."""


class RunPrediction(NamedTuple):
    """A prediction with the run and benchmark that it belongs to."""

    arm: str
    seed: int
    benchmark: str
    prediction: Prediction


def collect(root: str | Path) -> pd.DataFrame:
    """Return the result rows of all runs of a study (`runs/<study>`), as the evaluations wrote them."""
    import pandas as pd

    return pd.DataFrame([row.to_json() for _, _, run in list_runs(root) for row in read_results(run)])


def read_results(run: str | Path) -> list[ResultRow]:
    """Return the rows of a run's `results.jsonl`; empty if the run is not evaluated."""
    path = Path(run) / "results.jsonl"
    return records.read(path, ResultRow) if path.exists() else []


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
        UserError: A prediction occurs twice in a file, or its statistics do not fit its metric.
    """
    predictions = []
    for path in sorted(Path(run).glob("predictions/*.jsonl")):
        keys = set()
        for row in records.read(path, Prediction):
            key = (row.group, row.metric, row.id)
            if key in keys:
                raise UserError(f"{path}: row {row.id!r} ({row.group}, {row.metric}) occurs more than once")
            if len(row.stats) != len(measure(row.metric).stats):
                raise UserError(
                    f"{path}: {row.metric} has the statistics {measure(row.metric).stats}, but a row has {row.stats}"
                )
            keys.add(key)
            predictions.append(RunPrediction(arm, seed, path.stem, row))
    return predictions


def curves(root: str | Path) -> pd.DataFrame:
    """Return the TensorBoard scalars of all runs of a study, with the columns arm, seed, tag, step, value."""
    import pandas as pd
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    rows = []
    for arm, seed, run in list_runs(root):
        if any(run.glob("events.out.tfevents*")):
            events = EventAccumulator(str(run), size_guidance={"scalars": 0}).Reload()  # 0: keep every point
            tags = events.Tags()["scalars"]
            assert isinstance(tags, list)
            for tag in tags:
                rows += [(arm, seed, tag, event.step, event.value) for event in events.Scalars(tag)]
    frame = pd.DataFrame(rows, columns=["arm", "seed", "tag", "step", "value"])
    # A resumed run logs the steps since its last checkpoint again.
    return frame.drop_duplicates(["arm", "seed", "tag", "step"], keep="last", ignore_index=True)


def list_runs(root: str | Path) -> list[tuple[str, int, Path]]:
    """Return arm, seed and directory of each run of a study.

    Raises:
        MissingFileError: There is no such study, or it has no runs.
    """
    root = Path(root)
    if not root.is_dir():
        raise MissingFileError(f"no study at {root}; {list_studies(root.parent)}")
    runs = [(path.parent.name, int(path.name[5:]), path) for path in root.glob("*/seed_*") if path.name[5:].isdigit()]
    if not runs:
        raise MissingFileError(f"{root} holds no runs (<arm>/seed_<n>/); {list_studies(root.parent)}")
    return sorted(runs)


def list_studies(runs: Path) -> str:
    """Return the part of a message that names the existing studies."""
    names = sorted({path.parent.parent.name for path in runs.glob("*/*/seed_*")})
    return f"studies in {runs}: {', '.join(names)}" if names else f"{runs} holds no study yet"


def sort_arms(root: str | Path, arms: Iterable[str]) -> list[str]:
    """Return arms in the order of their study; the others are compared with the first one.

    Arms that the study does not list come last, sorted by their words: qwen_audio before qwen2_audio.
    """
    listed = list(read_metadata(Path(root) / "study.yaml").get("arms", ()))
    return sorted(arms, key=lambda arm: (listed.index(arm) if arm in listed else len(listed), arm.split("_")))


def question(root: str | Path) -> str:
    """Return the question of a study; empty if none is recorded."""
    return read_metadata(Path(root) / "study.yaml").get("question", "")


def status(root: str | Path) -> pd.DataFrame:
    """Return the progress of each run: arm, seed, state, step, of, benchmarks.

    The state is waiting, training, trained or evaluated; `of` is the number of steps.
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
    """Return a line about the progress of each run without scores."""
    frame = status(root)
    rows = frame[frame["state"] != "evaluated"].itertuples()
    return [f"{row.arm}, seed {row.seed}: {row.state}, step {row.step} of {row.of}" for row in rows]


def costs(root: str | Path) -> pd.DataFrame:
    """Return the cost of each arm's training, averaged over its seeds; NaN for values that a run has not recorded.

    Columns: arm, audio tokens per second of audio, parameters (all, and trainable ones as `learning`), FLOP (useful
    ones: matrix products on real tokens and frames), tokens, hours of audio, minutes of the last session.
    """
    import pandas as pd

    rows = []
    for arm, seed, run in list_runs(root):
        facts, finished = (read_metadata(run / f"{name}.json") for name in ("environment", "finished"))
        if finished:
            recorded = ("audio_tokens_per_second", "parameters", "trained", "operations", "tokens", "hours")
            rows.append((arm, seed, *(facts.get(name, np.nan) for name in recorded), finished["seconds"] / 60))
    names = ["audio tokens per second", "parameters", "learning", "FLOP", "tokens", "hours of audio", "minutes"]
    frame = pd.DataFrame(rows, columns=["arm", "seed", *names])
    means = frame.groupby("arm", sort=False)[names].mean()
    return means.loc[sort_arms(root, means.index)].reset_index()


def hparams(root: str | Path) -> pd.DataFrame:
    """Return the config values in which the runs of a study differ: columns arm, seed and the dotted keys."""
    import pandas as pd

    configs = {}
    for arm, seed, run in list_runs(root):
        [config] = lines_of(pd.json_normalize(read_metadata(run / "recipe.yaml")))
        configs[arm, seed] = config
    names = {"study", "arm", "seed", "run_dir", "runs_dir", "checkpoint"}
    keys = {key for config in configs.values() for key in config if key not in names and not key.startswith("weights.")}
    differ = [key for key in sorted(keys) if len({str(config.get(key)) for config in configs.values()}) > 1]
    rows = [
        {"arm": arm, "seed": seed, **{key: config.get(key) for key in differ}}
        for (arm, seed), config in configs.items()
    ]
    return pd.DataFrame(rows, columns=["arm", "seed", *differ])


def write_hparams(root: str | Path) -> None:
    """Write `hparams` and scores for TensorBoard's HPARAMS page into each run's directory, replacing earlier files.

    The scores are those on the validation rows, and for evaluated runs those on the test rows.
    """
    # The classes of these modules are generated at import.
    from tensorboard.compat.proto.event_pb2 import Event  # pyrefly: ignore[missing-module-attribute]
    from tensorboard.compat.proto.summary_pb2 import Summary  # pyrefly: ignore[missing-module-attribute]
    from tensorboard.plugins.hparams import summary_v2 as hp
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    rows = {(row["arm"], row["seed"]): row for row in lines_of(hparams(root))}
    runs = list_runs(root)
    tags = sorted({tag for tag in curves(root)["tag"] if tag.startswith("val/")})
    tags += sorted({_test_tag(row) for _, _, run in runs for row in read_results(run)})
    for arm, seed, run in runs:
        for old in run.glob("events.out.tfevents*.hparams"):
            old.unlink()
        values = {key: _plain(value) for key, value in rows[arm, seed].items()}
        writer = EventFileWriter(str(run), filename_suffix=".hparams")
        config = hp.hparams_config_pb([hp.HParam(key) for key in values], [hp.Metric(tag) for tag in tags])
        for summary in (config, hp.hparams_pb(values, trial_id=f"{arm}/{seed}")):
            writer.add_event(Event(summary=summary))
        for row in read_results(run):
            point = Summary.Value(tag=_test_tag(row), simple_value=row.value)
            writer.add_event(Event(summary=Summary(value=[point])))
        writer.close()


def reproduce(run: str | Path) -> str:
    """Return a script that repeats a run: its commit, data and command, and the commands of its evaluations.

    Versions and the device are listed as comments.

    Raises:
        MissingFileError: The directory has no recipe.yaml.
    """
    run = Path(run)
    if not (run / "recipe.yaml").is_file():
        raise MissingFileError(f"{run} holds no run (no recipe.yaml); give reproduce=runs/<study>/<arm>/seed_<n>")
    facts, evaluations = read_metadata(run / "environment.json"), read_metadata(run / "evaluations.json")
    versions = ("python", "torch", "lightning", "transformers", "torchaudio", "hydra-core", "numpy")
    lines = [f"# {run}", f"git checkout {_commit(facts)}"]
    lines.append("# " + ", ".join(f"{name} {facts[name]}" for name in versions if name in facts))
    if facts:
        device = f"{facts['ranks']} processes, {facts['threads']} threads, {facts['device']}, {facts['precision']}"
        lines.append(f"# {device}; sums are rounded differently elsewhere")
    lines += _hashes(facts)
    config = read_metadata(run / "recipe.yaml")
    starts = [path for path in (config.get("checkpoint"), *(config.get("weights") or {}).values()) if path]
    lines += [f"# the run starts from this one: auris results reproduce={shlex.quote(path)}" for path in starts]
    if facts.get("command"):
        lines.append(f"OMP_NUM_THREADS={facts['threads']} {facts['command']}")
    else:
        lines.append(f"# no command is recorded; the resolved config is {run / 'recipe.yaml'}")
    for name, entry in evaluations.items():
        lines += [f"# benchmark {name}, at {entry['commit']}", *_hashes(entry), entry["command"]]
    return "\n".join(lines)


def _commit(facts: Facts) -> str:
    commit = str(facts.get("commit", "unknown"))
    if commit.endswith("-dirty"):
        return f"{commit.removesuffix('-dirty')}  # the working tree had uncommitted changes"
    return commit if commit != "unknown" else "...  # the commit is not recorded"


def _hashes(facts: Facts) -> list[str]:
    """Return a `sha256sum --check` of the manifests.

    The digests of shards and Parquet data sets cover several files, so they are listed as comments. The digest of a
    manifest does not cover the audio files that it names.
    """
    digests = facts.get("data", {})
    files = [f"{digest}  {path}" for path, digest in digests.items() if path.endswith((".jsonl", ".txt"))]
    lines = ["sha256sum --check <<'END'", *files, "END"] if files else []
    return lines + [f"# {path}: {digest}" for path, digest in digests.items() if not path.endswith((".jsonl", ".txt"))]


def _plain(value: Any) -> bool | float | str:
    return value if isinstance(value, (bool, int, float, str)) else str(value)


def _test_tag(row: ResultRow) -> str:
    return f"test/{row.benchmark}/{row.task}/{row.metric}"


def join(items: Iterable[object]) -> str:
    """Return items as text, separated by commas."""
    return ", ".join(str(item) for item in items)
