"""Names of published weights: the Qwen2-Audio layout of transformers against ours, both ways.

Files hold the names of the first release (`audio_tower.`, `language_model.model.`); a transformers model in memory has
them one level deeper (`model.audio_tower.`, `model.language_model.`). Both are read; files are what is written.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from auris.model.audio_lm import AudioLM

# (ours, theirs): whole dotted parts, replaced at the head of a name; the longest match wins.
_PREFIXES = (
    ("encoder.positions", "audio_tower.embed_positions.weight"),
    ("encoder.blocks", "audio_tower.layers"),
    ("encoder.norm", "audio_tower.layer_norm"),
    ("encoder", "audio_tower"),
    ("projector", "multi_modal_projector.linear"),
    ("llm", "language_model"),
)
# (ours, theirs) inside an encoder block.
_BLOCK = (
    ("attention_norm", "self_attn_layer_norm"),
    ("query", "self_attn.q_proj"),
    ("key", "self_attn.k_proj"),
    ("value", "self_attn.v_proj"),
    ("out", "self_attn.out_proj"),
    ("mlp_norm", "final_layer_norm"),
    ("up", "fc1"),
    ("down", "fc2"),
)
# In-memory names of transformers >= 5 to those of files, in this order.
_IN_MEMORY = (
    (r"^model\.language_model\.", "language_model.model."),
    (r"^model\.(?=audio_tower\.|multi_modal_projector\.)", ""),
    (r"^lm_head\.", "language_model.lm_head."),
)


def _replace(name: str, pairs: tuple[tuple[str, str], ...]) -> str:
    for old, new in pairs:
        if name == old or name.startswith(old + "."):
            return new + name[len(old) :]
    return name


def to_qwen2_audio(name: str) -> str:
    """Our parameter name to that in a Qwen2-Audio file."""
    if match := re.fullmatch(r"(encoder\.blocks\.\d+)\.(.+)", name):
        name = f"{match[1]}.{_replace(match[2], _BLOCK)}"
    return _replace(name, _PREFIXES)


def from_qwen2_audio(name: str) -> str:
    """A Qwen2-Audio parameter name, of a file or of a transformers model in memory, to ours."""
    for pattern, replacement in _IN_MEMORY:
        name = re.sub(pattern, replacement, name)
    name = _replace(name, tuple((theirs, ours) for ours, theirs in _PREFIXES))
    if match := re.fullmatch(r"(encoder\.blocks\.\d+)\.(.+)", name):
        name = f"{match[1]}.{_replace(match[2], tuple((theirs, ours) for ours, theirs in _BLOCK))}"
    return name


def load_qwen2_audio(net: AudioLM, state_dict: Mapping[str, Tensor]) -> None:
    """Copy Qwen2-Audio weights into a model of the same sizes.

    Raises:
        ValueError: names or shapes that do not agree, each of them named.
    """
    theirs = {from_qwen2_audio(name): tensor for name, tensor in state_dict.items()}
    ours = net.state_dict()
    problems = [f"missing {name}" for name in sorted(ours.keys() - theirs.keys())]
    problems += [f"unexpected {name}" for name in sorted(theirs.keys() - ours.keys())]
    problems += [
        f"{name}: {tuple(theirs[name].shape)}, expected {tuple(ours[name].shape)}"
        for name in sorted(ours.keys() & theirs.keys())
        if theirs[name].shape != ours[name].shape
    ]
    if problems:
        raise ValueError(
            "expected Qwen2-Audio weights of this model's sizes (model/pooling=mean model/projector=linear, qwen2):"
            + "".join(f"\n  {problem}" for problem in problems)
        )
    net.load_state_dict(theirs)
