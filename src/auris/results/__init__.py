"""Results of evaluated runs: tables with intervals, comparisons of systems, figures and HTML pages. No model is loaded.

    auris results study=demo [runs=runs] [arms=[a,b]] [against=first|previous] [x=steps|hours|flops]
    auris results reproduce=runs/demo/qwen_audio/seed_0

A study compares systems, which are called arms. Each arm is trained with one or more seeds. A run is one of these
trainings and has the directory `runs/<study>/<arm>/seed_<n>/`. The following files of a run are read:

`results.jsonl`: scores (`auris.metrics.records.ResultRow`).
`predictions/<benchmark>.jsonl`: the responses to the test rows, once per metric (`auris.metrics.records.Prediction`).
`events.out.tfevents*`: TensorBoard scalars: `train/loss`, `val/loss`, `val/<group>/<metric>`, `train/audio_hours`
    (audio processed so far; repeated rows count each time) and `train/flops` (useful floating-point operations, without
    padding and recomputation).
`recipe.yaml`, `environment.json`, `progress.json`, `finished.json`, `evaluations.json`: the config of the run, the
    machine and versions, the progress of the training, its end, and the evaluations.

`runs/<study>/study.yaml` contains the question that the study asks, and the names of its arms in order.

All numbers in tables are computed from predictions, so that arms can be compared row by row. Rates are fractions from 0
to 1 in files and functions, and per cent in tables and figures. Other metrics have the same unit everywhere.
"""

from importlib import import_module
from typing import Any

# The functions of `auris.results` by module. A module is imported when one of its functions is first used, because
# importing pandas and matplotlib takes a second.
_MODULES = {
    "figures": ("plot_bars", "plot_curves", "save_figure"),
    "readings": ("compare_readings", "plot_readings"),
    "runs": ("collect", "costs", "curves", "hparams", "predictions", "question", "reproduce", "status"),
    "stages": ("plot_stages",),
    "tables": ("format_markdown", "format_table", "table", "verdicts", "verdicts_in"),
}
_LAZY = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"auris.results.{_LAZY[name]}"), name)
