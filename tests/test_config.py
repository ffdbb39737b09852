"""Recipes: what a command line means, and what two of them differ in."""

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
def test_missing_required_settings_are_named_in_one_sentence(command, missing, capsys):
    assert cli.main([command]) == 2
    assert capsys.readouterr() == ("", f"error: expected {missing} on the command line (see --help)\n")


def test_differences_name_nested_keys_with_both_values():
    old = {"optim": {"lr": 1, "eps": 2}, "seed": 0, "gone": True}
    new = {"optim": {"lr": 3, "eps": 2}, "seed": 0, "came": 4}
    assert config.differences(old, new) == ["optim.lr: 1 -> 3", "gone: True -> None", "came: None -> 4"]


def test_a_recipe_survives_its_file(tmp_path: Path):
    run_config = config.resolve(config.compose(["experiment=qwen_audio_pretrain"]))
    write_yaml(tmp_path / "recipe.yaml", run_config)
    assert read_yaml(tmp_path / "recipe.yaml") == run_config


@pytest.mark.parametrize(
    ("view", "prompt", "expected"),
    [("chat", "natural", "chat_v1 or chat_v2"), ("audio", "chat_v2", "natural, tags or both")],
)
def test_a_view_that_a_prompting_style_lacks_names_the_styles_that_have_it(view: str, prompt: str, expected: str):
    run_config = config.resolve(config.compose([f"data.view={view}", f"prompt={prompt}"]))
    with pytest.raises(ValueError, match=f"data.view={view} is not written in .*: expected prompt={expected}$"):
        config.build_samples(run_config, torch.nn.Identity(), None, long_audio="error", train=False)


def test_an_unknown_view_lists_the_known_ones():
    run_config = config.resolve(config.compose(["data.view=chats"]))
    with pytest.raises(ValueError, match="data.view=chats: expected audio, text, transcript, chat"):
        config.build_samples(run_config, torch.nn.Identity(), None, long_audio="error", train=False)
