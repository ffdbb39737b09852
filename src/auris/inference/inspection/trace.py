"""Trace one row through a model: run the model on the row and record intermediate results.

A trace contains the log-mel features, the encoder frames, the pooled frames, and the attention of each response token
to the audio, computed from the queries and keys of the language model.

Shapes: F mel frames (10 ms), C encoder frames (20 ms), M audio tokens, T tokens of the row, N tokens of the response,
Q queries, L layers, H attention heads, K key-value heads and Dh channels of a head in the language model, D width of
the encoder, G vectors per audio token before the projector (more than 1 only for the pooling `stack`).
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
from auris.errors import MissingFileError, UserError, count
from auris.files import read_yaml
from auris.inference import load as pretrained
from auris.inference.audio_model import AudioModel, StreamingDecoder
from auris.model.attention import sequence_lengths
from auris.model.audio_lm import AudioLM
from auris.model.pack import Pack, to_device
from auris.text.tokenizer import Tokenizer

FRAME_SECONDS = 1 / ENCODER_RATE  # duration of an encoder frame


@dataclass(frozen=True, eq=False, kw_only=True)
class Subject:
    """The model to inspect, with rows for it.

    Attributes:
        model: the model.
        rows: the rows from which `choose_row` selects one. Some of them may be unusable.
        aligner: a run of `experiment=encoder_ctc`, which can align words with the audio; None if there is no such run.
    """

    model: AudioModel
    rows: Sequence[Row]
    aligner: Path | None


@dataclass(frozen=True, eq=False, kw_only=True)
class Trace:
    """Intermediate results of a model on one row.

    `attention[l, h, n, m]` is the weight that head h of layer l gives to audio token m at the position that predicts
    token n of the response. For the first token, this position is the last one of the prompt. The weights of a position
    on all tokens, which include the text, sum to 1.
    """

    model: str
    row: Row
    wave: np.ndarray  # (number of samples,) at 16 kHz
    mel: np.ndarray  # (n_mels, F) log-mel in Whisper's scale
    frames: np.ndarray  # (C, D) encoder frames, before the encoder's final norm
    pooled: np.ndarray  # (M, G * D) pooled frames, before the encoder's final norm and the projector
    token_seconds: float  # duration of an audio token
    tokens: list[str]  # N texts, one per token of the response; empty for a token that ends within a character
    answer: str  # the response
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
        aligner: a run of `experiment=encoder_ctc`; None: the run from which the encoder was initialised, if it exists.
        runs: directory of all runs.

    Raises:
        MissingFileError: there is no such run, or its config has no test rows, or their files were moved.
        UserError: the model cannot be loaded, or does not respond to prompts.
    """
    path = _newest_run(Path(runs)) if run is None else Path(run)
    model = pretrained.load(path)
    model.check_can_respond()
    start_dir = _start_dir(path, model.config)
    if rows is None:
        entries = [_rebase(entry, start_dir) for entry in model.config["data"]["test"] or ()]
        if not entries:
            raise MissingFileError(f"{path}: its config has no test rows, so pass rows=FILE.jsonl")
    else:
        entries = [str(rows)]
    initial_encoder = (model.config.get("weights") or {}).get("encoder")
    if aligner is None and initial_encoder is not None and _is_aligner(start_dir / initial_encoder):
        aligner = start_dir / initial_encoder
    joined = JoinedRows([manifest.rows for manifest in read_manifests(entries, key="rows")])
    return Subject(model=model, rows=joined, aligner=None if aligner is None else Path(aligner))


def _newest_run(runs: Path) -> Path:
    newest_first = sorted(runs.glob("*/*/seed_*/finished.json"), key=lambda file: file.stat().st_mtime, reverse=True)
    for file in newest_first:
        # The view "audio": the run was trained on clips with prompts and responses.
        if read_yaml(file.with_name("recipe.yaml"))["data"]["view"] == "audio":
            return file.parent
    raise MissingFileError(
        f"no finished run under {runs} responds to audio: pass run=DIR, or train two such runs with `make demo`"
    )


def _is_aligner(run: Path) -> bool:
    file = run / "recipe.yaml"
    return file.is_file() and read_yaml(file)["stage"] == "encoder_ctc"


def _start_dir(path: Path, config: Config) -> Path:
    """Return the directory in which the run was started. Paths in the run's config are relative to it."""
    run_dir = Path(config.get("run_dir") or ".")
    if not run_dir.is_absolute() and path.resolve().parts[-len(run_dir.parts) :] == run_dir.parts:
        return path.resolve().parents[len(run_dir.parts) - 1]
    return Path()


def _rebase(entry: Any, start_dir: Path) -> Any:
    """Return an entry of `data.test` whose path is valid in the current working directory. URLs do not change."""
    if isinstance(entry, Mapping):
        return {**entry, "path": _rebase(entry["path"], start_dir)} if "path" in entry else entry
    return entry if "://" in str(entry) else str(start_dir / entry)


def choose_row(subject: Subject, id: str | None = None) -> Row:
    """Return a row with exactly one clip and a response that can be scored.

    Args:
        subject: the model and its rows.
        id: the id of the row; None: the first row with word times or, if there is none, the first row.

    Raises:
        UserError: there is no such row.
    """
    usable = [row for row in subject.rows if id in (None, row.id) and len(row.clips) == 1 and is_scored(row)]
    timed = [row for row in usable if row.labels.get("words")]
    if not usable:
        wanted = "with one clip and a response" if id is None else f"with one clip and the id {id!r}"
        raise UserError(f"no row {wanted} among {count(len(subject.rows), 'row')}")
    return (timed or usable)[0]


@torch.no_grad()
def trace_row(model: AudioModel, row: Row) -> Trace:
    """Let a model respond greedily to a row, and record intermediate results.

    The row is prompted as in training. In a dialogue, the model responds in place of the last message.

    Raises:
        UserError: the row does not have exactly one clip of at most 30 s, or cannot be used.
    """
    is_chat = "messages" in row.labels
    samples_class, prompt_style = (ChatSamples, model.dialogue) if is_chat else (AudioSamples, model.prompt)
    net, tokenizer = model.net, model.tokenizer
    samples = samples_class(tokenizer=tokenizer, prompt=prompt_style, geometry=net.geometry, long_audio="window")
    prompt = samples.build(row, 0, None, prompt_only=True)
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
    # A learned boundary adds a vector before and after the clip's tokens. The audio index includes both positions.
    keys = batch["audio_index"][1:-1] if net.geometry.boundary else batch["audio_index"]
    return Trace(
        model=model.name,
        row=row,
        wave=samples.read(row.clips[0]),
        mel=prompt.mels[0][:, : prompt.frames[0]].numpy(),
        frames=_array(x),
        pooled=_array(rearrange(pooled, "m g d -> m (g d)")),
        token_seconds=net.pooling.k * FRAME_SECONDS,
        tokens=_token_texts(tokenizer, ids),
        answer=tokenizer.decode(ids, keep_control_tokens=True),
        attention=_array(attention_weights(net, batch, queries)[..., keys]),
    )


@torch.no_grad()
def attention_weights(net: AudioLM, batch: Pack, queries: Tensor) -> Tensor:
    """Return the attention weights of the positions `queries` (Q,) in every layer and head: (L, H, Q, T) float32.

    The weights of a position sum to 1. Later positions have weight 0.

    During one forward, this function replaces the attention that transformers calls by name. The replacement computes
    the weights from the rotated queries and keys, and then calls the packed attention, so the layers compute the same
    as always. The tests compare these weights with the results of the packed attention.

    Args:
        net: the model.
        batch: a pack of a single row.
        queries: positions in the row.
    """
    assert len(sequence_lengths(batch["cu_seqlens"])) == 1, "expected a pack of one row"
    layers: list[Tensor] = []
    packed = AttentionInterface()["packed"]

    def attend(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **options: Any) -> Any:
        q, k = query[0, :, queries].float(), key[0].float()  # (H, Q, Dh) and (K, T, Dh)
        if options.get("query_scale") is not None:
            q = q * options["query_scale"][queries, None].float()
        k = k.repeat_interleave(len(q) // len(k), dim=0)
        scale = options["scaling"] if options.get("scaling") is not None else q.shape[-1] ** -0.5
        scores = scale * q @ k.transpose(1, 2)
        is_later = torch.arange(k.shape[1], device=k.device) > queries[:, None]
        layers.append(scores.masked_fill(is_later, -torch.inf).softmax(-1))
        return packed(module, query, key, value, *args, **options)

    AttentionInterface.register("packed_weights", attend)
    net.llm.set_attn_implementation("packed_weights")
    try:
        net.hidden_states(batch)
    finally:
        net.llm.set_attn_implementation("packed")
    return torch.stack(layers)


def _with_response(prompt: Sample, ids: Sequence[int]) -> Sample:
    """Return a prompt followed by its response, as a sample without labels."""
    return replace(
        prompt,
        ids=np.concatenate([prompt.ids, np.asarray(ids, dtype=np.int64)]),
        supervise=np.zeros(len(prompt.ids) + len(ids), dtype=bool),
        audio_mask=np.pad(prompt.audio_mask, (0, len(ids))),
    )


def _pack(sample: Sample, model: AudioModel) -> Pack:
    return to_device(collate([sample], geometry=model.net.geometry), model.device)


def _token_texts(tokenizer: Tokenizer, ids: Sequence[int]) -> list[str]:
    """Return the text that each token adds. A character of several tokens is added by the last one of them."""
    decoder = StreamingDecoder(partial(tokenizer.decode, keep_control_tokens=True))
    *pieces, last = (decoder.add(token) for token in ids)
    return [*pieces, last + decoder.finish()]


def _array(x: Tensor) -> np.ndarray:
    return x.float().cpu().numpy()
