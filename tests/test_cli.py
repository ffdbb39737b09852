"""The command line: dispatch, help, error messages, exit codes, and the packages that it imports."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from auris import cli, config
from auris.errors import RunStopped, UserError

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
HEAVY = ("torch", "lightning", "transformers", "pandas", "matplotlib", "pyarrow", "soundfile")


@pytest.fixture(autouse=True)
def without_debug(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AURIS_DEBUG", "0")  # --debug sets this variable for the process
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")


@pytest.fixture
def make_corpus_fail(monkeypatch: pytest.MonkeyPatch):
    """Return a function that makes `auris corpus` raise an exception."""

    def fail_with(error: BaseException) -> None:
        def run(config: config.Config) -> None:
            raise error

        monkeypatch.setattr("auris.corpus.command.run", run)

    return fail_with


# --- dispatch -----------------------------------------------------------------------------------------------------


def test_commands_and_top_level_configs_correspond():
    assert cli.COMMANDS.keys() == {path.stem for path in config.CONFIGS.glob("*.yaml")}
    for command in cli.COMMANDS.values():
        module, _, _ = command.function.partition(":")
        assert (ROOT / "src" / Path(*module.split("."))).with_suffix(".py").is_file() and command.summary


def test_a_command_calls_its_function_with_the_resolved_config(monkeypatch):
    configs = []
    monkeypatch.setattr("auris.corpus.command.run", lambda config: configs.append(config))
    assert cli.main(["corpus", "out=x", "seed=3"]) == 0
    assert configs[0]["out"] == "x" and configs[0]["seed"] == 3 and isinstance(configs[0]["sizes"]["train"], dict)


def test_the_exit_code_is_the_return_value_of_the_command(monkeypatch):
    monkeypatch.setattr("auris.corpus.command.run", lambda config: 75)
    assert cli.main(["corpus", "out=x"]) == 75


def test_a_command_sees_the_arguments_that_start_it_again(monkeypatch):
    """Lightning starts the other ranks of `trainer.devices=2` with these arguments."""
    arguments = []
    monkeypatch.setattr("auris.corpus.command.run", lambda config: arguments.extend(sys.argv[1:]))
    assert cli.main(["corpus", "seed=3", "out=x"]) == 0 and arguments == ["corpus", "seed=3", "out=x"]


def test_hydra_flags_are_supported(monkeypatch, tmp_path, capsys):
    assert cli.main(["train", "--cfg", "job", "optim.lr=0.5", "--package", "optim"]) == 0
    assert yaml.safe_load(capsys.readouterr().out.split("\n", 1)[1])["lr"] == 0.5
    assert cli.main(["train", "--info", "defaults"]) == 0
    seeds = []
    monkeypatch.setattr("auris.corpus.command.run", lambda config: seeds.append(config["seed"]))
    assert cli.main(["corpus", "out=x", "-m", "seed=1,2", f"hydra.sweep.dir={tmp_path}"]) == 0
    assert seeds == [1, 2]


# --- help ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_the_help_of_a_command_lists_every_config_key(name, capsys):
    assert cli.main([name, "--help"]) == 0
    page = capsys.readouterr().out
    assert max(map(len, page.splitlines())) <= 100
    assert page.startswith(f"usage: auris {name} ") and page.count(f"\n  auris {name}") >= 3
    content = yaml.safe_load((config.CONFIGS / f"{name}.yaml").read_text())
    groups = {key for default in content.pop("defaults") if isinstance(default, dict) for key in default} - {"hydra"}
    for key in content.keys() - {"hydra"} - groups:
        assert f"\n  {key}:" in page
    for key in (key for key in groups if not key.startswith("override ")):
        assert f"\n  {key}=" in page and config.options(key)[0] in page
    assert "--multirun" in page and "75" in page


def test_the_help_includes_comments_of_nested_keys_and_multi_line_comments(capsys):
    cli.main(["train", "--help"])
    page = " ".join(capsys.readouterr().out.split())
    assert "warmup_steps: 2000" in page and "weights: initial weights of parts; also Whisper for encoder" in page
    assert "is recorded in faults/: skip (the run stops after 10 such steps in a row) | stop" in page


def test_without_a_command_the_commands_are_listed(capsys):
    assert cli.main([]) == 0
    page = capsys.readouterr().out
    assert all(f"\n  {name}" in page and command.summary in page for name, command in cli.COMMANDS.items())
    assert max(map(len, page.splitlines())) <= 100 and "Exit codes" in page


# --- errors -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["tran"], "there is no command tran; did you mean train? expected train, evaluate"),
        (["train", "optim.lrr=1"], "optim.lrr=1: there is no optim.lrr; did you mean optim.lr?"),
        (["train", "modle=qwen_audio"], "modle=qwen_audio: there is no modle; did you mean mod"),
        (["train", "model/encodr=whisper_v2"], "there is no model/encodr; did you mean model/encoder?"),
        (["train", "model=qwen3"], "model=qwen3: there is no such option; expected qwen2_audio, qwen_audio"),
        (["train", "experiment=qwen_audio_sff"], "there is no such option; did you mean qwen_audio_sft? expected a"),
        (["train", "data.train=[a"], "data.train=[a: "),
        (["train", "seed"], "seed: "),
        (["train", "seed=0,1"], "To sweep over it, add --multirun"),
        (["train", "run_dir=${nothing}"], "Interpolation key 'nothing' not found"),
        (["train", "--cfgg", "job"], "there is no flag --cfgg; did you mean --cfg?"),
        (["results"], "expected study=NAME; "),
        (["export", "checkpoint=x"], "expected out=... on the command line (see --help)"),
    ],
)
def test_a_usage_error_is_one_line_and_returns_2(arguments, line, capsys):
    assert cli.main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and line in err and err.count("\n") == 1


def test_under_torchrun_a_usage_error_is_printed_once_per_machine(capsys, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert cli.main(["train", "optim.lrr=1"]) == 2
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("error", [UserError("out=x is full"), RunStopped("out=x is full")])
def test_a_failed_run_prints_one_line_and_returns_1(error, make_corpus_fail, capsys):
    make_corpus_fail(error)
    assert cli.main(["corpus", "out=x"]) == 1
    assert capsys.readouterr().err == "error: out=x is full\n"


def test_an_interrupted_command_prints_one_line_and_returns_130(make_corpus_fail, capsys):
    make_corpus_fail(KeyboardInterrupt())
    assert cli.main(["corpus", "out=x"]) == 130
    assert capsys.readouterr().err == "\nstopped by SIGINT\n"
    with pytest.raises(KeyboardInterrupt):
        cli.main(["corpus", "out=x", "--debug"])


@pytest.mark.parametrize("error", [ValueError("raised by torch"), OSError("disk failure"), KeyError("missing key")])
def test_an_exception_that_is_not_a_user_error_keeps_its_traceback(error, make_corpus_fail):
    make_corpus_fail(error)
    with pytest.raises(type(error)) as caught:
        cli.main(["corpus", "out=x"])
    assert caught.value is error and any(entry.name == "run" for entry in caught.traceback)


def test_debug_shows_the_traceback_of_a_user_error(make_corpus_fail, monkeypatch):
    make_corpus_fail(UserError("out=x is full"))
    with pytest.raises(UserError):
        cli.main(["corpus", "--debug", "out=x"])
    monkeypatch.setenv("AURIS_DEBUG", "1")
    with pytest.raises(UserError):
        cli.main(["train", "optim.lrr=1"])


def raise_user_error() -> None:
    raise UserError("p=2: expected a probability")


def raise_value_error() -> None:
    raise ValueError("raised by numpy")


def test_a_user_error_raised_by_a_target_is_not_wrapped():
    with pytest.raises(UserError, match="^p=2: expected a probability$"):
        config.build({"_target_": f"{__name__}.raise_user_error"})
    with pytest.raises(Exception, match="raised by numpy") as caught:
        config.build({"_target_": f"{__name__}.raise_value_error"})
    assert not isinstance(caught.value, UserError) and isinstance(caught.value.__cause__, ValueError)


# --- start-up -----------------------------------------------------------------------------------------------------

PRINT_IMPORTED_PACKAGES = """
import sys
from auris import cli
code = cli.main(sys.argv[1:])
print([name for name in {heavy} if name in sys.modules], code)
"""


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ([], 0),
        (["train", "--help"], 0),
        (["train", "optim.lrr=1"], 2),
        (["results"], 2),
        (["train", "--cfg", "job"], 0),
    ],
)
def test_commands_that_only_print_do_not_import_heavy_packages(arguments, code):
    script = PRINT_IMPORTED_PACKAGES.format(heavy=HEAVY)
    completed = subprocess.run(
        [sys.executable, "-c", script, *arguments], env=ENVIRONMENT, capture_output=True, text=True
    )
    assert completed.stdout.splitlines()[-1] == f"[] {code}", completed.stderr


def test_a_closed_pipe_ends_the_help_without_an_error():
    command = [sys.executable, "-m", "auris", "train", "--help"]
    process = subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.close()
    assert process.communicate()[1] == "" and process.returncode == 0


def test_a_folder_with_the_name_of_a_setting_is_not_a_config_group(tmp_path, monkeypatch, capsys):
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)
    assert cli.main(["results", "study=some", "runs=elsewhere"]) == 1
    assert "there is no study at elsewhere/some" in capsys.readouterr().err


def test_a_config_group_is_also_searched_in_the_working_directory(tmp_path, monkeypatch, capsys):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment/mine.yaml").write_text("# @package _global_\nseed: 7\n")
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", "--cfg", "job", "-p", "seed", "experiment=mine"]) == 0
    assert capsys.readouterr().out == "7\n"


@pytest.mark.parametrize(("command", "package"), [("results", "pandas"), ("report", "jinja2")])
def test_the_error_for_a_missing_optional_package_names_the_extra(command, package, tmp_path, monkeypatch, capsys):
    for module in [name for name in sys.modules if name.startswith("auris.results")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, package, None)
    assert cli.main([command, "study=some", f"runs={tmp_path}"]) == 1
    expected = f"error: auris {command} needs {package}, which is not installed: pip install 'auris[reports]'\n"
    assert capsys.readouterr().err == expected
