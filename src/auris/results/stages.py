"""Learning curves by stage: those of the arms of a study, below those of the runs that their weights come from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.style import context as style_context

from auris.errors import UserError
from auris.files import read_metadata
from auris.metrics import edits
from auris.results.figures import ADVICE, add_legend, draw_curves, tag_order
from auris.results.runs import list_runs, read_scalars, sort_arms
from auris.text.figure_style import CAPTION, STYLE, assign_colours


class StageRun(NamedTuple):
    """A run, as part of a study.

    Attributes:
        stage: The stage that it trains, such as align, llm_text or pretrain.
        seed: Its seed.
        path: Its directory.
        arms: The arms that start from it, or the arm that it trains.
    """

    stage: str
    seed: int
    path: Path
    arms: tuple[str, ...]


def find_stages(root: str | Path, arms: Sequence[str] | None = None) -> list[StageRun]:
    """Return the runs of the arms, and before them the runs that their initial weights come from.

    Args:
        root: The study's directory.
        arms: The arms; None: all arms.
    """
    root = Path(root)
    arms_of_run: dict[Path, list[str]] = {}  # a run comes after those that it needs

    def add(run: Path, arm: str) -> None:
        config = read_metadata(run / "recipe.yaml")
        sources = [config.get("checkpoint"), *(config.get("weights") or {}).values()]
        for source in filter(None, sources):
            # The path may be relative to another directory: runs lie in <runs>/<study>/<arm>/seed_<n>.
            source_run = root.parent.joinpath(*Path(source).parts[-3:])
            if (source_run / "recipe.yaml").is_file():
                add(source_run, arm)
        if arm not in arms_of_run.setdefault(run, []):
            arms_of_run[run].append(arm)

    runs = list_runs(root)
    for arm in arms or sort_arms(root, {arm for arm, _, _ in runs}):
        for run in [run for name, _, run in runs if name == arm]:
            add(run, arm)
    return [
        StageRun(str(read_metadata(run / "recipe.yaml").get("stage")), int(run.name[5:]), run, tuple(run_arms))
        for run, run_arms in arms_of_run.items()
    ]


def plot_stages(root: str | Path, arms: Sequence[str] | None = None) -> Figure:
    """Plot the training loss, the validation loss and validation error rates of each stage, one stage in each row.

    A line is the mean over the seeds of the runs that the same arms start from.

    Args:
        root: The study's directory.
        arms: The arms; None: all arms.

    Raises:
        UserError: No run has scalars.
    """
    runs = find_stages(root, arms)
    all_arms = list(dict.fromkeys(arm for run in runs for arm in run.arms))
    labels = {run.path: "all arms" if len(run.arms) == len(all_arms) > 1 else ", ".join(run.arms) for run in runs}
    points = pd.concat([read_scalars([(labels[run.path], run.seed, run.path)]).assign(stage=run.stage) for run in runs])
    tags = points["tag"]
    points = points[tags.isin(("train/loss", "val/loss")) | tags.str.fullmatch(rf"val/.*/({'|'.join(edits.RATES)})")]
    points = points.assign(x=points["step"])
    if points.empty:
        raise UserError(f"the runs of {root} have no train/loss or val/* scalars")
    # Arms come first, so that they have the same colours as in the other figures.
    colours = assign_colours([*all_arms, *(label for label in points["arm"].unique() if label not in all_arms)], ADVICE)
    stages = {str(stage): rows for stage, rows in points.groupby("stage", sort=False)}
    tags_by_stage = {stage: sorted(rows["tag"].unique(), key=tag_order) for stage, rows in stages.items()}
    n_columns = max(map(len, tags_by_stage.values()))
    with style_context(STYLE):
        figure = Figure(figsize=(2.8 * n_columns + 0.6, 2.1 * len(stages) + 0.9), layout="constrained")
        axes = figure.subplots(len(stages), n_columns, squeeze=False)
        for row, (stage, rows) in zip(axes, stages.items(), strict=True):
            for axis, tag in zip(row, tags_by_stage[stage], strict=False):
                members = rows[rows["tag"] == tag]
                draw_curves(axis, tag, members, {arm: colours[arm] for arm in members["arm"].unique()})
            for axis in row[len(tags_by_stage[stage]) :]:
                axis.set_visible(False)
            row[0].set_ylabel(stage, fontweight="bold")
        add_legend(figure, root, colours)
        figure.supxlabel("Horizontal axis: training steps. Scores: validation rows. Rows: stages, in order.", **CAPTION)
    return figure
