"""Adapters of a frozen language model: embeddings of new tokens, and LoRA through peft.

Adapters are trained while the weights of the language model stay fixed. They are merged into these weights whenever a
trained model is loaded, so the rest of the project only handles models without adapters. `attach` adds adapters to a
net, which may be on the meta device. `initialise` sets their values once the net has its weights.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from auris.errors import UserError
from auris.model import dtensor
from auris.model.vocabulary import input_table, output_layer

if TYPE_CHECKING:  # importing transformers takes seconds
    from transformers import PreTrainedModel

    from auris.model.audio_lm import AudioLM


class LoraSettings(TypedDict):
    """Settings of LoRA.

    Attributes:
        rank: rank of the update.
        alpha: the update is scaled by alpha / rank.
        targets: names of linear layers, such as q_proj.
    """

    rank: int
    alpha: float
    targets: Sequence[str]


NEW_TOKENS, LORA = "llm.new_tokens", "llm.lora"  # names of the two adapters in the config's `trainable`
_TABLE_NAMES = {"embedding": "model.embed_tokens.weight", "head": "lm_head.weight"}  # parameters of the LLM
_ADAPTER_TENSORS = re.compile(r"^llm\.new_tokens\.|\.lora_")


def attach(
    net: AudioLM,
    trainable: Collection[str],
    *,
    token_ids: Sequence[int] = (),
    lora: LoraSettings | None = None,
) -> None:
    """Add the adapters that `trainable` names to a net, without initialising them.

    Args:
        net: a net with its weights, or on the meta device.
        trainable: names of trainable parts.
        token_ids: ids of the new tokens; needed if `trainable` names them.
        lora: settings of LoRA; needed if `trainable` names LoRA.

    Raises:
        UserError: `trainable` also names the whole LLM, the new tokens or the settings of LoRA are missing, a setting
            is invalid, or the LLM's embedding and head are not plain torch layers.
    """
    requested = [name for name in (NEW_TOKENS, LORA) if name in trainable]
    if requested and "llm" in trainable:
        raise UserError(
            f"trainable names llm and {requested[0]}: expected only one of them, because llm trains all of its weights"
        )
    if NEW_TOKENS in trainable:
        net.llm.new_tokens = NewTokens(net.llm, token_ids)
    if LORA in trainable:
        _attach_lora(net.llm, lora)


def initialise(net: AudioLM, *, seed: int) -> None:
    """Initialise a net's adapters. Until they are trained, the net computes the same function as without adapters.

    Args:
        net: a net with its weights.
        seed: seed of the matrices A of LoRA, which are drawn at random. The matrices B are zero.
    """
    new_tokens = getattr(net.llm, "new_tokens", None)
    if isinstance(new_tokens, NewTokens):
        new_tokens.initialise(net.llm)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for module in net.llm.modules():
            reset = getattr(module, "reset_lora_parameters", None)  # a method of peft's layers
            if callable(reset):
                reset("default", True)


class NewTokens(nn.Module):
    """Trainable rows for new tokens in a language model's embedding and head. They replace the model's rows.

    These rows are separate parameters, so neither gradients nor weight decay change the rows of other tokens.

    Args:
        llm: the language model. Hooks on its embedding and head insert the trainable rows.
        token_ids: ids of the N new tokens. The trainable rows are initialised with the model's rows of these tokens.
    """

    ids: Tensor
    row_of: Tensor

    def __init__(self, llm: PreTrainedModel, token_ids: Sequence[int]) -> None:
        super().__init__()
        modules: dict[str, nn.Module] = {"embedding": input_table(llm), "head": output_layer(llm)}
        classes = {"embedding": nn.Embedding, "head": nn.Linear}
        parameters = dict(llm.named_parameters(remove_duplicate=False))
        for part, module in modules.items():
            if type(module) is not classes[part] or parameters.get(_TABLE_NAMES[part]) is not module.weight:
                raise UserError(
                    f"trainable={NEW_TOKENS}: the LLM's {part} is a {type(module).__name__}, expected a plain "
                    f"{classes[part].__name__} with the weight {_TABLE_NAMES[part]}"
                )
        if not len(token_ids):
            raise UserError(f"trainable={NEW_TOKENS}: the tokenizer has no audio or tag tokens")
        table, head = parameters[_TABLE_NAMES["embedding"]], parameters[_TABLE_NAMES["head"]]
        self._token_ids = sorted(token_ids)
        shape = (len(self._token_ids), table.shape[1])
        self.register_buffer("ids", torch.empty(shape[0], dtype=torch.long, device=table.device))
        # (V,) index of each token's trainable row, -1 for a token without one.
        row_of = torch.empty(len(table), dtype=torch.long, device=table.device)
        self.register_buffer("row_of", row_of, persistent=False)
        self.embedding = nn.Parameter(torch.empty(shape, dtype=table.dtype, device=table.device))  # (N, H)
        self.tied = head is table
        self.head = self.embedding if self.tied else nn.Parameter(torch.empty_like(self.embedding))  # (N, H)
        modules["embedding"].register_forward_hook(self._replace_embeddings)
        modules["head"].register_forward_hook(self._replace_logits)

    @torch.no_grad()
    def initialise(self, llm: PreTrainedModel) -> None:
        """Fill the buffers, and copy the rows from the language model's matrices. Collective for a sharded net."""
        if self.tied:
            self.head = self.embedding  # `to_empty` has turned them into two parameters
        self.ids.copy_(torch.tensor(self._token_ids))
        self.row_of.fill_(-1)
        self.row_of[self.ids] = torch.arange(len(self.ids), device=self.ids.device)
        for rows, module in ((self.embedding, input_table(llm)), (self.head, output_layer(llm))):
            dtensor.copy_local(rows, dtensor.lookup_rows(module.weight, self.ids))

    def _replace_embeddings(self, module: nn.Module, args: tuple[Tensor], output: Tensor) -> Tensor:
        """Forward hook of the embedding: replace the embeddings of new tokens."""
        row = self.row_of[args[0]]
        embeddings = F.embedding(row.clamp(min=0), self.embedding)
        return torch.where(row[..., None] >= 0, embeddings.to(output.dtype), output)

    def _replace_logits(self, module: nn.Linear, args: tuple[Tensor], output: Tensor) -> Tensor:
        """Forward hook of the head: replace the logits of new tokens."""
        bias = None if module.bias is None else module.bias[self.ids]
        return output.index_copy(-1, self.ids, F.linear(args[0], self.head, bias).to(output.dtype))


def _attach_lora(llm: PreTrainedModel, lora: LoraSettings | None) -> None:
    from peft import LoraConfig, inject_adapter_in_model  # imported here because it takes seconds

    if lora is None:
        raise UserError(
            f"trainable={LORA} requires settings: for example lora.rank=8 lora.alpha=16 lora.targets=[q_proj]"
        )
    layers = {name.rpartition(".")[2] for name, module in llm.named_modules() if isinstance(module, nn.Linear)}
    layers -= {"lm_head"}
    if not lora["targets"] or not set(lora["targets"]) <= layers:
        raise UserError(f"lora.targets={list(lora['targets'])}: expected one or more of {', '.join(sorted(layers))}")
    # No dropout, because frozen parts are in eval mode.
    alpha: Any = lora["alpha"]  # peft annotates an int but takes any number
    config = LoraConfig(r=lora["rank"], lora_alpha=alpha, target_modules=list(lora["targets"]))
    with torch.random.fork_rng(devices=[]), torch.device(llm.device):
        inject_adapter_in_model(config, llm)


def base_name(name: str) -> str | None:
    """Return the name that a tensor has in the same net without adapters; None if it belongs to an adapter."""
    return None if _ADAPTER_TENSORS.search(name) else name.replace(".base_layer.", ".")


def has_adapters(names: Collection[str]) -> bool:
    """Return whether these tensor names come from a net with adapters."""
    return any(name.startswith(f"{NEW_TOKENS}.") or ".base_layer." in name for name in names)


def merge(state: Mapping[str, Tensor], lora: LoraSettings | None = None) -> dict[str, Tensor]:
    """Return a net's tensors with its adapters merged into the weights.

    Args:
        state: the net's tensors by name; without adapters they are returned unchanged.
        lora: the settings with which LoRA was attached; None for a net without LoRA.
    """
    merged = dict(state)
    ids = merged.pop(f"{NEW_TOKENS}.ids", None)
    if ids is not None:
        for part, name in _TABLE_NAMES.items():
            if f"llm.{name}" not in merged:
                continue  # embedding and head are tied: a checkpoint has one tensor, under the embedding's name
            rows = merged.pop(f"{NEW_TOKENS}.{part}")
            merged[f"llm.{name}"] = merged[f"llm.{name}"].index_copy(0, ids, rows)
    for name in [name for name in merged if name.endswith(".base_layer.weight")]:
        layer = name.removesuffix(".base_layer.weight")
        assert lora is not None, "merging LoRA layers needs the settings of LoRA"
        base = merged.pop(name)
        down, up = (merged.pop(f"{layer}.lora_{matrix}.default.weight").float() for matrix in "AB")
        merged[f"{layer}.weight"] = (base.float() + lora["alpha"] / lora["rank"] * (up @ down)).to(base.dtype)
        if f"{layer}.base_layer.bias" in merged:
            merged[f"{layer}.bias"] = merged.pop(f"{layer}.base_layer.bias")
    return merged
