"""Connectionist temporal classification on the encoder alone: the embedded stand-in for Whisper's weights.

Targets are the text tokens of the language model, so that the encoder learns to fire on the frames that the projector
will have to translate (Graves et al. 2006).
"""

from __future__ import annotations

import math
from itertools import takewhile
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from auris.errors import UserError
from auris.model.generation import GenerationSettings, NextPack, no_more_prompts
from auris.model.pack import Pack
from auris.training.objectives.objective import Objective


class CTC(Objective):
    """A linear layer over the encoder's normalised frames, and the CTC loss over text tokens plus a blank.

    Args:
        width: of the encoder.
        n_text: text tokens of the vocabulary; the blank is one more.
    """

    views = ("transcript",)

    def __init__(self, *, width: int, n_text: int):
        super().__init__()
        self.head = nn.Linear(width, n_text + 1)
        self.blank = n_text
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start with nine of ten frames blank, which the first steps would otherwise be spent on learning."""
        with torch.no_grad():
            self.head.bias[self.blank] = math.log(9 * self.blank)

    def count(self, pack: Pack) -> Tensor:
        """Return the number of target tokens."""
        return pack["cu_seqlens"][len(pack["rows"])]

    def forward(self, net: nn.Module, pack: Pack) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the summed loss, and the number of rows with too few frames for their text, which are left out."""
        scores, lengths = self.scores(net, pack)
        target_lengths = pack["cu_seqlens"].diff().to(lengths)
        losses = F.ctc_loss(
            _pad(scores, lengths),
            pack["ids"],
            lengths,
            target_lengths,
            blank=self.blank,
            reduction="none",
            zero_infinity=True,
        )[: len(pack["rows"])]  # an empty pack holds one dummy row
        return losses.sum(), {"rows_too_short_for_ctc": (losses == 0).sum()}

    def answer(
        self,
        net: nn.Module,
        pack: Pack,
        settings: GenerationSettings,
        *,
        next_pack: NextPack = no_more_prompts,
        **options: Any,
    ) -> list[list[int]]:
        """Return the best path without repeats and blanks, up to a token of `stop` or `max_new_tokens`.

        Other `options` have no effect: nothing is drawn, and each pack takes one forward.

        Raises:
            UserError: settings that choose tokens in another way.
        """
        if settings != GenerationSettings(max_new_tokens=settings.max_new_tokens, stop=settings.stop):
            raise UserError(
                f"{settings}: a CTC answer is the best path, expected no settings but max_new_tokens and stop "
                "(do_sample=false min_new_tokens=0 repetition_penalty=1)"
            )
        answers = self._best_paths(net, pack, settings)
        while (further := next_pack(0)) is not None:
            answers += self._best_paths(net, further, settings)
        return answers

    def _best_paths(self, net: nn.Module, pack: Pack, settings: GenerationSettings) -> list[list[int]]:
        scores, lengths = self.scores(net, pack)
        paths = scores.argmax(-1).split(lengths.tolist())
        collapsed = [torch.unique_consecutive(path) for path in paths][: len(pack["rows"])]
        answers = [path[path != self.blank].tolist() for path in collapsed]
        going = [takewhile(lambda token: token not in settings.stop, answer) for answer in answers]
        return [list(answer)[: settings.max_new_tokens] for answer in going]

    def scores(self, net: nn.Module, pack: Pack) -> tuple[Tensor, Tensor]:
        """Return the log-probabilities of all clips' frames (C, V), and the number of frames of each clip (A,)."""
        frames, lengths = net.encode_frames(pack["mel"], pack["frames"])
        return self.head(frames).float().log_softmax(-1), lengths


def _pad(scores: Tensor, lengths: Tensor) -> Tensor:
    """Pad the packed frames (C, V) of clips to (longest, A, V), by one indexed copy (pad_sequence copies per clip)."""
    longest = int(lengths.max())
    place = torch.cat([torch.arange(n) + clip * longest for clip, n in enumerate(lengths.tolist())])
    padded = scores.new_zeros(len(lengths) * longest, scores.shape[-1]).index_copy(0, place.to(scores.device), scores)
    return rearrange(padded, "(a c) v -> c a v", c=longest)
