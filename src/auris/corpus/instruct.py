"""`auris instruct`: make instruction dialogues and preference pairs from the task rows of a corpus.

A task row has audio and the labels of one task, such as a transcript.

The command writes chat rows for fine-tuning (`train.jsonl`, `valid.jsonl`, `test.jsonl`) and preference pairs for DPO
(`preferences_*.jsonl`), with one file of each for every split of the corpus. The rows refer to the clips of the corpus
by their paths; audio files are written only for spoken messages of the user.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import rich
from rich.table import Table

from auris.completions import Endpoint, ReplyLog
from auris.corpus.dialogues import augmentation, wordings
from auris.corpus.dialogues.augmentation import SHIPPED_REPLIES, WrittenQuestion
from auris.corpus.dialogues.kinds import KINDS
from auris.corpus.dialogues.pool import Pool, Weights, answer_text, is_usable
from auris.corpus.dialogues.recordings import make_recordings
from auris.corpus.dialogues.rows import ANNOTATOR, FAULTS, Dialogue, Writer
from auris.corpus.grammar import SPLITS
from auris.corpus.output import hash_bytes, reuse_finished_directory
from auris.corpus.recording import Fields
from auris.data.manifests import read_manifests
from auris.data.rows import Row
from auris.errors import MissingFileError, UserError, count
from auris.files import create_directory, write_json, write_jsonl

VERSION = 2  # raise it with every change after which the same seed gives different rows
METADATA_FILE = "instruct.json"


def instruct(
    corpus: Path,
    out: Path,
    *,
    dialogues: Mapping[str, Any],
    forms: Weights,
    faults: Weights,
    llm: Mapping[str, Any],
    seed: int = 0,
    processes: int | None = None,
) -> Fields:
    """Write the dialogues and preference pairs into the directory `out`, unless they exist already.

    Args:
        corpus: Directory with task rows in `train.jsonl`, `valid.jsonl` and `test.jsonl`.
        out: Directory to create. It appears when it is complete; until then files are written to `out` + '.partial'.
        dialogues: The config group `dialogues`. `rows` and `preferences` are numbers of chat rows and preference pairs
            by split, `mix` has the weights of the kinds of dialogue (`kinds.KINDS`), and `tasks` has the weights of the
            tasks in dialogues of the kinds `demonstration` and `turns`.
        forms: Weights of the forms of answers (`wordings.FORMS`).
        faults: Weights of the faults of rejected answers (`rows.FAULTS`).
        llm: Settings of the language model that writes questions. `recording` is the file of its replies, `tasks` are
            the tasks about whose labels it writes, and `pairs` is the number of questions with answers for each label.
            `url`, `model`, `key_env` and `temperature` are settings of its endpoint.
        seed: Random seed.
        processes: Number of processes that synthesise speech; None for one per core.

    Returns:
        The content of `instruct.json`: config, numbers of rows by kind, authors of the questions, numbers of corpus
        rows that cannot be used, hashes.

    Raises:
        UserError: A weight or number is invalid, the corpus lacks the rows for a kind of dialogue, a reply of the
            language model is not recorded and cannot be requested, or `out` holds other files.
        MissingFileError: A manifest of the corpus or the file of replies does not exist.
    """
    counts, preference_counts = dialogues["rows"], dialogues["preferences"]
    mix, task_weights = dialogues["mix"], dialogues["tasks"]
    manifests = {split: corpus / f"{split}.jsonl" for split in SPLITS}
    if missing := next((path for path in manifests.values() if not path.is_file()), None):
        raise MissingFileError(
            f"corpus={corpus}: there is no file {missing}; create the synthetic corpus with `auris corpus "
            f"out={corpus}`, or set corpus=DIR to use another corpus"
        )
    corpus_rows = {split: read_manifests([path], key=f"corpus={corpus}")[0].rows for split, path in manifests.items()}
    for key, by_split in (("dialogues.rows", counts), ("dialogues.preferences", preference_counts)):
        if unknown := set(by_split) - set(SPLITS):
            raise UserError(f"{key} has the splits {sorted(unknown)}, expected {', '.join(SPLITS)}")
    _check_weights("dialogues.mix", mix, KINDS)
    # Preference pairs need a wrong answer, which is not known for a question that a language model wrote.
    preference_mix = {kind: weight for kind, weight in mix.items() if kind != "augmented"}
    if any(preference_counts.values()) and not any(preference_mix.values()):
        raise UserError(
            "preference pairs cannot be made from dialogues of the kind `augmented` alone; set "
            "dialogues.mix.demonstration=1 to add another kind, or set dialogues.preferences.SPLIT=0 for every split "
            "to make no pairs"
        )
    _check_weights("dialogues.tasks", task_weights, wordings.ANSWER_SENTENCES)
    _check_weights("forms", forms, wordings.FORMS)
    _check_weights("faults", faults, FAULTS)
    replies_file = Path(llm["recording"]) if llm["recording"] else SHIPPED_REPLIES
    written_questions: Sequence[WrittenQuestion] = ()
    rejections: Counter[str] = Counter()
    if mix.get("augmented"):
        written_questions, rejections = _write_questions(replies_file, llm, corpus_rows)
    config = {
        "version": VERSION,
        "seed": seed,
        "corpus": hash_bytes(*(path.read_bytes() for path in manifests.values())),
        "corpus_from_here": os.path.relpath(corpus.resolve(), out.resolve()),
        **{key: dialogues[key] for key in ("rows", "preferences", "mix", "tasks")},
        "forms": forms,
        "faults": faults,
        "written": hash_bytes(repr([*written_questions]).encode()),
    }
    if metadata := reuse_finished_directory(out, METADATA_FILE, "dialogues", config):
        return metadata

    questions = augmentation.split_questions(written_questions) if written_questions else dict.fromkeys(SPLITS, ())
    dialogues_by_file: dict[str, list[Dialogue]] = {}
    for split in SPLITS:
        pool = Pool.from_rows(split, corpus_rows[split], task_weights=task_weights, written_questions=questions[split])
        writer = Writer(pool, out.resolve(), forms, faults, seed)
        dialogues_by_file[split] = writer.write_chats(divide_by_weight(counts.get(split, 0), mix))
        preferences = writer.write_preferences(divide_by_weight(preference_counts.get(split, 0), preference_mix))
        dialogues_by_file[f"preferences_{split}"] = preferences
    rows_by_file = {name: [dialogue.row for dialogue in group] for name, group in dialogues_by_file.items()}
    all_dialogues = [dialogue for group in dialogues_by_file.values() for dialogue in group]
    recordings = [dialogue.recording for dialogue in all_dialogues if dialogue.recording]
    with create_directory(out) as folder:
        digests = make_recordings(recordings, folder, processes)
        for name, rows in rows_by_file.items():
            write_jsonl(folder / f"{name}.jsonl", rows)
        rows_hash = hash_bytes(*((folder / f"{name}.jsonl").read_bytes() for name in rows_by_file))
        audio_hash = hash_bytes(*digests)
        metadata = {
            "config": config,
            "kinds": {name: Counter(row["kind"] for row in rows) for name, rows in rows_by_file.items()},
            "modes": {name: Counter(row["mode"] for row in rows) for name, rows in rows_by_file.items()},
            "written_by": Counter(row["written_by"] for rows in rows_by_file.values() for row in rows),
            "preferred_by": ANNOTATOR,
            "refused": rejections,
            "unused": {split: _count_unusable(rows) for split, rows in corpus_rows.items()},
            "recordings": len(recordings),
            "rows_hash": rows_hash,
            "audio_hash": audio_hash,
            "hash": hash_bytes(rows_hash.encode(), audio_hash.encode()),
        }
        write_json(folder / METADATA_FILE, metadata)
    return metadata


def divide_by_weight(total: int, weights: Weights) -> dict[str, int]:
    """Divide `total` rows in proportion to weights. The numbers with the largest fractional parts are rounded up."""
    weight_sum = sum(weights.values()) or 1
    exact = {key: total * weight / weight_sum for key, weight in weights.items() if weight > 0}
    counts = {key: int(value) for key, value in exact.items()}
    for key in sorted(exact, key=lambda key: counts[key] - exact[key])[: total - sum(counts.values())]:
        counts[key] += 1
    return counts


def _write_questions(
    replies_file: Path, llm: Mapping[str, Any], corpus_rows: Mapping[str, Sequence[Row]]
) -> tuple[list[WrittenQuestion], Counter[str]]:
    """Return the questions that the language model wrote about the corpus, and the number of rejections by reason."""
    endpoint = None
    if llm["url"]:
        if not llm["model"]:
            raise UserError(f"llm.url={llm['url']} needs the name of a model: set llm.model=NAME")
        if replies_file == SHIPPED_REPLIES:
            raise UserError("llm.url needs a file for the model's replies: set llm.recording=FILE.jsonl")
        endpoint = Endpoint(**{key: llm[key] for key in ("url", "model", "key_env", "temperature")})
    rows = [row for entries in corpus_rows.values() for row in entries if is_usable(row)]
    task_labels = {(row.labels["task"], answer_text(row)) for row in rows if row.labels["task"] in llm["tasks"]}
    if not task_labels:
        raise UserError(
            f"llm.tasks is {list(llm['tasks'])}, but the corpus has no rows of these tasks; choose other tasks, or set "
            "dialogues.mix.augmented=0 to leave these dialogues out"
        )
    return augmentation.write_questions(ReplyLog(replies_file, endpoint), sorted(task_labels), llm["pairs"])


def _check_weights(key: str, weights: Weights, valid: Iterable[str]) -> None:
    if unknown := set(weights) - set(valid):
        raise UserError(f"{key} has {sorted(unknown)}, expected {', '.join(valid)}")
    if not any(weights.values()):
        raise UserError(f"all weights of {key} are 0; set one, for example {key}.{next(iter(valid))}=1")


def _count_unusable(rows: Iterable[Row]) -> Counter[str]:
    """Count the rows about which no dialogue can be made, by reason."""
    unusable = (row for row in rows if not is_usable(row))
    return Counter(row.problem or f"task {row.labels['task']}, {count(len(row.clips), 'clip')}" for row in unusable)


def tabulate_rows(metadata: Fields) -> Table:
    """Return a table of the numbers of rows by kind, mode and file.

    Its caption names the authors of the questions and of the preferences.
    """
    writers = ", ".join(writer for writer in metadata["written_by"] if writer != "templates") or "nobody"
    caption = (
        f"Questions of the kind augmented were written by {writers}. "
        f"Preferences were chosen by {metadata['preferred_by']}."
    )
    columns = [name.replace("preferences_", "pairs ") for name in metadata["kinds"]]
    table = Table("kind or mode", *columns, title=f"dialogues {metadata['hash']} (synthetic)", caption=caption)
    for kind in KINDS:
        table.add_row(kind, *(str(counts.get(kind, 0)) for counts in metadata["kinds"].values()))
    table.add_section()
    for mode in sorted({mode for counts in metadata["modes"].values() for mode in counts}):
        table.add_row(mode, *(str(counts.get(mode, 0)) for counts in metadata["modes"].values()))
    return table


def run(config: Mapping[str, Any]) -> None:
    """Write the dialogues and preference pairs, and print the number of rows of each kind."""
    arguments = dict(config)
    metadata = instruct(Path(arguments.pop("corpus")), Path(arguments.pop("out")), **arguments)
    rich.print(tabulate_rows(metadata))
    for reason, number in metadata["refused"].items():
        print(f"rejected questions: {number} ({reason})")
    for split, reasons in metadata["unused"].items():
        for reason, number in reasons.items():
            print(f"unusable {split} rows: {number} ({reason})")
