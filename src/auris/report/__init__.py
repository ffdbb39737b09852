"""A run or a study as one HTML page that needs nothing else: scores with intervals, confusion matrices, the worst rows
with their sound and, where words or characters are counted, what was said against what is true.

    python -m auris.report run=runs/demo/qwen2_audio/seed=0
    python -m auris.report study=demo

It reads what evaluations have left (`auris.results`, `auris.kept`); no model is loaded and nothing is scored again.
"""

from auris.report.command import USAGE, main
from auris.report.pages import Page, of_run, of_study
from auris.report.template import render

__all__ = ["USAGE", "Page", "main", "of_run", "of_study", "render"]
