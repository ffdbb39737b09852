"""From the files of finished runs to tables, comparisons with intervals, figures and pages. No model is loaded.

    auris results study=demo [runs=runs] [arms=[a,b]] [against=first|previous] [x=steps|hours|flops]
    auris results reproduce=runs/demo/qwen_audio/seed_0

A run is the directory `runs/<study>/<arm>/seed_<n>/`. What is read of it:

`results.jsonl`: scores (`auris.metrics.records.ResultRow`).
`predictions/<benchmark>.jsonl`: the response to each test row, once per metric (`auris.metrics.records.Prediction`).
`events.out.tfevents*`, TensorBoard scalars: `train/loss`, `val/loss`, `val/<group>/<metric>`, `train/audio_hours`
    (heard so far, rows as often as they came) and `train/flops` (useful: real tokens and frames, nothing twice).
`recipe.yaml`, `environment.json`, `progress.json`, `finished.json`, `evaluations.json`: what the run is,
    what it ran on, how far it is.
`runs/<study>/study.yaml`: the study's question, and its arms in order.

Everything in the table is computed from the predictions, so that arms are compared row by row. Rates are fractions from
0 to 1 in files and functions and per cent where a person reads them; what has another unit has it everywhere.
"""

from importlib import import_module
from typing import Any

_MODULES = {  # imported when one of their functions is first used: pandas and matplotlib take a second
    "figures": ("plot_bars", "plot_curves", "save"),
    "runs": ("collect", "costs", "curves", "hparams", "predictions", "question", "reproduce", "status"),
    "tables": ("markdown", "readable", "table", "verdicts", "verdicts_in"),
}
_LAZY = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"auris.results.{_LAZY[name]}"), name)
