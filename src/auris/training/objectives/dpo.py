"""Direct preference optimisation (Rafailov et al. 2023; Qwen2-Audio equation 2) and related losses on pairs of answers.

The prompt of a pair, including its clips, is computed once for both answers (`model.pack.Pack`). The log-probabilities
under the reference model are in the pack, or are computed by a frozen model in memory.

Shapes: P pairs. In a dimension of size 2, the chosen answer precedes the rejected answer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from auris.errors import UserError
from auris.model.pack import Pack
from auris.training.objectives.logps import segment_logps
from auris.training.objectives.objective import Objective, task_sums

if TYPE_CHECKING:
    from auris.model.audio_lm import AudioLM

LOSSES = ("sigmoid", "ipo", "hinge")
REFERENCES = ("cached", "live")


class DPO(Objective):
    """Objective: prefer the chosen to the rejected answer, relative to a frozen reference model.

    The reward of an answer is beta * (log p(answer) - log p_reference(answer)). With x = reward(chosen) -
    reward(rejected), the losses are:

    * `sigmoid`: -(1 - s) log sigmoid(x) - s log sigmoid(-x) with label smoothing s (Mitchell 2023), by default 0;
    * `ipo`: (x / beta - 1 / (2 beta))^2 (Azar et al. 2023); with `average=true`, it equals TRL's;
    * `hinge`: max(0, 1 - x) (Zhao et al. 2023).

    Args:
        beta: Strength of the reference; a larger value keeps the policy closer to the reference.
        loss: One of `LOSSES`.
        label_smoothing: Assumed share of pairs in which the labels chosen and rejected are swapped; only for `sigmoid`.
        nll_weight: Weight of the negative log-likelihood per token of the chosen answer (Pang et al. 2024).
        average: Whether log p of an answer is the mean over its tokens instead of the sum.
        reference: "cached" uses log-probabilities under the initial weights, which are computed once before training.
            "live" runs a frozen copy of the initial net in every step, which is required if audio is augmented.

    Raises:
        UserError: `loss` or `reference` has another value, or label smoothing has no effect on the loss.
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
        for name, value, valid in (("loss", loss, LOSSES), ("reference", reference, REFERENCES)):
            if value not in valid:
                raise UserError(f"objective.{name}={value:.80}: expected {' or '.join(valid)}")
        if label_smoothing and loss != "sigmoid":
            raise UserError(
                f"objective.label_smoothing={label_smoothing} has no effect on the {loss} loss: expected 0 "
                "(or objective.loss=sigmoid)"
            )
        self.beta, self.loss, self.average = beta, loss, average
        self.label_smoothing, self.nll_weight, self.reference = label_smoothing, nll_weight, reference
        # In a tuple, the frozen net is not a submodule, so that checkpoints and optimizers do not include it.
        self._frozen: tuple[AudioLM, ...] = ()

    def set_live_reference(self, net: AudioLM) -> None:
        """Freeze a net, which must be a copy of the policy, and use it as the reference of `reference="live"`."""
        self._frozen = (net.requires_grad_(False).eval(),)

    def count(self, pack: Pack) -> Tensor:
        """Return the number of pairs."""
        return torch.tensor(len(pack["rows"]), device=pack["ids"].device)

    def forward(self, net: AudioLM, pack: Pack) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the summed loss, and sums over pairs to be logged.

        `kl` is log p_reference - log p, averaged over both answers. It is an unbiased estimate of the KL divergence of
        the policy from the reference if the reference model generated the answers (`auris.evaluation.preferences`).
        Otherwise it only measures how far the policy has drifted. `curve_sums` (2, K) contains the summed loss and the
        number of pairs for each of `tasks.LOSS_CURVES`.
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
        if "loss_curves" in pack:
            sums["curve_sums"] = task_sums(losses, pack["loss_curves"])
        return losses.sum(), sums

    def rewards(self, logps: Tensor, reference: Tensor, lengths: Tensor) -> Tensor:
        """Return the rewards (P, 2) of answers.

        Args:
            logps: (P, 2) log-probabilities under the policy, summed over tokens.
            reference: (P, 2) log-probabilities under the reference, summed over tokens.
            lengths: (P, 2) numbers of tokens of the answers.
        """
        log_ratios = logps - reference
        return self.beta * (log_ratios / lengths if self.average else log_ratios)

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
        """Return the log-probabilities (P, 2) under the reference, from the pack or from the frozen net.

        Raises:
            UserError: The pack contains no log-probabilities, and there is no frozen net.
        """
        if "reference" in pack:
            return pack["reference"]
        if not self._frozen and not pack["rows"]:
            return torch.zeros(0, 2, device=pack["ids"].device)
        if not self._frozen:
            raise UserError(
                "the pairs have no reference log-probabilities and there is no frozen reference: call "
                "references.attach_cached_logps or references.start_live_reference before the first step"
            )
        # A pack without rows is computed as well, because a sharded net needs all processes in each forward.
        with torch.no_grad():
            return answer_logps(self._frozen[0], pack)[0]


def answer_logps(net: AudioLM, pack: Pack) -> tuple[Tensor, Tensor]:
    """Return the summed log-probabilities (P, 2) of the answers in a pack of pairs, and their numbers of tokens (P, 2).

    The answers of pair p are the labels of segments 2 p and 2 p + 1 (`segment_logps`).
    """
    sums, lengths = segment_logps(net, pack, 2 * len(pack["rows"]))
    return rearrange(sums, "(p two) -> p two", two=2), rearrange(lengths, "(p two) -> p two", two=2)
