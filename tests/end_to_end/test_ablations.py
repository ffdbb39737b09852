"""Every arm of the studies in `ablations/` trains for a few steps at the smallest size.

`test_configs.py` tests that the configs of all arms compose and differ.
"""

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
def extended_corpus(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the small corpus, extended by rows with word times or event times, dialogues, and preference pairs."""
    folder = tmp_path_factory.mktemp("all")
    for split in ("train", "valid", "test"):
        rows = [json.loads(line) for line in (corpus / f"{split}.jsonl").read_text().splitlines()]
        rows = [row | {"audio": str(corpus / row["audio"])} for row in rows]
        timed = []
        for row in rows:
            end = row["duration"]
            if row["task"] == "asr" and row["language"] == "en":
                words = [{"word": row["text"].split()[0], "start": 0.0, "end": round(end, 2)}]
                timed.append(row | {"id": f"srwt {row['id']}", "task": "srwt", "words": words})
            elif row["task"] == "sec":
                events = [{"label": row["text"], "start": 0.0, "end": round(end, 2)}]
                timed.append(row | {"id": f"sed {row['id']}", "task": "sed", "events": events})
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows, *timed]))
    (folder / "tokenizer").symlink_to(corpus / "tokenizer")
    (folder / "text.txt").symlink_to(corpus / "text.txt")
    sizes = [f"dialogues.{kind}.{split}=8" for kind in ("rows", "preferences") for split in ("train", "valid", "test")]
    options = config.resolve(config.compose([f"corpus={corpus}", f"out={folder}/dialogues", *sizes], "instruct"))
    instruct.instruct(Path(options.pop("corpus")), Path(options.pop("out")), **options)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", STUDIES)
def test_every_arm_trains_for_two_steps(name: str, extended_corpus: Path, tmp_path: Path):
    study = OmegaConf.to_container(config.compose([f"ablations={name}"]), resolve=False)
    if study["vars"]:
        pytest.skip(f"{name} needs weights and recordings of the user (vars)")
    overrides = [
        *smallest_run(extended_corpus, tmp_path),
        "max_steps=2",
        "+trainer.limit_val_batches=1",
        "data.num_workers=0",
    ]
    for job in studies.plan_jobs(
        study, [*overrides, f"++data.dialogues={extended_corpus}/dialogues"], seed=study["seeds"][0]
    ):
        finished = json.loads((train.train(job.config) / "finished.json").read_text())
        assert finished["steps"] == 2 and finished["train/loss"] > 0, job.key
        _, data = train.build(job.config)
        data.setup("fit")
        first_of_task = {row.labels["task"]: number for number, row in reversed(list(enumerate(data.rows)))}
        packs = RowDataset(data.rows, [(number, 0) for number in first_of_task.values()], data.samples)
        assert all(packs[n]["rows"] for n in range(len(first_of_task))), (
            f"{job.key}: a row of {first_of_task} was dropped"
        )
