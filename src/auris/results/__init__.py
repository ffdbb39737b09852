"""From the files of finished runs to a table, a comparison with intervals and figures. Of ours it imports only
`measures` and `statistics`.

    auris results study=demo [runs=runs] [arms=a,b] [against=first|previous] [x=steps|hours|flops]
    auris results reproduce=runs/demo/qwen_audio/seed_0

A run is the directory `runs/<study>/<arm>/seed_<n>/`. What is read of it:

`results.jsonl`, one line per score:
    {study, arm, seed, benchmark, task, split, metric, value, low, high, n, units, detectable, signature, provenance}
    `task` is the group of rows that the score is of, such as "asr en", "s2tt de-en" or "sec".
`predictions/<benchmark>.jsonl`, one line per test row and metric:
    {id, task, language, group, metric, stats, hypothesis, reference, provenance, audio_seconds,
    speaker, recording}
    `group` is what `task` is above; `stats` is what the row contributes (`auris.metrics.measures`). A row scored by two
    metrics (accuracy, unparsed) is two lines; (group, metric, id) occurs once in a file.
`events.out.tfevents*`, TensorBoard scalars: `train/loss`, `val/loss`, `val/<group>/<metric>`, `train/audio_hours`
    (heard so far, rows as often as they came) and `train/flops` (useful: real tokens and frames, nothing twice).
`recipe.yaml`, `environment.json`, `progress.json`, `finished.json`, `evaluations.json`: what the run is,
    what it ran on, how far it is.
`runs/<study>/study.yaml`: the study's question, and its arms in order.

Everything in the table is computed from the predictions, so that arms are compared row by row. Rates are fractions from
0 to 1 in files and functions and per cent where a person reads them; what has another unit has it everywhere.
"""

from auris.results.figures import plot_bars, plot_curves, save
from auris.results.runs import (
    collect,
    costs,
    curves,
    hparams,
    ordered,
    predictions,
    predictions_of,
    question,
    reproduce,
    runs_of,
    scores,
    status,
)
from auris.results.tables import compare, format_score, markdown, readable, table, verdicts, verdicts_in
from auris.text.figure_style import STYLE

__all__ = [
    "STYLE",
    "collect",
    "compare",
    "costs",
    "curves",
    "format_score",
    "hparams",
    "markdown",
    "ordered",
    "plot_bars",
    "plot_curves",
    "predictions",
    "predictions_of",
    "question",
    "readable",
    "reproduce",
    "runs_of",
    "save",
    "scores",
    "status",
    "table",
    "verdicts",
    "verdicts_in",
]
