"""`auris instruct`: instruction dialogues and preference pairs from the task rows of a corpus.

Writes chat rows for fine-tuning (`train.jsonl`, `valid.jsonl`, `test.jsonl`) and preference pairs for DPO
(`preferences_*.jsonl`), in the splits of the corpus. Rows refer to the clips of the corpus by their paths; only
newly spoken sentences are written as audio.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import rich
from rich.table import Table

from auris.completions import Endpoint, Record
from auris.corpus.dialogues import augmentation, wordings
from auris.corpus.dialogues.augmentation import SHIPPED, Written
from auris.corpus.dialogues.kinds import KINDS
from auris.corpus.dialogues.pool import Pool, Weights, answer, is_usable
from auris.corpus.dialogues.recordings import speak
from auris.corpus.dialogues.rows import ANNOTATOR, FAULTS, Dialogue, Writer
from auris.corpus.grammar import SPLITS
from auris.corpus.output import check_count, check_processes, hash_bytes, read_facts
from auris.corpus.recording import Fields
from auris.data.manifests import read_manifests
from auris.data.rows import Row
from auris.errors import MissingFileError, UserError
from auris.files import create_directory, write_json, write_jsonl

VERSION = 2  # to be raised whenever the same seed gives other rows
FACTS_FILE = "instruct.json"


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
    """Write the dialogues and preference pairs into the directory `out`, unless it has them already.

    Args:
        corpus: Directory with task rows in `train.jsonl`, `valid.jsonl` and `test.jsonl`.
        out: Directory to create. It appears when it is complete; until then files are written to `out` + '.partial'.
        dialogues: The config group: `rows` and `preferences`, the numbers of each by split; `mix`, the weights of the
            kinds of dialogue (`dialogues.KINDS`); `tasks`, the weights of the tasks of demonstrations.
        forms: Weights of the forms of answers.
        faults: Weights of the faults of rejected answers.
        llm: Settings of the language model: recording, tasks, pairs, url, model, key_env, temperature.
        seed: Random seed.
        processes: Number of processes that synthesise speech; None for one per core.

    Returns:
        The content of `instruct.json`: config, counts by kind, authors, corpus rows that cannot be used, hashes.

    Raises:
        UserError: A weight or count is invalid, the corpus lacks the rows for a kind of dialogue, a reply is not
            recorded, or `out` holds something else.
        MissingFileError: A manifest of the corpus or the recording does not exist.
    """
    counts, preference_counts = dialogues["rows"], dialogues["preferences"]
    mix, task_weights = dialogues["mix"], dialogues["tasks"]
    manifests = {split: corpus / f"{split}.jsonl" for split in SPLITS}
    if missing := next((path for path in manifests.values() if not path.is_file()), None):
        raise MissingFileError(
            f"corpus={corpus}: there is no {missing}; create the embedded corpus by `auris corpus out={corpus}`, or "
            "set corpus=DIR"
        )
    corpus_rows = {split: read_manifests([path], key=f"corpus={corpus}")[0].rows for split, path in manifests.items()}
    _check_counts({"dialogues.rows": counts, "dialogues.preferences": preference_counts})
    check_processes(processes)
    _check_weights("dialogues.mix", mix, KINDS)
    # No wrong answer is known for a question that a language model wrote.
    preference_mix = {kind: weight for kind, weight in mix.items() if kind != "augmented"}
    if any(preference_counts.values()) and not any(preference_mix.values()):
        raise UserError(
            "preference pairs cannot be made from dialogues of the kind `augmented` alone; set "
            "dialogues.mix.demonstration=1, or dialogues.preferences.train=0"
        )
    _check_weights("dialogues.tasks", task_weights, wordings.SENTENCES)
    _check_weights("forms", forms, wordings.FORMS)
    _check_weights("faults", faults, FAULTS)
    recording = Path(llm["recording"]) if llm["recording"] else SHIPPED
    written: Sequence[Written] = ()
    rejections: Counter[str] = Counter()
    if mix.get("augmented"):
        written, rejections = _write_questions(recording, llm, corpus_rows)
    config = {
        "version": VERSION,
        "seed": seed,
        "corpus": hash_bytes(*(path.read_bytes() for path in manifests.values())),
        "corpus_from_here": os.path.relpath(corpus.resolve(), out.resolve()),
        **{key: dialogues[key] for key in ("rows", "preferences", "mix", "tasks")},
        "forms": forms,
        "faults": faults,
        "written": hash_bytes(repr([*written]).encode()),
    }
    if facts := read_facts(out, FACTS_FILE, "dialogues", config):
        return facts

    questions = augmentation.split_questions(written) if written else dict.fromkeys(SPLITS, ())
    files: dict[str, list[Dialogue]] = {}
    for split in SPLITS:
        pool = Pool.of(split, corpus_rows[split], task_weights=task_weights, written=questions[split])
        writer = Writer(pool, out.resolve(), forms, faults, seed)
        files[split] = writer.write_chats(allot(counts.get(split, 0), mix))
        pairs = writer.write_preferences(allot(preference_counts.get(split, 0), preference_mix))
        files[f"preferences_{split}"] = pairs
    rows = {name: [dialogue.row for dialogue in entries] for name, entries in files.items()}
    recordings = [dialogue.recording for entries in files.values() for dialogue in entries if dialogue.recording]
    with create_directory(out) as draft:
        digests = speak(recordings, draft, processes)
        for name in files:
            write_jsonl(draft / f"{name}.jsonl", rows[name])
        rows_hash = hash_bytes(*((draft / f"{name}.jsonl").read_bytes() for name in files))
        audio_hash = hash_bytes(*digests)
        facts = {
            "config": config,
            "kinds": {name: Counter(row["kind"] for row in entries) for name, entries in rows.items()},
            "modes": {name: Counter(row["mode"] for row in entries) for name, entries in rows.items()},
            "written_by": Counter(row["written_by"] for entries in rows.values() for row in entries),
            "preferred_by": ANNOTATOR,
            "refused": rejections,
            "unused": {split: _count_unusable(entries) for split, entries in corpus_rows.items()},
            "recordings": len(recordings),
            "rows_hash": rows_hash,
            "audio_hash": audio_hash,
            "hash": hash_bytes(rows_hash.encode(), audio_hash.encode()),
        }
        write_json(draft / FACTS_FILE, facts)
    return facts


def allot(total: int, weights: Weights) -> dict[str, int]:
    """Divide `total` rows in proportion to weights; the largest remainders are rounded up."""
    weight_sum = sum(weights.values()) or 1
    exact = {key: total * weight / weight_sum for key, weight in weights.items() if weight > 0}
    counts = {key: int(value) for key, value in exact.items()}
    for key in sorted(exact, key=lambda key: counts[key] - exact[key])[: total - sum(counts.values())]:
        counts[key] += 1
    return counts


def _write_questions(
    recording: Path, llm: Mapping[str, Any], corpus_rows: Mapping[str, Sequence[Row]]
) -> tuple[list[Written], Counter[str]]:
    endpoint = None
    if llm["url"]:
        if not llm["model"]:
            raise UserError(f"llm.url={llm['url']} needs the name of a model: set llm.model=NAME")
        if recording == SHIPPED:
            raise UserError("llm.url needs a file for the model's replies: set llm.recording=FILE.jsonl")
        endpoint = Endpoint(**{key: llm[key] for key in ("url", "model", "key_env", "temperature")})
    if not isinstance(llm["pairs"], int) or llm["pairs"] < 1:
        raise UserError(f"llm.pairs is {llm['pairs']!r}, expected at least 1 (llm.pairs=8)")
    rows = [row for entries in corpus_rows.values() for row in entries if is_usable(row)]
    labels = {(row.labels["task"], answer(row)) for row in rows if row.labels["task"] in llm["tasks"]}
    if not labels:
        raise UserError(
            f"llm.tasks is {list(llm['tasks'])}, but the corpus has no rows of these tasks; choose other tasks, or set "
            "dialogues.mix.augmented=0"
        )
    return augmentation.write_questions(Record(recording, endpoint), sorted(labels), llm["pairs"])


def _check_counts(counts: Mapping[str, Mapping[str, int]]) -> None:
    for key, by_split in counts.items():
        for split, count in by_split.items():
            if split not in SPLITS:
                raise UserError(f"{key} has the split {split!r}, expected {', '.join(SPLITS)}")
            check_count(f"{key}.{split}", count)


def _check_weights(key: str, weights: Weights, valid: Iterable[str]) -> None:
    if unknown := set(weights) - set(valid):
        raise UserError(f"{key} has {sorted(unknown)}, expected {', '.join(valid)}")
    for name, weight in weights.items():
        if not isinstance(weight, (int, float)) or isinstance(weight, bool) or not 0 <= weight < float("inf"):
            raise UserError(f"{key}.{name} is {weight!r}, expected a weight of at least 0 ({key}.{name}=1)")
    if not any(weights.values()):
        raise UserError(f"all weights of {key} are 0; set one, for instance {key}.{next(iter(valid))}=1")


def _count_unusable(rows: Iterable[Row]) -> Counter[str]:
    """Count the rows that no dialogue can be made about, by reason."""
    unusable = (row for row in rows if not is_usable(row))
    return Counter(row.problem or f"task {row.labels['task']} with {len(row.clips)} clips" for row in unusable)


def tabulate(facts: Fields) -> Table:
    """Return a table of the rows by kind and file. Its caption names the authors of questions and preferences."""
    writers = ", ".join(writer for writer in facts["written_by"] if writer != "templates") or "nobody"
    caption = f"augmented: written by {writers}. preferences: chosen by {facts['preferred_by']}."
    columns = [name.replace("preferences_", "pairs ") for name in facts["kinds"]]
    table = Table("kind", *columns, title=f"dialogues {facts['hash']} (synthetic)", caption=caption)
    for kind in KINDS:
        table.add_row(kind, *(str(counts.get(kind, 0)) for counts in facts["kinds"].values()))
    table.add_section()
    for mode in sorted({mode for counts in facts["modes"].values() for mode in counts}):
        table.add_row(mode, *(str(counts.get(mode, 0)) for counts in facts["modes"].values()))
    return table


def run(config: Mapping[str, Any]) -> None:
    """Write the dialogues and preference pairs, and print how many there are of each kind."""
    arguments = dict(config)
    facts = instruct(Path(arguments.pop("corpus")), Path(arguments.pop("out")), **arguments)
    rich.print(tabulate(facts))
    for reason, count in facts["refused"].items():
        print(f"rejected questions: {count} ({reason})")
    for split, reasons in facts["unused"].items():
        for reason, count in reasons.items():
            print(f"unusable {split} rows: {count} ({reason})")
