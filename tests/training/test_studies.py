"""The study runner: the order of runs, shared stages, refused studies, resuming, and failed arms.

An arm is a variant of a run that the study compares. A stage is a run from whose weights arms start.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import pytest
from rich.console import Console

from auris import cli, config
from auris.errors import UsageError
from auris.training import studies
from auris.training.studies import Job
from support.recipes import compose_once
from test_scripts import PLAN

ROOT = Path(__file__).resolve().parents[2]

STUDY = {
    "study": "letters",
    "seeds": [0, 1],
    "stages": {"encoder": {"overrides": ["experiment=encoder_ctc"]}},
    "arms": {
        "a": {"overrides": ["experiment=qwen2_audio_pretrain"], "after": {"encoder": "encoder"}},
        "b": {"overrides": ["experiment=qwen2_audio_pretrain", "model/pooling=conv"], "after": {"encoder": "encoder"}},
    },
    "evaluate": [["benchmark=embedded"]],
}


@pytest.fixture(autouse=True)
def at_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(config, "compose", compose_once)


def test_a_shared_stage_is_planned_once_per_seed_and_before_its_arms():
    names = [job.key for job in studies.plan_jobs(STUDY)]
    expected = ["encoder", "a", "b"]
    assert names == [f"{name}, seed {seed}" for seed in (0, 1) for name in expected]


def test_an_arm_starts_from_the_stage_with_the_same_seed():
    job = next(job for job in studies.plan_jobs(STUDY) if job.key == "b, seed 1")
    [start] = [override for override in job.overrides if override.startswith("weights.encoder=")]
    assert re.fullmatch(r"weights.encoder=runs/shared/encoder-[0-9a-f]{8}/seed_1", start)
    assert [dependency.key for dependency in job.needs] == ["encoder, seed 1"]


def test_studies_share_the_run_of_a_stage_only_if_the_stage_has_the_same_config():
    def stage_digests(study: dict, extra_overrides: tuple[str, ...] = ()) -> set[str]:
        stages = {"renamed": {"overrides": ["experiment=encoder_ctc", *extra_overrides]}}
        arms = {name: {**arm, "after": {"encoder": "renamed"}} for name, arm in STUDY["arms"].items()}
        jobs = studies.plan_jobs({**study, "study": "other", "stages": stages, "arms": arms})
        return {str(job.run_dir.parent).rpartition("-")[2] for job in jobs if job.name == "renamed"}

    [encoder_dir] = {str(job.run_dir.parent) for job in studies.plan_jobs(STUDY) if job.name == "encoder"}
    assert stage_digests(STUDY) == {encoder_dir.rpartition("-")[2]}  # both seeds share the digest
    assert stage_digests(STUDY, ("max_steps=70",)) != stage_digests(STUDY)


def test_a_selected_arm_and_seed_are_planned_with_their_dependencies():
    assert [job.key for job in studies.plan_jobs(STUDY, arm="b", seed=1)] == ["encoder, seed 1", "b, seed 1"]


def test_arms_are_evaluated_but_not_the_stages_before_them():
    assert {job.name: bool(job.evaluate) for job in studies.plan_jobs(STUDY)} == {
        "encoder": False,
        "a": True,
        "b": True,
    }


def test_the_evaluation_of_an_arm_replaces_that_of_the_study():
    arms = STUDY["arms"] | {"b": STUDY["arms"]["b"] | {"evaluate": [["benchmark=instruct"]]}}
    evaluated = {job.name: job.evaluate for job in studies.plan_jobs(STUDY | {"arms": arms}, seed=0)}
    assert evaluated == {"encoder": [], "a": [["benchmark=embedded"]], "b": [["benchmark=instruct"]]}


def test_if_one_arm_is_selected_only_that_arm_is_evaluated():
    arms = {"c": {"overrides": ["experiment=qwen2_audio_pretrain", "optim.lr=1e-3"], "after": "a"}}
    jobs = studies.plan_jobs({**STUDY, "arms": {**STUDY["arms"], **arms}}, arm="c", seed=0)
    assert {job.name: bool(job.evaluate) for job in jobs} == {"encoder": False, "a": False, "c": True}


def test_command_line_overrides_follow_those_of_the_arm():
    job = studies.plan_jobs(STUDY, extra_overrides=["model/pooling=stack", "max_steps=70"], arm="a", seed=0)[-1]
    assert job.overrides.index("max_steps=70") > job.overrides.index("experiment=qwen2_audio_pretrain")


def test_overrides_of_the_study_come_before_those_of_an_arm():
    study = {**STUDY, "overrides": ["max_steps=70", "model/pooling=stack"]}
    jobs = {job.name: job for job in studies.plan_jobs(study, seed=0)}
    assert {job.config["max_steps"] for job in jobs.values()} == {70}
    assert jobs["a"].config["model"]["pooling"]["_target_"].endswith("Stack")
    assert jobs["b"].config["model"]["pooling"]["_target_"].endswith("Conv")  # the arm's own override wins


def test_variables_are_filled_in_everywhere():
    arms = {"a": {"overrides": ["experiment=qwen2_audio_pretrain", "max_steps=${vars.steps}"]}}
    evaluate = [["benchmark=embedded", "bootstrap=${vars.steps}0"]]
    [job] = studies.plan_jobs({**STUDY, "vars": {"steps": 70}, "arms": arms, "evaluate": evaluate}, seed=0)
    assert job.config["max_steps"] == 70 and job.evaluate == [["benchmark=embedded", "bootstrap=700"]]


def test_a_variable_without_a_value_is_null():
    arms = {"a": {"overrides": ["experiment=qwen2_audio_pretrain", "max_minutes=${vars.minutes}"]}}
    [job] = studies.plan_jobs({**STUDY, "vars": {"minutes": None}, "arms": arms}, seed=0)
    assert "max_minutes=null" in job.overrides and job.config["max_minutes"] is None


def test_variables_of_the_command_line_are_not_passed_on_to_the_runs():
    typed = ["vars={steps: 7}", "vars.steps=7", "+vars.more=1", "jobs=2", "optim.lr=1e-3", "+data.x=1"]
    assert studies._overrides_of_runs(typed) == ["optim.lr=1e-3", "+data.x=1"]


@pytest.mark.parametrize("overrides", ["max_steps=70", None, [{"max_steps": 70}]])
def test_overrides_of_the_study_that_are_no_list_are_refused(overrides: object):
    with pytest.raises(UsageError, match=r"study letters: overrides=.*, expected \[key=value, ...\]"):
        studies.plan_jobs({**STUDY, "overrides": overrides})


@pytest.mark.parametrize("name", ["step", "steps.first", "my-steps"])
def test_an_unknown_variable_is_refused(name: str):
    arms = {"a": {"overrides": ["experiment=qwen2_audio_pretrain", f"max_steps=${{vars.{name}}}"]}}
    with pytest.raises(UsageError, match=rf"max_steps=\$\{{vars.{name}\}}: vars has no {name}, expected steps"):
        studies.plan_jobs({**STUDY, "vars": {"steps": 7}, "arms": arms})


@pytest.mark.parametrize("name", ["1e-4", "lr=1e-4", "a,b", "beta (new)", "null"])
def test_the_name_of_an_arm_that_hydra_would_change_is_refused(name: str):
    with pytest.raises(UsageError, match=rf"arm={re.escape(name)}: expected a name"):
        studies.plan_jobs({**STUDY, "arms": {name: STUDY["arms"]["a"]}})


@pytest.mark.parametrize("entry", [None, ["optim.lr=1e-3"], {"after": {}}, {"overrides": "optim.lr=1e-3"}])
def test_an_arm_without_a_list_of_overrides_is_refused(entry):
    with pytest.raises(UsageError, match=r"study letters: base is .*: expected {overrides: \[key=value, ...\]}"):
        studies.plan_jobs({**STUDY, "arms": {"base": entry}})


@pytest.mark.parametrize("evaluate", ["benchmark=embedded", ["benchmark=embedded"]])
def test_evaluations_that_are_no_lists_of_arguments_are_refused(evaluate):
    with pytest.raises(UsageError, match=r"study letters: evaluate=.*expected .* \[\[benchmark=NAME\], ...\]"):
        studies.plan_jobs({**STUDY, "evaluate": evaluate})


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("benchmark=embedding", "benchmark=embedding: there is no such option"),
        ("bootstrap=0", "bootstrap=0: expected an"),
    ],
)
def test_invalid_arguments_of_an_evaluation_are_refused_before_training(argument: str, message: str):
    with pytest.raises(UsageError, match=f"study letters, auris evaluate: {message}"):
        studies.plan_jobs({**STUDY, "evaluate": [[argument]]})


def test_weights_of_an_unknown_part_are_refused():
    with pytest.raises(UsageError, match="arm a: `after` names encodr: expected encoder, pooling"):
        studies.plan_jobs({**STUDY, "arms": {"a": {**STUDY["arms"]["a"], "after": {"encodr": "encoder"}}}})


@pytest.mark.parametrize("change", [{"seeds": []}, {"arms": {}}])
def test_a_study_without_runs_is_refused(change: dict):
    with pytest.raises(UsageError, match="study letters: expected at least one arm and one seed"):
        studies.plan_jobs({**STUDY, **change})


def test_arms_with_equal_overrides_are_refused():
    study = {**STUDY, "arms": {"a": STUDY["arms"]["a"], "c": {**STUDY["arms"]["a"]}}}
    with pytest.raises(ValueError, match="a, seed 0 and c, seed 0 are the same run: they have the same overrides"):
        studies.plan_jobs(study)


def test_an_override_without_effect_is_refused():
    arm = {**STUDY["arms"]["a"], "overrides": [*STUDY["arms"]["a"]["overrides"], "model/pooling=mean"]}
    with pytest.raises(ValueError, match="model/pooling=mean changes nothing"):
        studies.plan_jobs({**STUDY, "arms": {"a": STUDY["arms"]["a"], "c": arm}})


def test_the_error_for_a_misspelt_override_names_the_arm():
    study = {**STUDY, "arms": {"a": {"overrides": ["model.encoder.widht=64"]}}}
    with pytest.raises(ValueError, match="(?s)arm a: .*widht.*there is no .*did you mean model.encoder.width"):
        studies.plan_jobs(study)


def test_the_error_for_an_unknown_arm_lists_all_arms_and_stages():
    with pytest.raises(ValueError, match="arm=z: expected an arm or stage of study letters: encoder, a, b"):
        studies.plan_jobs(STUDY, arm="z")


def test_an_arm_has_the_sizes_of_the_stage_that_it_starts_from():
    sizes = ["model.encoder.n_heads=8", "model/encoder=whisper_v2"]
    stages = {"encoder": {"overrides": ["experiment=encoder_ctc", *sizes]}}
    jobs = {job.name: job for job in studies.plan_jobs({**STUDY, "stages": stages}, seed=1)}
    for name in ("a", "b"):
        encoder, stage_encoder = (jobs[job].config["model"]["encoder"] for job in (name, "encoder"))
        assert encoder == stage_encoder and (encoder["n_mels"], encoder["n_heads"]) == (80, 8)


def test_an_arm_that_states_other_settings_than_the_stage_that_it_starts_from_is_refused():
    stages = {"encoder": {"overrides": ["experiment=encoder_ctc", "model.encoder.n_heads=10"]}}
    arms = {"a": {**STUDY["arms"]["a"], "overrides": [*STUDY["arms"]["a"]["overrides"], "model.encoder.n_heads=4"]}}
    message = (
        "arm a: model.encoder.n_heads=4, but encoder, whose weights it starts from, is trained with 10: "
        "set model.encoder.n_heads=10"
    )
    with pytest.raises(UsageError, match=message):
        studies.plan_jobs({**STUDY, "stages": stages, "arms": arms})


def test_a_setting_of_the_language_model_that_only_the_arm_names_is_compared_with_its_default():
    tuned = {"overrides": ["experiment=qwen2_audio_sft", "+model.llm.config.hidden_act=gelu"], "after": "a"}
    with pytest.raises(
        UsageError, match="hidden_act=gelu, but a, .* trained with silu: set model.llm.config.hidden_ac"
    ):
        studies.plan_jobs({**STUDY, "arms": {**STUDY["arms"], "tuned": tuned}})


def test_a_default_that_follows_from_other_settings_may_be_written_out():
    overrides = [*STUDY["arms"]["a"]["overrides"], "model.encoder.ffn=512"]  # null: 4 * 128
    studies.plan_jobs({**STUDY, "arms": {"a": {**STUDY["arms"]["a"], "overrides": overrides}}}, seed=0)


def test_an_arm_with_other_settings_than_the_arm_that_it_starts_from_is_refused():
    tuned = {"overrides": ["experiment=qwen2_audio_sft", "model.llm.config.rope_theta=10001"], "after": "a"}
    with pytest.raises(UsageError, match="arm tuned: model.llm.config.rope_theta=10001, but a, whose weights it"):
        studies.plan_jobs({**STUDY, "arms": {"a": STUDY["arms"]["a"], "tuned": tuned}})


def test_a_circular_dependency_is_refused():
    arms = {"a": {"overrides": [], "after": {"llm": "b"}}, "b": {"overrides": [], "after": {"llm": "a"}}}
    with pytest.raises(ValueError, match="a after b after a is a circular dependency"):
        studies.plan_jobs({**STUDY, "arms": arms})


def test_a_failed_run_blocks_only_its_dependents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    """Stand-in processes replace the runs, because the runner does not depend on what runs do."""

    def start(job: Job, arguments: list[str], threads: int) -> None:
        job.run_dir.mkdir(parents=True, exist_ok=True)
        job.log.write_text("the reason\n")
        code = "raise SystemExit(1)" if job.name == "broken" else "pass"
        job.process = studies.subprocess.Popen([sys.executable, "-c", code])

    monkeypatch.setattr(studies, "_start", start)
    broken = Job("broken", 0, [], tmp_path / "broken")
    jobs = [
        broken,
        Job("child", 0, [], tmp_path / "child", needs=[broken]),
        Job("other", 0, [], tmp_path / "other", evaluate=[["benchmark=embedded"]]),
    ]
    assert studies.run_jobs(jobs, max_parallel=2) == 2
    assert [job.status for job in jobs] == ["failed", "blocked", "done"]
    assert "the reason" in capsys.readouterr().out


class StandIns:
    """Start stand-in processes whose names determine what they do."""

    CODES: ClassVar = {
        "quick": "pass",
        "stopped": "raise SystemExit(75)",  # REQUEUE_STATUS
        "long": """
import signal, time
from auris.training.preemption import Preemption
with Preemption(exits_at_once=False) as preemption:
    print("ready", flush=True)
    while not preemption.received:
        time.sleep(0.01)
    time.sleep(0.3)  # saves
    print("saved", flush=True)
raise SystemExit(75)
""",
    }

    def __init__(self, signal_during: str = "", send_signal: Callable[[], None] = lambda: None) -> None:
        self.signal_during, self.send_signal, self.started = signal_during, send_signal, []

    def __call__(self, job: Job, arguments: list[str], threads: int) -> None:
        job.run_dir.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-c", self.CODES[job.name]]
        job.process = subprocess.Popen(command, stdout=subprocess.PIPE)
        self.started.append(job.name)
        if job.name == self.signal_during:
            assert job.process.stdout.readline() == b"ready\n"
            self.output = job.process.stdout
            self.send_signal()


@pytest.mark.parametrize(
    ("signal_number", "is_group"),
    [(signal.SIGINT, True), (signal.SIGHUP, False), (signal.SIGTERM, True), (signal.SIGUSR1, True)],
)
def test_at_a_signal_running_runs_save_and_no_further_run_starts(tmp_path, monkeypatch, capfd, signal_number, is_group):
    """A terminal signals the whole process group: the runs get its signal, and another one from the study."""

    def send_signal() -> None:
        for process_id in [os.getpid(), *([jobs[0].process.pid] if is_group else [])]:
            os.kill(process_id, signal_number)

    handler = signal.getsignal(signal_number)
    start = StandIns("long", send_signal)
    monkeypatch.setattr(studies, "_start", start)
    jobs = [Job("long", 0, [], tmp_path / "a"), Job("quick", 0, [], tmp_path / "b")]
    assert studies.run_jobs(jobs, max_parallel=1) == studies.REQUEUE_STATUS == 75
    assert start.output.read() == b"saved\n"
    assert [job.status for job in jobs] == ["stopped", "waiting"] and start.started == ["long"]
    assert f"stopped by {signal_number.name}: the same command resumes the study" in capfd.readouterr().out
    assert signal.getsignal(signal_number) is handler


def test_a_preempted_run_blocks_its_dependents_but_is_not_a_failure(tmp_path, monkeypatch):
    monkeypatch.setattr(studies, "_start", StandIns())
    stopped = Job("stopped", 0, [], tmp_path / "a")
    jobs = [
        stopped,
        Job("quick", 0, [], tmp_path / "b", needs=[stopped]),
        Job("quick", 1, [], tmp_path / "c"),
    ]
    assert studies.run_jobs(jobs, max_parallel=1) == studies.REQUEUE_STATUS
    assert [job.status for job in jobs] == ["stopped", "blocked", "done"]


def test_finished_runs_start_again_only_with_another_config_or_evaluation(tmp_path, monkeypatch, capsys):
    def make_jobs(steps: int = 1, benchmarks: tuple[str, ...] = ("a", "b")) -> list[Job]:
        evaluate = [[f"benchmark={name}"] for name in benchmarks]
        return [Job("quick", 0, [], tmp_path / "run", config={"max_steps": steps}, evaluate=evaluate)]

    def count_starts(jobs_to_run: list[Job]) -> int:
        start = StandIns()
        monkeypatch.setattr(studies, "_start", start)
        assert studies.run_jobs(jobs_to_run, max_parallel=1) == 0
        return len(start.started)

    assert count_starts(make_jobs()) == 3  # one training and two evaluations
    assert count_starts(make_jobs()) == 0 and "1 run (1 already done)" in capsys.readouterr().out
    # A run that is planned only as a dependency, for example in another job of a job array, has no evaluations.
    assert count_starts(make_jobs(benchmarks=())) == 0
    assert count_starts(make_jobs(benchmarks=("a", "c"))) == 3
    assert count_starts(make_jobs(steps=2, benchmarks=("a", "c"))) == 3
    (tmp_path / "run" / "done.json").write_text("{")  # unreadable, so the run is not done
    assert count_starts(make_jobs(steps=2)) == 3


def test_a_dry_run_of_a_study_prints_only_the_list_of_its_runs(capsys):
    """scripts/slurm_study.sh reads this list to make a job array."""
    assert cli.main(["train", "ablations=demo", "seeds=[1]", "dry_run=true"]) == 0
    assert capsys.readouterr().out == PLAN + "\n"


def test_the_level_of_a_run_is_the_length_of_its_dependency_chain():
    arms = {
        "a": {"overrides": ["experiment=qwen2_audio_pretrain"], "after": {"encoder": "encoder"}},
        "c": {"overrides": ["experiment=qwen2_audio_pretrain", "optim.lr=1e-3"], "after": "a"},
    }
    jobs = studies.plan_jobs({**STUDY, "seeds": [0], "arms": arms})
    assert {job.name: job.level for job in jobs} == {"encoder": 0, "a": 1, "c": 2}


def test_the_table_shows_the_progress_of_a_run(tmp_path: Path):
    job = Job("a", 0, [], tmp_path)
    report = {"step": 3, "max_steps": 9, "train/loss": 1.5}
    (tmp_path / "progress.json").write_text(json.dumps(report))
    cells = [column._cells for column in studies._make_table([job]).columns]
    assert [cell[0] for cell in cells] == ["a", "0", "waiting", "3/9", "1.500", "", ""]
    (tmp_path / "progress.json").write_text(json.dumps({**report, "val/asr en/wer": 0.25}))
    assert [column._cells[0] for column in studies._make_table([job], "val/asr en/wer").columns][5] == "0.250"


def test_long_names_are_not_truncated_at_eighty_columns(tmp_path: Path):
    jobs = [Job(f"v1_encoder{rest}", 0, [], tmp_path / rest) for rest in ("", "_natural_prompts")]
    with (console := Console(width=80)).capture() as captured:
        console.print(studies._make_table(jobs, "val/asr en/wer"))
    printed = captured.get()
    assert "v1_encoder_natural_prompts" in printed and "…" not in printed


def test_an_arm_can_start_from_the_model_of_another_arm():
    study = {
        "study": "ladder",
        "seeds": [0],
        "arms": {
            "first": {"overrides": ["experiment=qwen2_audio_pretrain"]},
            "second": {"overrides": ["experiment=qwen2_audio_pretrain", "optim.lr=1e-3"], "after": "first"},
        },
    }
    first, second = studies.plan_jobs(study)
    assert second.needs == [first] and f"checkpoint={first.run_dir}" in second.overrides
