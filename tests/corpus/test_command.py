"""Tests of `auris corpus`: settings that a kind of corpus does not use, and what is printed at the end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from auris import cli, config
from auris.corpus.command import fill_in
from auris.corpus.sentences import TEXT_LANGUAGES
from auris.errors import UsageError


@pytest.fixture(scope="module")
def defaults() -> dict[str, Any]:
    return config.resolve(config.compose(["out=x"], "corpus"), "corpus")


@pytest.mark.parametrize(
    ("values", "filled_in"),
    [
        ({}, {"text_lines": 20_000, "fraction": 1.0}),
        ({"fraction": 0.5, "sizes": {"train": {"ks": 7}}}, {"text_lines": 20_000}),
        ({"text": "a"}, {"language": "en"}),
        ({"text": "a", "language": "de"}, {}),
        ({"llm": "b"}, {"sentences": 1000}),
        ({"llm": "b", "sentences": 7}, {}),
    ],
)
def test_null_stands_for_the_default_of_the_kind_of_corpus(
    defaults: dict[str, Any], values: dict[str, Any], filled_in: dict[str, Any]
) -> None:
    assert fill_in(defaults | values) == defaults | values | filled_in


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"text": "a", "llm": "b"}, "text=a and llm=b: expected one of the two"),
        (
            {"text": "a", "fraction": 1},
            "fraction=1 has no effect with text=a: set fraction=null, or leave out text and",
        ),
        ({"llm": "b", "text_lines": 20_000}, "text_lines=20000 has no effect with llm=b"),
        ({"llm": "b", "language": "en"}, "language=en has no effect with llm=b: set language=null, or set text=FILE"),
        ({"text": "a", "sentences": 9}, "sentences=9 has no effect with text=a: set sentences=null, or set llm=DIR"),
        ({"sentences": 9}, "sentences=9 has no effect without text=FILE or llm=DIR"),
        ({"language": "de"}, "language=de has no effect without text=FILE or llm=DIR"),
        ({"text": "a", "sizes": {"train": {"ks": 7}}}, "sizes have no effect with text=a"),
        ({"llm": "b", "sizes": {}}, "sizes have no effect with llm=b"),
    ],
)
def test_a_setting_without_effect_is_an_error(defaults: dict[str, Any], values: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        fill_in(defaults | values)


def test_typed_sizes_without_effect_are_an_error_even_if_they_are_the_default(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["corpus", f"out={tmp_path / 'corpus'}", "text=a", "sizes=core"]) == 2
    assert "sizes have no effect with text=a" in capsys.readouterr().err


def test_a_directory_without_weights_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["corpus", f"out={tmp_path / 'corpus'}", f"llm={tmp_path}"]) != 0
    assert "there are no weights (*.safetensors)" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("override", "expected"),
    [("language=zh", "en or de or es or fr or it or null"), ("sentences=0", "an integer >= 1 or null")],
)
def test_a_value_that_is_not_allowed_is_an_error(override: str, expected: str) -> None:
    with pytest.raises(UsageError, match=f"{override}: expected {expected}"):
        config.resolve(config.compose(["out=x", override], "corpus"), "corpus")


def test_the_languages_of_texts_are_those_that_the_config_allows() -> None:
    assert config.allowed_values("language", "corpus") == " or ".join([*TEXT_LANGUAGES, "null"])


def test_a_text_becomes_a_corpus_with_a_tokenizer_and_every_number_is_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text").write_text("The dog barks.\nThe dog barks!\nThe cat sleeps.\nBoth are 3 years old.\n")
    out = tmp_path / "corpus"
    arguments = ["corpus", f"out={out}", f"text={tmp_path / 'text'}", "processes=1", "vocab_size=300"]
    assert cli.main(arguments) == 0
    printed = capsys.readouterr().out
    assert "4 sentences, 2 kept; 1 dropped: repeated; 1 dropped: digits" in " ".join(printed.split())
    assert "5 distinct words in all splits" in printed
    assert (out / "tokenizer" / "tokenizer.json").is_file()
    facts = json.loads((out / "corpus.json").read_text())
    assert cli.main(arguments) == 0  # reports the corpus again
    assert f"already in {out}, hash {facts['hash']}" in capsys.readouterr().out
    (tmp_path / "text").write_text("Another text.\n")
    assert cli.main(arguments) == 1
    assert "was made with other settings (text:" in capsys.readouterr().err
