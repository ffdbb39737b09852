"""Exchange of Python objects between the ranks of a run. A run with a single process has one rank."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

from torch import distributed

from auris.errors import UserError

_Result = TypeVar("_Result")


def world_and_rank() -> tuple[int, int]:
    """Return the number of processes and the rank of this process."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_world_size(), distributed.get_rank()
    return 1, 0


def gather(value: _Result) -> list[_Result]:
    """Return the values of all ranks, in order of rank. Collective."""
    world, _ = world_and_rank()
    values: list[Any] = [value] * world
    if world > 1:
        distributed.all_gather_object(values, value)
    return values


def collectively(work: Callable[[], _Result], error_class: type[Exception]) -> _Result:
    """Call `work` on every rank. If it fails on any rank, for any reason, raise `error_class` on all. Collective.

    Without this, the other ranks would wait forever for the failed one in their next exchange.
    """
    message, result, cause = "", None, None
    try:
        result = work()
    except Exception as error:
        cause = error
        message = str(cause) if isinstance(cause, (OSError, UserError)) else f"{type(cause).__name__}: {cause}"
    if first_message := next(filter(None, gather(message)), None):
        raise error_class(first_message) from cause
    return cast("_Result", result)  # None only if `work` returned None
