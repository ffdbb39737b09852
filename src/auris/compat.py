"""Private interfaces of Lightning, torch and transformers that auris relies on.

No other module uses private interfaces, except `config.search_path`, which must not import torch. For each interface
`tests/test_compat.py` has a test, so that an incompatible upgrade fails in one place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
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


def disable_signal_handlers(trainer: L.Trainer) -> None:
    """Keep Lightning from installing signal handlers.

    Lightning's SIGTERM handler runs a collective while another collective may be active, and its SLURM handler saves a
    checkpoint. There is no public option to disable them.
    """
    trainer._signal_connector.register_signal_handlers = lambda: None


def set_loop_position(trainer: L.Trainer, step: int, *, max_steps: int, repeat_validation: bool) -> None:
    """Make Lightning's loops continue after a step.

    Checkpoints of auris store the number of steps. Lightning's loop counters are derived from this number here.

    Args:
        trainer: Trainer that is about to fit.
        step: Number of steps taken.
        max_steps: Number of steps of the whole run.
        repeat_validation: Whether the validation after this step was interrupted and must be repeated.
    """

    def progress(n: int, **overrides: int) -> dict[str, dict[str, int]]:
        counts = {"ready": n, "started": n, "processed": n, "completed": n} | overrides
        return {"total": counts, "current": dict(counts)}

    loops = trainer.fit_loop.state_dict()
    loops["epoch_progress"] = progress(1, processed=0, completed=0)
    # If the batch counts as incomplete, Lightning assumes that the checkpoint was saved at the end of this batch, after
    # its validation. If the batch is complete and a validation batch is not, Lightning restarts the validation.
    batch_progress = progress(step) if repeat_validation else progress(step, completed=step - 1)
    loops["epoch_loop.batch_progress"] = {**batch_progress, "is_last_batch": step >= max_steps}
    loops["epoch_loop.state_dict"] = {"_batches_that_stepped": step - 1}  # Lightning adds 1 before the next step
    step_counts = {"ready": step, "completed": step}
    loops["epoch_loop.manual_optimization.optim_step_progress"] = {"total": step_counts, "current": dict(step_counts)}
    if repeat_validation:
        loops["epoch_loop.val_loop.batch_progress"]["total"] = progress(1, processed=0, completed=0)["total"]
    trainer.fit_loop.load_state_dict(loops)


def forget_event_file(logger: TensorBoardLogger) -> None:
    """Make a logger start a new event file at its next use, without closing the current file, which is broken."""
    logger._experiment = None


def set_data_parallel_size_before_launch(strategy: ModelParallelStrategy, data_parallel: Callable[[int], int]) -> None:
    """Set the size of data-parallel groups when the number of processes is known, before Lightning starts processes.

    Lightning's constructor expects the size before the number of processes is known, and its check runs only after all
    processes have started.

    Args:
        strategy: The strategy.
        data_parallel: Takes the number of processes and returns the size of a data-parallel group, or raises an error.
    """
    configure_launcher = strategy._configure_launcher

    def set_size_and_configure_launcher() -> None:
        strategy._data_parallel_size = data_parallel(strategy.num_nodes * strategy.num_processes)
        configure_launcher()

    strategy._configure_launcher = set_size_and_configure_launcher


# --- torch --------------------------------------------------------------------------------------------------------


def set_compile_options() -> None:
    """Change two settings of torch.compile for the whole process.

    `nested_graph_breaks` is turned on: without it, a graph break in attention would also break the graph of every
    function that calls it. `use_duck_shape` is turned off: with it, lengths that are equal by chance in the first pack
    would be assumed to be equal in all packs.
    """
    import torch._dynamo  # imported here because it takes a second
    import torch.fx.experimental._config

    torch._dynamo.config.nested_graph_breaks = True
    torch.fx.experimental._config.use_duck_shape = False


def has_bf16_instructions() -> bool:
    """Return whether the CPU multiplies bf16 matrices by AMX or AVX512-BF16."""
    return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()


def is_compiled(module: nn.Module) -> bool:
    """Return whether `module.compile()` was called."""
    return module._compiled_call_impl is not None


def local_shape_and_offset(tensor: DTensor) -> tuple[Sequence[int], Sequence[int]]:
    """Return the shape of this process's part of a tensor, and the offset of this part in the whole tensor.

    torch.distributed.checkpoint uses the same function of torch, which has no public name.
    """
    return compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)


# --- transformers -------------------------------------------------------------------------------------------------


def forget_initialisation(llm: nn.Module) -> None:
    """Make `init_weights` initialise every module again, by removing the marks that transformers sets."""
    for module in llm.modules():
        # `setattr`, because type checkers expect tensors or modules as attributes of a module.
        setattr(module, "_is_hf_initialized", False)  # noqa: B010
