"""Exchange of Python objects between the processes of a run; a single process is a group of one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from torch import distributed

from auris.errors import UserError

_Result = TypeVar("_Result")


def world_and_rank() -> tuple[int, int]:
    """Return the number of processes and the number of this one."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_world_size(), distributed.get_rank()
    return 1, 0


def gather(value: _Result) -> list[_Result]:
    """Return the values of all processes, by rank. Collective."""
    world, _ = world_and_rank()
    values: list[Any] = [value] * world
    if world > 1:
        distributed.all_gather_object(values, value)
    return values


def collectively(work: Callable[[], _Result], error: type[Exception]) -> _Result:
    """Do something on every process; if it fails on one of them, in whatever way, raise `error` on all.

    Otherwise the others would wait forever for the failed process in their next exchange.
    """
    message, result, cause = "", None, None
    try:
        result = work()
    except Exception as failure:
        cause = failure
        message = str(cause) if isinstance(cause, (OSError, UserError)) else f"{type(cause).__name__}: {cause}"
    if first := next(filter(None, gather(message)), None):
        raise error(first) from cause
    return result
