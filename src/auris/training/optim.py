"""Optimizer and schedule: parameter groups with layer-wise decay, AdamW with moments in bfloat16, warm-up and cosine.

The settings are those of Qwen-Audio Table 6.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.optim import AdamW
from torch.optim.adamw import adamw as update

from auris.config import Config
from auris.errors import UserError

if TYPE_CHECKING:
    from auris.model.audio_lm import AudioLM

# Keys of a config's `optim` that set learning rates and clipping. All others are arguments of the optimizer.
SCHEDULE_KEYS = ("lr", "min_lr", "weight_decay", "clip", "warmup_steps", "lr_factors", "layer_decay")
# Types of AdamW's two moments, by the name in a config. 8 bits would need another library (torchao, bitsandbytes).
STATES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def find_parts(net: nn.Module, trainable: Iterable[str]) -> list[nn.Module | nn.Parameter]:
    """Return the parts of a net with the given names.

    A part is a submodule or a parameter by name, such as `encoder` or `llm.model.embed_tokens`, or `PART.lora` for the
    LoRA matrices of a part. A part may have no parameters (mean pooling).

    Raises:
        UserError: A name matches nothing.
    """
    modules = dict(net.named_modules())
    parameters = dict(net.named_parameters())
    parts: list[nn.Module | nn.Parameter] = []
    for name in trainable:
        prefix, _, suffix = name.rpartition(".")
        lora = [x for other, x in parameters.items() if other.startswith(f"{prefix}.") and ".lora_" in other]
        if name in modules and name:
            parts.append(modules[name])
        elif name in parameters:
            parts.append(parameters[name])
        elif suffix == "lora" and lora:
            parts += lora
        else:
            names = ", ".join(name for name, _ in net.named_children())
            raise UserError(
                f"trainable={name!r} matches no part of the model: expected {names}, or a module or parameter in them"
            )
    return parts


def freeze(net: nn.Module, trainable: Iterable[str]) -> None:
    """Freeze all parts of a net except the given ones (`find_parts`), and put frozen parts into eval mode."""
    net.requires_grad_(False)
    net.eval()
    for part in find_parts(net, trainable):
        part.requires_grad_(True)
        if isinstance(part, nn.Module):
            part.train()


def parameter_groups(
    net: AudioLM,
    objective: nn.Module,
    *,
    lr: float,
    weight_decay: float,
    layer_decay: float,
    lr_factors: Mapping[str, float] | None = None,
) -> list[dict]:
    """Return parameter groups, one for each learning rate and weight decay.

    The learning rate of block l of the encoder's L blocks is lr * layer_decay^(L - 1 - l), that of its convolutions
    lr * layer_decay^L, and that of everything else lr (as in Qwen-VL; Qwen-Audio only reports the number 0.95). Vectors
    (biases, norms) have no weight decay.

    Args:
        net: The net. Frozen parameters are left out.
        objective: The objective, which may have parameters as well.
        lr: Peak learning rate.
        weight_decay: Weight decay of matrices.
        layer_decay: Factor of the learning rate from one encoder block to the block below.
        lr_factors: Factors of the learning rate by part (a child of the net).

    Raises:
        UserError: Nothing is trainable, or a factor has the name of no part.
    """
    depth = len(net.encoder.blocks)
    factors = dict(lr_factors or {})
    parts = [name for name, _ in net.named_children()]
    if unknown := sorted(set(factors) - set(parts)):
        raise UserError(f"optim.lr_factors contains {', '.join(unknown)}: expected {', '.join(parts)}")
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    named = [(f"net.{name}", p) for name, p in net.named_parameters()]
    named += [(f"objective.{name}", p) for name, p in objective.named_parameters()]
    for name, parameter in named:
        if parameter.requires_grad:
            part = name.split(".")[1]
            rate = lr * layer_decay ** _blocks_above(name, depth) * factors.get(part, 1.0)
            groups.setdefault((rate, parameter.ndim >= 2), []).append(parameter)
    if not groups:
        raise UserError("no parameter is trainable: set trainable=[encoder,pooling,projector] or other parts")
    return [
        {"params": parameters, "lr": rate, "weight_decay": weight_decay if decays else 0.0}
        for (rate, decays), parameters in sorted(groups.items(), key=lambda item: (-item[0][0], item[0][1]))
    ]


def _blocks_above(name: str, depth: int) -> int:
    """Return the number of encoder blocks between a parameter and the output of the encoder."""
    if not name.startswith("net.encoder.") or name.startswith("net.encoder.norm."):
        return 0
    if name.startswith("net.encoder.blocks."):
        return depth - 1 - int(name.split(".")[3])
    return depth


def adamw(groups: Iterable[dict], *, betas: Sequence[float], eps: float, states: str = "fp32") -> AdamW:
    """Return AdamW.

    Args:
        groups: Parameter groups.
        betas: Decay rates of the two moments.
        eps: Term added to the denominator.
        states: Type of the moments, a key of `STATES`.

    Raises:
        UserError: Another type, or a second moment that could never decrease in bfloat16.
    """
    if states not in STATES:
        raise UserError(f"optim.states={states}: expected {' or '.join(STATES)}")
    beta1, beta2 = betas
    if STATES[states] is torch.float32:
        return AdamW(groups, betas=(beta1, beta2), eps=eps)
    if 1 - beta2 < torch.finfo(STATES[states]).eps:
        raise UserError(
            f"optim.betas={list(betas)} with optim.states={states}: a step's decay of the second moment is lost in "
            "rounding: expected optim.betas=[...,0.99] or less, or optim.states=fp32"
        )
    return LowPrecisionAdamW(groups, betas=(beta1, beta2), eps=eps, dtype=STATES[states])


def moment_bytes(settings: Config) -> int:
    """Return the bytes of a moment for a config's `optim`; of an optimizer without `states`, those of float32."""
    return STATES[settings.get("states", "fp32")].itemsize


class LowPrecisionAdamW(AdamW):
    """AdamW that stores its moments in another type, rounded to the nearest, and computes in that of the parameters.

    In bfloat16 the moments need half the memory. Checkpoints, strategies and schedules work as with AdamW. Parameters
    are updated one at a time, so that the moments of only one are in memory in full precision.

    Args:
        groups: Parameter groups.
        dtype: Type of the moments.
        **settings: Arguments of AdamW.
    """

    def __init__(self, groups: Iterable[dict], *, dtype: torch.dtype, **settings: Any) -> None:
        super().__init__(groups, **settings)
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update the parameters; return the loss of the closure, None if there is none."""
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
                update(
                    [parameter],
                    [parameter.grad],
                    [moments["exp_avg"]],
                    [moments["exp_avg_sq"]],
                    [],
                    [state["step"]],
                    amsgrad=False,
                    beta1=beta1,
                    beta2=beta2,
                    **settings,
                )
                for key, moment in moments.items():
                    state[key].copy_(moment)
        return loss


def cosine(
    optimizer: torch.optim.Optimizer, *, warmup_steps: int, max_steps: int, floor: float
) -> torch.optim.lr_scheduler.LambdaLR:
    """Return a schedule with linear warm-up, followed by a cosine.

    Args:
        optimizer: The optimizer, whose learning rates are the peak.
        warmup_steps: Number of steps of the warm-up.
        max_steps: Step at which the cosine ends.
        floor: Last learning rate as a fraction of the peak.

    Raises:
        UserError: The warm-up is not shorter than the run.
    """
    if warmup_steps >= max_steps:
        raise UserError(f"optim.warmup_steps={warmup_steps} must be less than max_steps={max_steps}")

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        progress = min(1.0, (step - warmup_steps) / (max_steps - warmup_steps))
        return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
