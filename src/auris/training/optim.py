"""AdamW's parameter groups with layer-wise decay, moments in bfloat16, and the warm-up and cosine schedule.

Settings are those of Qwen-Audio Table 6.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import AdamW
from torch.optim.adamw import adamw as update

from auris.config import Config
from auris.errors import UserError

# Keys of a config's `optim` that set learning rates and clipping. All others are arguments of the optimizer.
SCHEDULE_KEYS = ("lr", "min_lr", "weight_decay", "clip", "warmup_steps", "lr_factors", "layer_decay")
# Precisions of AdamW's two moments. 8 bits would need another library (torchao, bitsandbytes).
STATES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def find(net: nn.Module, trainable: Iterable[str]) -> list[nn.Module | nn.Parameter]:
    """Return the parts of a net that `trainable` names.

    A part is a submodule or a parameter by name, such as `encoder` or `llm.model.embed_tokens`, or `PART.lora` for the
    LoRA matrices of a part. A part may have no parameters (mean pooling).

    Raises:
        UserError: a name matches nothing.
    """
    modules = dict(net.named_modules())
    parameters = dict(net.named_parameters())
    found: list[nn.Module | nn.Parameter] = []
    for name in trainable:
        part, _, kind = name.rpartition(".")
        lora = [x for other, x in parameters.items() if other.startswith(f"{part}.") and ".lora_" in other]
        if name in modules and name:
            found.append(modules[name])
        elif name in parameters:
            found.append(parameters[name])
        elif kind == "lora" and lora:
            found += lora
        else:
            parts = ", ".join(name for name, _ in net.named_children())
            raise UserError(f"trainable={name!r} matches no part of the model; parts are {parts} and what is in them")
    return found


def freeze(net: nn.Module, trainable: Iterable[str]) -> None:
    """Freeze all but these parts of the net (see `find`); frozen parts are in eval mode."""
    net.requires_grad_(False)
    net.eval()
    for part in find(net, trainable):
        part.requires_grad_(True)
        if isinstance(part, nn.Module):
            part.train()


def parameter_groups(
    net: nn.Module,
    objective: nn.Module,
    *,
    lr: float,
    weight_decay: float,
    layer_decay: float,
    lr_factors: Mapping[str, float] | None = None,
) -> list[dict]:
    """Return parameter groups by learning rate and by whether weights decay.

    Block l of the encoder's L blocks learns at lr * layer_decay^(L - l), its convolutions like block 0, and everything
    after the blocks at lr (as in Qwen-VL; Qwen-Audio gives only the number 0.95). Vectors (biases, norms) do not decay.

    Args:
        net: with its parts frozen or not.
        objective: may have parameters of its own.
        lr: peak learning rate.
        weight_decay: of matrices.
        layer_decay: factor from one encoder block to the block below.
        lr_factors: factors of the learning rate by part (a child of the net).

    Raises:
        UserError: nothing is trainable, or a factor names no part.
    """
    depth = len(net.encoder.blocks)
    factors = dict(lr_factors or {})
    parts = [name for name, _ in net.named_children()]
    if unknown := sorted(set(factors) - set(parts)):
        raise UserError(f"optim.lr_factors names {unknown}; parts are {', '.join(parts)}")
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    named = [(f"net.{name}", p) for name, p in net.named_parameters()]
    named += [(f"objective.{name}", p) for name, p in objective.named_parameters()]
    for name, parameter in named:
        if parameter.requires_grad:
            part = name.split(".")[1]
            rate = lr * layer_decay ** _below(name, depth) * factors.get(part, 1.0)
            groups.setdefault((rate, parameter.ndim >= 2), []).append(parameter)
    if not groups:
        raise UserError("nothing is trainable: set trainable=[encoder,pooling,projector] or other parts")
    return [
        {"params": parameters, "lr": rate, "weight_decay": weight_decay if decays else 0.0}
        for (rate, decays), parameters in sorted(groups.items(), key=lambda item: (-item[0][0], item[0][1]))
    ]


def _below(name: str, depth: int) -> int:
    """Count the encoder blocks between a parameter and the encoder's output."""
    if not name.startswith("net.encoder.") or name.startswith("net.encoder.norm."):
        return 0
    if name.startswith("net.encoder.blocks."):
        return depth - 1 - int(name.split(".")[3])
    return depth


def adamw(groups: Iterable[dict], *, betas: Sequence[float], eps: float, states: str = "fp32") -> AdamW:
    """Return AdamW with its moments in one of the precisions `STATES`.

    Raises:
        UserError: another precision, or a second moment in bfloat16 that could never fall.
    """
    if states not in STATES:
        raise UserError(f"optim.states={states}: expected {' or '.join(STATES)}")
    if STATES[states] is torch.float32:
        return AdamW(groups, betas=tuple(betas), eps=eps)
    if 1 - betas[1] < torch.finfo(STATES[states]).eps:
        raise UserError(
            f"optim.betas={list(betas)} with optim.states={states}: what a step takes from a second moment is lost in "
            "its rounding: expected optim.betas=[...,0.99] or less, or optim.states=fp32"
        )
    return Rounded(groups, betas=tuple(betas), eps=eps, dtype=STATES[states])


def moment_bytes(settings: Config) -> int:
    """Return the bytes of a moment for a config's `optim`; of an optimizer without `states`, those of float32."""
    return STATES[settings.get("states", "fp32")].itemsize


class Rounded(AdamW):
    """AdamW that computes in the parameters' precision and stores its moments in another, rounded to the nearest.

    It needs half the memory, and works with the same checkpoints, strategies and schedules. Parameters are updated one
    at a time, so that only the moments of one are in memory in full precision.
    """

    def __init__(self, groups: Iterable[dict], *, dtype: torch.dtype, **settings: Any) -> None:
        super().__init__(groups, **settings)
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            settings = {key: group[key] for key in ("lr", "weight_decay", "eps", "maximize")}
            beta1, beta2 = group["betas"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["step"] = torch.tensor(0.0)
                    state |= {key: torch.zeros_like(parameter, dtype=self.dtype) for key in ("exp_avg", "exp_avg_sq")}
                moments = {key: state[key].to(parameter.dtype) for key in ("exp_avg", "exp_avg_sq")}
                lists = [[one] for one in (parameter, parameter.grad, *moments.values())]
                update(*lists, [], [state["step"]], amsgrad=False, beta1=beta1, beta2=beta2, **settings)
                for key, moment in moments.items():
                    state[key].copy_(moment)
        return loss


def cosine(
    optimizer: torch.optim.Optimizer, *, warmup_steps: int, max_steps: int, floor: float
) -> torch.optim.lr_scheduler.LambdaLR:
    """Return a schedule: linear warm-up over `warmup_steps`, then a cosine to `floor` times the peak at `max_steps`."""
    if warmup_steps >= max_steps:
        raise UserError(f"optim.warmup_steps={warmup_steps} must be below max_steps={max_steps}")

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        progress = min(1.0, (step - warmup_steps) / (max_steps - warmup_steps))
        return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
