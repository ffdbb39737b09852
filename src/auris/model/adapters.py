"""Parameters beside a frozen language model: rows of new tokens, and LoRA through peft.

Both learn next to weights that no step of the optimizer touches, and are merged into these wherever a run is read
again: the rest of the project knows models without adapters only. They are attached before the net has memory (or
after), and start once it has its weights.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, TypedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from auris.errors import UserError
from auris.model import dtensor

if TYPE_CHECKING:  # they bring transformers, which takes seconds
    from transformers import PreTrainedModel

    from auris.model.audio_lm import AudioLM


class Lora(TypedDict):
    """LoRA settings: the update is scaled by alpha / rank; `targets` are names of linear layers."""

    rank: int
    alpha: float
    targets: Sequence[str]


NEW_TOKENS, LORA = "llm.new_tokens", "llm.lora"  # as `trainable` names them
_TABLES = {"embedding": "model.embed_tokens.weight", "head": "lm_head.weight"}  # what `merge` looks for
_OWN_TENSORS = re.compile(r"^llm\.new_tokens\.|\.lora_")


def attach(
    net: AudioLM,
    trainable: Collection[str],
    *,
    token_ids: Sequence[int] = (),
    lora: Lora | None = None,
) -> None:
    """Give a net the adapters that `trainable` names; `initialise` gives them their values.

    Args:
        net: with its weights, or still on the meta device.
        token_ids: of the new tokens.
        lora: settings of LoRA.

    Raises:
        ValueError: the whole LLM is trained anyway, or it has no tables or layers of the expected kind.
    """
    named = [name for name in (NEW_TOKENS, LORA) if name in trainable]
    if named and "llm" in trainable:
        raise UserError(f"trainable names llm and {named[0]}: expected one of them, llm trains all of its weights")
    if NEW_TOKENS in trainable:
        net.llm.new_tokens = NewTokens(net.llm, token_ids)
    if LORA in trainable:
        _attach_lora(net.llm, lora)


def initialise(net: AudioLM, *, seed: int) -> None:
    """Give a net's adapters their initial values: it computes what it did without them until they are trained.

    Args:
        net: with its weights.
        seed: of LoRA's first matrices, drawn from torch's global generator; the second are zero.
    """
    if hasattr(net.llm, "new_tokens"):
        net.llm.new_tokens.initialise(net.llm)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for module in net.llm.modules():
            if hasattr(module, "reset_lora_parameters"):
                module.reset_lora_parameters("default", True)


class NewTokens(nn.Module):
    """Rows of a language model's embedding and head that take the places of its own.

    They are parameters of their own, so that neither a gradient nor weight decay moves a row of another token.

    Args:
        llm: whose tables they stand in; hooks on both put them there.
        token_ids: N tokens; their rows begin as those of the tables.
    """

    def __init__(self, llm: PreTrainedModel, token_ids: Sequence[int]) -> None:
        super().__init__()
        ends = {"embedding": llm.get_input_embeddings(), "head": llm.get_output_embeddings()}
        kinds = {"embedding": nn.Embedding, "head": nn.Linear}
        parameters = dict(llm.named_parameters(remove_duplicate=False))
        for end, module in ends.items():
            if type(module) is not kinds[end] or parameters.get(_TABLES[end]) is not module.weight:
                raise UserError(
                    f"trainable={NEW_TOKENS}: the LLM's {end} is a {type(module).__name__}, expected a plain "
                    f"{kinds[end].__name__} whose weight is {_TABLES[end]}"
                )
        if not len(token_ids):
            raise UserError(f"trainable={NEW_TOKENS}: the tokenizer has no audio or tag tokens")
        table, head = ends["embedding"].weight, ends["head"].weight
        self._token_ids = sorted(token_ids)
        shape = (len(self._token_ids), table.shape[1])
        self.register_buffer("ids", torch.empty(shape[0], dtype=torch.long, device=table.device))
        place = torch.empty(len(table), dtype=torch.long, device=table.device)  # (V,) row of each in ours, -1: none
        self.register_buffer("place", place, persistent=False)
        self.embedding = nn.Parameter(torch.empty(shape, dtype=table.dtype, device=table.device))  # (N, H)
        self.tied = head is table
        self.head = self.embedding if self.tied else nn.Parameter(torch.empty_like(self.embedding))  # (N, H)
        ends["embedding"].register_forward_hook(self._embed)
        ends["head"].register_forward_hook(self._score)

    @torch.no_grad()
    def initialise(self, llm: PreTrainedModel) -> None:
        """Fill the buffers, and the rows with those of the tables, which all processes of a sharded net must do."""
        if self.tied:
            self.head = self.embedding  # which `to_empty` parts
        self.ids.copy_(torch.tensor(self._token_ids))
        self.place.fill_(-1)
        self.place[self.ids] = torch.arange(len(self.ids), device=self.ids.device)
        for ours, end in ((self.embedding, llm.get_input_embeddings()), (self.head, llm.get_output_embeddings())):
            dtensor.copy_local(ours, dtensor.lookup_rows(end.weight, self.ids))

    def _embed(self, module: nn.Module, args: tuple[Tensor], output: Tensor) -> Tensor:
        place = self.place[args[0]]
        ours = F.embedding(place.clamp(min=0), self.embedding)
        return torch.where(place[..., None] >= 0, ours.to(output.dtype), output)

    def _score(self, module: nn.Linear, args: tuple[Tensor], output: Tensor) -> Tensor:
        bias = None if module.bias is None else module.bias[self.ids]
        return output.index_copy(-1, self.ids, F.linear(args[0], self.head, bias).to(output.dtype))


def _attach_lora(llm: PreTrainedModel, lora: Lora | None) -> None:
    from peft import LoraConfig, inject_adapter_in_model  # here, as it takes seconds

    if lora is None:
        raise UserError(f"trainable={LORA}: expected its settings, as lora.rank=8 lora.alpha=16 lora.targets=[q_proj]")
    layers = {name.rpartition(".")[2] for name, module in llm.named_modules() if isinstance(module, nn.Linear)}
    layers -= {"lm_head"}
    if not lora["targets"] or not set(lora["targets"]) <= layers:
        raise UserError(f"lora.targets={list(lora['targets'])}: expected some of {', '.join(sorted(layers))}")
    if lora["rank"] < 1:
        raise UserError(f"lora.rank={lora['rank']}: expected 1 or more")
    if not lora["alpha"] > 0:
        raise UserError(f"lora.alpha={lora['alpha']}: expected a number above 0, or nothing is learned")
    # No dropout: frozen parts are in eval mode.
    config = LoraConfig(r=lora["rank"], lora_alpha=lora["alpha"], target_modules=list(lora["targets"]))
    with torch.random.fork_rng(devices=[]), torch.device(llm.device):
        inject_adapter_in_model(config, llm)


def base_name(name: str) -> str | None:
    """Return the name that a tensor has in the same net without adapters; None for a tensor of an adapter."""
    return None if _OWN_TENSORS.search(name) else name.replace(".base_layer.", ".")


def has_adapters(names: Collection[str]) -> bool:
    """Whether tensors of these names are those of a net with adapters."""
    return any(name.startswith(f"{NEW_TOKENS}.") or ".base_layer." in name for name in names)


def merge(state: Mapping[str, Tensor], lora: Lora | None = None) -> dict[str, Tensor]:
    """A net's tensors with its adapters merged into the weights that they belong to; `lora` as they were attached."""
    merged = dict(state)
    ids = merged.pop(f"{NEW_TOKENS}.ids", None)
    if ids is not None:
        for end, name in _TABLES.items():
            if f"llm.{name}" not in merged:
                continue  # tied: a checkpoint holds one of them, under the embedding's name
            rows = merged.pop(f"{NEW_TOKENS}.{end}")
            merged[f"llm.{name}"] = merged[f"llm.{name}"].index_copy(0, ids, rows)
    for name in [name for name in merged if name.endswith(".base_layer.weight")]:
        layer = name.removesuffix(".base_layer.weight")
        base = merged.pop(name)
        down, up = (merged.pop(f"{layer}.lora_{matrix}.default.weight").float() for matrix in "AB")
        merged[f"{layer}.weight"] = (base.float() + lora["alpha"] / lora["rank"] * (up @ down)).to(base.dtype)
        if f"{layer}.base_layer.bias" in merged:
            merged[f"{layer}.bias"] = merged.pop(f"{layer}.base_layer.bias")
    return merged
