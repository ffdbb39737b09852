"""Configs are honest: every file composes, every target takes what it is given, every arm of a study differs."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Iterator, Mapping
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

ROOT = Path(__file__).resolve().parents[1]
PRIMARIES = {  # with what each of them cannot do without
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
# The primaries in which the parts of these groups are chosen; of all others, train.
SHARED = {
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
    """Studies are found in the working directory. No test leaves Hydra initialised."""
    monkeypatch.chdir(ROOT)
    yield
    assert not GlobalHydra.instance().is_initialized()


def choices() -> list[tuple[str, str]]:
    """(primary, override) of every file under configs/ that belongs to a group."""
    found = []
    for path in sorted(config.CONFIGS.rglob("*.yaml")):
        group = path.parent.relative_to(config.CONFIGS).as_posix()
        is_base = path.parent.name == "base" or group == "hydra"
        if group not in (".", "experiment", "scale") and not is_base:  # those are composed in all combinations below
            owners = SHARED.get(group, ("train",))
            found += [(owner, f"{group}={path.stem}") for owner in owners]
    return found


@cache
def compose(primary: str, *overrides: str) -> dict[str, Any]:
    """The resolved config. Shared: do not change it."""
    return config.resolve(config.compose([*PRIMARIES[primary], *overrides], primary))


def targets(node: Any, path: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every node that says what is made of it, with its path."""
    if isinstance(node, Mapping):
        if "_target_" in node:
            yield path, node
        for key, value in node.items():
            yield from targets(value, f"{path}.{key}".lstrip("."))
    elif isinstance(node, list):
        for number, value in enumerate(node):
            yield from targets(value, f"{path}.{number}".lstrip("."))


def unbound(made: Mapping[str, Any]) -> list[str]:
    """Targets that do not exist or would not take their arguments, each with the reason."""
    found = []
    for path, node in targets(made):
        arguments = {key: value for key, value in node.items() if not key.startswith("_")}
        if path == "data":
            arguments = {key: value for key, value in arguments.items() if key not in config.ROW_KEYS}
        if path == "optim":
            arguments = {key: value for key, value in arguments.items() if key not in optim.SCHEDULE_KEYS}
        try:
            signature = inspect.signature(get_object(node["_target_"]))
            bind = signature.bind_partial if node.get("_partial_") or path == "data" else signature.bind
            bind(**arguments)
        except Exception as error:  # get_object raises whatever an import does
            found.append(f"{path} ({node['_target_']}): {error}")
    return found


def test_every_top_level_file_is_a_command_config():
    assert {path.stem for path in config.CONFIGS.glob("*.yaml")} == set(PRIMARIES)


@pytest.mark.parametrize("primary", PRIMARIES)
def test_each_primary_composes_and_binds(primary):
    assert unbound(compose(primary)) == []


@pytest.mark.parametrize(("primary", "override"), choices())
def test_each_option_of_each_group_composes_and_binds(primary, override):
    assert unbound(compose(primary, override)) == []


@pytest.mark.parametrize("scale", sorted(path.stem for path in (config.CONFIGS / "scale").glob("*.yaml")))
@pytest.mark.parametrize("experiment", sorted(path.stem for path in (config.CONFIGS / "experiment").glob("*.yaml")))
def test_each_experiment_composes_at_each_scale(experiment, scale):
    made = compose("train", f"experiment={experiment}", f"scale={scale}")
    assert unbound(made) == []
    assert made["arm"] == experiment
    assert made["run_dir"].endswith(f"/{experiment}/seed_0")
    assert made["optim"]["warmup_steps"] < made["max_steps"]
    assert 0 < made["optim"]["min_lr"] < made["optim"]["lr"]


def test_a_run_can_be_launched_through_slurm():
    """`-m hydra/launcher=submitit_slurm seed=0,1,2`: the launcher's options stand beside ours."""
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="the launcher, extra `slurm`, is not installed")
    with initialize_config_dir(str(config.CONFIGS), version_base="1.3"):
        options = ["hydra/launcher=submitit_slurm", "hydra.launcher.gpus_per_node=2", "experiment=qwen2_audio_pretrain"]
        made = hydra_compose("train", overrides=options, return_hydra_config=True)
    assert made.hydra.launcher._target_.endswith("submitit_launcher.SlurmLauncher")
    assert made.hydra.launcher.gpus_per_node == 2 and made.arm == "qwen2_audio_pretrain"


def test_parts_can_be_exchanged_between_the_presets():
    v1 = compose("train", "experiment=qwen_audio_pretrain", "prompt=natural", "model/pooling=conv")
    v2 = compose("train", "experiment=qwen2_audio_pretrain", "model/encoder=whisper_v2", "scale=full")
    assert v1["prompt"]["_target_"].endswith("NaturalPrompt") and v1["model"]["pooling"]["_target_"].endswith("Conv")
    assert v1["model"]["encoder"]["n_mels"] == 80
    assert (v2["model"]["encoder"]["n_mels"], v2["model"]["encoder"]["n_layers"]) == (80, 32)
    assert v2["prompt"]["_target_"].endswith("NaturalPrompt")


def test_the_presets_are_the_two_systems_of_the_papers():
    v1, v2 = (compose("train", f"experiment={name}_pretrain", "scale=full") for name in ("qwen_audio", "qwen2_audio"))
    encoder = {"width": 1280, "n_layers": 32, "n_heads": 20}
    for made, n_mels, prompt in ((v1, 80, "TagPrompt"), (v2, 128, "NaturalPrompt")):
        assert made["model"]["encoder"].items() >= {**encoder, "n_mels": n_mels}.items()
        assert made["model"]["llm"]["config"]["hidden_size"] == 4096
        assert made["model"]["pooling"] == {"_target_": "auris.model.pooling.Mean", "_partial_": True, "k": 2}
        wordings = {"wordings": "all"} if prompt == "NaturalPrompt" else {}
        assert made["prompt"] == {"_target_": f"auris.text.prompts.{prompt}", "supervise_tags": True, **wordings}
        assert made["trainable"] == ["encoder", "pooling", "projector", "boundary"]  # the language model is frozen
        assert made["optim"] == {  # Qwen-Audio Table 6
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
        assert (made["max_steps"], made["data"]["rows_per_step"]) == (500_000, 120)


def test_fine_tuning_is_that_of_qwen_audio_in_both_systems():
    for name, prompt in (("qwen_audio", "QwenAudioChat"), ("qwen2_audio", "Qwen2AudioChat")):
        made = compose("train", f"experiment={name}_sft", "scale=full")
        assert made["prompt"]["_target_"] == f"auris.text.chat.{prompt}" and made["data"]["view"] == "chat"
        assert made["trainable"] == ["pooling", "projector", "boundary", "llm"]  # the encoder is frozen
        numbers = {"lr": 1e-5, "min_lr": 1e-6, "warmup_steps": 3000, "layer_decay": 1.0}  # Qwen-Audio Table 6
        assert {key: made["optim"][key] for key in numbers} == numbers
        assert (made["max_steps"], made["data"]["rows_per_step"]) == (8000, 128)
        pretrain = compose("train", f"experiment={name}_pretrain", "scale=full")
        assert made["model"] == pretrain["model"] and made["data"]["augment"] == pretrain["data"]["augment"]


@pytest.mark.parametrize("system", ["qwen_audio", "qwen2_audio"])
def test_a_small_model_s_later_stages_are_shorter_and_gentler(system):
    stages = [stage for stage in ("pretrain", "sft", "dpo") if system == "qwen2_audio" or stage != "dpo"]
    found = [compose("train", f"experiment={system}_{stage}", "scale=small") for stage in stages]
    for before, after in itertools.pairwise(found):
        assert after["max_steps"] < before["max_steps"] and after["optim"]["lr"] < before["optim"]["lr"]


@pytest.mark.parametrize(
    ("where", "spoil"),
    [
        ("model.pooling", lambda made: made["model"]["pooling"].update(kk=made["model"]["pooling"].pop("k"))),
        ("model.encoder", lambda made: made["model"]["encoder"].pop("n_mels")),
        ("prompt", lambda made: made["prompt"].update(supervise_tag=True)),
        ("data.augment", lambda made: made["data"]["augment"].update(_target_="auris.audio.SpecAugmentation")),
        ("trainer", lambda made: made["trainer"].update(max_step=3)),
    ],
)
def test_a_planted_typo_is_caught(where, spoil):
    made = deepcopy(compose("train", "scale=full"))
    spoil(made)
    (fault,) = unbound(made)
    assert fault.startswith(f"{where} (")


# --- studies ---


def study(name: str) -> dict[str, Any]:
    return OmegaConf.to_container(config.compose([f"ablations={name}"]), resolve=False)


def small(**arms: list[str]) -> dict[str, Any]:
    return {"study": "small", "seeds": [0], "arms": {name: {"overrides": list(given)} for name, given in arms.items()}}


def test_there_are_studies():
    assert "demo" in STUDIES


@pytest.mark.parametrize("name", STUDIES)
def test_all_arms_of_each_study_compose_bind_and_differ(name):
    found = study(name)
    jobs = studies.plan(found, seed=found["seeds"][-1])  # the others differ by it alone
    assert found["study"] == name and found["question"] and len(set(found["seeds"])) == len(found["seeds"])
    assert [job.name for job in jobs if job.name in found["arms"]] == list(found["arms"])
    assert len({job.run_dir for job in jobs}) == len(jobs)
    made = [job.config for job in jobs]
    assert [fault for one in made for fault in unbound(one)] == []
    for job, one in zip(jobs, made, strict=True):
        shared = ("shared", one["arm"]) if job.name not in found["arms"] else (name, job.name)
        assert (one["study"], one["arm"], one["seed"]) == (*shared, found["seeds"][-1])
        before = {other.key for other in jobs[: jobs.index(job)]}
        assert {one.key for one in job.needs} <= before
    for number, one in enumerate(made):
        for other in made[:number]:
            changed = {line.split(":")[0] for line in config.differences(one, other)}
            assert changed - {"arm", "run_dir", "seed"}, (one["arm"], other["arm"])


@pytest.mark.parametrize("name", STUDIES)
def test_the_arguments_of_each_studys_evaluations_compose(name):
    for arguments in study(name).get("evaluate") or []:
        made = compose("evaluate", *arguments)
        assert unbound(made) == [] and made["benchmark"]["test"]


def test_a_planted_arm_without_effect_is_refused():
    noop = small(base=["experiment=encoder_ctc"], wider=["experiment=encoder_ctc", "optim.layer_decay=0.95"])
    with pytest.raises(ValueError, match="arms base, seed 0 and wider, seed 0 are the same run"):
        studies.plan(noop)


def test_a_misspelt_override_is_named_with_its_study_and_arm():
    with pytest.raises(ValueError, match="study small") as error:
        studies.plan(small(base=["experiment=encoder_ctc"], typo=["optim.layer_dekay=0.9"]))
    for part in ("study small", "arm typo", "optim.layer_dekay"):
        assert part in str(error.value)


def test_a_misspelt_option_is_named():
    with pytest.raises(ValueError, match="(?s)study small, arm typo: .*whisper_v9"):
        studies.plan(small(typo=["model/encoder=whisper_v9"]))
