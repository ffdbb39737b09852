"""Trace of one row through a model.

A trace contains the log-mel, the encoder frames, the pooled frames, and the attention of each response token to the
audio, computed from the queries and keys of the language model.

Shapes: F mel frames (10 ms), C encoder frames (20 ms), M audio tokens, T tokens of the row, N tokens of the response,
Q queries, L layers and H heads of the language model, D width of the encoder, G frames per token in the pooling `stack`
(1 for the others).
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

FRAME_SECONDS = 1 / ENCODER_RATE  # duration of an encoder frame


@dataclass(frozen=True, eq=False, kw_only=True)
class Subject:
    """A model, rows to trace, and a run of `experiment=encoder_ctc` that can align words with the audio, if any."""

    model: AudioModel
    rows: Sequence[Row]
    aligner: Path | None


@dataclass(frozen=True, eq=False, kw_only=True)
class Trace:
    """Intermediate results of a model on one row.

    `attention[l, h, n, m]` is the weight that head h of layer l gives to audio token m at the position that predicts
    token n of the response; for the first token, that is the last position of the prompt. All weights of such a
    position, including those on text, sum to 1.
    """

    model: str
    row: Row
    wave: np.ndarray  # (samples,) at 16 kHz
    mel: np.ndarray  # (n_mels, F) log-mel in Whisper's scale
    frames: np.ndarray  # (C, D) of the encoder, before its final norm
    pooled: np.ndarray  # (M, G * D) before that norm and the projector
    token_seconds: float  # duration of an audio token
    tokens: list[str]  # N pieces of the response; empty if a token ends within a character
    answer: str
    attention: np.ndarray  # (L, H, N, M)

    @property
    def seconds(self) -> float:
        """Return the duration of the audio."""
        return len(self.wave) / SAMPLE_RATE


def load(
    run: str | Path | None = None,
    *,
    rows: str | Path | None = None,
    aligner: str | Path | None = None,
    runs: str | Path = "runs",
) -> Subject:
    """Load a model, with rows to inspect it on.

    Args:
        run: a run, or any directory that `auris.load` accepts; None: the newest finished run under `runs` that was
            trained to respond to audio.
        rows: a manifest; None: the test rows of the run's config.
        aligner: a run of `experiment=encoder_ctc`; None: the one that the run's encoder was initialised from, if it
            exists.
        runs: directory of all runs.

    Raises:
        MissingFileError: there is no such run, or its rows were moved.
    """
    path = _newest(Path(runs)) if run is None else Path(run)
    model = pretrained.load(path)
    model.check_answers()
    home = _home(path, model.config)
    if rows is None:
        entries = [_rebased(entry, home) for entry in model.config["data"]["test"] or ()]
        if not entries:
            raise MissingFileError(f"{path}: its config has no test rows, pass rows=FILE.jsonl")
    else:
        entries = [str(rows)]
    initial_encoder = (model.config.get("weights") or {}).get("encoder")
    if aligner is None and initial_encoder is not None and _is_aligner(home / initial_encoder):
        aligner = home / initial_encoder
    joined = JoinedRows([manifest.rows for manifest in read_manifests(entries, key="rows")])
    return Subject(model=model, rows=joined, aligner=None if aligner is None else Path(aligner))


def _newest(runs: Path) -> Path:
    finished = sorted(runs.glob("*/*/seed_*/finished.json"), key=lambda file: file.stat().st_mtime, reverse=True)
    for file in finished:
        if read_yaml(file.with_name("recipe.yaml"))["data"]["view"] == "audio":
            return file.parent
    raise MissingFileError(f"no finished run under {runs} responds to audio: `make demo` trains two, or pass run=DIR")


def _is_aligner(run: Path) -> bool:
    file = run / "recipe.yaml"
    return file.is_file() and read_yaml(file)["stage"] == "encoder_ctc"


def _home(path: Path, config: Config) -> Path:
    """Return the directory in which the run was started. Paths in its config are relative to it."""
    inner = Path(config.get("run_dir") or ".")
    if not inner.is_absolute() and path.resolve().parts[-len(inner.parts) :] == inner.parts:
        return path.resolve().parents[len(inner.parts) - 1]
    return Path()


def _rebased(entry: Any, home: Path) -> Any:
    """Return an entry of `data.test` with a path relative to the working directory; URLs do not change."""
    if isinstance(entry, Mapping):
        return {**entry, "path": _rebased(entry["path"], home)} if "path" in entry else entry
    return entry if "://" in str(entry) else str(home / entry)


def choose_row(subject: Subject, id: str | None = None) -> Row:
    """Return the row with this id; None: the first row with word times, or else the first that has a response.

    Raises:
        UserError: there is no such row.
    """
    usable = [row for row in subject.rows if id in (None, row.id) and len(row.clips) == 1 and is_scored(row)]
    timed = [row for row in usable if row.labels.get("words")]
    if not usable:
        what = "no row with one clip and a response" if id is None else f"no such row {id!r} with one clip"
        raise UserError(f"{what} among {len(subject.rows)} rows")
    return (timed or usable)[0]


@torch.no_grad()
def trace_row(model: AudioModel, row: Row) -> Trace:
    """Let a model respond greedily to a row, and record intermediate results.

    The row is prompted as in training. The last message of a dialogue is the response.

    Raises:
        UserError: the row does not have exactly one clip of at most 30 s, or cannot be used.
    """
    is_chat = "messages" in row.labels
    kind, style = (ChatSamples, model.dialogue) if is_chat else (AudioSamples, model.prompt)
    net, tokenizer = model.net, model.tokenizer
    view = kind(tokenizer=tokenizer, prompt=style, geometry=net.geometry, long_audio="window")
    prompt = view.build(row, 0, None, prompt_only=True)
    if len(prompt.frames) != 1:
        raise UserError(f"row {row.id}: {len(prompt.frames)} windows of audio, expected one clip of at most 30 s")
    settings = model.settings(
        chat=is_chat, do_sample=False, min_new_tokens=1, max_new_tokens=model.config.get("max_new_tokens") or 256
    )
    [ids] = net.generate(_pack(prompt, model), settings)
    batch = _pack(_with_response(prompt, ids), model)
    x, n_frames = net.encoder(batch["mel"], batch["frames"])
    pooled, _ = net.pooling(x, n_frames)
    queries = len(prompt.ids) - 1 + torch.arange(len(ids), device=model.device)  # positions that predict the tokens
    # A learned boundary adds a vector before and after the tokens of the clip, at positions of the audio index.
    keys = batch["audio_index"][1:-1] if net.geometry.boundary else batch["audio_index"]
    return Trace(
        model=model.name,
        row=row,
        wave=view.read(row.clips[0]),
        mel=prompt.mels[0][:, : prompt.frames[0]].numpy(),
        frames=_array(x),
        pooled=_array(rearrange(pooled, "m g d -> m (g d)")),
        token_seconds=net.pooling.k * FRAME_SECONDS,
        tokens=_pieces(tokenizer, ids),
        answer=tokenizer.decode(ids, control=True),
        attention=_array(attention_weights(net, batch, queries)[..., keys]),
    )


@torch.no_grad()
def attention_weights(net: AudioLM, batch: Pack, queries: Tensor) -> Tensor:
    """Return the attention of positions `queries` (Q,) of a single row in every layer and head: (L, H, Q, T) float32.

    Positions after the query have weight 0; all others sum to 1.

    For one forward, a function replaces the attention that transformers calls by name. It receives the rotated queries
    and the keys of the packed kernel, and returns the result of that kernel, so the layers compute the same as always.
    The weights are a second computation, which the tests compare with the first.
    """
    assert len(lengths(batch["cu_seqlens"])) == 1, "expected a pack of one row"
    layers: list[Tensor] = []
    packed = AttentionInterface()["packed"]

    def attend(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **options: Any) -> Any:
        q, k = query[0, :, queries].float(), key[0].float()  # (H, Q, Dh), (K, T, Dh)
        if options.get("query_scale") is not None:
            q = q * options["query_scale"][queries, None].float()
        k = k.repeat_interleave(len(q) // len(k), dim=0)
        scale = options["scaling"] if options.get("scaling") is not None else q.shape[-1] ** -0.5
        scores = scale * q @ k.transpose(1, 2)
        later = torch.arange(k.shape[1], device=k.device) > queries[:, None]
        layers.append(scores.masked_fill(later, -torch.inf).softmax(-1))
        return packed(module, query, key, value, *args, **options)

    AttentionInterface.register("packed_weights", attend)
    net.llm.set_attn_implementation("packed_weights")
    try:
        net.hidden_states(batch)
    finally:
        net.llm.set_attn_implementation("packed")
    return torch.stack(layers)


def _with_response(prompt: Sample, ids: Sequence[int]) -> Sample:
    """Return a prompt followed by its response, without supervision."""
    return replace(
        prompt,
        ids=np.concatenate([prompt.ids, np.asarray(ids, dtype=np.int64)]),
        supervise=np.zeros(len(prompt.ids) + len(ids), dtype=bool),
        audio_mask=np.pad(prompt.audio_mask, (0, len(ids))),
    )


def _pack(sample: Sample, model: AudioModel) -> Pack:
    return to_device(collate([sample], geometry=model.net.geometry), model.device)


def _pieces(tokenizer: Tokenizer, ids: Sequence[int]) -> list[str]:
    """Return the text that each token adds. A token that ends within a character adds nothing; the next one adds it."""
    text = StreamingDecoder(partial(tokenizer.decode, control=True))
    *pieces, last = (text.add(token) for token in ids)
    return [*pieces, last + text.rest()]


def _array(x: Tensor) -> np.ndarray:
    return x.float().cpu().numpy()
