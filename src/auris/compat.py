"""Private interfaces of Lightning, torch and transformers that auris relies on.

No other module uses private interfaces. `tests/test_compat.py` has a test for each, so that an incompatible upgrade
fails in one place.
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

    Its SIGTERM handler runs a collective while another one may be active, and its SLURM handler saves a checkpoint.
    There is no public option to disable them.
    """
    trainer._signal_connector.register_signal_handlers = lambda: None


def set_position(trainer: L.Trainer, step: int, *, max_steps: int, validating: bool) -> None:
    """Make Lightning's loops continue after a step.

    Checkpoints of auris store the number of steps. The loop counters of Lightning are derived from it here.

    Args:
        trainer: Trainer that is about to fit.
        step: Number of steps taken.
        max_steps: Number of steps of the whole run.
        validating: Whether the validation after this step has not been finished.
    """

    def count(n: int, **overrides: int) -> dict[str, dict[str, int]]:
        counts = {"ready": n, "started": n, "processed": n, "completed": n} | overrides
        return {"total": counts, "current": dict(counts)}

    loops = trainer.fit_loop.state_dict()
    loops["epoch_progress"] = count(1, processed=0, completed=0)
    # If the batch is incomplete, Lightning assumes that the checkpoint was saved at the end of this batch, after its
    # validation. If the batch is complete and a validation batch is not, it starts the interrupted validation again.
    batches = count(step) if validating else count(step, completed=step - 1)
    loops["epoch_loop.batch_progress"] = {**batches, "is_last_batch": step >= max_steps}
    loops["epoch_loop.state_dict"] = {"_batches_that_stepped": step - 1}  # Lightning adds one in either case
    done = {"ready": step, "completed": step}
    loops["epoch_loop.manual_optimization.optim_step_progress"] = {"total": done, "current": dict(done)}
    if validating:
        loops["epoch_loop.val_loop.batch_progress"]["total"] = count(1, processed=0, completed=0)["total"]
    trainer.fit_loop.load_state_dict(loops)


def forget_event_file(logger: TensorBoardLogger) -> None:
    """Make a logger start a new event file at its next use, without closing the current one, which is broken."""
    logger._experiment = None


def divide_before_launch(strategy: ModelParallelStrategy, data_parallel: Callable[[int], int]) -> None:
    """Set the size of data-parallel groups as soon as the number of processes is known, before Lightning starts others.

    Lightning's constructor expects the size before the number of processes is known, and its check runs only after all
    processes have started.

    Args:
        strategy: The strategy.
        data_parallel: Returns the size of a data-parallel group for a number of processes, or raises an error.
    """
    configure_launcher = strategy._configure_launcher

    def divide() -> None:
        strategy._data_parallel_size = data_parallel(strategy.num_nodes * strategy.num_processes)
        configure_launcher()

    strategy._configure_launcher = divide


# --- torch --------------------------------------------------------------------------------------------------------


def compile_around_graph_breaks() -> None:
    """Change two settings of torch.compile for the whole process.

    Without `nested_graph_breaks`, a graph break in attention would also break every function that calls it. With
    `use_duck_shape`, lengths that are equal by chance in the first pack would be assumed equal in all packs.
    """
    import torch._dynamo  # imported here because it takes a second
    import torch.fx.experimental._config

    torch._dynamo.config.nested_graph_breaks = True
    torch.fx.experimental._config.use_duck_shape = False


def is_compiled(module: nn.Module) -> bool:
    """Return whether `module.compile()` was called."""
    return module._compiled_call_impl is not None


def local_shape_and_offset(tensor: DTensor) -> tuple[Sequence[int], Sequence[int]]:
    """Return the shape of this process's part of a tensor, and its offset in the whole tensor.

    torch.distributed.checkpoint uses the same function, which has no public name.
    """
    return compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)


# --- transformers -------------------------------------------------------------------------------------------------


def forget_initialisation(llm: nn.Module) -> None:
    """Make `init_weights` initialise every module again, by removing the marks that transformers sets."""
    for module in llm.modules():
        # Not a plain assignment: to a type checker, attributes of a module are tensors or modules.
        setattr(module, "_is_hf_initialized", False)  # noqa: B010
