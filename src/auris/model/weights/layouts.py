"""Released layouts of model weights: tables that translate tensor names between our model and theirs, both ways."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import islice


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The names that one release gives to the tensors that we have.

    Attributes:
        names: our name -> theirs; the first match counts. `*` stands for one dotted component, `**` for all that
            follow. Several of our tensors with one name there are joined row-wise, in this order.
        parts: parts of our model that such files hold; empty if they hold all of it.
        spellings: (pattern, replacement) pairs that turn other spellings of their names into the one in `names`.
        left_out: pattern of names that we do not use.
    """

    names: Mapping[str, str]
    parts: tuple[str, ...] = ()
    spellings: tuple[tuple[str, str], ...] = ()
    left_out: str | None = None

    def layout_name(self, name: str) -> str | None:
        """Return their name of one of our tensors; None if they have none."""
        return next((theirs for _, theirs in _renamings(name, self.names.items())), None)

    def model_names(self, name: str) -> list[str]:
        """Return our names of one of their tensors: several if they join ours, none if we have no such tensor."""
        return [ours for _, ours in _renamings(self.spell(name), ((b, a) for a, b in self.names.items()))]

    def spell(self, name: str) -> str:
        """Return one of their names as `names` spells it."""
        for pattern, replacement in self.spellings:
            name = re.sub(pattern, replacement, name)
        return name

    def uses(self, name: str) -> bool:
        """Return whether a tensor is to be read: not so constants that old versions stored, and what is left out."""
        return not _CONSTANTS.search(name) and not (self.left_out and re.match(self.left_out, self.spell(name)))

    def group(self, names: Iterable[str]) -> dict[str, list[str]]:
        """Return their name -> ours, several in the order in which they are joined; names without a counterpart are
        missing."""
        groups: dict[str, list[tuple[int, str]]] = {}
        for name in names:
            for rank, theirs in islice(_renamings(name, self.names.items()), 1):
                groups.setdefault(theirs, []).append((rank, name))
        return {theirs: [name for _, name in sorted(group)] for theirs, group in groups.items()}


@cache
def _pattern(rule: str) -> re.Pattern[str]:
    return re.compile(re.escape(rule).replace(r"\*\*", "(.+)").replace(r"\*", "([^.]+)"))


def _renamings(name: str, rules: Iterable[tuple[str, str]]) -> Iterator[tuple[int, str]]:
    """Yield the number of each rule (from, to) that matches, and the name that it turns `name` into."""
    for number, (old, new) in enumerate(rules):
        if match := _pattern(old).fullmatch(name):
            yield number, new.replace("**", "*").replace("*", "{}").format(*match.groups())


_CONSTANTS = re.compile(r"\.(rotary_emb\.inv_freq|masked_bias)$")

# A Whisper encoder: our names, those of transformers (Qwen2-Audio too), those of openai-whisper (Qwen-Audio too).
_ENCODER = (
    ("conv1.*", "conv1.*", "conv1.*"),
    ("conv2.*", "conv2.*", "conv2.*"),
    ("positions", "embed_positions.weight", "positional_embedding"),
    ("blocks.*.attention_norm.*", "layers.*.self_attn_layer_norm.*", "blocks.*.attn_ln.*"),
    ("blocks.*.query.*", "layers.*.self_attn.q_proj.*", "blocks.*.attn.query.*"),
    ("blocks.*.key.*", "layers.*.self_attn.k_proj.*", "blocks.*.attn.key.*"),
    ("blocks.*.value.*", "layers.*.self_attn.v_proj.*", "blocks.*.attn.value.*"),
    ("blocks.*.out.*", "layers.*.self_attn.out_proj.*", "blocks.*.attn.out.*"),
    ("blocks.*.mlp_norm.*", "layers.*.final_layer_norm.*", "blocks.*.mlp_ln.*"),
    ("blocks.*.up.*", "layers.*.fc1.*", "blocks.*.mlp.0.*"),
    ("blocks.*.down.*", "layers.*.fc2.*", "blocks.*.mlp.2.*"),
    ("norm.*", "layer_norm.*", "ln_post.*"),
)
_TRANSFORMERS_ENCODER = {ours: theirs for ours, theirs, _ in _ENCODER}
_OPENAI_ENCODER = {ours: theirs for ours, _, theirs in _ENCODER}
# Qwen-7B in the names of its own release (modeling_qwen.py): w2 is the gate, w1 what it gates.
_QWEN_LLM = {
    "model.embed_tokens.*": "transformer.wte.*",
    "model.layers.*.input_layernorm.*": "transformer.h.*.ln_1.*",
    "model.layers.*.self_attn.q_proj.*": "transformer.h.*.attn.c_attn.*",
    "model.layers.*.self_attn.k_proj.*": "transformer.h.*.attn.c_attn.*",
    "model.layers.*.self_attn.v_proj.*": "transformer.h.*.attn.c_attn.*",
    "model.layers.*.self_attn.o_proj.*": "transformer.h.*.attn.c_proj.*",
    "model.layers.*.post_attention_layernorm.*": "transformer.h.*.ln_2.*",
    "model.layers.*.mlp.gate_proj.*": "transformer.h.*.mlp.w2.*",
    "model.layers.*.mlp.up_proj.*": "transformer.h.*.mlp.w1.*",
    "model.layers.*.mlp.down_proj.*": "transformer.h.*.mlp.c_proj.*",
    "model.norm.*": "transformer.ln_f.*",
    "lm_head.*": "lm_head.*",
}


def _under(ours: str, theirs: str, names: Mapping[str, str]) -> dict[str, str]:
    return {ours + a: theirs + b for a, b in names.items()}


# By the `model_type` of their config.json where there is one.
LAYOUTS = {
    # Ours. In the checkpoint of a run the names begin with `net.`, those of the objective with `objective.`.
    "auris": Layout(
        names={"**": "**"},
        spellings=((r"^net\.", ""),),
        left_out=r"objective\.",
    ),
    # Files have the names of the first release; in transformers >= 5 a model in memory nests them one level deeper.
    "qwen2_audio": Layout(
        names={
            **_under("encoder.", "audio_tower.", _TRANSFORMERS_ENCODER),
            "projector.*": "multi_modal_projector.linear.*",
            "llm.**": "language_model.**",
        },
        spellings=(
            (r"^model\.language_model\.", "language_model.model."),
            (r"^model\.(?=audio_tower\.|multi_modal_projector\.)", ""),
            (r"^lm_head\.", "language_model.lm_head."),
        ),
    ),
    "qwen_audio": Layout(  # Qwen-7B itself too, which has no audio module
        names={
            **_under("encoder.", "transformer.audio.", _OPENAI_ENCODER),
            "projector.*": "transformer.audio.proj.*",
            "boundary.*": "transformer.audio.audio_bos_eos_token.*",
            **_under("llm.", "", _QWEN_LLM),
        },
    ),
    "whisper_openai": Layout(
        names=_under("encoder.", "encoder.", _OPENAI_ENCODER),
        parts=("encoder",),
        left_out=r"decoder\.",
    ),
    "whisper": Layout(
        names=_under("encoder.", "encoder.", _TRANSFORMERS_ENCODER),
        parts=("encoder",),
        spellings=((r"^model\.", ""),),
        left_out=r"decoder\.|proj_out\.",
    ),
    "causal_lm": Layout(names={"llm.**": "**"}, parts=("llm",)),
}
