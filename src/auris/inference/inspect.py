"""`auris doctor`: print a report on a checkpoint, on data (`data/check`) or on the tasks (`text/task_table`).

The report on a checkpoint states what the path contains, what it can be used for, what is missing, and how much memory
training needs.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from rich.console import Console
from transformers import AutoConfig

from auris import config as configs
from auris.data.check import report as checkup
from auris.errors import UsageError
from auris.inference import load as pretrained
from auris.inference.export import FORMATS
from auris.inference.export_formats import find_unsupported
from auris.model import llm
from auris.model.audio_lm import AudioLM
from auris.model.generation import GenerationSettings
from auris.model.vocabulary import input_table
from auris.model.weights import identify, loading
from auris.model.weights.tensors import TensorSource
from auris.text import task_table
from auris.text.console import print_plain
from auris.text.tokenizer import Tokenizer, read_vocabulary
from auris.training import dry_run
from auris.training.cost import GIB, STAGES, Workload
from auris.training.weight_settings import ENCODER_SIZES


def examine(path: str, which: str = "last", *, token_budget: int = 8192, console: Console | None = None) -> list[str]:
    """Print what a path contains and what it can be used for.

    Args:
        path: the path of a model or of a part of a model.
        which: the checkpoint to use if the path is a run, "last" or "best".
        token_budget: number of tokens in a pack, for the memory that training needs.
        console: where to print; None: standard output.

    Returns:
        A sentence for each problem.
    """
    console = console or Console()
    source = identify.identify(path, which)
    tensors = source.open_tensors()
    print_plain(console, f"{path}: {identify.KINDS[source.kind]}")
    print_plain(console, _summarize(tensors))
    for part, settings in source.parts.items():
        if part in ("encoder", "llm"):
            print_plain(console, f"{part}: {_describe_sizes(part, settings)}")
    problems: list[str] = []
    if source.model is None:
        _show_part(console, source)
        return problems
    tokenizer = _call(pretrained.load_tokenizer, source, problems=problems)
    # Number of rows of the embedding table.
    vocab_rows = source.model.get("vocab_rows") or (tokenizer.size if tokenizer is not None else None)
    if vocab_rows is not None:
        model_config = {key: value for key, value in source.model.items() if key != "vocab_rows"}
        with torch.device("meta"):
            net = configs.build(model_config)(vocab_size=vocab_rows)
        problems += loading.find_mismatches(net, tensors, source.layout, label=path)
        if tokenizer is not None:
            _show_use(console, source, net, tokenizer, problems)
        workload = Workload.of_budget(token_budget, pool=net.geometry.pool)
        dry_run.print_sizes(console, net, STAGES, workload)
    for problem in problems:
        print_plain(console, f"problem: {problem}", style="red")
    return problems


# Config entries of a language model that determine its sizes, and the base of its rotary embedding.
_LLM_SIZES = (
    "model_type",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "intermediate_size",
    "rope_theta",
    "tie_word_embeddings",
)


def _describe_sizes(part: str, node: identify.Node) -> str:
    """Return the sizes of an encoder or a language model, by their keys in configs of auris."""
    if part == "encoder":
        values = {name: node.get(name) for name in ENCODER_SIZES}
    else:
        values = llm.function_fields(llm.read_config(node["config"])) if "config" in node else {}
    names = ENCODER_SIZES if part == "encoder" else _LLM_SIZES
    return ", ".join(f"{name} {values[name]}" for name in names if values.get(name) is not None)


def _call(function: Callable[..., Any], *arguments: Any, problems: list[str]) -> Any:
    """Call a function and return its result; if it fails, append its message to `problems` and return None."""
    try:
        return function(*arguments)
    except (ValueError, FileNotFoundError) as error:
        problems.append(str(error))
        return None


def _summarize(source: TensorSource) -> str:
    """Return a text with the number of tensors and their total size by dtype."""
    sizes: Counter[str] = Counter()
    names = source.keys()
    for name in names:
        dtype = source.dtype(name)
        sizes[str(dtype).removeprefix("torch.")] += math.prod(source.shape(name)) * dtype.itemsize
    by_dtype = ", ".join(f"{size / GIB:.2f} GiB in {dtype}" for dtype, size in sizes.items())
    return f"weights: {len(names)} tensors, {by_dtype}"


def _show_part(console: Console, source: identify.ModelSource) -> None:
    """Print what a part of a model can be used for, its parameters and its tokenizer."""
    [(part, part_config)] = source.parts.items()
    print_plain(console, f"usable for training with weights.{part}={source.path}")
    with torch.device("meta"):
        module = configs.build(part_config)
        if part == "llm":
            config = source.config
            vocab_size = config.get("vocab_size") or AutoConfig.for_model(**config).get_text_config().vocab_size
            module = module(vocab_size=vocab_size)
    console.print(dry_run.make_parameter_table({part: module}))
    if part == "llm":
        print_plain(console, f"vocabulary: {input_table(module).num_embeddings:,} rows of the embedding")
        if source.tokenizer is None:
            print_plain(console, "tokenizer: none; set tokenizer=DIR in training")
        else:
            n_tokens = len(read_vocabulary(source.tokenizer))
            print_plain(
                console, f"tokenizer: {source.tokenizer}, {n_tokens:,} tokens; audio tokens are added in training"
            )
            print_plain(console, f"chat template: {Tokenizer.load(source.tokenizer).chat_format}")


def _show_use(
    console: Console, source: identify.ModelSource, net: AudioLM, tokenizer: Tokenizer, problems: list[str]
) -> None:
    """Print a model's tokenizer, its generation settings and the formats in which it can be exported."""
    vocab_rows = input_table(net.llm).num_embeddings
    parts = ", ".join(source.parts)
    print_plain(console, f"usable as checkpoint={source.path}, or as weights.PART={source.path} for PART in {parts}")
    print_plain(console, f"tokenizer: {tokenizer.size:,} tokens, embedding: {vocab_rows:,} rows")
    print_plain(console, f"chat template of the tokenizer: {tokenizer.chat_format}")
    if source.generation:
        settings = _call(GenerationSettings.from_config, source.generation, problems=problems)
        print_plain(console, f"generation_config.json: {settings}")
    else:
        print_plain(console, "generation_config.json: none, responses are greedy up to the end-of-text token")
    for name in FORMATS:
        unsupported = find_unsupported(net, tokenizer, name)
        print_plain(console, f"export format={name}: " + ("; ".join(unsupported) or "supported"))


def run(config: configs.Config) -> int | None:
    """Run `auris doctor`. Return 1 if there are problems."""
    if "data" in config:
        return 1 if checkup.check(config) else 0
    if config["show"] is not None:
        return task_table.show(config["show"])
    if config["checkpoint"] is None:
        raise UsageError("expected checkpoint=..., data=... or show=... on the command line (see --help)")
    return 1 if examine(config["checkpoint"], config["which"], token_budget=config["token_budget"]) else 0
