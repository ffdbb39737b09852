"""What runs have left in their directories: scores, answers, curves, how far they are, their costs, what they are."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from auris.errors import MissingFileError, UserError
from auris.files import read_facts
from auris.metrics import records
from auris.metrics.measures import measure
from auris.metrics.records import Prediction, ResultRow

if TYPE_CHECKING:  # pandas and tensorboard are imported where they are used: --help is quick
    import pandas as pd


Facts = dict[str, Any]
"""What a JSON or YAML file of a run says."""


class Scored(NamedTuple):
    """A prediction, and the run and benchmark that it belongs to."""

    arm: str
    seed: int
    benchmark: str
    prediction: Prediction


def collect(root: str | Path) -> pd.DataFrame:
    """All rows of all `results.jsonl` of a study (`runs/<study>`), as the evaluations wrote them."""
    import pandas as pd

    return pd.DataFrame([row.to_json() for _, _, run in runs_of(root) for row in scores(run)])


def scores(run: str | Path) -> list[ResultRow]:
    """The rows of one run's `results.jsonl`; none before it is evaluated."""
    path = Path(run) / "results.jsonl"
    return records.read(path, ResultRow) if path.exists() else []


def predictions(root: str | Path) -> pd.DataFrame:
    """All predictions of a study, with the columns `arm`, `seed` and `benchmark` added."""
    import pandas as pd

    found = [one for arm, seed, run in runs_of(root) for one in predictions_of(run, arm, seed)]
    return pd.DataFrame(
        {**vars(one.prediction), "arm": one.arm, "seed": one.seed, "benchmark": one.benchmark} for one in found
    )


def predictions_of(run: str | Path, arm: str, seed: int) -> list[Scored]:
    """The predictions of one run.

    Raises:
        UserError: A prediction is twice in a file, or its statistics do not fit its metric.
    """
    found = []
    for path in sorted(Path(run).glob("predictions/*.jsonl")):
        seen = set()
        for one in records.read(path, Prediction):
            key = (one.group, one.metric, one.id)
            if key in seen:
                raise UserError(f"{path}: row {one.id!r} ({one.group}, {one.metric}) occurs more than once")
            if len(one.stats) != len(measure(one.metric).stats):
                raise UserError(
                    f"{path}: {one.metric} has the statistics {measure(one.metric).stats}, but a row holds {one.stats}"
                )
            seen.add(key)
            found.append(Scored(arm, seed, path.stem, one))
    return found


def curves(root: str | Path) -> pd.DataFrame:
    """Every TensorBoard scalar of every run of a study: columns arm, seed, tag, step, value."""
    import pandas as pd
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    rows = []
    for arm, seed, run in runs_of(root):
        if any(run.glob("events.out.tfevents*")):
            events = EventAccumulator(str(run), size_guidance={"scalars": 0}).Reload()  # 0: keep every point
            for tag in events.Tags()["scalars"]:
                rows += [(arm, seed, tag, event.step, event.value) for event in events.Scalars(tag)]
    frame = pd.DataFrame(rows, columns=["arm", "seed", "tag", "step", "value"])
    # A resumed run logs the steps since its last checkpoint again.
    return frame.drop_duplicates(["arm", "seed", "tag", "step"], keep="last", ignore_index=True)


def runs_of(root: str | Path) -> list[tuple[str, int, Path]]:
    """Arm, seed and directory of every run of a study. Raises FileNotFoundError if there is none."""
    root = Path(root)
    if not root.is_dir():
        raise MissingFileError(f"no study at {root}; {studies_in(root.parent)}")
    found = [(path.parent.name, int(path.name[5:]), path) for path in root.glob("*/seed_*") if path.name[5:].isdigit()]
    if not found:
        raise MissingFileError(f"{root} holds no runs (<arm>/seed_<n>/); {studies_in(root.parent)}")
    return sorted(found)


def studies_in(runs: Path) -> str:
    """The studies that there are, for a message."""
    names = sorted({path.parent.parent.name for path in runs.glob("*/*/seed_*")})
    return f"studies in {runs}: {', '.join(names)}" if names else f"{runs} holds no study yet"


def ordered(root: str | Path, arms: Iterable[str]) -> list[str]:
    """Arms in the order of their study, the first being the one that the others are compared with; those that it does
    not name follow by words: qwen_audio before qwen2_audio."""
    named = list(read_facts(Path(root) / "study.yaml").get("arms", ()))
    return sorted(arms, key=lambda arm: (named.index(arm) if arm in named else len(named), arm.split("_")))


def question(root: str | Path) -> str:
    """What a study asks, where its runner has left word of it."""
    return read_facts(Path(root) / "study.yaml").get("question", "")


def status(root: str | Path) -> pd.DataFrame:
    """How far each run is: arm, seed, state (waiting, training, trained, evaluated), step, of, benchmarks."""
    import pandas as pd

    rows = []
    for arm, seed, run in runs_of(root):
        progress, finished = (read_facts(run / f"{name}.json") for name in ("progress", "finished"))
        benchmarks = sorted({row.benchmark for row in scores(run)})
        state = "trained" if finished else "training" if progress else "waiting"
        steps = (finished.get("steps", progress.get("step", 0)), progress.get("max_steps", finished.get("steps", 0)))
        rows.append((arm, seed, "evaluated" if benchmarks else state, *steps, ", ".join(benchmarks)))
    frame = pd.DataFrame(rows, columns=["arm", "seed", "state", "step", "of", "benchmarks"])
    order = {arm: place for place, arm in enumerate(ordered(root, frame["arm"].unique()))}
    return frame.sort_values("arm", key=lambda arm: arm.map(order), kind="stable", ignore_index=True)


def unevaluated(root: str | Path) -> list[str]:
    """Say how far each run is that has no scores yet."""
    frame = status(root)
    rows = frame[frame["state"] != "evaluated"].itertuples()
    return [f"{row.arm}, seed {row.seed}: {row.state}, step {row.step} of {row.of}" for row in rows]


def costs(root: str | Path) -> pd.DataFrame:
    """What each arm's training took, the mean of its seeds: audio tokens per second of audio, parameters (all, and
    those that learn), FLOP (useful: matrix products on real tokens and frames), tokens, hours of audio, minutes of its
    last session. NaN for what a run has not noted."""
    import pandas as pd

    rows = []
    for arm, seed, run in runs_of(root):
        facts, finished = (read_facts(run / f"{name}.json") for name in ("environment", "finished"))
        if finished:
            noted = ("audio_tokens_per_second", "parameters", "trained", "operations", "tokens", "hours")
            rows.append((arm, seed, *(facts.get(name, np.nan) for name in noted), finished["seconds"] / 60))
    names = ["audio tokens per second", "parameters", "learning", "FLOP", "tokens", "hours of audio", "minutes"]
    frame = pd.DataFrame(rows, columns=["arm", "seed", *names])
    found = frame.groupby("arm", sort=False)[names].mean()
    return found.loc[ordered(root, found.index)].reset_index()


def hparams(root: str | Path) -> pd.DataFrame:
    """What differs between the recipes of a study's runs, one row a run: columns arm, seed and the keys, dotted."""
    import pandas as pd

    recipes = {}
    for arm, seed, run in runs_of(root):
        [recipes[arm, seed]] = pd.json_normalize(read_facts(run / "recipe.yaml")).to_dict("records")
    names = {"study", "arm", "seed", "run_dir", "runs_dir", "checkpoint"}
    keys = {key for made in recipes.values() for key in made if key not in names and not key.startswith("weights.")}
    differ = [key for key in sorted(keys) if len({str(made.get(key)) for made in recipes.values()}) > 1]
    rows = [
        {"arm": arm, "seed": seed, **{key: made.get(key) for key in differ}} for (arm, seed), made in recipes.items()
    ]
    return pd.DataFrame(rows, columns=["arm", "seed", *differ])


def write_hparams(root: str | Path) -> None:
    """TensorBoard's own form of `hparams`, in each run's directory in place of earlier ones: what its HPARAMS page
    compares beside the scores: those of validation and, where a run was evaluated, of the test rows."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.plugins.hparams import summary_v2 as hp
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    given = hparams(root).set_index(["arm", "seed"])
    runs = runs_of(root)
    tags = sorted({tag for tag in curves(root)["tag"] if tag.startswith("val/")})
    tags += sorted({_test_tag(row) for _, _, run in runs for row in scores(run)})
    for arm, seed, run in runs:
        for old in run.glob("events.out.tfevents*.hparams"):
            old.unlink()
        values = {"arm": arm, "seed": seed, **{key: _plain(value) for key, value in given.loc[(arm, seed)].items()}}
        writer = EventFileWriter(str(run), filename_suffix=".hparams")
        config = hp.hparams_config_pb([hp.HParam(key) for key in values], [hp.Metric(tag) for tag in tags])
        for summary in (config, hp.hparams_pb(values, trial_id=f"{arm}/{seed}")):
            writer.add_event(Event(summary=summary))
        for row in scores(run):
            point = Summary.Value(tag=_test_tag(row), simple_value=row.value)
            writer.add_event(Event(summary=Summary(value=[point])))
        writer.close()


def reproduce(run: str | Path) -> str:
    """How a run was made: its command, commit, versions and data, and the commands of its evaluations, as a script.

    Raises FileNotFoundError for a directory without a recipe.
    """
    run = Path(run)
    if not (run / "recipe.yaml").is_file():
        raise MissingFileError(f"{run} holds no run (no recipe.yaml); give reproduce=runs/<study>/<arm>/seed_<n>")
    facts, evaluations = read_facts(run / "environment.json"), read_facts(run / "evaluations.json")
    versions = ("python", "torch", "lightning", "transformers", "torchaudio", "hydra-core", "numpy")
    lines = [f"# {run}", f"git checkout {_commit(facts)}"]
    lines.append("# " + ", ".join(f"{name} {facts[name]}" for name in versions if name in facts))
    if facts:
        device = f"{facts['ranks']} processes, {facts['threads']} threads, {facts['device']}, {facts['precision']}"
        lines.append(f"# {device}: elsewhere sums round differently")
    lines += _hashes(facts)
    started = read_facts(run / "recipe.yaml")
    starts = [path for path in (started.get("checkpoint"), *(started.get("weights") or {}).values()) if path]
    lines += [f"# first, what it starts from: auris results reproduce={shlex.quote(path)}" for path in starts]
    if facts.get("command"):
        lines.append(f"OMP_NUM_THREADS={facts['threads']} {facts['command']}")
    else:
        lines.append(f"# no command was noted: its resolved recipe is {run / 'recipe.yaml'}")
    for name, made in evaluations.items():
        lines += [f"# benchmark {name}, at {made['commit']}", *_hashes(made), made["command"]]
    return "\n".join(lines)


def _commit(facts: Facts) -> str:
    commit = str(facts.get("commit", "unknown"))
    if commit.endswith("-dirty"):
        return f"{commit.removesuffix('-dirty')}  # there were changes beside this commit"
    return commit if commit != "unknown" else "...  # the commit was not noted"


def _hashes(facts: Facts) -> list[str]:
    """Files of lines for `sha256sum --check`; shards and Parquet, whose hash covers more than a file, as remarks. A
    hash of lines is of the lines: the sound that they name is not in it."""
    found = facts.get("data", {})
    files = [f"{digest}  {path}" for path, digest in found.items() if path.endswith((".jsonl", ".txt"))]
    lines = ["sha256sum --check <<'END'", *files, "END"] if files else []
    return lines + [f"# {path}: {digest}" for path, digest in found.items() if not path.endswith((".jsonl", ".txt"))]


def _plain(value: Any) -> bool | float | str:
    return value if isinstance(value, (bool, int, float, str)) else str(value)


def _test_tag(row: ResultRow) -> str:
    return f"test/{row.benchmark}/{row.task}/{row.metric}"


def join(items: Iterable) -> str:
    return ", ".join(str(item) for item in items)
