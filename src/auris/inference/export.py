"""`auris export checkpoint=PATH out=DIR`: write a model as a directory for other software or for `auris.load`.

There are three formats: Qwen2-Audio as in transformers, Qwen-Audio (v1) as released, and the format of auris, which
supports every model that auris can train. By default, weights keep their stored precision, so the export of a published
model has bit-identical weights.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from auris.config import Config
from auris.errors import UserError
from auris.files import write_json
from auris.inference import load as pretrained
from auris.inference.export_formats import WRITERS, find_unsupported, make_generation_config
from auris.inference.model_card import render_card
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
    """Write the model at `checkpoint` to the new directory `out`.

    Args:
        checkpoint: path of a complete model.
        out: the new directory.
        format: one of `FORMATS`; "auto" for the first format that supports every part.
        which: the checkpoint to use if `checkpoint` is a run, "last" or "best".
        dtype: dtype of the weights; None to keep their stored dtype.
        shard_bytes: maximum size of a weight file.

    Returns:
        The format that was written. With "auto" also a phrase for each reason why an earlier format in `FORMATS` does
        not support the model.

    Raises:
        UserError: the model is not complete, `out` exists, or the requested format does not support some part.
    """
    out = Path(out)
    if out.exists():
        raise UserError(f"out={out} already exists: expected the name of a new directory")
    source = identify(checkpoint, which)
    _, tokenizer, net = pretrained.build(source)
    chosen, reasons = choose_format(net, tokenizer, format)
    model = pretrained.load(checkpoint, which=which, dtype=dtype)
    out.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f"{out.name}.partial-", dir=out.parent) as folder:
        partial = Path(folder, out.name)  # renamed to `out` when it is complete
        partial.mkdir()
        WRITERS[chosen](model, source, partial)
        write_json(partial / "generation_config.json", make_generation_config(model, source), indent=2)
        tensors = export_tensors(model.net.state_dict(), chosen)
        write_sharded(tensors, partial, max_shard_bytes=shard_bytes)
        (partial / "README.md").write_text(render_card(model, source, out.name, chosen, reasons), encoding="utf-8")
        partial.rename(out)
    return chosen, reasons


def choose_format(net: AudioLM, tokenizer: Tokenizer, format: str = "auto") -> tuple[str, list[str]]:
    """Return the format to write, and a phrase for each reason why an earlier format does not support the model.

    Raises:
        UserError: the format is unknown, or the requested one does not support some part.
    """
    if format not in ("auto", *FORMATS):
        raise UserError(f"format={format}: expected auto, {', '.join(FORMATS)}")
    reasons: list[str] = []
    unsupported: list[str] = []
    for name in FORMATS if format == "auto" else (format,):
        unsupported = find_unsupported(net, tokenizer, name)
        if not unsupported:
            return name, reasons
        reasons += [f"{name}: {reason}" for reason in unsupported]
    raise UserError(
        f"format={format} does not support this model: {'; '.join(unsupported)}. format=auris supports every model"
    )


def run(config: Config) -> None:
    """Run `auris export`."""
    dtype = _parse_dtype(config["dtype"])
    options = {"format": config["format"], "which": config["which"], "shard_bytes": round(1e9 * config["shard_gb"])}
    chosen, reasons = export(config["checkpoint"], config["out"], dtype=dtype, **options)
    for reason in reasons:
        print(f"not possible as {reason}")
    print(f"wrote {config['out']} ({chosen})")


def _parse_dtype(name: str | None) -> torch.dtype | None:
    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name is not None and name not in dtypes:
        raise UserError(f"dtype={name}: expected null (as stored), {', '.join(dtypes)}")
    return dtypes[name] if name else None
