"""The examples of docs/forms.md are read as the page says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from auris.data.manifests import read_manifests
from auris.data.rows import Clip, Row

PAGE = Path(__file__).parents[3] / "docs/forms.md"


def sections() -> dict[str, list[str]]:
    """Return the JSON examples of each section of the page, by the title of the section."""
    titles_and_texts = re.split(r"^## (.*)$", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    examples = (re.findall(r"```json\n(.*?)```", text, re.DOTALL) for text in titles_and_texts[1::2])
    return {title: blocks for title, blocks in zip(titles_and_texts[::2], examples, strict=True) if blocks}


def read(folder: Path, example: str) -> list[Row]:
    path = folder / "rows.json"
    path.write_text(example, encoding="utf-8")
    (manifest,) = read_manifests([path])
    return list(manifest.rows)


@pytest.mark.filterwarnings("error::UserWarning")  # no example has a field that is not used
@pytest.mark.parametrize(
    ("section", "n_examples", "task"),
    [("Dialogues", 10, "chat"), ("Preferences", 5, "preference"), ("Task rows", 2, "asr")],
)
def test_all_examples_of_a_section_are_the_same_row(tmp_path, section, n_examples, task):
    examples = sections()[section]
    assert len(examples) == n_examples
    rows = [row for example in examples for row in read(tmp_path, example)]
    for row in rows:
        assert row.problem is None and row.clips == (Clip(tmp_path / "a.wav"),) and row.labels["task"] == task
        assert row.labels.items() >= {key: rows[0].labels[key] for key in rows[0].labels}.items()


def test_the_example_of_a_flag_learns_only_the_last_answer(tmp_path):
    [example] = sections()["Flags: what is learned"]
    [row] = read(tmp_path, example)
    assert row.problem is None
    assert [message.get("loss", True) for message in row.labels["messages"] if message["role"] == "assistant"] == [
        False,
        True,
    ]


def test_every_example_of_a_refused_row_has_a_problem(tmp_path):
    [example] = sections()["Rows that are refused"]
    reasons = [row.problem for row in read(tmp_path, example)]
    for reason, expected in zip(
        reasons,
        ("no message of the assistant is learned", "`weight`", "`label`", "`kto_tag`", "`images`", "URL", "`loss`"),
        strict=True,
    ):
        assert expected in reason
