"""`auris export checkpoint=PATH out=DIR`: write a model as a directory for other software, or for `auris.load`.

Three formats: transformers' Qwen2-Audio, Qwen-Audio (v1) as released, and our own, which holds any model that auris can
train. Weights keep the precision that they are stored in: the export of an import is bit-identical, tensor by tensor.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from auris.config import Config
from auris.errors import UserError
from auris.files import write_json
from auris.inference import load as pretrained
from auris.inference.export_formats import WRITERS, find_unsupported, generation_config
from auris.inference.model_card import card
from auris.model.audio_lm import AudioLM
from auris.model.weights.identify import identify
from auris.model.weights.saving import export_tensors, write_sharded
from auris.text.tokenizer import Tokenizer

FORMATS = tuple(WRITERS)


def export(
    checkpoint: str | Path,
    out: str | Path,
    *,
    format: str = "auto",
    which: str = "last",
    dtype: torch.dtype | None = None,
    shard_bytes: int = 4_000_000_000,
) -> tuple[str, list[str]]:
    """Write the model in `checkpoint` to the new directory `out`.

    Args:
        checkpoint: a path that holds a whole model.
        out: the new directory.
        format: one of `FORMATS`; "auto" for the first that has a counterpart for every part.
        which: checkpoint of a run: last or best.
        dtype: dtype of the weights; None to keep it as it is stored.
        shard_bytes: maximum size of a file of weights.

    Returns:
        The format that was written, and why those before it in `FORMATS` were not.

    Raises:
        UserError: no whole model, `out` exists, or the requested format has no counterpart for some part.
    """
    out = Path(out)
    if out.exists():
        raise UserError(f"out={out} is there already: expected the name of a new directory")
    found = identify(checkpoint, which)
    _, tokenizer, net = pretrained.build(found)
    chosen, reasons = choose_format(net, tokenizer, format)
    model = pretrained.load(checkpoint, which=which, dtype=dtype)
    out.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f"{out.name}.partial-", dir=out.parent) as folder:
        draft = Path(folder, out.name)  # moved to its place when it is complete
        draft.mkdir()
        WRITERS[chosen](model, found, draft)
        write_json(draft / "generation_config.json", generation_config(model, found), indent=2)
        tensors = export_tensors(model.net.state_dict(), chosen)
        write_sharded(tensors, draft, max_shard_bytes=shard_bytes)
        (draft / "README.md").write_text(card(model, found, out.name, chosen, reasons), encoding="utf-8")
        draft.rename(out)
    return chosen, reasons


def choose_format(net: AudioLM, tokenizer: Tokenizer, format: str = "auto") -> tuple[str, list[str]]:
    """Return the format to write, and why the ones before it cannot hold the model.

    Raises:
        UserError: the format is unknown, or the requested one has no counterpart for some part.
    """
    if format not in ("auto", *FORMATS):
        raise UserError(f"format={format}: expected auto, {', '.join(FORMATS)}")
    reasons: list[str] = []
    for name in FORMATS if format == "auto" else (format,):
        missing = find_unsupported(net, tokenizer, name)
        if not missing:
            return name, reasons
        reasons += [f"{name}: {reason}" for reason in missing]
    raise UserError(f"format={format} cannot hold this model: {'; '.join(missing)}. format=auris holds any")


def run(made: Config) -> None:
    """Run `auris export`."""
    dtype = _dtype(made["dtype"])
    options = {"format": made["format"], "which": made["which"], "shard_bytes": round(1e9 * made["shard_gb"])}
    chosen, reasons = export(made["checkpoint"], made["out"], dtype=dtype, **options)
    for reason in reasons:
        print(f"no counterpart in {reason}")
    print(f"wrote {made['out']} ({chosen})")


def _dtype(name: str | None) -> torch.dtype | None:
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name is not None and name not in known:
        raise UserError(f"dtype={name}: expected null (as stored), {', '.join(known)}")
    return known[name] if name else None
