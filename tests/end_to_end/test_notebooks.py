"""The notebooks run from start to end, on the files shipped with them and on other studies."""

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
    """Run a notebook with these parameters and return its text output and the MIME types of other output."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "src"))
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    [index] = [n for n, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", [])]
    assignments = "\n".join(f"{key} = {value!r}" for key, value in parameters.items())
    notebook.cells.insert(index + 1, nbformat.v4.new_code_cell(assignments))
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(NOTEBOOKS)}}).execute()
    outputs = []
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            outputs += [output.get("text", "")] if output.output_type == "stream" else list(output.data)
            outputs.append(output.get("data", {}).get("text/plain", ""))
    return "\n".join(outputs)


@pytest.fixture
def study(tmp_path: Path) -> Path:
    return write_study(tmp_path / "runs" / "demo")


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_has_no_stored_outputs_and_no_control_flow(name: str):
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in code)
    assert not [cell.source for cell in code if any(word in cell.source for word in ("def ", "for ", "if ", "lambda"))]


@pytest.mark.slow
def test_the_ablation_report_runs_on_shipped_files(monkeypatch: pytest.MonkeyPatch):
    output = execute("02_ablation_report", monkeypatch)
    assert "one change at a time" in output and output.count("image/png") == 2 and "no difference shown" in output


@pytest.mark.slow
def test_the_paper_tables_run_on_shipped_files(monkeypatch: pytest.MonkeyPatch):
    output = execute("04_paper_tables", monkeypatch)
    assert output.count("image/png") == 2 and "† synthetic" in output and "15.5 [10.0, 21.2] ≠†" in output


@pytest.mark.slow
def test_the_comparison_of_systems_runs_on_another_study(study: Path, monkeypatch: pytest.MonkeyPatch):
    for run in study.glob("*/seed_*"):
        write_events(run, {"train/audio_hours": [(0, 0.0), (298, 1.0)]})
    output = execute("01_compare_systems", monkeypatch, STUDY=str(study))
    assert output.count("image/png") == 3 and "better" in output


@pytest.mark.slow
def test_the_comparison_of_systems_runs_on_shipped_files(monkeypatch: pytest.MonkeyPatch):
    output = execute("01_compare_systems", monkeypatch)
    assert output.count("image/png") == 3 and "v2_dpo" in output and "better" in output


@pytest.mark.slow
def test_the_model_inspection_runs_on_any_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The models are untrained and the audio consists of tones."""
    published.run(tmp_path / "run", "experiment=qwen_audio_pretrain")
    published.run(tmp_path / "aligner", "experiment=encoder_ctc")
    rows = speech_rows(tmp_path, [2.5, 2.0, 2.2, 2.4, 2.1, 2.3, 1.9, 2.6])
    rows[0]["words"] = [
        {"word": word, "start": n / 2, "end": (n + 1) / 2} for n, word in enumerate(["the", "cat", "sat"])
    ]
    runs = {"RUN": str(tmp_path / "run"), "ALIGNER": str(tmp_path / "aligner")}
    output = execute(
        "03_inside_the_model", monkeypatch, ROWS=str(write_manifest(tmp_path / "rows.jsonl", rows)), **runs
    )
    assert output.count("image/png") == 5
    assert output.count("text/html") >= 4  # an audio player, two tables and a page of players
    assert "forced alignment" in output and "as initialised" in output
