"""Configs: required settings, differences, recipe files, and the choice of the view (how rows become samples)."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from omegaconf import OmegaConf

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


STEPS = "an integer >= 1 and <= max_steps (here max_steps=100)"
TRAIN = {"max_steps": 100, "optim": {"lr": 1e-4, "min_lr": 1e-5}}


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("optim.clip", -1, "a number >= 0 or null"),
        ("optim.clip", math.nan, "a number >= 0 or null"),
        ("optim.lr", math.nan, "a number > 0"),
        ("optim.lr", math.inf, "a number > 0"),
        ("optim.lr", -1, "a number > 0"),
        ("optim.lr", None, "a number > 0"),
        ("optim.lr", "1e-4", "a number > 0"),
        ("optim.weight_decay", -1, "a number >= 0"),
        ("optim.layer_decay", -1, "a number > 0 and <= 1"),
        ("optim.betas[0]", 1, "a number >= 0 and < 1"),
        ("optim.lr_factors.encoder", -1, "a number >= 0"),
        ("optim.min_lr", 1, "a number >= 0 and <= optim.lr (here optim.lr=0.0001)"),
        ("optim.warmup_steps", 100, "an integer >= 0 and < max_steps (here max_steps=100)"),
        ("optim.warmup_steps", -1, "an integer >= 0 and < max_steps (here max_steps=100)"),
        ("max_steps", -1, "an integer >= 1"),
        ("max_steps", 2.5, "an integer >= 1"),
        ("max_steps", True, "an integer >= 1"),
        ("data.valid[0].limit", -1, "an integer >= 1 or null"),
        ("data.valid[0].limit", True, "an integer >= 1 or null"),
        ("data.train[1].weight", 0, "a number > 0 or null"),
        ("data.temperature", 0, "a number > 0 or null"),
        ("trainer.devices", 0, "an integer >= 1 or -1 or auto or a list"),
        ("trainer.val_check_interval", 0, f"a number > 0 and <= 1 or {STEPS}"),
        ("trainer.val_check_interval", 101, f"a number > 0 and <= 1 or {STEPS}"),
        ("trainer.gradient_clip_val", 1.0, "null (set optim.clip)"),
        ("judge.price", 5, "a section or null"),
        # A list or a section in place of a value, and the other way round.
        ("optim.lr", [1e-4, 1e-5], "a number > 0"),
        ("max_steps", {}, "an integer >= 1"),
        ("optim.betas", 0.9, "a list"),
        ("optim.lr_factors", 0.1, "a section"),
        ("data.train", "a.jsonl", "a list (data.train=[FILE.jsonl])"),
        ("data.train[0].tasks", "asr", "a list or null"),
        ("data.noise.snr", 10, "a list of 2"),
        ("data.noise.snr", [0, 10, 20], "a list of 2"),
        ("trainer.max_epochs", 2, "1"),
        ("seed", "abc", "an integer >= 0 and < 4294967296"),
        ("seed", None, "an integer >= 0 and < 4294967296"),
        ("nonfinite", "ignore", "skip or stop"),
        ("dry_run", "maybe", "true or false"),
        ("dry_run", 1, "true or false"),
        ("arm", "../escape", "a name"),
        ("arm", "", "a name"),
        ("arm", "..", "a name"),
        ("arm", "  ", "a name"),
        ("study", "a/b", "a name"),
        ("runs_dir", "", "a path"),  # runs_dir=$RUNS without a variable RUNS
        ("checkpoint", " ", "a path or null"),
    ],
)
def test_a_value_out_of_its_range_is_named_with_the_values_expected(key: str, value: Any, expected: str):
    with pytest.raises(config.UsageError) as error:
        config.check_values(make_config(key, value))
    assert str(error.value) == f"{key}={'null' if value is None else value}: expected {expected}"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("arm", "v1.0"),
        ("optim.clip", None),
        ("optim.clip", 0),
        ("trainer.devices", -1),
        ("trainer.devices[0]", 0),
        ("trainer.val_check_interval", 100),
        ("trainer.gradient_clip_val", None),
        ("data.noise.snr", [0, 10]),
        ("judge.price", {"input": 0}),
        ("my_section.lr", -1),  # a key of a user's own
    ],
)
def test_values_at_the_ends_of_ranges_are_allowed(key: str, value: Any):
    config.check_values(make_config(key, value))


def make_config(key: str, value: Any) -> dict[str, Any]:
    """Return a training config in which `key`, such as `data.valid[0].limit`, has a value."""
    node = value
    for part in reversed(re.findall(r"\w+", key)):
        node = [{}] * int(part) + [node] if part.isdigit() else {part: node}
    return OmegaConf.to_container(OmegaConf.merge(TRAIN, node))


def test_a_value_out_of_range_is_a_usage_error_before_anything_is_loaded(capsys: pytest.CaptureFixture[str]):
    assert cli.main(["train", "scale=full", "optim.clip=-1"]) == 2
    assert capsys.readouterr().err == "error: optim.clip=-1: expected a number >= 0 or null\n"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.train={path: a.jsonl}", "data.train={path: a.jsonl}: Cannot merge DictConfig with ListConfig"),
        ("stage=pretrn", "max_steps: Interpolation key 'tiny.max_steps.pretrn' not found"),
        (
            "data.augment.p=0.5",  # scale=tiny has no augmentation
            "data.augment.p=0.5: the chosen option of data/augment has no such key; "
            "choose data/augment=specaugment | specaugment_double as well",
        ),
    ],
)
def test_an_override_that_does_not_fit_the_config_is_explained_in_one_line(override: str, message: str):
    with pytest.raises(config.UsageError) as error:
        config.resolve(config.compose([override]))
    assert str(error.value) == message


def test_a_range_may_depend_on_the_command():
    assert config.resolve(config.compose(["checkpoint=x"], "chat"), "chat")["seed"] is None
    assert config.allowed_values("jobs", "train") != config.allowed_values("jobs", "doctor")


def test_every_number_in_a_config_has_a_range():
    """Read all config files. The tables by training stage, such as `tiny`, only provide numbers for other keys."""
    without_range = []
    for path in sorted(config.CONFIGS.rglob("*.yaml")):
        text = path.read_text(encoding="utf-8")
        parts = path.relative_to(config.CONFIGS).with_suffix("").parts
        package = re.search(r"^# @package (\S+)", text)
        prefix = ".".join(parts[:-1]) if package is None else package[1].replace("_global_", "")
        command = parts[0] if len(parts) == 1 else {"benchmark": "evaluate", "judge": "evaluate"}.get(parts[0], "train")
        for key, value in config._nodes(yaml.safe_load(text)):
            key = f"{prefix}.{key}".strip(".")
            is_free = parts[0] == "hydra" or key.startswith(("tiny.", "base.", "small.")) or key.endswith("_partial_")
            if isinstance(value, (int, float)) and not is_free and config.allowed_values(key, command) is None:
                without_range.append(f"{path.name}: {key}")
    assert not without_range


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


@pytest.mark.parametrize("scale", ["tiny", "base", "full"])
@pytest.mark.parametrize("arm", [[], ["optim.lr_factors={encoder: 0.5}"]])
def test_factors_of_learning_rates_replace_those_of_the_scale_and_the_arm(scale: str, arm: list[str]):
    overrides = ["experiment=qwen2_audio_pretrain", f"scale={scale}", *arm, "optim.lr_factors={llm: 0.1}"]
    assert config.resolve(config.compose(overrides))["optim"]["lr_factors"] == {"llm": 0.1}
