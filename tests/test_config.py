"""Configs: required settings, differences, recipe files, and the choice of the view (how rows become samples)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from auris import cli, config
from auris.files import read_yaml, write_yaml


@pytest.mark.parametrize(
    ("command", "missing"),
    [
        ("evaluate", "checkpoint=... or rescore=..."),
        ("doctor", "checkpoint=..., data=... or show=..."),
        ("chat", "checkpoint=..."),
        ("export", "checkpoint=... and out=..."),
        ("prefer", "out=..."),
        ("replay", "fault=..."),
        ("corpus", "out=..."),
    ],
)
def test_the_error_for_missing_settings_is_one_sentence_that_names_them(command, missing, capsys):
    assert cli.main([command]) == 2
    assert capsys.readouterr() == ("", f"error: expected {missing} on the command line (see --help)\n")


def test_differences_list_nested_keys_with_both_values():
    old = {"optim": {"lr": 1, "eps": 2}, "seed": 0, "removed": True}
    new = {"optim": {"lr": 3, "eps": 2}, "seed": 0, "added": 4}
    assert config.differences(old, new) == ["optim.lr: 1 -> 3", "removed: True -> None", "added: None -> 4"]


def test_a_written_and_read_recipe_is_the_same(tmp_path: Path):
    run_config = config.resolve(config.compose(["experiment=qwen_audio_pretrain"]))
    write_yaml(tmp_path / "recipe.yaml", run_config)
    assert read_yaml(tmp_path / "recipe.yaml") == run_config


@pytest.mark.parametrize(
    ("view", "prompt", "expected"),
    [("chat", "natural", "chat_v1 or chat_v2"), ("audio", "chat_v2", "natural, tags or both")],
)
def test_the_error_for_a_view_lists_the_prompting_styles_that_support_it(view: str, prompt: str, expected: str):
    run_config = config.resolve(config.compose([f"data.view={view}", f"prompt={prompt}"]))
    with pytest.raises(ValueError, match=f"data.view={view} cannot be used with .*: expected prompt={expected}$"):
        config.build_samples(run_config, torch.nn.Identity(), None, long_audio="error", train=False)


def test_the_error_for_an_unknown_view_lists_the_valid_ones():
    run_config = config.resolve(config.compose(["data.view=chats"]))
    with pytest.raises(ValueError, match="data.view=chats: expected audio, text, transcript, chat"):
        config.build_samples(run_config, torch.nn.Identity(), None, long_audio="error", train=False)
