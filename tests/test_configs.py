"""Every config file composes, every target accepts its arguments, and the arms (variants) of every study differ."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.utils import get_object
from omegaconf import OmegaConf

from auris import config
from auris.training import optim, studies
from support.recipes import compose_once

ROOT = Path(__file__).resolve().parents[1]
COMMAND_CONFIGS = {  # top-level configs with their required overrides
    "train": [],
    "evaluate": ["checkpoint=runs/some/run"],
    "corpus": ["out=corpora/some"],
    "export": ["checkpoint=runs/some/run", "out=exported"],
    "doctor": [],
    "instruct": [],
    "chat": ["checkpoint=runs/some/run"],
    "prefer": ["out=pairs.jsonl"],
    "align": ["checkpoint=runs/some/run", "out=timed.jsonl"],
    "replay": ["fault=runs/some/run/faults/step_00000007.json"],
    "prepare": ["layout=librispeech", "root=LibriSpeech", "out=rows.jsonl"],
    "shards": [],
    "results": [],
    "report": [],
}
# Commands whose configs use these groups. All other groups belong to `train`.
GROUP_COMMANDS = {
    "data": ("train", "evaluate", "prefer", "align", "doctor"),
    "data/mix": ("train", "evaluate"),
    "benchmark": ("evaluate",),
    "judge": ("evaluate", "prefer"),
    "layout": ("prepare",),
    "sizes": ("corpus",),
    "dialogues": ("instruct",),
}
STUDIES = sorted(path.stem for path in (ROOT / "ablations").glob("*.yaml"))


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Run a test in the root, where studies are found, and check that it does not leave Hydra initialised."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(config, "compose", compose_once)  # studies share their stages
    yield
    assert not GlobalHydra.instance().is_initialized()


def combinations() -> list[tuple[str, ...]]:
    """Return tuples of a command and one option of each of its groups, such that every option occurs.

    Options of different groups are independent, so one composition can test an option of each group. This saves time,
    because it takes Hydra a third of a second.
    """
    options: dict[str, dict[str, list[str]]] = {}
    for path in sorted(config.CONFIGS.rglob("*.yaml")):
        group = path.parent.relative_to(config.CONFIGS).as_posix()
        is_base = path.parent.name == "base" or group == "hydra"
        if group not in (".", "experiment", "scale") and not is_base:  # experiments and scales are combined below
            for command in GROUP_COMMANDS.get(group, ("train",)):
                options.setdefault(command, {}).setdefault(group, []).append(f"{group}={path.stem}")
    rounds = {command: itertools.zip_longest(*groups.values()) for command, groups in options.items()}
    return [(command, *filter(None, overrides)) for command, columns in rounds.items() for overrides in columns]


@cache
def compose(command: str, *overrides: str) -> dict[str, Any]:
    """Return the resolved config of a command. It is cached, so callers must not change it."""
    return config.resolve(config.compose([*COMMAND_CONFIGS[command], *overrides], command), command)


def targets(node: Any, path: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield every node that has a `_target_`, with its path."""
    if isinstance(node, Mapping):
        if "_target_" in node:
            yield path, node
        for key, value in node.items():
            yield from targets(value, f"{path}.{key}".lstrip("."))
    elif isinstance(node, list):
        for number, value in enumerate(node):
            yield from targets(value, f"{path}.{number}".lstrip("."))


def invalid_targets(run_config: Mapping[str, Any]) -> list[str]:
    """Return the targets that do not exist or do not accept their arguments, each with the reason."""
    problems = []
    for path, node in targets(run_config):
        arguments = {key: value for key, value in node.items() if not key.startswith("_")}
        if path == "data":
            arguments = {key: value for key, value in arguments.items() if key not in config.ROW_KEYS}
        if path == "optim":
            arguments = {key: value for key, value in arguments.items() if key not in optim.SCHEDULE_KEYS}
        try:
            signature = inspect.signature(get_object(node["_target_"]))
            bind = signature.bind_partial if node.get("_partial_") or path == "data" else signature.bind
            bind(**arguments)
        except Exception as error:  # get_object may raise any error of an import
            problems.append(f"{path} ({node['_target_']}): {error}")
    return problems


def test_every_top_level_file_is_a_command_config():
    assert {path.stem for path in config.CONFIGS.glob("*.yaml")} == set(COMMAND_CONFIGS)


@pytest.mark.parametrize("command", COMMAND_CONFIGS)
def test_each_command_config_composes_with_valid_targets(command):
    assert invalid_targets(compose(command)) == []


@pytest.mark.parametrize("combination", combinations(), ids=" ".join)
def test_each_option_of_each_group_composes_with_valid_targets(combination):
    assert invalid_targets(compose(*combination)) == []


@pytest.mark.parametrize("scale", ["full", pytest.param("small", marks=pytest.mark.slow), "base", "tiny"])
@pytest.mark.parametrize("experiment", sorted(path.stem for path in (config.CONFIGS / "experiment").glob("*.yaml")))
def test_each_experiment_composes_at_each_scale(experiment, scale):
    run_config = compose("train", f"experiment={experiment}", f"scale={scale}")
    assert invalid_targets(run_config) == []
    assert run_config["arm"] == experiment
    assert run_config["run_dir"].endswith(f"/{experiment}/seed_0")
    assert run_config["optim"]["warmup_steps"] < run_config["max_steps"]
    assert 0 < run_config["optim"]["min_lr"] < run_config["optim"]["lr"]


def test_a_run_can_be_launched_through_slurm():
    """`-m hydra/launcher=submitit_slurm seed=0,1,2` combines options of the launcher and of auris."""
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="the launcher, extra `slurm`, is not installed")
    with initialize_config_dir(str(config.CONFIGS), version_base="1.3"):
        options = ["hydra/launcher=submitit_slurm", "hydra.launcher.gpus_per_node=2", "experiment=qwen2_audio_pretrain"]
        run_config = hydra_compose("train", overrides=options, return_hydra_config=True)
    assert run_config.hydra.launcher._target_.endswith("submitit_launcher.SlurmLauncher")
    assert run_config.hydra.launcher.gpus_per_node == 2 and run_config.arm == "qwen2_audio_pretrain"


def test_modules_can_be_exchanged_between_the_presets():
    v1 = compose("train", "experiment=qwen_audio_pretrain", "prompt=natural", "model/pooling=conv")
    v2 = compose("train", "experiment=qwen2_audio_pretrain", "model/encoder=whisper_v2", "scale=full")
    assert v1["prompt"]["_target_"].endswith("NaturalPrompt") and v1["model"]["pooling"]["_target_"].endswith("Conv")
    assert v1["model"]["encoder"]["n_mels"] == 80
    assert (v2["model"]["encoder"]["n_mels"], v2["model"]["encoder"]["n_layers"]) == (80, 32)
    assert v2["prompt"]["_target_"].endswith("NaturalPrompt")


@pytest.mark.parametrize(("command", "group"), [("train", "logger"), ("train", "data/augment"), ("evaluate", "judge")])
def test_null_removes_a_group(command, group):
    node: Any = compose(command, f"{group}=null")
    for key in group.split("/"):
        node = node.get(key)
    assert node is None


def test_the_presets_have_the_settings_of_the_papers():
    v1, v2 = (compose("train", f"experiment={name}_pretrain", "scale=full") for name in ("qwen_audio", "qwen2_audio"))
    encoder = {"width": 1280, "n_layers": 32, "n_heads": 20}
    for run_config, n_mels, prompt in ((v1, 80, "TagPrompt"), (v2, 128, "NaturalPrompt")):
        assert run_config["model"]["encoder"].items() >= {**encoder, "n_mels": n_mels}.items()
        assert run_config["model"]["llm"]["config"]["hidden_size"] == 4096
        assert run_config["model"]["pooling"] == {"_target_": "auris.model.pooling.Mean", "_partial_": True, "k": 2}
        wordings = {"wordings": "all"} if prompt == "NaturalPrompt" else {}
        assert run_config["prompt"] == {"_target_": f"auris.text.prompts.{prompt}", "supervise_tags": True, **wordings}
        assert run_config["trainable"] == [
            "encoder",
            "pooling",
            "projector",
            "boundary",
        ]  # the language model is frozen
        assert run_config["optim"] == {  # Qwen-Audio Table 6
            "lr": 5e-5,
            "min_lr": 1e-5,
            "betas": [0.9, 0.98],
            "eps": 1e-6,
            "weight_decay": 0.05,
            "clip": 1.0,
            "warmup_steps": 2000,
            "lr_factors": {},
            "layer_decay": 0.95,
            "states": "fp32",
            "_target_": "auris.training.optim.adamw",
            "_partial_": True,
        }
        assert (run_config["max_steps"], run_config["data"]["rows_per_step"]) == (500_000, 120)


def test_both_systems_are_fine_tuned_with_the_settings_of_qwen_audio():
    for name, prompt in (("qwen_audio", "QwenAudioChat"), ("qwen2_audio", "Qwen2AudioChat")):
        run_config = compose("train", f"experiment={name}_sft", "scale=full")
        assert run_config["prompt"]["_target_"] == f"auris.text.chat.{prompt}" and run_config["data"]["view"] == "chat"
        assert run_config["trainable"] == ["pooling", "projector", "boundary", "llm"]  # the encoder is frozen
        numbers = {"lr": 1e-5, "min_lr": 1e-6, "warmup_steps": 3000, "layer_decay": 1.0}  # Qwen-Audio Table 6
        assert {key: run_config["optim"][key] for key in numbers} == numbers
        assert (run_config["max_steps"], run_config["data"]["rows_per_step"]) == (8000, 128)
        pretrain = compose("train", f"experiment={name}_pretrain", "scale=full")
        assert run_config["model"] == pretrain["model"] and run_config["data"]["augment"] == pretrain["data"]["augment"]


@pytest.mark.parametrize("system", ["qwen_audio", "qwen2_audio"])
def test_later_stages_of_small_models_have_fewer_steps_and_lower_learning_rates(system):
    stages = [stage for stage in ("pretrain", "sft", "dpo") if system == "qwen2_audio" or stage != "dpo"]
    run_configs = [compose("train", f"experiment={system}_{stage}", "scale=small") for stage in stages]
    for before, after in itertools.pairwise(run_configs):
        assert after["max_steps"] < before["max_steps"] and after["optim"]["lr"] < before["optim"]["lr"]


@pytest.mark.parametrize(
    ("path", "add_typo"),
    [
        (
            "model.pooling",
            lambda run_config: run_config["model"]["pooling"].update(kk=run_config["model"]["pooling"].pop("k")),
        ),
        ("model.encoder", lambda run_config: run_config["model"]["encoder"].pop("n_mels")),
        ("prompt", lambda run_config: run_config["prompt"].update(supervise_tag=True)),
        (
            "data.augment",
            lambda run_config: run_config["data"]["augment"].update(_target_="auris.audio.SpecAugmentation"),
        ),
        ("trainer", lambda run_config: run_config["trainer"].update(max_step=3)),
    ],
)
def test_a_typo_in_a_config_makes_its_target_invalid(path, add_typo):
    run_config = deepcopy(compose("train", "scale=full"))
    add_typo(run_config)
    (problem,) = invalid_targets(run_config)
    assert problem.startswith(f"{path} (")


# --- studies ---


def study(name: str) -> dict[str, Any]:
    return OmegaConf.to_container(config.compose([f"ablations={name}"]), resolve=False)


@pytest.fixture
def usable_study(request: pytest.FixtureRequest) -> Callable[[str], dict[str, Any]]:
    """Return a study with values for its variables: the study of real weights is planned with these weights."""

    def compose_study(name: str) -> dict[str, Any]:
        overrides = []
        if "encoder" in study(name)["vars"]:
            encoder, data = (request.getfixturevalue(fixture) for fixture in ("whisper_base", "shared_data"))
            overrides = [f"vars.encoder={encoder}", f"vars.llm={request.getfixturevalue('smollm2')}"]
            overrides += [f"vars.data={data}/real", f"vars.transcripts={encoder}/reference_transcripts.jsonl"]
        return config.resolve(config.compose([f"ablations={name}", *overrides]))

    return compose_study


def small_study(**arms: list[str]) -> dict[str, Any]:
    return {
        "study": "small",
        "seeds": [0],
        "arms": {name: {"overrides": list(overrides)} for name, overrides in arms.items()},
    }


def test_the_demo_study_exists():
    assert "demo" in STUDIES


@pytest.mark.parametrize("name", STUDIES)
def test_all_arms_of_each_study_have_valid_and_different_configs(name, usable_study):
    definition = usable_study(name)
    jobs = studies.plan_jobs(definition, seed=definition["seeds"][-1])  # jobs of other seeds differ in the seed only
    assert (
        definition["study"] == name
        and definition["question"]
        and len(set(definition["seeds"])) == len(definition["seeds"])
    )
    assert [job.name for job in jobs if job.name in definition["arms"]] == list(definition["arms"])
    assert len({job.run_dir for job in jobs}) == len(jobs)
    run_configs = [job.config for job in jobs]
    assert [problem for run_config in run_configs for problem in invalid_targets(run_config)] == []
    for job, run_config in zip(jobs, run_configs, strict=True):
        shared = ("shared", run_config["arm"]) if job.name not in definition["arms"] else (name, job.name)
        assert (run_config["study"], run_config["arm"], run_config["seed"]) == (*shared, definition["seeds"][-1])
        earlier = {other.key for other in jobs[: jobs.index(job)]}
        assert {needed.key for needed in job.needs} <= earlier
    for number, run_config in enumerate(run_configs):
        for other in run_configs[:number]:
            changed = {line.split(":")[0] for line in config.differences(run_config, other)}
            assert changed - {"arm", "run_dir", "seed"}, (run_config["arm"], other["arm"])


def test_the_readme_lists_each_study_with_its_question_and_number_of_runs():
    lines = (ROOT / "ablations/README.md").read_text().splitlines()
    for name in (name for name in STUDIES if name != "template"):
        definition = study(name)
        [line] = [line for line in lines if f"({name}.yaml)" in line]
        assert definition["question"].split(", tiny")[0] in line
        assert f"| {len(definition['arms'])} x {len(definition['seeds'])} |" in line


@pytest.mark.parametrize("name", STUDIES)
def test_the_evaluations_of_each_study_compose(name, usable_study):
    for arguments in usable_study(name).get("evaluate") or []:
        run_config = compose("evaluate", *arguments)
        assert invalid_targets(run_config) == [] and run_config["benchmark"]["test"]


def test_an_arm_without_effect_raises_an_error():
    study_without_effect = small_study(
        base=["experiment=encoder_ctc"], wider=["experiment=encoder_ctc", "optim.layer_decay=0.95"]
    )
    with pytest.raises(ValueError, match="arms base, seed 0 and wider, seed 0 are the same run"):
        studies.plan_jobs(study_without_effect)


def test_the_error_for_a_misspelt_override_names_its_study_and_arm():
    with pytest.raises(ValueError, match="study small") as error:
        studies.plan_jobs(small_study(base=["experiment=encoder_ctc"], typo=["optim.layer_dekay=0.9"]))
    for part in ("study small", "arm typo", "optim.layer_dekay"):
        assert part in str(error.value)


def test_the_error_for_a_misspelt_option_names_the_option():
    with pytest.raises(ValueError, match="(?s)study small, arm typo: .*whisper_v9"):
        studies.plan_jobs(small_study(typo=["model/encoder=whisper_v9"]))
