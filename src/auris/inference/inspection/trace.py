"""The trace of one row through a model: log-mel, encoder frames, pooled frames, and the attention of each token of the
answer to the audio, computed from the language model's own queries and keys.

Shapes: F mel frames (10 ms), C encoder frames (20 ms), M audio tokens, T tokens of the row, N tokens of the answer,
Q queries, L layers and H heads of the language model, D width of the encoder, G frames that stand side by side in a
token (1 but for the pooling `stack`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn
from transformers import AttentionInterface

from auris.audio import ENCODER_RATE, SAMPLE_RATE
from auris.config import Config
from auris.data.collate import Sample, collate
from auris.data.manifests import JoinedRows, read_manifests
from auris.data.rows import Row, is_scored
from auris.data.samples import AudioSamples, ChatSamples
from auris.errors import MissingFileError, UserError
from auris.files import read_yaml
from auris.inference import load as pretrained
from auris.inference.audio_model import AudioModel, StreamingDecoder
from auris.model.attention import lengths
from auris.model.audio_lm import AudioLM
from auris.model.pack import Pack, to_device
from auris.text.tokenizer import Tokenizer

FRAME_SECONDS = 1 / ENCODER_RATE  # seconds of an encoder frame


@dataclass(frozen=True, eq=False, kw_only=True)
class Subject:
    """A model, rows to trace, and a run of `experiment=encoder_ctc` that can align words with the audio."""

    model: AudioModel
    rows: Sequence[Row]
    aligner: Path | None


@dataclass(frozen=True, eq=False, kw_only=True)
class Trace:
    """What a model computes of one row.

    `attention[l, h, n, m]` is the weight that head h of layer l gives to audio token m at the position that predicts
    token n of the answer; for the first token, that is the last position of the prompt. All weights of such a position,
    those on text included, sum to 1.
    """

    model: str
    row: Row
    wave: np.ndarray  # (samples,) at 16 kHz
    mel: np.ndarray  # (n_mels, F) log-mel in Whisper's scale
    frames: np.ndarray  # (C, D) of the encoder, before its final norm
    pooled: np.ndarray  # (M, G * D) where the projector and that norm take over
    token_seconds: float  # of an audio token
    tokens: list[str]  # N pieces of the answer; empty where a token ends within a character
    answer: str
    attention: np.ndarray  # (L, H, N, M)

    @property
    def seconds(self) -> float:
        return len(self.wave) / SAMPLE_RATE


def load(
    run: str | Path | None = None,
    *,
    rows: str | Path | None = None,
    aligner: str | Path | None = None,
    runs: str | Path = "runs",
) -> Subject:
    """A run, or any directory that `auris.load` takes, with rows to ask it about.

    Args:
        run: None: the newest finished run under `runs` that was trained to answer about audio.
        rows: a manifest; None: the test rows of the run's own recipe.
        aligner: a run of `experiment=encoder_ctc`; None: the one that the run's encoder started from, if it is there.
        runs: where runs are looked for.

    Raises:
        FileNotFoundError: no such run, or its rows are not where they were.
    """
    path = _newest(Path(runs)) if run is None else Path(run)
    model = pretrained.load(path)
    model.check_answers()
    home = _home(path, model.config)
    if rows is None:
        entries = [_rebased(entry, home) for entry in model.config["data"]["test"] or ()]
        if not entries:
            raise MissingFileError(f"{path}: its recipe names no test rows; give rows=FILE.jsonl")
    else:
        entries = [str(rows)]
    began = (model.config.get("weights") or {}).get("encoder")
    if aligner is None and began is not None and _aligns(home / began):
        aligner = home / began
    found = JoinedRows([manifest.rows for manifest in read_manifests(entries, key="rows")])
    return Subject(model=model, rows=found, aligner=None if aligner is None else Path(aligner))


def _newest(runs: Path) -> Path:
    finished = sorted(runs.glob("*/*/seed_*/finished.json"), key=lambda file: file.stat().st_mtime, reverse=True)
    for file in finished:
        if read_yaml(file.with_name("recipe.yaml"))["data"]["view"] == "audio":
            return file.parent
    raise MissingFileError(f"no finished run under {runs} answers about audio: `make demo` makes two, or give run=DIR")


def _aligns(run: Path) -> bool:
    file = run / "recipe.yaml"
    return file.is_file() and read_yaml(file)["stage"] == "encoder_ctc"


def _home(path: Path, recipe: Config) -> Path:
    """Return the directory that the run was started in, which the paths of its config are relative to."""
    inner = Path(recipe.get("run_dir") or ".")
    if not inner.is_absolute() and path.resolve().parts[-len(inner.parts) :] == inner.parts:
        return path.resolve().parents[len(inner.parts) - 1]
    return Path()


def _rebased(entry: Any, home: Path) -> Any:
    """An entry of `data.test` as seen from here; a URL is one from everywhere."""
    if isinstance(entry, Mapping):
        return {**entry, "path": _rebased(entry["path"], home)} if "path" in entry else entry
    return entry if "://" in str(entry) else str(home / entry)


def choose_row(subject: Subject, id: str | None = None) -> Row:
    """The row of that id; None: the first with the times of its words, or else the first that can be asked.

    Raises ValueError if there is none.
    """
    usable = [row for row in subject.rows if id in (None, row.id) and len(row.clips) == 1 and is_scored(row)]
    timed = [row for row in usable if row.labels.get("words")]
    if not usable:
        what = "no row with one clip and an answer" if id is None else f"no such row {id!r} with one clip"
        raise UserError(f"{what} among {len(subject.rows)}")
    return (timed or usable)[0]


@torch.no_grad()
def trace_row(model: AudioModel, row: Row) -> Trace:
    """Let a model answer a row greedily, and record what it computes on the way.

    The row is prompted as in training; the last message of a dialogue is the answer.

    Raises:
        UserError: the row does not have exactly one clip of at most 30 s, or cannot be used.
    """
    is_chat = "messages" in row.labels
    kind, style = (ChatSamples, model.dialogue) if is_chat else (AudioSamples, model.prompt)
    net, tokenizer = model.net, model.tokenizer
    view = kind(tokenizer=tokenizer, prompt=style, geometry=net.geometry, long_audio="window")
    asked = view.build(row, 0, None, prompt_only=True)
    if len(asked.frames) != 1:
        raise UserError(f"row {row.id}: {len(asked.frames)} stretches of audio; expected one clip of at most 30 s")
    settings = model.settings(
        chat=is_chat, do_sample=False, min_new_tokens=1, max_new_tokens=model.config.get("max_new_tokens") or 256
    )
    [ids] = net.generate(_pack(asked, model), settings)
    batch = _pack(_answered(asked, ids), model)
    x, n_frames = net.encoder(batch["mel"], batch["frames"])
    pooled, _ = net.pooling(x, n_frames)
    queries = len(asked.ids) - 1 + torch.arange(len(ids), device=model.device)  # where each token is predicted
    # What the boundary has learned stands around the tokens of the clip, in places of the pack's own.
    keys = batch["audio_index"][1:-1] if net.geometry.boundary else batch["audio_index"]
    return Trace(
        model=model.name,
        row=row,
        wave=view.read(row.clips[0]),
        mel=asked.mels[0][:, : asked.frames[0]].numpy(),
        frames=_array(x),
        pooled=_array(rearrange(pooled, "m g d -> m (g d)")),
        token_seconds=net.pooling.k * FRAME_SECONDS,
        tokens=_pieces(tokenizer, ids),
        answer=tokenizer.decode(ids, control=True),
        attention=_array(attention_weights(net, batch, queries)[..., keys]),
    )


@torch.no_grad()
def attention_weights(net: AudioLM, batch: Pack, queries: Tensor) -> Tensor:
    """Return the attention of positions `queries` (Q,) of a pack of one row to all of it, in every layer and head of
    the language model: (L, H, Q, T) float32. Positions after the query have weight 0, all others sum to 1.

    For one forward pass, a function of ours replaces the attention that transformers calls by name. It gets the rotated
    queries and the keys that the model gives to the packed kernel, and returns that kernel's own result, so that each
    layer computes what it always does. The weights are a second computation, which the tests compare with the first.
    """
    assert len(lengths(batch["cu_seqlens"])) == 1, "attention is shown of one row at a time"
    layers: list[Tensor] = []
    packed = AttentionInterface()["packed"]

    def attend(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **given: Any) -> Any:
        q, k = query[0, :, queries].float(), key[0].float()  # (H, Q, Dh), (K, T, Dh)
        if given.get("query_scale") is not None:
            q = q * given["query_scale"][queries, None].float()
        k = k.repeat_interleave(len(q) // len(k), dim=0)
        scale = given["scaling"] if given.get("scaling") is not None else q.shape[-1] ** -0.5
        scores = scale * q @ k.transpose(1, 2)
        later = torch.arange(k.shape[1], device=k.device) > queries[:, None]
        layers.append(scores.masked_fill(later, -torch.inf).softmax(-1))
        return packed(module, query, key, value, *args, **given)

    AttentionInterface.register("packed_weights", attend)
    net.llm.set_attn_implementation("packed_weights")
    try:
        net.hidden_states(batch)
    finally:
        net.llm.set_attn_implementation("packed")
    return torch.stack(layers)


def _answered(asked: Sample, ids: Sequence[int]) -> Sample:
    """The prompt and its answer; nothing of it is to be learned."""
    return replace(
        asked,
        ids=np.concatenate([asked.ids, np.asarray(ids, dtype=np.int64)]),
        supervise=np.zeros(len(asked.ids) + len(ids), dtype=bool),
        audio_mask=np.pad(asked.audio_mask, (0, len(ids))),
    )


def _pack(sample: Sample, model: AudioModel) -> Pack:
    return to_device(collate([sample], geometry=model.net.geometry), model.device)


def _pieces(tokenizer: Tokenizer, ids: Sequence[int]) -> list[str]:
    """What each token adds to the text: one that ends within a character nothing, the one that ends it all of it."""
    text = StreamingDecoder(partial(tokenizer.decode, control=True))
    *pieces, last = (text.add(token) for token in ids)
    return [*pieces, last + text.rest()]


def _array(x: Tensor) -> np.ndarray:
    return x.float().cpu().numpy()
