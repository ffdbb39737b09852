"""`auris doctor`: reports on a checkpoint, on data (`data/check`) or on the tasks (`text/task_table`).

The report on a checkpoint says what a path contains, what it can be used for, what is missing, and the memory of its
training stages.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from rich.console import Console
from torch import nn
from transformers import AutoConfig

from auris import config
from auris.data.check import report as checkup
from auris.errors import UsageError
from auris.inference import load as pretrained
from auris.inference.export import FORMATS
from auris.inference.export_formats import find_unsupported
from auris.model.generation import GenerationSettings
from auris.model.weights import identify, loading
from auris.model.weights.tensors import TensorSource
from auris.text import task_table
from auris.text.console import print_plain
from auris.text.tokenizer import Tokenizer
from auris.training import dry_run
from auris.training.cost import GIB, STAGES, Load


def examine(path: str, which: str = "last", *, token_budget: int = 8192, console: Console | None = None) -> list[str]:
    """Print what a path contains and what it can be used for.

    Returns:
        What is wrong with it, one sentence each.
    """
    console = console or Console()
    found = identify.identify(path, which)
    source = found.open_tensors()
    print_plain(console, f"{path}: {identify.KINDS[found.kind]}")
    print_plain(console, _summary(source))
    wrong: list[str] = []
    if found.model is None:
        _show_part(console, found)
        return wrong
    tokenizer = _try(pretrained.load_tokenizer, found, wrong=wrong)
    rows = found.model.get("vocab_rows") or (tokenizer.size if tokenizer is not None else None)
    if rows is not None:
        with torch.device("meta"):
            net = config.build({key: node for key, node in found.model.items() if key != "vocab_rows"})(vocab_size=rows)
        wrong += loading.find_mismatches(net, source, found.layout)
        if tokenizer is not None:
            _show_use(console, found, net, tokenizer, wrong)
        load = Load.of_budget(token_budget, net.geometry.pool)
        dry_run.print_sizes(console, net, STAGES, load)
    for fault in wrong:
        print_plain(console, f"wrong: {fault}", style="red")
    return wrong


def _try(function: Callable[..., Any], *arguments: Any, wrong: list[str]) -> Any:
    """Return what a function returns; if it fails, append its message to `wrong` and return None."""
    try:
        return function(*arguments)
    except (ValueError, FileNotFoundError) as error:
        wrong.append(str(error))
        return None


def _summary(source: TensorSource) -> str:
    sizes: Counter[str] = Counter()
    names = source.keys()
    for name in names:
        dtype = source.dtype(name)
        sizes[str(dtype).removeprefix("torch.")] += math.prod(source.shape(name)) * dtype.itemsize
    held = ", ".join(f"{size / GIB:.2f} GiB of {label}" for label, size in sizes.items())
    return f"weights: {len(names)} tensors, {held}"


def _show_part(console: Console, found: identify.ModelSource) -> None:
    [(part, node)] = found.parts.items()
    print_plain(console, f"fits: training with weights.{part}={found.path}")
    with torch.device("meta"):
        built = config.build(node)
        if part == "llm":
            rows = found.config.get("vocab_size") or AutoConfig.for_model(**found.config).get_text_config().vocab_size
            built = built(vocab_size=rows)
    console.print(dry_run.parameter_table({part: built}))
    if part == "llm":
        what = f"{found.tokenizer}: it grows by the tokens of audio" if found.tokenizer else "none there"
        print_plain(console, f"tokenizer: {what}")


def _show_use(
    console: Console, found: identify.ModelSource, net: nn.Module, tokenizer: Tokenizer, wrong: list[str]
) -> None:
    """Print a model's tokenizer, its generation settings and the formats that it can be exported in."""
    rows = net.llm.get_input_embeddings().num_embeddings
    print_plain(console, f"fits: checkpoint={found.path}, and weights.PART of {', '.join(found.parts)}")
    print_plain(console, f"tokenizer: {tokenizer.size:,} tokens for {rows:,} rows of the embedding")
    if found.generation:
        settings = _try(GenerationSettings.from_config, found.generation, wrong=wrong)
        print_plain(console, f"generation_config.json: {settings}")
    else:
        print_plain(console, "generation_config.json: none there; answers are greedy, to the end of the text")
    for name in FORMATS:
        missing = find_unsupported(net, tokenizer, name)
        print_plain(console, f"export format={name}: " + ("; ".join(missing) or "fits"))


def run(made: config.Config) -> int | None:
    """Run `auris doctor`; returns 1 if something is wrong."""
    if "data" in made:
        return 1 if checkup.check(made) else 0
    if made["show"] is not None:
        return task_table.show(made["show"])
    if made["checkpoint"] is None:
        raise UsageError("expected checkpoint=..., data=... or show=... on the command line (see --help)")
    return 1 if examine(made["checkpoint"], made["which"], token_budget=made["token_budget"]) else 0
