"""Private interfaces of Lightning, torch and transformers that auris relies on.

Nothing else in auris touches them. `tests/test_compat.py` has a test for each, so that an upgrade fails in one place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from torch import nn
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

# The base class of modes that intercept every operation of torch. It is documented, but its module is private.
from torch.utils._python_dispatch import TorchDispatchMode as TorchDispatchMode

if TYPE_CHECKING:
    import lightning as L
    from lightning.pytorch.loggers import TensorBoardLogger
    from lightning.pytorch.strategies import ModelParallelStrategy

# --- Lightning ----------------------------------------------------------------------------------------------------


def leave_signals_alone(trainer: L.Trainer) -> None:
    """Keep Lightning from installing signal handlers.

    Its handler of SIGTERM communicates inside the handler, where another collective may be running, and its handler for
    SLURM saves there. There is no public switch.
    """
    trainer._signal_connector.register_signal_handlers = lambda: None


def set_position(trainer: L.Trainer, step: int, *, max_steps: int, validating: bool) -> None:
    """Have Lightning's loops continue after a step.

    A position in a run of auris is its number of steps; the counters of Lightning's checkpoints are derived from it.

    Args:
        trainer: about to fit.
        step: steps taken.
        max_steps: steps of the whole run.
        validating: whether the validation after this step is still to be done.
    """

    def count(n: int, **other: int) -> dict[str, dict[str, int]]:
        counts = {"ready": n, "started": n, "processed": n, "completed": n} | other
        return {"total": counts, "current": dict(counts)}

    loops = trainer.fit_loop.state_dict()
    loops["epoch_progress"] = count(1, processed=0, completed=0)
    # A batch that is not completed means to Lightning that it was saved at the end of that batch, after its validation.
    # A completed batch with an incomplete batch of validation means that the validation was interrupted and starts
    # again.
    batches = count(step) if validating else count(step, completed=step - 1)
    loops["epoch_loop.batch_progress"] = {**batches, "is_last_batch": step >= max_steps}
    loops["epoch_loop.state_dict"] = {"_batches_that_stepped": step - 1}  # Lightning adds one in either case
    done = {"ready": step, "completed": step}
    loops["epoch_loop.manual_optimization.optim_step_progress"] = {"total": done, "current": dict(done)}
    if validating:
        loops["epoch_loop.val_loop.batch_progress"]["total"] = count(1, processed=0, completed=0)["total"]
    trainer.fit_loop.load_state_dict(loops)


def forget_event_file(logger: TensorBoardLogger) -> None:
    """Have a logger begin a new event file at its next use, without closing the present one, which is broken."""
    logger._experiment = None


def divide_before_launch(strategy: ModelParallelStrategy, data_parallel: Callable[[int], int]) -> None:
    """Call `data_parallel` as soon as the number of processes is known, before Lightning starts the others.

    Lightning's own check comes after all processes have started, and its constructor wants the size of a data-parallel
    group before the number of processes is known.

    Args:
        strategy: the strategy.
        data_parallel: takes the number of processes and returns the size of a data-parallel group, or raises.
    """
    configure_launcher = strategy._configure_launcher

    def divide() -> None:
        strategy._data_parallel_size = data_parallel(strategy.num_nodes * strategy.num_processes)
        configure_launcher()

    strategy._configure_launcher = divide


# --- torch --------------------------------------------------------------------------------------------------------


def compile_around_graph_breaks() -> None:
    """Change two settings of torch.compile for the whole process.

    Without `nested_graph_breaks`, a break within attention would also break every function around it; with
    `use_duck_shape`, lengths that happen to be equal in the first pack would be taken to be equal in all packs.
    """
    import torch._dynamo  # here, as it takes a second
    import torch.fx.experimental._config

    torch._dynamo.config.nested_graph_breaks = True
    torch.fx.experimental._config.use_duck_shape = False


def is_compiled(module: nn.Module) -> bool:
    """Whether `module.compile()` was called."""
    return module._compiled_call_impl is not None


def local_shape_and_offset(tensor: DTensor) -> tuple[Sequence[int], Sequence[int]]:
    """Return the shape of this process's part of a tensor, and where it begins in the whole.

    torch.distributed.checkpoint calls the same function; it has no public name.
    """
    return compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)


# --- transformers -------------------------------------------------------------------------------------------------


def forget_initialisation(llm: nn.Module) -> None:
    """Have `init_weights` initialise every module again; transformers marks those that it has initialised."""
    for module in llm.modules():
        module._is_hf_initialized = False
