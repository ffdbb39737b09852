"""Weights in files: the published layouts against our names, and loading and writing them tensor by tensor.

Unusual here: a layout is a table of names that is read both ways, and a load checks every name and shape before it
copies the first tensor. What it copies it reads slice by slice, each rank its own part only, so that beside the model
at most one file is in memory.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from auris.errors import MissingFileError, UserError
from auris.model import adapters
from auris.model.dtensor import local_part

if TYPE_CHECKING:  # it brings transformers, which takes seconds
    from auris.model.audio_lm import AudioLM

# ------------------------------------------------------------------------------------------------------------- layouts


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How others name the tensors that we have.

    Args:
        names: ours -> theirs, the first match counts. `*` stands for one dotted component, `**` for all that follow.
            Where several of ours have one name there, they are joined row-wise in this order.
        mark: pattern of a name that tells this layout from those after it; None: it has none.
        parts: of our model, what such files hold; empty: all of it.
        spellings: (pattern, replacement) that lead from other spellings of their names to the one in `names`.
        left_out: pattern of names that we have no use for.
    """

    names: Mapping[str, str]
    mark: str | None = None
    parts: tuple[str, ...] = ()
    spellings: tuple[tuple[str, str], ...] = ()
    left_out: str | None = None

    def theirs(self, name: str) -> str | None:
        """Their name of one of our tensors; None if they have none."""
        return next((theirs for _, theirs in _renamings(name, self.names.items())), None)

    def ours(self, name: str) -> list[str]:
        """Our names of one of their tensors, several where they join ours; empty if we have none."""
        return [ours for _, ours in _renamings(self.spell(name), ((b, a) for a, b in self.names.items()))]

    def spell(self, name: str) -> str:
        for pattern, replacement in self.spellings:
            name = re.sub(pattern, replacement, name)
        return name

    def uses(self, name: str) -> bool:
        """False for what need not be read: constants that old versions stored, and what a layout leaves out."""
        return not _CONSTANTS.search(name) and not (self.left_out and re.match(self.left_out, self.spell(name)))

    def group(self, names: Iterable[str]) -> dict[str, list[str]]:
        """Their name -> ours: one, or several in the order in which they are joined. Without those that have none."""
        groups: dict[str, list[tuple[int, str]]] = {}
        for name in names:
            for rank, theirs in islice(_renamings(name, self.names.items()), 1):
                groups.setdefault(theirs, []).append((rank, name))
        return {theirs: [name for _, name in sorted(group)] for theirs, group in groups.items()}


@cache
def _pattern(rule: str) -> re.Pattern[str]:
    return re.compile(re.escape(rule).replace(r"\*\*", "(.+)").replace(r"\*", "([^.]+)"))


def _renamings(name: str, rules: Iterable[tuple[str, str]]) -> Iterator[tuple[int, str]]:
    """For each rule (from, to) that fits: its number, and the name that it yields."""
    for number, (old, new) in enumerate(rules):
        if match := _pattern(old).fullmatch(name):
            yield number, new.replace("**", "*").replace("*", "{}").format(*match.groups())


_CONSTANTS = re.compile(r"\.(rotary_emb\.inv_freq|masked_bias)$")

# A Whisper encoder in transformers' names (Qwen2-Audio too), and in openai-whisper's (Qwen-Audio too).
_TRANSFORMERS_ENCODER = {
    "conv1.*": "conv1.*",
    "conv2.*": "conv2.*",
    "positions": "embed_positions.weight",
    "blocks.*.attention_norm.*": "layers.*.self_attn_layer_norm.*",
    "blocks.*.query.*": "layers.*.self_attn.q_proj.*",
    "blocks.*.key.*": "layers.*.self_attn.k_proj.*",
    "blocks.*.value.*": "layers.*.self_attn.v_proj.*",
    "blocks.*.out.*": "layers.*.self_attn.out_proj.*",
    "blocks.*.mlp_norm.*": "layers.*.final_layer_norm.*",
    "blocks.*.up.*": "layers.*.fc1.*",
    "blocks.*.down.*": "layers.*.fc2.*",
    "norm.*": "layer_norm.*",
}
_OPENAI_ENCODER = {
    "conv1.*": "conv1.*",
    "conv2.*": "conv2.*",
    "positions": "positional_embedding",
    "blocks.*.attention_norm.*": "blocks.*.attn_ln.*",
    "blocks.*.query.*": "blocks.*.attn.query.*",
    "blocks.*.key.*": "blocks.*.attn.key.*",
    "blocks.*.value.*": "blocks.*.attn.value.*",
    "blocks.*.out.*": "blocks.*.attn.out.*",
    "blocks.*.mlp_norm.*": "blocks.*.mlp_ln.*",
    "blocks.*.up.*": "blocks.*.mlp.0.*",
    "blocks.*.down.*": "blocks.*.mlp.2.*",
    "norm.*": "ln_post.*",
}
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


# Under their `model_type` where they have one. `layout_of` asks in this order.
LAYOUTS = {
    # Ours; in a run's checkpoint with `net.` in front, beside the objective's.
    "auris": Layout(
        mark=r"(net|objective|llm)\.|encoder\.positions$",
        names={"**": "**"},
        spellings=((r"^net\.", ""),),
        left_out=r"objective\.",
    ),
    # Files hold the names of the first release; a model of transformers >= 5 in memory has them one level deeper.
    "qwen2_audio": Layout(
        mark=r"(model\.)?audio_tower\.",
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
        mark=r"transformer\.(audio|h\.\d+\.mlp\.w1)\.",
        names={
            **_under("encoder.", "transformer.audio.", _OPENAI_ENCODER),
            "projector.*": "transformer.audio.proj.*",
            "boundary.*": "transformer.audio.audio_bos_eos_token.*",
            **_under("llm.", "", _QWEN_LLM),
        },
    ),
    "whisper_openai": Layout(
        mark=r"encoder\.positional_embedding$",
        names=_under("encoder.", "encoder.", _OPENAI_ENCODER),
        parts=("encoder",),
        left_out=r"decoder\.",
    ),
    "whisper": Layout(
        mark=r"(model\.)?encoder\.conv1\.",
        names=_under("encoder.", "encoder.", _TRANSFORMERS_ENCODER),
        parts=("encoder",),
        spellings=((r"^model\.", ""),),
        left_out=r"decoder\.|proj_out\.",
    ),
    "causal_lm": Layout(names={"llm.**": "**"}, parts=("llm",)),
}


def layout_of(source: Source) -> str:
    """The layout that a source's names follow; "causal_lm" if they are like no other."""
    marks = ((name, re.compile(layout.mark)) for name, layout in LAYOUTS.items() if layout.mark)
    return next((name for name, mark in marks if any(map(mark.match, source.keys()))), "causal_lm")


# ------------------------------------------------------------------------------------------------------------- sources

DTYPES = {  # of a safetensors header
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}


class TensorFiles:
    """The tensors of safetensors files, one by one and slice by slice. One file is open at a time.

    Make it with `TensorFiles.open`.
    """

    def __init__(self, files: Mapping[str, Path]) -> None:
        self._files = dict(files)  # in the order of the files: reading in this order opens each of them once
        self._path: Path | None = None
        self._shapes, self._dtypes = {}, {}
        for name in self._files:
            header = self._handle(name).get_slice(name)
            self._shapes[name], self._dtypes[name] = tuple(header.get_shape()), header.get_dtype()

    @classmethod
    def open(cls, path: str | Path) -> TensorFiles:
        """Open a file, or a directory with model.safetensors or with shards and their *.safetensors.index.json.

        Raises:
            FileNotFoundError: neither is there, or a shard is missing.
            ValueError: a file is incomplete, or the index contradicts the shards.
        """
        path = Path(path)
        single = path if path.is_file() else path / "model.safetensors"
        if single.is_file():
            return cls({name: single for name in _names(single)})
        indices = sorted(path.glob("*.safetensors.index.json"))
        if not indices:
            raise MissingFileError(
                f"{path}: expected a safetensors file, or a directory with model.safetensors or with shards and their "
                "model.safetensors.index.json"
            )
        return cls(_shards(indices[0]))

    def keys(self) -> Collection[str]:
        return self._files.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        return self._shapes[name]

    def dtype(self, name: str) -> torch.dtype:
        """Raises ValueError for a type of number that torch has no tensors of, naming the file."""
        if self._dtypes[name] not in DTYPES:
            raise UserError(f"{self._files[name]}: {name} is of type {self._dtypes[name]}, expected a torch type")
        return DTYPES[self._dtypes[name]]

    def read(self, name: str, index: tuple[slice, ...] | None = None) -> Tensor:
        """A tensor, or the part of it that `index` (leading dimensions) takes out. It may be a view of the file."""
        handle = self._handle(name)
        return handle.get_slice(name)[index] if index else handle.get_tensor(name)

    def _handle(self, name: str) -> safe_open:
        if self._files[name] != self._path:
            self._path, self._open = self._files[name], _open(self._files[name])
        return self._open


def _open(file: Path) -> safe_open:
    try:
        return safe_open(file, framework="pt")
    except SafetensorError as error:
        raise UserError(f"{file} is no complete safetensors file ({error}): copy it again") from error


def _names(file: Path) -> list[str]:
    return list(_open(file).keys())


def _shards(index: Path) -> dict[str, Path]:
    """Tensor -> file, of all shards that an index names."""
    try:
        listed = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{index} is no index of shards: expected JSON with a weight_map") from error
    files: dict[str, Path] = {}
    for shard in sorted(set(listed.values())):
        file = index.parent / shard
        if not file.is_file():
            raise MissingFileError(f"{index} names the shard {shard}, which is missing beside it")
        files |= {name: file for name in _names(file)}
    for name, shard in listed.items():
        if files.get(name) != index.parent / shard:
            raise UserError(f"{index} says that {name} is in {shard}, which does not hold it")
    return files


class StateTensors:
    """Tensors in memory with the methods of `TensorFiles`: a state dict, mapped from a .pt file or not."""

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        self._state = state

    def keys(self) -> Collection[str]:
        return self._state.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._state[name].shape)

    def dtype(self, name: str) -> torch.dtype:
        return self._state[name].dtype

    def read(self, name: str, index: tuple[slice, ...] | None = None) -> Tensor:
        return self._state[name][index] if index else self._state[name]


class Source(Protocol):
    """Tensors by name, read one by one and slice by slice: what weights are loaded from."""

    def keys(self) -> Collection[str]: ...

    def shape(self, name: str) -> tuple[int, ...]: ...

    def dtype(self, name: str) -> torch.dtype: ...

    def read(self, name: str, index: tuple[slice, ...] | None = None) -> Tensor: ...


# ------------------------------------------------------------------------------------------------------------- loading

_SHOWN = 5  # faults in a message
_CHUNK = 1024  # rows of a vocabulary that are looked at together


@torch.no_grad()
def load(
    net: AudioLM,
    source: Source,
    *,
    layout: str | None = None,
    parts: Collection[str] | None = None,
    where: str,
    seed: int = 0,
) -> dict[str, Any]:
    """Fill a net's parts from a source: all of them or nothing.

    A vocabulary grows: where the source is a language model alone and has fewer rows than ours, the old rows are kept
    exactly and the new ones drawn from N(mean, standard deviation) of each channel over the old rows, the same on every
    rank.

    Args:
        net: with memory, its tensors plain or sharded (each rank reads its own slices only); they keep their dtypes.
            Adapters are left as they are.
        source: tensors, in files or in memory.
        layout: of the source's names, a key of LAYOUTS; recognised if not given.
        parts: of the net (`encoder`, ..., `llm`); all that the layout holds if not given.
        where: what the user calls the source, the head of every message: `weights.llm=DIR`.
        seed: of a grown vocabulary's new rows.

    Returns:
        `layout`, `parts`, `tensors` (number read), `grown` (our name -> rows before and after).

    Raises:
        ValueError: a tensor is missing, unexpected or misshapen, with both shapes; or a part is not to be had there.
    """
    layout = layout or layout_of(source)
    where = f"{where} ({layout} layout)"
    parts = _choose(net, parts, LAYOUTS[layout], where)
    match = _match(net, source, LAYOUTS[layout], parts)
    if match.faults:
        rest = f"; and {len(match.faults) - _SHOWN} more" if len(match.faults) > _SHOWN else ""
        raise UserError(f"{where} does not fit the model: {'; '.join(match.faults[:_SHOWN])}{rest}")
    assert not any(tensor.is_meta for tensor in match.targets.values()), "materialise the net first"
    for theirs, name in match.stored.items():  # in the source's order, so that each file is opened once
        row = 0
        for member in match.wanted.get(theirs, ()):
            tensor = match.targets[member]
            if member in match.grown:
                _copy_grown(tensor, source, name, seed=zlib.crc32(f"{seed} {member}".encode()))
            else:
                _copy(tensor, source, name, first_row=row)
                row += tensor.shape[0] if tensor.ndim else 0
    return {"layout": layout, "parts": parts, "tensors": len(match.wanted), "grown": match.grown}


def is_whole(one: Mapping[str, Any]) -> bool:
    """Whether `load` with these arguments leaves no tensor of a net as it was."""
    return one["parts"] is None and not LAYOUTS[one["layout"]].parts


def misfits(net: AudioLM, source: Source, layout: str) -> list[str]:
    """What keeps all that a layout holds from being loaded, a phrase each. The net may be on the meta device."""
    return _match(net, source, LAYOUTS[layout], _choose(net, None, LAYOUTS[layout], layout)).faults


@dataclass(frozen=True, kw_only=True)
class _Match:
    """A net's tensors beside a source's.

    Args:
        targets: our name -> the net's tensor.
        stored: their name -> the source's own spelling of it, in the source's order.
        wanted: their name -> ours, several where they are joined.
        grown: our name -> rows there and here, of tables that grow.
        faults: what does not fit, a phrase each.
    """

    targets: dict[str, Tensor]
    stored: dict[str, str]
    wanted: dict[str, list[str]]
    grown: dict[str, tuple[int, int]]
    faults: list[str]


def _match(net: AudioLM, source: Source, table: Layout, parts: Collection[str]) -> _Match:
    named = {adapters.base_name(name): t for name, t in net.state_dict(keep_vars=True).items()}
    targets = {name: t for name, t in named.items() if name is not None and _part(name) in parts}
    stored = {table.spell(name): name for name in filter(table.uses, source.keys())}
    wanted = table.group(targets)
    faults = [f"{name} has no counterpart there" for name in targets if table.theirs(name) is None]
    faults += _untie(wanted, targets, stored, source)
    faults += [f"{theirs} is missing" for theirs in wanted if theirs not in stored]
    faults += [
        f"{name} is unexpected"
        for theirs, name in stored.items()
        if theirs not in wanted and all(_part(known) in parts for known in table.ours(theirs))
    ]
    llm_alone = all(_part(known) == "llm" for theirs in stored for known in table.ours(theirs))
    vocabulary, grown = _vocabulary(net), {}
    for theirs in filter(stored.__contains__, wanted):
        first, members = wanted[theirs][0], [targets[name] for name in wanted[theirs]]
        found, expected = source.shape(stored[theirs]), _joined_shape(members)
        other_rows = first in vocabulary and found[1:] == expected[1:] and found[0] != expected[0]
        if other_rows and llm_alone and found[0] < expected[0]:
            grown[first] = (found[0], expected[0])
        elif found != expected:
            hint = f" (set model.vocab_rows={found[0]} for its vocabulary)" if other_rows else ""
            faults.append(f"{stored[theirs]} has shape {found}, expected {expected}{hint}")
    return _Match(targets=targets, stored=stored, wanted=wanted, grown=grown, faults=faults)


def _part(name: str) -> str:
    return name.partition(".")[0]


def _choose(net: AudioLM, parts: Collection[str] | None, table: Layout, where: str) -> list[str]:
    """The parts to load. Raises ValueError for one that the net or the layout does not have."""
    held = [name for name, _ in net.named_children() if not table.parts or name in table.parts]
    for part in parts or ():
        if part not in held:
            raise UserError(f"{where} has no {part}: expected {' or '.join(held)}")
    return held if parts is None else list(parts)


def _untie(
    wanted: dict[str, list[str]], targets: Mapping[str, Tensor], stored: Mapping[str, str], source: Source
) -> list[str]:
    """Take from `wanted` the names that a tied tensor need not have there; returns what tied tensors differ there."""
    names: dict[int, list[str]] = {}
    for theirs, members in wanted.items():
        names.setdefault(id(targets[members[0]]), []).append(theirs)
    faults = []
    for tied in names.values():
        present = [theirs for theirs in tied if theirs in stored]
        for theirs in set(tied) - set(present or tied[:1]):
            del wanted[theirs]
        for theirs in present[1:]:
            if not torch.equal(source.read(stored[present[0]]), source.read(stored[theirs])):
                faults.append(f"{stored[theirs]} differs from {stored[present[0]]}, to which the model ties it")
    return faults


def _vocabulary(net: AudioLM) -> set[str]:
    """Our names of the tensors that have a row per token."""
    ends = (net.llm.get_input_embeddings(), net.llm.get_output_embeddings())
    rows = {id(parameter) for end in ends for parameter in end.parameters()}
    return {name for name, tensor in net.state_dict(keep_vars=True).items() if id(tensor) in rows}


def _joined_shape(tensors: list[Tensor]) -> tuple[int, ...]:
    if len(tensors) == 1:
        return tuple(tensors[0].shape)
    return (sum(len(tensor) for tensor in tensors), *tensors[0].shape[1:])


def _copy(tensor: Tensor, source: Source, name: str, *, first_row: int) -> None:
    """Copy a stored tensor, or of a joined one the rows from `first_row` on."""
    local, index = local_part(tensor)
    if not local.numel():  # more processes than rows; files know no empty slices
        return
    if first_row:
        index = (slice(index[0].start + first_row, index[0].stop + first_row), *index[1:])
    local.copy_(source.read(name, index))


def _copy_grown(tensor: Tensor, source: Source, name: str, *, seed: int) -> None:
    """Copy a stored table of fewer rows, and draw the others."""
    local, (rows, *columns) = local_part(tensor)
    old = source.shape(name)[0]
    known = slice(min(rows.start, old), min(rows.stop, old))
    n_known = known.stop - known.start
    local[:n_known].copy_(source.read(name, (known, *columns)))
    if n_known < len(local):
        new = slice(max(rows.start, old) - old, rows.stop - old)
        local[n_known:].copy_(_draw_rows(source, name, len(tensor) - old, seed)[(new, *columns)])


def _draw_rows(source: Source, name: str, n_rows: int, seed: int) -> Tensor:
    """New rows (n_rows, ...) that look like a stored table's: normal, with each channel's mean and deviation."""
    old, *width = source.shape(name)
    sums, squares = torch.zeros(width, dtype=torch.float64), torch.zeros(width, dtype=torch.float64)
    for start in range(0, old, _CHUNK):
        rows = source.read(name, (slice(start, min(start + _CHUNK, old)),)).double()
        sums += rows.sum(0)
        squares += rows.square().sum(0)
    mean = sums / old
    deviation = (squares / old - mean.square()).clamp(min=0).sqrt()
    noise = torch.randn(n_rows, *width, generator=torch.Generator().manual_seed(seed))
    return mean.float() + deviation.float() * noise


# ------------------------------------------------------------------------------------------------------------- writing


def export_tensors(state: Mapping[str, Tensor], layout: str) -> Iterator[tuple[str, Tensor]]:
    """Our tensors under the names of a layout, joined where they are joined there; values and dtypes as they are.

    Raises ValueError naming the tensors that have no counterpart there.
    """
    table = LAYOUTS[layout]
    if strangers := [name for name in state if table.theirs(name) is None]:
        raise UserError(f"no counterpart in the {layout} layout: {', '.join(strangers)}")
    for theirs, members in table.group(state).items():
        tensors = [state[name].detach() for name in members]
        yield theirs, tensors[0] if len(tensors) == 1 else torch.cat(tensors)


def write_sharded(tensors: Iterable[tuple[str, Tensor]], out: Path, *, max_shard_bytes: int = 4_000_000_000) -> None:
    """Write model.safetensors, or shards and their index where one file would be larger than `max_shard_bytes`.

    Files get their names when all are complete, the index last.

    Raises ValueError if the directory holds weights already.
    """
    out.mkdir(parents=True, exist_ok=True)
    if taken := sorted(out.glob("model*.safetensors*")):
        raise UserError(f"{out} holds weights already ({taken[0].name}): choose another directory (out=DIR)")
    written: list[tuple[Path, list[str]]] = []
    size = 0
    for number, shard in enumerate(_cut(tensors, max_shard_bytes)):
        file = out / f"model-{number:05d}.partial"
        save_file(_own_memory(shard), file, metadata={"format": "pt"})
        written.append((file, list(shard)))
        size += sum(tensor.nbytes for tensor in shard.values())
    if len(written) == 1:
        written[0][0].rename(out / "model.safetensors")
        return
    shards: dict[str, str] = {}
    for number, (file, names) in enumerate(written, start=1):
        final = f"model-{number:05d}-of-{len(written):05d}.safetensors"
        file.rename(out / final)
        shards |= dict.fromkeys(names, final)
    partial = out / "index.partial"
    partial.write_text(json.dumps({"metadata": {"total_size": size}, "weight_map": shards}, indent=2) + "\n")
    partial.rename(out / "model.safetensors.index.json")


def _cut(tensors: Iterable[tuple[str, Tensor]], max_bytes: int) -> Iterator[dict[str, Tensor]]:
    """Runs of tensors of at most `max_bytes` together; a larger tensor is one alone."""
    shard: dict[str, Tensor] = {}
    size = 0
    for name, tensor in tensors:
        if shard and size + tensor.nbytes > max_bytes:
            yield shard
            shard, size = {}, 0
        shard[name] = tensor
        size += tensor.nbytes
    yield shard


def _own_memory(shard: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """As safetensors wants them: on the host, contiguous, and no two in one memory, as tied tensors are."""
    taken: set[int] = set()
    own = {}
    for name, tensor in shard.items():
        tensor = tensor.cpu().contiguous()
        if tensor.untyped_storage().data_ptr() in taken:
            tensor = tensor.clone()
        taken.add(tensor.untyped_storage().data_ptr())
        own[name] = tensor
    return own
