"""The studies in `ablations/`, at the smallest size: every arm of each takes its first steps. That they compose and
differ is looked at in test_configs.py."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from auris import config
from auris.corpus import instruct
from auris.data.batches import RowDataset
from auris.training import run as train
from auris.training import studies
from support.recipes import smallest_run
from support.runs import ROOT

STUDIES = sorted(path.stem for path in (ROOT / "ablations").glob("*.yaml"))


@pytest.fixture(autouse=True)
def at_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


@pytest.fixture(scope="module")
def rows(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small corpus with the tasks that have times as well, and dialogues and pairs about it."""
    folder = tmp_path_factory.mktemp("all")
    for split in ("train", "valid", "test"):
        found = [json.loads(line) for line in (corpus / f"{split}.jsonl").read_text().splitlines()]
        found = [row | {"audio": str(corpus / row["audio"])} for row in found]
        timed = []
        for row in found:
            end = row["duration"]
            if row["task"] == "asr" and row["language"] == "en":
                words = [{"word": row["text"].split()[0], "start": 0.0, "end": round(end, 2)}]
                timed.append(row | {"id": f"srwt {row['id']}", "task": "srwt", "words": words})
            elif row["task"] == "sec":
                events = [{"label": row["text"], "start": 0.0, "end": round(end, 2)}]
                timed.append(row | {"id": f"sed {row['id']}", "task": "sed", "events": events})
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*found, *timed]))
    (folder / "tokenizer").symlink_to(corpus / "tokenizer")
    (folder / "text.txt").symlink_to(corpus / "text.txt")
    few = [f"dialogues.{kind}.{split}=8" for kind in ("rows", "preferences") for split in ("train", "valid", "test")]
    options = config.resolve(config.compose([f"corpus={corpus}", f"out={folder}/dialogues", *few], "instruct"))
    instruct.instruct(Path(options.pop("corpus")), Path(options.pop("out")), **options)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", STUDIES)
def test_every_arm_takes_its_first_steps(name: str, rows: Path, tmp_path: Path):
    study = OmegaConf.to_container(config.compose([f"ablations={name}"]), resolve=False)
    small = [*smallest_run(rows, tmp_path), "max_steps=2", "+trainer.limit_val_batches=1", "data.num_workers=0"]
    for job in studies.plan(study, [*small, f"++data.dialogues={rows}/dialogues"], seed=study["seeds"][0]):
        done = json.loads((train.train(job.config) / "finished.json").read_text())
        assert done["steps"] == 2 and done["train/loss"] > 0, job.key
        _, data = train.build(job.config)
        data.setup("fit")
        first = {row.labels["task"]: number for number, row in reversed(list(enumerate(data.rows)))}
        packs = RowDataset(data.rows, [(number, 0) for number in first.values()], data.samples)
        assert all(packs[n]["rows"] for n in range(len(first))), f"{job.key}: of {first} none may be left out"


def test_the_readme_of_the_studies_names_each_with_its_question_and_runs():
    lines = (ROOT / "ablations/README.md").read_text().splitlines()
    for name in (name for name in STUDIES if name != "template"):
        study = config.compose([f"ablations={name}"])
        [line] = [line for line in lines if f"({name}.yaml)" in line]
        assert study["question"].split(", tiny")[0] in line
        assert f"| {len(study['arms'])} x {len(study['seeds'])} |" in line
