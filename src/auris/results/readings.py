"""Error rates of the readings of the same rows: what limits a model, its audio tokens or its language model?

An error rate of the model stands next to those of its aligner's CTC reading, of the encoder's own decoder and of the
text ceiling, which is the model given the transcripts in place of the sound (`records.EvaluationName`). All of them
are computed on the rows that all of them have. What the language model can do without audio, its loss on text and its
answers to questions, stands next to the same of the language model that training started from.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.style import context as style_context

from auris.metrics import edits
from auris.metrics.measures import ERROR_NOTE, MEASURES, format_value, score
from auris.metrics.records import ALIGNER, AS_IS, CTC, DECODER, SHUFFLED, SILENCE, START, TEXT, EvaluationName
from auris.results import cells
from auris.results.cells import frame_rows
from auris.results.figures import ADVICE, add_legend, draw_bars
from auris.results.tables import markdown_table, read_chosen_predictions, score_columns
from auris.text.figure_style import CAPTION, STYLE, assign_colours

MODEL = "model"  # the column of the model's own responses
COLUMNS = (MODEL, ALIGNER, CTC, DECODER, TEXT, START)
# Metrics of rows without audio, which are compared with the language model at the start of training.
LANGUAGE_METRICS = ("text_loss", "contains")
CONTROLS = (SILENCE, SHUFFLED)
_CONTROL_COLUMNS = {f"control {MODEL}": MODEL, **{audio: audio for audio in CONTROLS}}  # -> column of the evaluation
# Reading and audio of an evaluation -> column of the table; other evaluations have no column.
_COLUMN_OF: Mapping[tuple[str | None, str], str] = {
    (None, AS_IS): MODEL,
    **{(reading, AS_IS): reading for reading in COLUMNS[1:]},
    **{(None, audio): audio for audio in CONTROLS},
}
LABELS = {
    MODEL: "this model",
    ALIGNER: "CTC reading of its aligner",
    CTC: "CTC reading of its audio tokens",
    DECODER: "encoder's own decoder",
    TEXT: "text ceiling",
    START: "language model at the start",
    SILENCE: "silence",
    SHUFFLED: "shuffled audio",
}
_DETAILS = {"insertions": "ins.", "deletions": "del.", "substitutions": "sub.", "runaway": "runaway"}  # of the model

NOTE = (
    "CTC reading: the best path through the audio tokens of its aligner (aligner) or its own (ctc), without the "
    "language model. Encoder's own decoder (decoder): transcripts of the system that the encoder comes from. Text "
    "ceiling (text): this model, given the transcript in place of the sound. All columns of a line are computed on the "
    "same n rows; n/N: the other rows of the group lack a result in one of the columns."
)


def compare_readings(root: str | Path, arms: Sequence[str] | None = None) -> pd.DataFrame:
    """Return the scores of the readings of a study, with a row for each arm, group of test rows and metric.

    The metrics are error rates, and LANGUAGE_METRICS of rows without audio.

    Columns: arm, benchmark, group, metric; `n` (number of rows that all readings of the arm have) and `rows` (number of
    rows that any of them has); for each of COLUMNS its score on these n rows, such as `model` or `text`, and
    the ends of its 95 % interval (`<column> low`, `<column> high`); `insertions`, `deletions`, `substitutions` and
    `runaway` of the model.

    For the controls: `control n` (number of rows that the model has answered with their own audio and with each of
    CONTROLS), and on these rows `control model`, `silence` and `shuffled` with intervals.

    What an arm does not have is NaN. The frame is empty if the study has no evaluation with a reading.

    Args:
        root: The study's directory.
        arms: Arms of the table; None: all arms with predictions.
    """
    scored, arms, _ = read_chosen_predictions(root, arms)
    names = {text: EvaluationName.parse(text) for text in scored["benchmark"].unique()}
    with_reading = {name.benchmark for name in names.values() if name.reading}
    scored = scored.assign(
        column=[_COLUMN_OF.get((names[text].reading, names[text].audio), "") for text in scored["benchmark"]],
        benchmark=[names[text].benchmark for text in scored["benchmark"]],
    )
    scored = scored[scored["benchmark"].isin(with_reading)]
    lines = []
    for arm in arms:
        of_arm = scored[scored["arm"] == arm]
        for (benchmark, group), members in of_arm.groupby(["benchmark", "group"]):
            for metric in sorted(set(members["metric"]) & {*edits.RATES, *LANGUAGE_METRICS}):
                names_of_line = {"arm": arm, "benchmark": benchmark, "group": group, "metric": metric}
                lines.append(names_of_line | _compare(members, metric))
    return pd.DataFrame(lines)


def _compare(members: pd.DataFrame, metric: str) -> dict[str, Any]:
    """Return the columns of `compare_readings` for one line, given the predictions of one arm and group."""
    of_metric = members[members["metric"] == metric]
    by_column = {str(column): rows for column, rows in of_metric.groupby("column")}
    present = [by_column[column] for column in COLUMNS if column in by_column]
    common = _common_keys(present)
    line: dict[str, Any] = {"n": _count_rows(common), "rows": len(set().union(*(rows["id"] for rows in present)))}
    for column in COLUMNS:
        line |= _score_rows(by_column.get(column), common, metric, column)
    of_model = _choose(members[members["column"] == MODEL], common)
    for detail in _DETAILS:
        stats = of_model.loc[of_model["metric"] == detail, "stats"].tolist()
        line[detail] = score(detail, stats) if stats else np.nan
    present = [by_column[column] for column in _CONTROL_COLUMNS.values() if column in by_column]
    common = _common_keys(present) if len(present) > 1 else set()
    line["control n"] = _count_rows(common)
    for name, column in _CONTROL_COLUMNS.items():
        line |= _score_rows(by_column.get(column), common, metric, name)
    return line


def _common_keys(evaluations: Sequence[pd.DataFrame]) -> set[tuple[int, str]]:
    """Return seed and id of the rows that all evaluations have with this seed."""
    return set.intersection(*(set(_keys(rows)) for rows in evaluations)) if evaluations else set()


def _keys(rows: pd.DataFrame) -> Iterable[tuple[int, str]]:
    return zip(rows["seed"], rows["id"], strict=True)


def _count_rows(keys: Iterable[tuple[int, str]]) -> int:
    return len({row_id for _, row_id in keys})


def _choose(rows: pd.DataFrame, keys: set[tuple[int, str]]) -> pd.DataFrame:
    return rows[np.array([key in keys for key in _keys(rows)], dtype=bool)]


def _score_rows(rows: pd.DataFrame | None, keys: set[tuple[int, str]], metric: str, name: str) -> dict[str, float]:
    """Return the score of the rows with these seeds and ids, and the ends of its interval; NaN without rows."""
    chosen = pd.DataFrame() if rows is None else _choose(rows, keys)
    columns = score_columns(chosen, metric, name)
    return {key: columns[key] for key in (name, f"{name} low", f"{name} high")}


# --- texts --------------------------------------------------------------------------------------------------------


def of_language(frame: pd.DataFrame) -> pd.Series:
    """Return which rows of `compare_readings` are scores of the language model without audio."""
    return frame["metric"].isin(LANGUAGE_METRICS)


def tabulate(frame: pd.DataFrame, *, brief: bool = False) -> tuple[list[str], list[list[str]]]:
    """Return the heading and the rows of the table of error rates as texts, in %, without columns that have no score.

    Args:
        frame: The result of `compare_readings`.
        brief: Leave out intervals and the details of errors, and shorten the headings.
    """
    frame = frame[~of_language(frame)]
    columns = [column for column in COLUMNS if frame[column].notna().any()]
    details = {} if brief else _DETAILS
    head = ["arm", "task", "n", *(column if brief else LABELS[column] for column in columns), *details.values()]
    rows = []
    for row in frame_rows(frame):
        n = str(row["n"]) if row["n"] == row["rows"] else f"{row['n']}/{row['rows']}"
        rates = [_format_rate(row, column, brief) for column in columns]
        shares = ["-" if np.isnan(row[metric]) else format_value(metric, row[metric]) for metric in details]
        rows.append([row["arm"], _task(row, frame), n, *rates, *shares])
    return head, rows


def tabulate_controls(frame: pd.DataFrame, *, brief: bool = False) -> tuple[list[str], list[list[str]]]:
    """Return the table of error rates with silence and with shuffled audio, in the form of `tabulate`."""
    head = ["arm", "task", "n", *(label if brief else LABELS[label] for label in _CONTROL_COLUMNS.values())]
    rows = []
    for row in frame_rows(frame[frame["control n"] > 0]):
        rates = [_format_rate(row, column, brief) for column in _CONTROL_COLUMNS]
        rows.append([row["arm"], _task(row, frame), str(row["control n"]), *rates])
    return head, rows


def tabulate_language(frame: pd.DataFrame, *, brief: bool = False) -> tuple[list[str], list[list[str]]]:
    """Return the table of scores without audio, at the start of training and now, in the form of `tabulate`."""
    columns = (START, MODEL)
    head = ["arm", "task", "n", *(column if brief else LABELS[column] for column in columns)]
    rows = []
    for row in frame_rows(frame[of_language(frame)]):
        scores = [_format_rate(row, column, brief) for column in columns]
        task = f"{row['group']}, {MEASURES[row['metric']].label}"
        rows.append([row["arm"], task, str(row["n"]), *scores])
    return head, rows


def _task(row: Mapping[str, Any], frame: pd.DataFrame) -> str:
    """Return the group of a row, and its metric and benchmark unless they are the same in all rows or WER."""
    metric = [] if row["metric"] == "wer" else [MEASURES[row["metric"]].label]
    benchmark = [f"({row['benchmark']})"] if frame["benchmark"].nunique() > 1 else []
    return " ".join([row["group"], *metric, *benchmark])


def _format_rate(row: Mapping[str, Any], column: str, brief: bool) -> str:
    if np.isnan(row[column]):
        return "-"
    if brief:
        return format_value(row["metric"], row[column])
    return cells.format_interval(row["metric"], *(row[f"{column}{part}"] for part in ("", " low", " high")))


def format_markdown(frame: pd.DataFrame) -> str:
    """Return the result of `compare_readings` in Markdown."""
    head, rows = tabulate(frame)
    lines = ["WER in % [95 % bootstrap interval] of each reading:", ""]
    lines += [*markdown_table(head, rows, n_number_columns=len(head) - 2), "", NOTE, "", ERROR_NOTE, ""]
    for title, (head, rows) in (
        ("The model with silence, and with the audio of other rows, on the same n rows:", tabulate_controls(frame)),
        (
            "The language model without audio, at the start of training and now: loss on held-out text in nats per "
            "token, and right answers to questions in %:",
            tabulate_language(frame),
        ),
    ):
        if rows:
            lines += [title, "", *markdown_table(head, rows, n_number_columns=len(head) - 2), ""]
    return "\n".join(lines)


# --- figure -------------------------------------------------------------------------------------------------------


def plot_readings(root: str | Path, frame: pd.DataFrame) -> Figure:
    """Plot the error rates of the readings as bars, with an axis for each arm.

    Args:
        root: The study's directory.
        frame: The result of `compare_readings`.
    """
    frame = frame[~of_language(frame)]
    columns = [column for column in COLUMNS if frame[column].notna().any()]
    colours = assign_colours(columns, ADVICE)
    by_arm = {str(arm): frame_rows(rows) for arm, rows in frame.groupby("arm", sort=False)}
    n_groups = max(map(len, by_arm.values()))
    with style_context(STYLE):
        figure = Figure(
            figsize=(5.6 * len(by_arm) + 0.4, 1.6 + n_groups * (0.14 + 0.17 * len(columns))), layout="constrained"
        )
        axes = figure.subplots(1, len(by_arm), squeeze=False, sharex=True)[0]
        for axis, (arm, rows) in zip(axes, by_arm.items(), strict=True):
            draw_bars(axis, f"{arm}: error rate (%)", rows, colours, frame["benchmark"].nunique() > 1, as_points=False)
        axes[0].set_xlim(0, max(axis.dataLim.xmax for axis in axes) * 1.15)
        add_legend(figure, root, {LABELS[column]: colour for column, colour in colours.items()})
        caption = (
            "Test-set error rates of each reading on the same n rows; whiskers: 95 % bootstrap interval over rows (or "
            "speakers).\nText ceiling: the model given the transcript in place of the sound."
        )
        figure.supxlabel(caption, **CAPTION)
    return figure
