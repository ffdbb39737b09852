"""The notebooks run from end to end, on the files that come with them and on those of other studies."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from support import published
from support.manifests import speech_rows, write_manifest
from support.runs import ROOT
from support.studies import write_events, write_study

NOTEBOOKS = ROOT / "notebooks"
NAMES = sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb"))


def execute(name: str, monkeypatch: pytest.MonkeyPatch, **parameters: object) -> str:
    """Run a notebook with other parameters; returns all that it shows, pictures by their type."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "src"))
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    [place] = [n for n, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", [])]
    given = "\n".join(f"{key} = {value!r}" for key, value in parameters.items())
    notebook.cells.insert(place + 1, nbformat.v4.new_code_cell(given))
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(NOTEBOOKS)}}).execute()
    shown = []
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            shown += [output.get("text", "")] if output.output_type == "stream" else list(output.data)
            shown.append(output.get("data", {}).get("text/plain", ""))
    return "\n".join(shown)


@pytest.fixture
def study(tmp_path: Path) -> Path:
    return write_study(tmp_path / "runs" / "demo")


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_is_kept_without_outputs_and_holds_no_logic(name: str):
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in code)
    assert not [cell.source for cell in code if any(word in cell.source for word in ("def ", "for ", "if ", "lambda"))]


@pytest.mark.slow
def test_the_report_runs_on_its_shipped_files(monkeypatch: pytest.MonkeyPatch):
    shown = execute("02_ablation_report", monkeypatch)
    assert "one change at a time" in shown and shown.count("image/png") == 2 and "no difference shown" in shown


@pytest.mark.slow
def test_the_papers_tables_are_filled_from_shipped_files(monkeypatch: pytest.MonkeyPatch):
    shown = execute("04_paper_tables", monkeypatch)
    assert shown.count("image/png") == 2 and "† synthetic" in shown and "15.5 [10.0, 21.2] ≠†" in shown


def test_the_comparison_runs_on_another_study(study: Path, monkeypatch: pytest.MonkeyPatch):
    for run in study.glob("*/seed_*"):
        write_events(run, {"train/audio_hours": [(0, 0.0), (298, 1.0)]})
    shown = execute("01_compare_systems", monkeypatch, STUDY=str(study))
    assert shown.count("image/png") == 3 and "better" in shown


@pytest.mark.slow
def test_the_shipped_ladder_is_compared_rung_by_rung(monkeypatch: pytest.MonkeyPatch):
    shown = execute("01_compare_systems", monkeypatch)
    assert shown.count("image/png") == 3 and "v2_dpo" in shown and "better" in shown


@pytest.mark.slow
def test_the_inside_of_any_run_s_model_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Of models that nobody has trained, on tones."""
    published.run(tmp_path / "run", "experiment=qwen_audio_pretrain")
    published.run(tmp_path / "aligner", "experiment=encoder_ctc")
    rows = speech_rows(tmp_path, [2.5, 2.0, 2.2, 2.4, 2.1, 2.3, 1.9, 2.6])
    rows[0]["words"] = [
        {"word": word, "start": n / 2, "end": (n + 1) / 2} for n, word in enumerate(["the", "cat", "sat"])
    ]
    runs = {"RUN": str(tmp_path / "run"), "ALIGNER": str(tmp_path / "aligner")}
    shown = execute("03_inside_the_model", monkeypatch, ROWS=str(write_manifest(tmp_path / "rows.jsonl", rows)), **runs)
    assert (
        shown.count("image/png") == 5 and shown.count("text/html") >= 4
    )  # a player, two tables, and a page of players
    assert "forced alignment" in shown and "as initialised" in shown
