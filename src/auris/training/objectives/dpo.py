"""Direct preference optimisation (Rafailov et al. 2023; Qwen2-Audio equation 2) and its kin, on pairs of answers.

A pack computes the prompt of a pair, including its clips, once for both answers (`model.pack.Pack`). The reference's
log-probabilities come with the pack, or from a frozen model in memory.

Shapes: P pairs; the answers of a pair are in the order chosen, rejected.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from auris.errors import UserError
from auris.model.pack import Pack
from auris.training.objectives.logps import score
from auris.training.objectives.objective import Objective, task_sums

LOSSES = ("sigmoid", "ipo", "hinge")
REFERENCES = ("cached", "live")


class DPO(Objective):
    """Prefers the chosen answer to the rejected one, relative to a frozen reference.

    With x = reward of the chosen - reward of the rejected answer, and reward = beta * (log p - log p of the reference):

    * `sigmoid`: -(1 - s) log sigmoid(x) - s log sigmoid(-x) with label smoothing s (Mitchell 2023), by default 0;
    * `ipo`: (x / beta - 1 / (2 beta))^2 (Azar et al. 2023; TRL has it with `average=true`);
    * `hinge`: max(0, 1 - x) (Zhao et al. 2023).

    Args:
        beta: strength of the reference; a larger value stays closer to it.
        loss: one of `LOSSES`.
        label_smoothing: assumed share of pairs that are labelled the wrong way round; only for `sigmoid`.
        nll_weight: weight of the chosen answer's negative log-likelihood per token (Pang et al. 2024).
        average: log p of an answer is the mean over its tokens, not the sum.
        reference: "cached": log-probabilities of the initial weights, computed once before training; "live": a frozen
            copy of the initial net, asked in every step, as augmented audio needs it.

    Raises:
        UserError: a value out of its range, or one without effect.
    """

    views = ("pair",)

    def __init__(
        self,
        *,
        beta: float = 0.1,
        loss: str = "sigmoid",
        label_smoothing: float = 0.0,
        nll_weight: float = 0.0,
        average: bool = False,
        reference: str = "cached",
    ):
        super().__init__()
        for name, value in {"beta": beta, "label_smoothing": label_smoothing, "nll_weight": nll_weight}.items():
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise UserError(f"objective.{name}={value!r}: expected a number")
        checks = {
            "beta": (beta, 0 < beta < math.inf, "a number above 0 (Qwen2-Audio gives none; 0.1 is customary)"),
            "loss": (loss, loss in LOSSES, " or ".join(LOSSES)),
            "label_smoothing": (label_smoothing, 0 <= label_smoothing < 0.5, "at least 0 and below 0.5"),
            "nll_weight": (nll_weight, 0 <= nll_weight < math.inf, "0 or more"),
            "reference": (reference, reference in REFERENCES, " or ".join(REFERENCES)),
        }
        for name, (value, holds, expected) in checks.items():
            if not holds:
                raise UserError(f"objective.{name}={value}: expected {expected}")
        if label_smoothing and loss != "sigmoid":
            raise UserError(
                f"objective.label_smoothing={label_smoothing} has no effect on the {loss} loss: expected 0 "
                "(or objective.loss=sigmoid)"
            )
        self.beta, self.loss, self.average = beta, loss, average
        self.label_smoothing, self.nll_weight, self.reference = label_smoothing, nll_weight, reference
        # torch does not look into a tuple: the frozen net belongs to no checkpoint and no optimizer.
        self._frozen: tuple[nn.Module, ...] = ()

    def freeze(self, net: nn.Module) -> None:
        """Take a copy of the policy as the reference of `reference="live"`."""
        self._frozen = (net.requires_grad_(False).eval(),)

    def count(self, pack: Pack) -> Tensor:
        """Return the number of pairs."""
        return torch.tensor(len(pack["rows"]), device=pack["ids"].device)

    def forward(self, net: nn.Module, pack: Pack) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the summed loss, and sums over pairs for the log.

        `kl` is log p of the reference - log p, the mean of both answers: an unbiased estimate of KL(reference, policy)
        if the reference itself wrote the answers (`auris.evaluation.preferences`), otherwise a measure of drift.
        `tasks (2, K)` are the summed loss and the pairs of each of `tasks.CURVES`.
        """
        logps, lengths = answer_logps(net, pack)
        reference = self.reference_logps(pack)
        rewards = self.rewards(logps, reference, lengths)
        losses = self.losses(rewards, logps, lengths)
        margin = (rewards[:, 0] - rewards[:, 1]).detach()
        sums = {
            "reward_margin": margin.sum(),
            "accuracy": (margin > 0).sum(),
            "kl": (reference - logps.detach()).mean(1).sum(),
        }
        for name, values in (("logps", logps.detach()), ("length", lengths)):
            sums |= {f"{name}_chosen": values[:, 0].sum(), f"{name}_rejected": values[:, 1].sum()}
        if "tasks" in pack:
            sums["tasks"] = task_sums(losses, pack["tasks"])
        return losses.sum(), sums

    def rewards(self, logps: Tensor, reference: Tensor, lengths: Tensor) -> Tensor:
        """Return the rewards (P, 2), given log-probabilities (P, 2) that are sums over tokens."""
        ratios = logps - reference
        return self.beta * (ratios / lengths if self.average else ratios)

    def losses(self, rewards: Tensor, logps: Tensor, lengths: Tensor) -> Tensor:
        """Return the loss of each pair (P,)."""
        x = rewards[:, 0] - rewards[:, 1]
        if self.loss == "sigmoid":
            s = self.label_smoothing
            losses = -(1 - s) * F.logsigmoid(x) - s * F.logsigmoid(-x)
        elif self.loss == "ipo":
            losses = (x / self.beta - 1 / (2 * self.beta)).square()
        else:
            losses = F.relu(1 - x)
        return losses - self.nll_weight * logps[:, 0] / lengths[:, 0]

    def reference_logps(self, pack: Pack) -> Tensor:
        """Return the reference's log-probabilities (P, 2): those that came with the pack, or the frozen net's."""
        if "reference" in pack:
            return pack["reference"]
        if not self._frozen and not pack["rows"]:
            return torch.zeros(0, 2, device=pack["ids"].device)
        if not self._frozen:
            raise UserError(
                "the pairs bring no reference log-probabilities and there is no frozen reference: "
                "references.attach_cached or references.start_live comes before the first step"
            )
        with torch.no_grad():  # for an empty pack too: a sharded net computes only where all processes do
            return answer_logps(self._frozen[0], pack)[0]


def answer_logps(net: nn.Module, pack: Pack) -> tuple[Tensor, Tensor]:
    """Return the summed log-probabilities (P, 2) of the answers of a pack of pairs, and their numbers of tokens (P, 2).

    The answers of pair p are the labels of segments 2 p and 2 p + 1.
    """
    logps, where, _ = score(net, pack)
    segment = torch.searchsorted(pack["cu_seqlens"][1:].long(), where, right=True)
    zeros = logps.new_zeros(2 * len(pack["rows"]))  # an empty pack has one segment more, without labels
    sums, lengths = (zeros.index_add(0, segment, x) for x in (logps, torch.ones_like(logps)))
    return rearrange(sums, "(p two) -> p two", two=2), rearrange(lengths, "(p two) -> p two", two=2)
