"""Results of finished runs: tables with intervals, comparisons of arms, figures and HTML pages. No model is loaded.

    auris results study=demo [runs=runs] [arms=[a,b]] [against=first|previous] [x=steps|hours|flops]
    auris results reproduce=runs/demo/qwen_audio/seed_0

A run is a directory `runs/<study>/<arm>/seed_<n>/`. These of its files are read:

`results.jsonl`: scores (`auris.metrics.records.ResultRow`).
`predictions/<benchmark>.jsonl`: the response to each test row, once per metric (`auris.metrics.records.Prediction`).
`events.out.tfevents*`: TensorBoard scalars: `train/loss`, `val/loss`, `val/<group>/<metric>`, `train/audio_hours`
    (audio processed so far; repeated rows count each time) and `train/flops` (useful operations: real tokens and frames
    only, nothing counted twice).
`recipe.yaml`, `environment.json`, `progress.json`, `finished.json`, `evaluations.json`: the run's config, the machine
    and versions, the progress, and the evaluations.
`runs/<study>/study.yaml`: the study's question, and its arms in order.

All numbers in the table are computed from the predictions, so arms are compared row by row. Rates are fractions from 0
to 1 in files and functions, and per cent in tables and figures. Other metrics have the same unit everywhere.
"""

from importlib import import_module
from typing import Any

# Imported when one of their functions is first used, because pandas and matplotlib take a second to import.
_MODULES = {
    "figures": ("plot_bars", "plot_curves", "save"),
    "runs": ("collect", "costs", "curves", "hparams", "predictions", "question", "reproduce", "status"),
    "tables": ("markdown", "readable", "table", "verdicts", "verdicts_in"),
}
_LAZY = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"auris.results.{_LAZY[name]}"), name)
