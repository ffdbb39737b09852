"""`auris corpus`: write the synthetic corpus and train its tokenizer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import rich
from rich.table import Table

from auris.config import CONFIGS
from auris.corpus.build import SENTENCES_FILE, build, build_from_sentences
from auris.corpus.output import hash_bytes
from auris.corpus.recipes import RECIPES, id_prefix
from auris.corpus.sentences import Selection, describe_selection, read_lines, select_sentences
from auris.errors import MissingFileError, UsageError
from auris.files import digest, file_digest, read_yaml
from auris.text.tasks import TASKS

# Keys that only some corpora use, with the values that null stands for in these. `sizes` is one of them too.
_GRAMMAR_KEYS = {"text_lines": 20_000, "fraction": 1.0}
_TEXT_KEYS = {"language": "en"}
_LLM_KEYS = {"sentences": 1000}


def run(config: Mapping[str, Any]) -> None:
    """Build the corpus and its tokenizer, and print the number of rows and the grade (`tasks.GRADES`) of each task."""
    # Imported here because worker processes import this module too and must not load torch.
    from hydra.core.hydra_config import HydraConfig

    from auris.corpus.vocabulary import train_tokenizer

    config = fill_in(config, HydraConfig.get().overrides.task if HydraConfig.initialized() else ())
    out = Path(config["out"])
    metadata = _build(out, config)
    # Models with random weights need this tokenizer. A run with weights.llm has the tokenizer of its language model.
    train_tokenizer(out, config["vocab_size"])
    if "sentences" in metadata:
        print(f"{describe_selection(metadata['sentences'])} (the kept sentences: {out / SENTENCES_FILE})")
    rich.print(tabulate_rows(metadata))


def fill_in(config: Mapping[str, Any], overrides: Iterable[str] = ()) -> dict[str, Any]:
    """Return the config with values in place of null for the keys that its kind of corpus uses.

    Args:
        config: The config of the command.
        overrides: The overrides from the command line.

    Raises:
        UsageError: A key is set that this kind of corpus does not use, or both `text` and `llm` are.
    """
    if config["text"] is not None and config["llm"] is not None:
        raise UsageError(f"text={config['text']} and llm={config['llm']}: expected one of the two, the other null")
    if config["text"] is not None:
        used, kind = _TEXT_KEYS, f"with text={config['text']}"
    elif config["llm"] is not None:
        used, kind = _LLM_KEYS, f"with llm={config['llm']}"
    else:
        used, kind = _GRAMMAR_KEYS, "without text=FILE or llm=DIR"
    owners = {
        **dict.fromkeys(_GRAMMAR_KEYS, "leave out text and llm"),
        **dict.fromkeys(_TEXT_KEYS, "set text=FILE"),
        **dict.fromkeys(_LLM_KEYS, "set llm=DIR"),
    }
    for key, remedy in owners.items():
        if key not in used and config[key] is not None:
            raise UsageError(f"{key}={config[key]} has no effect {kind}: set {key}=null, or {remedy}")
    has_sizes = config["sizes"] != read_yaml(CONFIGS / "sizes/core.yaml") or "sizes=core" in overrides
    if used is not _GRAMMAR_KEYS and has_sizes:
        raise UsageError(f"sizes have no effect {kind}, where each sentence is a row: leave out sizes, or text and llm")
    return {**config, **{key: default for key, default in used.items() if config[key] is None}}


def _build(out: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """Build the kind of corpus that the config describes; return the content of `corpus.json`."""
    seed, processes = config["seed"], config["processes"]
    if config["text"] is not None:
        lines, language = read_lines(Path(config["text"])), config["language"]
        return build_from_sentences(
            out,
            partial(select_sentences, lines, language, f"text={config['text']}", processes),
            source={"text": hash_bytes("\n".join(lines).encode())},
            language=language,
            seed=seed,
            processes=processes,
        )
    if config["llm"] is not None:
        llm, n_sentences = Path(config["llm"]), config["sentences"]

        def sample() -> Selection:
            from auris.corpus.sampler import sample_sentences  # transformers take seconds to import

            return sample_sentences(llm, n_sentences, seed, processes)

        weights = sorted(llm.glob("*.safetensors"))
        if llm.is_dir() and not weights:
            raise MissingFileError(f"llm={llm}: there are no weights (*.safetensors), expected a causal language model")
        model_files = {path.name: file_digest(path) for path in [*weights, llm / "tokenizer.json"] if path.is_file()}
        source = {"llm": digest(model_files), "sentences": n_sentences}
        return build_from_sentences(out, sample, source=source, seed=seed, processes=processes)
    sizes, text_lines, scale = config["sizes"], config["text_lines"], config["fraction"]
    return build(out, sizes=sizes, text_lines=text_lines, scale=scale, seed=seed, processes=processes)


def tabulate_rows(metadata: Mapping[str, Any]) -> Table:
    """Return a table of the numbers of rows by task, the minutes and, if they are known, the distinct words by split.

    Args:
        metadata: The content of `corpus.json`.
    """
    words = metadata.get("distinct_words")
    caption = f"{words['all']:,} distinct words in all splits" if words else None
    table = Table("task", *metadata["rows"], "grade", title=f"corpus {metadata['hash']}", caption=caption)
    for task in RECIPES:
        counts = [rows.get(task, 0) for rows in metadata["rows"].values()]
        if any(counts):
            table.add_row(id_prefix(task) + task, *map(str, counts), TASKS[task].synthetic_grade)
    table.add_row("minutes", *(f"{seconds / 60:.1f}" for seconds in metadata["seconds"].values()), "")
    if words:
        table.add_row("distinct words", *(str(words[split]) for split in metadata["rows"]), "")
    return table
