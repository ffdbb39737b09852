"""Connectionist temporal classification (CTC, Graves et al. 2006) of clips into text tokens of the language model.

`PathObjective` is what all objectives with CTC have in common: the loss, and decoding of the best path. `CTC` trains
the small encoder of the demo, which replaces Whisper's pre-trained encoder. The encoder thus learns to represent, frame
by frame, the tokens into which the projector has to translate the encoder's frames later.

Shapes: A clips; C positions of all clips, which are encoder frames or audio tokens; V classes.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from itertools import takewhile
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from auris.audio import ENCODER_RATE
from auris.errors import UserError
from auris.model.generation import GenerationSettings, NextPack, no_more_prompts
from auris.model.pack import Pack
from auris.training.objectives.objective import Objective

if TYPE_CHECKING:
    from auris.model.audio_lm import AudioLM


class PathObjective(Objective):
    """Base class of objectives that score classes at each position of a clip, and read the most likely path."""

    @property
    @abstractmethod
    def blank(self) -> int:
        """Class of the blank, which is the last one."""

    @property
    @abstractmethod
    def token_ids(self) -> Tensor | None:
        """Ids (V,) of the tokens that the classes stand for, in ascending order except for the blank.

        None if the number of a class is the id of its token.
        """

    @abstractmethod
    def scores(self, net: AudioLM, pack: Pack) -> tuple[Tensor, Tensor]:
        """Return the log-probabilities (C, V) at the positions of all clips, and the number of positions (A,)."""

    @abstractmethod
    def position_seconds(self, net: AudioLM) -> float:
        """Return the seconds between two positions."""

    def count(self, pack: Pack) -> Tensor:
        """Return the number of target tokens."""
        return pack["cu_seqlens"][len(pack["rows"])]

    def ctc_losses(self, scores: Tensor, lengths: Tensor, pack: Pack) -> tuple[Tensor, Tensor]:
        """Return the loss of each row, and the number of rows that have fewer positions than CTC needs for their text.

        Such rows do not contribute to the loss.

        Args:
            scores: (C, V) log-probabilities.
            lengths: (A,) number of positions of each clip.
            pack: The rows.
        """
        targets = self.classes(pack["ids"]) if pack["rows"] else pack["ids"]
        # The loss only depends on the scores of the targets and the blank, a few hundred of several thousand classes.
        # The other classes become one, because torch's gradient is that of probabilities whose sum is 1.
        used, targets = torch.cat([targets, targets.new_tensor([self.blank])]).unique(return_inverse=True)
        scores = scores[:, used]
        rest = (1 - scores.exp().sum(-1, keepdim=True)).clamp(min=torch.finfo(scores.dtype).eps).log()
        losses = F.ctc_loss(
            _pad(torch.cat([scores, rest], dim=-1), lengths),
            targets[:-1],
            lengths,
            pack["cu_seqlens"].diff().to(lengths),
            blank=len(used) - 1,  # the blank is the last class
            reduction="none",
            zero_infinity=True,
        )[: len(pack["rows"])]  # an empty pack holds one dummy row
        return losses, (losses == 0).sum()

    def classes(self, ids: Tensor) -> Tensor:
        """Return the classes of token ids.

        Raises:
            UserError: There is no class for a token.
        """
        if self.token_ids is None:
            return ids
        # The blank, which is the last class, is no target.
        tokens = self.token_ids[: self.blank]
        classes = torch.searchsorted(tokens, ids).clamp(max=self.blank - 1)
        if not torch.equal(tokens[classes], ids):
            unknown = ids[tokens[classes] != ids].unique().tolist()
            raise UserError(f"the aligner has no class for the tokens {unknown[:10]}, which did not occur in its data")
        return classes

    def tokens(self, classes: Tensor) -> list[int]:
        """Return the token ids of classes."""
        return (classes if self.token_ids is None else self.token_ids[classes]).tolist()

    def answer(
        self,
        net: AudioLM,
        pack: Pack,
        settings: GenerationSettings,
        *,
        next_pack: NextPack = no_more_prompts,
        **options: Any,
    ) -> list[list[int]]:
        """Return the most likely path of each row without repeats and blanks, up to a stop token or `max_new_tokens`.

        Args:
            net: The model.
            pack: The rows.
            settings: Settings in which only `max_new_tokens` and `stop` differ from their defaults.
            next_pack: Returns further packs, as in `generation.generate`.
            **options: Ignored, because nothing is sampled and each pack takes a single forward.

        Raises:
            UserError: Another setting differs from its default.
        """
        if settings != GenerationSettings(max_new_tokens=settings.max_new_tokens, stop=settings.stop):
            raise UserError(
                f"{settings}: CTC decodes the best path, expected no settings except max_new_tokens and stop "
                "(do_sample=false min_new_tokens=0 repetition_penalty=1)"
            )
        answers = self._decode_best_paths(net, pack, settings)
        while (further_pack := next_pack(0)) is not None:  # no row is active, because each pack is decoded at once
            answers += self._decode_best_paths(net, further_pack, settings)
        return answers

    def best_paths(self, net: AudioLM, pack: Pack) -> list[Tensor]:
        """Return the most likely class at each position of each row."""
        scores, lengths = self.scores(net, pack)
        return list(scores.argmax(-1).split(lengths.tolist())[: len(pack["rows"])])

    def _decode_best_paths(self, net: AudioLM, pack: Pack, settings: GenerationSettings) -> list[list[int]]:
        collapsed = [torch.unique_consecutive(path) for path in self.best_paths(net, pack)]
        answers = [self.tokens(path[path != self.blank]) for path in collapsed]
        until_stop = [takewhile(lambda token: token not in settings.stop, answer) for answer in answers]
        return [list(answer)[: settings.max_new_tokens] for answer in until_stop]


class CTC(PathObjective):
    """Objective: CTC loss of a linear layer over the encoder's normalised frames.

    Args:
        width: Width of the encoder.
        n_text: Number of text tokens in the vocabulary. The blank has the next id.
    """

    views = ("transcript",)

    def __init__(self, *, width: int, n_text: int):
        super().__init__()
        self.head = nn.Linear(width, n_text + 1)
        self.reset_parameters()

    @property
    def blank(self) -> int:
        """The class after the last text token."""
        return self.head.out_features - 1

    @property
    def token_ids(self) -> None:
        """None: a class has the number of its token."""

    def reset_parameters(self) -> None:
        """Set the bias of the blank so that about 90 % of the frames are blank.

        CTC would otherwise learn this in its first steps.
        """
        with torch.no_grad():
            self.head.bias[self.blank] = math.log(9 * self.blank)

    def forward(self, net: AudioLM, pack: Pack) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the summed loss, and the number of rows with too few frames (`ctc_losses`)."""
        losses, n_too_short = self.ctc_losses(*self.scores(net, pack), pack)
        return losses.sum(), {"rows_too_short_for_ctc": n_too_short}

    def scores(self, net: AudioLM, pack: Pack) -> tuple[Tensor, Tensor]:
        """Return the log-probabilities (C, V) of the frames of all clips, and their number (A,) in each clip."""
        frames, lengths = net.encode_frames(pack)
        return self.head(frames).float().log_softmax(-1), lengths

    def position_seconds(self, net: AudioLM) -> float:
        """Return the seconds between two frames of the encoder."""
        return 1 / ENCODER_RATE


def _pad(scores: Tensor, lengths: Tensor) -> Tensor:
    """Pad the packed frames (C, V) of clips to (number of frames of the longest clip, A, V).

    A single indexed copy is faster than pad_sequence, which copies clip by clip.
    """
    max_length = int(lengths.max())
    index = torch.cat([torch.arange(n) + clip * max_length for clip, n in enumerate(lengths.tolist())])
    padded = scores.new_zeros(len(lengths) * max_length, scores.shape[-1])
    padded = padded.index_copy(0, index.to(scores.device), scores)
    return rearrange(padded, "(a c) v -> c a v", c=max_length)
