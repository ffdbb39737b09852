"""Layouts of model weights: rules that translate tensor names between auris and published releases, in both directions.

A tensor has up to three names: its model name is the name in auris, its layout name is the name in a release, and files
may contain other spellings of the layout name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import islice


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Tensor names of one release and the corresponding names in auris.

    Attributes:
        names: model name -> layout name, both as patterns; the first match counts. `*` matches one component between
            dots, `**` matches all following components. Model tensors with the same layout name are concatenated along
            rows, in this order.
        parts: parts of the model that files in this layout contain; empty if they contain a complete model.
        spellings: (pattern, replacement) pairs that convert other spellings of layout names to the spelling in `names`.
        left_out: pattern of layout names that auris does not use.
    """

    names: Mapping[str, str]
    parts: tuple[str, ...] = ()
    spellings: tuple[tuple[str, str], ...] = ()
    left_out: str | None = None

    def layout_name(self, name: str) -> str | None:
        """Return the layout name of a model tensor; None if the layout does not contain it."""
        return next((layout_name for _, layout_name in _renamings(name, self.names.items())), None)

    def model_names(self, name: str) -> list[str]:
        """Return the model names of a stored tensor: several names if it is a concatenation, none if it is not used."""
        rules = ((layout_name, model_name) for model_name, layout_name in self.names.items())
        return [model_name for _, model_name in _renamings(self.spell(name), rules)]

    def spell(self, name: str) -> str:
        """Convert the name of a stored tensor to the spelling of `names`."""
        for pattern, replacement in self.spellings:
            name = re.sub(pattern, replacement, name)
        return name

    def is_used(self, name: str) -> bool:
        """Return whether a stored tensor is used: neither left out nor a constant that old releases contain."""
        return not _CONSTANTS.search(name) and not (self.left_out and re.match(self.left_out, self.spell(name)))

    def group(self, names: Iterable[str]) -> dict[str, list[str]]:
        """Group model names by layout name, in the order of concatenation. Names without a layout name are dropped."""
        groups: dict[str, list[tuple[int, str]]] = {}
        for name in names:
            for order, layout_name in islice(_renamings(name, self.names.items()), 1):
                groups.setdefault(layout_name, []).append((order, name))
        return {layout_name: [name for _, name in sorted(group)] for layout_name, group in groups.items()}


@cache
def _pattern(rule: str) -> re.Pattern[str]:
    return re.compile(re.escape(rule).replace(r"\*\*", "(.+)").replace(r"\*", "([^.]+)"))


def _renamings(name: str, rules: Iterable[tuple[str, str]]) -> Iterator[tuple[int, str]]:
    """Yield the index of each matching rule (old name, new name), and the name to which it converts `name`."""
    for index, (old, new) in enumerate(rules):
        if match := _pattern(old).fullmatch(name):
            yield index, new.replace("**", "*").replace("*", "{}").format(*match.groups())


_CONSTANTS = re.compile(r"\.(rotary_emb\.inv_freq|masked_bias)$")

# Names of the Whisper encoder in auris, in transformers (also for Qwen2-Audio) and in openai-whisper (also for
# Qwen-Audio).
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
_TRANSFORMERS_ENCODER = {model: transformers for model, transformers, _ in _ENCODER}
_OPENAI_ENCODER = {model: openai for model, _, openai in _ENCODER}
# Qwen-7B as first released (modeling_qwen.py): w2 is the gate projection, w1 the up projection.
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


def _prefixed(model_prefix: str, layout_prefix: str, names: Mapping[str, str]) -> dict[str, str]:
    return {model_prefix + model_name: layout_prefix + layout_name for model_name, layout_name in names.items()}


# The keys are kinds of models (see `identify.KINDS`).
LAYOUTS = {
    # Names in auris. In a run's checkpoint they begin with `net.`; names that begin with `objective.` are left out.
    "auris": Layout(
        names={"**": "**"},
        spellings=((r"^net\.", ""),),
        left_out=r"objective\.",
    ),
    # Files have the names of the first release, but transformers 5.10 to 5.22 wrote `language_model.model.model.`. In
    # memory, newer versions have another first level.
    "qwen2_audio": Layout(
        names={
            **_prefixed("encoder.", "audio_tower.", _TRANSFORMERS_ENCODER),
            "projector.*": "multi_modal_projector.linear.*",
            "llm.**": "language_model.**",
        },
        spellings=(
            (r"^language_model\.model\.model\.", "language_model.model."),
            (r"^model\.language_model\.", "language_model.model."),
            (r"^model\.(?=audio_tower\.|multi_modal_projector\.)", ""),
            (r"^lm_head\.", "language_model.lm_head."),
        ),
    ),
    "qwen_audio": Layout(  # also Qwen-7B, which has no audio module
        names={
            **_prefixed("encoder.", "transformer.audio.", _OPENAI_ENCODER),
            "projector.*": "transformer.audio.proj.*",
            "boundary.*": "transformer.audio.audio_bos_eos_token.*",
            **_prefixed("llm.", "", _QWEN_LLM),
        },
    ),
    "whisper_openai": Layout(
        names=_prefixed("encoder.", "encoder.", _OPENAI_ENCODER),
        parts=("encoder",),
        left_out=r"decoder\.",
    ),
    "whisper": Layout(
        names=_prefixed("encoder.", "encoder.", _TRANSFORMERS_ENCODER),
        parts=("encoder",),
        spellings=((r"^model\.", ""),),
        left_out=r"decoder\.|proj_out\.",
    ),
    "causal_lm": Layout(names={"llm.**": "**"}, parts=("llm",)),
}
