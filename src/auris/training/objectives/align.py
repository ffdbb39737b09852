"""Alignment of the projector with a frozen language model, before that model enters the training loop.

The audio tokens of a clip are scored by their distance to the rows of the language model's own input embedding, and CTC
sums over all ways in which they can spell the transcript. Audio tokens thus become what the language model reads: the
embedding of the token that is spoken, or of the audio pad between tokens.

Near it in the literature: LegoSLM (Ma et al. 2025, arXiv 2505.11352) trains an encoder on CTC posteriors over the
vocabulary of a language model, which reads the mean of its embeddings under these posteriors; here, the projector's own
output is drawn to the embedding. TASU (arXiv 2511.03310) trains a language model on text in place of audio, as
`experiment=llm_text` does.

Shapes: A clips, M audio tokens of all clips, H the LLM's width, V classes (tokens and the blank).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from auris.audio import ENCODER_RATE
from auris.model.pack import Pack
from auris.training.objectives.ctc import PathObjective

if TYPE_CHECKING:
    from auris.model.audio_lm import AudioLM


class Align(PathObjective):
    """Objective: CTC of a clip's audio tokens against the language model's frozen input embedding.

    With z an audio token, E_v the embedding of token v, and S the mean of |E_v - mean of E|^2 over the classes, the
    logit of v is -sharpness |z - E_v|^2 / S, plus a bias if v is the blank. Unlike an inner product, a distance is
    least where z equals the embedding, does not prefer embeddings of large norm, and does not depend on the mean of all
    embeddings, which is large in language models. The blank is the audio pad of the prompt. Audio tokens replace
    this token in prompts, so that the language model never reads it, and the text stage can write blanks with it.

    The classes are the tokens in the transcripts of the training and validation rows (`set_tokens`). The other tokens
    of a vocabulary would take most of the time, and have no examples.

    Args:
        n_text: Number of text tokens in the vocabulary.
        pad: Id of the audio pad.
        pull: Weight of |z - E_v|^2 / S per audio token, where v is the best class. It keeps audio tokens near the
            embeddings, beyond what their classification needs.
    """

    views = ("spoken",)
    is_known: Tensor

    def __init__(self, *, n_text: int, pad: int, pull: float = 0.3):
        super().__init__()
        self.pad, self.pull = pad, pull
        self.log_sharpness = nn.Parameter(torch.empty(1))
        self.blank_bias = nn.Parameter(torch.empty(1))
        # Whether a token is a class. Its shape does not depend on the data, so that a checkpoint can be loaded.
        self.register_buffer("is_known", torch.empty(n_text, dtype=torch.bool))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Make each token a class. Set the sharpness to 10, with which logits of two tokens differ by about 20."""
        with torch.no_grad():
            self.log_sharpness.fill_(math.log(10))
            self.blank_bias.fill_(3.0)
            self.is_known.fill_(True)

    def set_tokens(self, ids: Iterable[int]) -> None:
        """Make these tokens, and the blank, the only classes."""
        self.is_known.fill_(False)
        self.is_known[list(ids)] = True

    @property
    def token_ids(self) -> Tensor:
        """Ids (V,) of the tokens of the classes, in ascending order, and then the blank's."""
        ids = self.is_known.nonzero().squeeze(-1)
        return torch.cat([ids, ids.new_tensor([self.pad])])

    @property
    def blank(self) -> int:
        """The last class."""
        return int(self.is_known.sum())

    def forward(self, net: AudioLM, pack: Pack) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the summed loss, the number of rows with too few audio tokens, and both terms of the loss."""
        scores, lengths, tokens, embeddings = self._score(net, pack)
        losses, n_too_short = self.ctc_losses(scores, lengths, pack)
        distances = (tokens - embeddings[scores.argmax(-1)]).square().sum(-1)
        distance = distances.sum() / _spread(embeddings) * bool(pack["rows"])  # an empty pack has a dummy clip
        metrics = {"ctc": losses.detach().sum(), "distance": distance.detach(), "rows_too_short_for_ctc": n_too_short}
        return losses.sum() + self.pull * distance, metrics

    def scores(self, net: AudioLM, pack: Pack) -> tuple[Tensor, Tensor]:
        """Return the log-probabilities (M, V) of the audio tokens of all clips, and their number (A,) in each clip."""
        return self._score(net, pack)[:2]

    def _score(self, net: AudioLM, pack: Pack) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the `scores`, the audio tokens (M, H) and the embeddings (V, H) of the classes."""
        tokens, lengths, embeddings = net.encode_with_embeddings(pack, self.token_ids)
        embeddings = embeddings.detach().to(tokens.dtype)
        centre = embeddings.mean(0)  # smaller numbers keep more digits; |z|^2, equal for all classes, is left out
        centred = embeddings - centre
        logits = 2 * (tokens - centre) @ centred.T - centred.square().sum(-1)
        logits = logits.float() * (self.log_sharpness.exp() / _spread(embeddings))
        bias = torch.cat([logits.new_zeros(len(embeddings) - 1), self.blank_bias])
        return (logits + bias).log_softmax(-1), lengths, tokens, embeddings

    def position_seconds(self, net: AudioLM) -> float:
        """Return the seconds between two audio tokens."""
        return net.pooling.k / ENCODER_RATE


def _spread(embeddings: Tensor) -> Tensor:
    """Return the mean squared distance of embeddings (V, H) to their mean."""
    return (embeddings - embeddings.mean(0)).square().sum(-1).mean()
