"""Builder of the synthetic corpus. Each task has a recipe, which turns a seed into a row and its audio.

The seed of a row is derived from the seed of the corpus and from the row's split, task, variant and index. Speech is
synthesised by eSpeak in fixed groups of neighbouring rows, because eSpeak's output depends on the sentences that it
spoke before. Therefore the same seed gives the same bytes with any number of worker processes, and a larger corpus
contains the rows of a smaller one.

`build` takes its texts from the grammar, and `build_from_sentences` speaks any other sentences.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np

from auris.corpus import speech
from auris.corpus.grammar import LANGUAGES, SPLITS
from auris.corpus.output import (
    LICENCE,
    hash_bytes,
    make_in_groups,
    reuse_finished_directory,
    write_clips,
)
from auris.corpus.plan import Sizes, draw_text, plan_rows, plan_sentences, scale_sizes
from auris.corpus.recipes import RECIPES
from auris.corpus.recording import Fields, Recording, RowSpec, Script
from auris.corpus.sentences import Selection
from auris.corpus.signal import SAMPLE_RATE
from auris.errors import UserError
from auris.files import create_directory, write_json, write_jsonl, write_text
from auris.text.tasks import TASKS

VERSION = 4  # raise it with every change after which the same seed gives different bytes
_METADATA_FILE = "corpus.json"
SENTENCES_FILE = "sentences.txt"


def build(
    out: Path,
    *,
    sizes: Sizes,
    text_lines: int,
    scale: float = 1.0,
    seed: int = 0,
    processes: int | None = None,
) -> dict[str, Any]:
    """Write the corpus into the directory `out`, unless an earlier call has completed it there.

    Args:
        out: Directory to create. It appears when it is complete; until then files are written to `out` + '.partial'.
        sizes: Numbers of rows by split and task. A number is divided evenly among the task's variants (languages,
            classes, translation directions); a mapping gives the number for each variant.
        text_lines: Number of lines in `text.txt`, which has sentences of the training split in every language that
            occurs in training rows, and English keyword phrases.
        scale: Factor by which every size is multiplied. Products are rounded, and those of positive sizes are at least
            1.
        seed: Random seed.
        processes: Number of worker processes; None for one per core.

    Returns:
        The content of `corpus.json`: config, version of eSpeak, numbers of rows, seconds of audio, hashes.

    Raises:
        UserError: A size is invalid, or `out` holds other files.
        ImportError: eSpeak NG is not installed.
    """
    sizes = scale_sizes(sizes, scale)
    config = {"version": VERSION, "seed": seed, "sizes": sizes, "text_lines": text_lines}
    if metadata := reuse_finished_directory(out, _METADATA_FILE, "synthetic corpus", config):
        return metadata
    specs = plan_rows(sizes, seed)
    if not specs:
        raise UserError("every size in sizes is 0; set one, for example sizes.train.asr.en=100")
    engine = speech.get_version()
    with create_directory(out) as folder:
        rows = _make_all_rows(specs, folder, engine, processes)
        train_languages = {row.fields.get(key) for row in rows["train"] for key in ("language", "target_language")}
        texts = draw_text(text_lines, seed, [language for language in LANGUAGES if language in train_languages])
        return _write_labels(folder, config, engine, rows, texts)


def build_from_sentences(
    out: Path,
    select: Callable[[], Selection],
    *,
    source: Mapping[str, Any],
    language: str = "en",
    seed: int = 0,
    processes: int | None = None,
) -> dict[str, Any]:
    """Write a corpus of `asr` rows that speak any sentences, unless an earlier call has completed it in `out`.

    The training split has neither a sentence nor a voice in common with the other splits. `text.txt` has the sentences
    of the training split, and `text_test.txt` those of the test split. `sentences.txt` has all of them as they were
    written, one a line: a corpus made from this file with the same seed has the same rows.

    Args:
        out: Directory to create, see `build`.
        select: Returns the sentences. It is not called if the corpus exists already.
        source: What determines the sentences, for `corpus.json`.
        language: Language of the sentences.
        seed: Random seed.
        processes: Number of worker processes; None for one per core.

    Returns:
        The content of `corpus.json`: as in `build`, with the numbers of sentences that were read, kept and dropped, and
        the number of distinct words in each split and in `all` of them.

    Raises:
        UserError: `out` holds other files, or `select` raises it.
        ImportError: eSpeak NG is not installed.
    """
    config = {"version": VERSION, "seed": seed, "language": language, **source}
    if metadata := reuse_finished_directory(out, _METADATA_FILE, "synthetic corpus", config):
        return metadata
    engine = speech.get_version()
    selection = select()
    with create_directory(out) as folder:
        rows = _make_all_rows(plan_sentences(selection.kept, language, seed), folder, engine, processes)
        write_text(folder / SENTENCES_FILE, "".join(f"{sentence}\n" for sentence in selection.kept.values()))
        words = {split: {word["word"] for row in rows[split] for word in row.fields["words"]} for split in SPLITS}
        facts = {
            "sentences": selection.counts,
            "distinct_words": {
                **{split: len(words[split]) for split in SPLITS},
                "all": len(set().union(*words.values())),
            },
        }
        texts, test_texts = ([row.fields["text"] for row in rows[split]] for split in ("train", "test"))
        write_text(folder / "text_test.txt", "".join(f"{text}\n" for text in test_texts))
        return _write_labels(folder, config, engine, rows, texts, **facts)


@dataclass(frozen=True)
class FinishedRow:
    """A row whose audio has been written to files.

    Attributes:
        fields: The row as in the manifest.
        seconds: Total duration of the row's clips.
        digest: SHA-256 digest of the audio samples.
    """

    fields: Fields
    seconds: float
    digest: bytes


def _make_all_rows(
    specs: Sequence[RowSpec], folder: Path, engine: str, processes: int | None
) -> dict[str, list[FinishedRow]]:
    """Make the rows of all specs in worker processes; return those of each split in the order of the specs."""
    make = partial(make_rows, folder=folder, engine=engine)
    finished_rows = make_in_groups(make, specs, attrgetter("position"), processes=processes, title="corpus")
    row_by_id = {row.fields["id"]: row for row in finished_rows}
    return {split: [row_by_id[spec.id] for spec in specs if spec.split == split] for split in SPLITS}


def _write_labels(
    folder: Path,
    config: Mapping[str, Any],
    engine: str,
    rows_by_split: Mapping[str, Sequence[FinishedRow]],
    texts: Iterable[str],
    **facts: Any,
) -> dict[str, Any]:
    """Write the manifests, `text.txt` and `corpus.json`; return the content of the latter, which includes `facts`."""
    for split, rows in rows_by_split.items():
        write_jsonl(folder / f"{split}.jsonl", (row.fields for row in rows))
    write_text(folder / "text.txt", "".join(f"{text}\n" for text in texts))
    label_files = [folder / name for name in (*(f"{split}.jsonl" for split in SPLITS), "text.txt")]
    labels_hash = hash_bytes(*(path.read_bytes() for path in label_files))
    audio_hash = hash_bytes(*(row.digest for rows in rows_by_split.values() for row in rows))
    metadata = {
        "config": config,
        "engine": engine,
        "rows": {split: Counter(row.fields["task"] for row in rows) for split, rows in rows_by_split.items()},
        "seconds": {split: round(sum(row.seconds for row in rows), 1) for split, rows in rows_by_split.items()},
        **facts,
        "labels_hash": labels_hash,
        "audio_hash": audio_hash,
        "hash": hash_bytes(labels_hash.encode(), audio_hash.encode()),
    }
    write_json(folder / _METADATA_FILE, metadata)
    return metadata


def make_rows(specs: Sequence[RowSpec], folder: Path, engine: str) -> list[FinishedRow]:
    """Make the rows of one group and write their audio below `folder`.

    Args:
        specs: The rows to make, all of one task.
        folder: Directory of the corpus.
        engine: Name and version of the speech synthesiser. Rows with speech have it in their field `generator`.
    """
    recipe_results = [RECIPES[spec.task].make(spec, np.random.default_rng(spec.seed)) for spec in specs]
    lines = [line for result in recipe_results if isinstance(result, Script) for line in result.lines]
    utterances = iter(speech.say(lines) if lines else ())
    rows = []
    for spec, result in zip(specs, recipe_results, strict=True):
        if isinstance(result, Script):
            recording = result.record([next(utterances) for _ in result.lines])
            origin = {"provenance": "tts", "generator": engine}
        else:
            recording, origin = result, {"provenance": "procedural", "generator": "auris.corpus"}
        rows.append(_finish_row(spec, recording, origin, folder))
    return rows


def _finish_row(spec: RowSpec, recording: Recording, origin: Mapping[str, str], folder: Path) -> FinishedRow:
    """Write the clips of a row and complete its fields."""
    paths = spec.audio_paths(len(recording.clips))
    digest = write_clips(zip((folder / path for path in paths), recording.clips, strict=True))
    seconds = sum(map(len, recording.clips)) / SAMPLE_RATE
    # In a manifest, only rows with one clip have a duration.
    audio_fields = {"audio": paths[0], "duration": seconds} if len(paths) == 1 else {"audio": paths}
    row = {"id": spec.id, **audio_fields, "task": spec.task, **recording.fields}
    # `content` is the text that a text-only model gets in place of the audio. By default it is the answer.
    if "content" not in row and len(paths) == 1:
        row["content"] = TASKS[spec.task].render(row, tags=False)
    row |= {"split": spec.split, **origin, "seed": spec.seed}
    if spec.text is None:  # the licence of a text that the user gives is not known
        row["licence"] = LICENCE
    return FinishedRow(row, seconds, digest)
