"""Every private interface of other packages that auris uses exists and behaves as expected; the pinned versions."""

from __future__ import annotations

import re
import signal
import tomllib
from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.trainer.connectors.signal_connector import _SignalConnector
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
from transformers import Qwen2Config, Qwen2ForCausalLM

from auris import compat
from auris.training.event_files import ResumableTensorBoardLogger

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("file", ["constraints.txt", "constraints-lowest.txt"])
def test_pinned_versions_satisfy_pyproject(file):
    """After a change of pyproject.toml, `make constraints` makes both files again."""
    pins = dict(re.findall(r"^([\w.-]+)(?:\[.*\])?==(\S+)$", (ROOT / file).read_text(), re.MULTILINE))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"], *(line for extra in project["optional-dependencies"].values() for line in extra)]
    lowest = {"torch", "torchaudio", "lightning", "transformers"} if file == "constraints-lowest.txt" else set()
    for requirement in (Requirement(line) for line in lines if not line.startswith("auris[")):
        version = pins[canonicalize_name(requirement.name)]
        assert version in requirement.specifier, requirement
        if requirement.name in lowest:
            assert any(f">={version}".startswith(str(part)) for part in requirement.specifier), requirement


class CountingModule(L.LightningModule):
    """Module with manual optimization that records its training and validation steps."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.weight = nn.Parameter(torch.ones(1))
        self.steps: list[int] = []
        self.n_validation_steps = 0

    def training_step(self, batch: torch.Tensor, number: int) -> None:
        self.steps.append(number)
        optimizer = self.optimizers()
        self.manual_backward(self.weight.sum())
        optimizer.step()
        optimizer.zero_grad()

    def validation_step(self, batch: torch.Tensor, number: int) -> None:
        self.n_validation_steps += 1

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class StartAtStep(L.Callback):
    """Callback that continues a fit at a given step."""

    def __init__(self, step: int, *, in_validation: bool) -> None:
        self.step, self.in_validation = step, in_validation

    def on_fit_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        compat.disable_signal_handlers(trainer)
        compat.set_loop_position(trainer, self.step, max_steps=6, repeat_validation=self.in_validation)


@pytest.mark.parametrize(
    ("in_validation", "steps", "n_validation_steps"), [(False, [2, 3, 4, 5], 2), (True, [2, 3, 4, 5], 3)]
)
def test_a_trainer_can_continue_at_a_given_step(
    tmp_path: Path, in_validation: bool, steps: list[int], n_validation_steps: int
):
    """The run has 6 steps and validates after every second step. An interrupted validation is repeated."""
    module, handler = CountingModule(), signal.getsignal(signal.SIGTERM)
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=6,
        val_check_interval=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=tmp_path,
        callbacks=[StartAtStep(2, in_validation=in_validation)],
    )
    trainer.fit(module, torch.utils.data.DataLoader(torch.zeros(6)), torch.utils.data.DataLoader(torch.zeros(1)))
    assert module.steps == steps and module.n_validation_steps == n_validation_steps
    assert trainer.global_step == 6 and trainer.fit_loop.total_batch_idx == 5
    assert signal.getsignal(signal.SIGTERM) is handler


def test_lightning_has_the_signal_connector_that_auris_disables():
    assert callable(_SignalConnector.register_signal_handlers)
    assert isinstance(L.Trainer(logger=False)._signal_connector, _SignalConnector)


def test_a_logger_starts_a_new_event_file(tmp_path: Path):
    logger = ResumableTensorBoardLogger(tmp_path)
    before = logger.experiment
    compat.forget_event_file(logger)
    assert logger.experiment is not before


def test_the_data_parallel_size_is_set_before_processes_are_launched(monkeypatch: pytest.MonkeyPatch):
    calls = []
    monkeypatch.setattr(ModelParallelStrategy, "_configure_launcher", lambda self: calls.append(self))
    strategy = ModelParallelStrategy(tensor_parallel_size=2)
    compat.set_data_parallel_size_before_launch(strategy, lambda world: calls.append(world) or world // 2)
    L.Trainer(strategy=strategy, accelerator="cpu", devices=4, logger=False)
    assert calls == [4, strategy] and strategy._data_parallel_size == 2


def test_compilation_settings_exist():
    import torch.fx.experimental._config as fx_config

    with torch._dynamo.config.patch(nested_graph_breaks=False), fx_config.patch(use_duck_shape=True):
        compat.set_compile_options()
        assert torch._dynamo.config.nested_graph_breaks is True and fx_config.use_duck_shape is False


def test_bf16_instructions_are_those_of_the_processor():
    info = Path("/proc/cpuinfo")
    if not info.is_file():
        pytest.skip("no /proc/cpuinfo, which lists the instructions of the processor")
    flags = set(info.read_text().split())
    assert compat.has_bf16_instructions() == bool({"amx_bf16", "avx512_bf16"} & flags)


def test_compiled_modules_are_recognised():
    module = nn.Linear(1, 1)
    assert not compat.is_compiled(module)
    module.compile(backend="eager")
    assert compat.is_compiled(module)


def test_the_local_shape_and_offset_of_a_dtensor_are_known(tmp_path: Path):
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        tensor = distribute_tensor(torch.zeros(3, 2), init_device_mesh("cpu", (1,)), [Shard(0)])
        shape, offset = compat.local_shape_and_offset(tensor)
        assert tuple(shape) == (3, 2) and tuple(offset) == (0, 0)
    finally:
        distributed.destroy_process_group()


def test_a_dispatch_mode_sees_operations():
    class RecordingMode(compat.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            operations.append(function)
            return function(*args, **(kwargs or {}))

    operations: list = []
    with RecordingMode():
        torch.zeros(1).normal_()
    assert torch.ops.aten.normal_.default in operations


def test_weights_can_be_initialised_again():
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    llm = Qwen2ForCausalLM(Qwen2Config(vocab_size=5, num_key_value_heads=1, **sizes))
    weight = llm.model.layers[0].mlp.up_proj.weight
    before = weight.detach().clone()
    llm.init_weights()
    assert torch.equal(weight, before)  # transformers skips modules marked as initialised
    compat.forget_initialisation(llm)
    llm.init_weights()
    assert not torch.equal(weight, before)
