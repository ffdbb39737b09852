"""`auris instruct`: instruction dialogues and preference pairs from the task rows of a corpus.

Chat rows for fine-tuning (`train.jsonl`, `valid.jsonl`, `test.jsonl`) and pairs for DPO (`preferences_*.jsonl`), in the
splits of the corpus. Clips of the corpus are named where they are; only what is newly spoken is recorded.
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
from auris.corpus.dialogues.pool import Pool, Weights, answer, usable
from auris.corpus.dialogues.recordings import speak
from auris.corpus.dialogues.rows import ANNOTATOR, FAULTS, Dialogue, Writer
from auris.corpus.grammar import SPLITS
from auris.corpus.output import check_count, check_processes, hash_bytes, read_facts
from auris.corpus.recording import Fields
from auris.data.manifests import read_manifests
from auris.data.rows import Row
from auris.errors import UserError
from auris.files import new_directory, write_json, write_jsonl

VERSION = 2  # raise it whenever the same seed would give other rows
FACTS_FILE = "instruct.json"


def instruct(
    corpus: Path,
    out: Path,
    *,
    rows: Mapping[str, int],
    preferences: Mapping[str, int],
    mix: Weights,
    tasks: Weights,
    forms: Weights,
    faults: Weights,
    llm: Mapping[str, Any],
    seed: int = 0,
    processes: int | None = None,
) -> Fields:
    """Make the dialogues and preferences in the directory `out`, unless they are there already.

    Args:
        corpus: a directory with `train.jsonl`, `valid.jsonl` and `test.jsonl` of task rows.
        out: the directory to make. It appears when it is complete; until then the work is in `out` + '.partial'.
        rows, preferences: how many by split.
        mix: weights of the kinds of dialogue (`dialogues.KINDS`).
        tasks: weights of the tasks that demonstrations show.
        forms, faults: weights of the forms of answers and of what rejected answers have wrong.
        llm: what the config says about the language model: recording, tasks, pairs, url, model, key_env, temperature.
        seed: of everything.
        processes: that speak side by side; None for one per core.

    Returns:
        The facts that `instruct.json` holds: config, counts by kind, who wrote what, rows of the corpus that could not
        be used, hashes.

    Raises:
        ValueError: for weights or counts that make no sense, a corpus that lacks what is asked of it, an answer that
            is not recorded, or when `out` holds something else.
        FileNotFoundError: when a manifest of the corpus or the recording is not there.
    """
    manifests = {split: corpus / f"{split}.jsonl" for split in SPLITS}
    found = {split: read_manifests([path], key=f"corpus={corpus}")[0].rows for split, path in manifests.items()}
    _check_counts({"rows": rows, "preferences": preferences})
    check_processes(processes)
    _check_weights("mix", mix, KINDS)
    # Nobody knows a wrong answer to what a language model asks.
    paired = {kind: weight for kind, weight in mix.items() if kind != "augmented"}
    if any(preferences.values()) and not any(paired.values()):
        raise UserError(
            "preferences need another kind than `augmented`; set mix.demonstration=1, or preferences.train=0"
        )
    _check_weights("tasks", tasks, wordings.SENTENCES)
    _check_weights("forms", forms, wordings.FORMS)
    _check_weights("faults", faults, FAULTS)
    recording = Path(llm["recording"]) if llm["recording"] else SHIPPED
    written, refused = _write_questions(recording, llm, found) if mix.get("augmented") else ([], Counter())
    config = {
        "version": VERSION,
        "seed": seed,
        "corpus": hash_bytes(*(path.read_bytes() for path in manifests.values())),
        "corpus_from_here": os.path.relpath(corpus.resolve(), out.resolve()),
        **{"rows": rows, "preferences": preferences, "mix": mix, "tasks": tasks, "forms": forms, "faults": faults},
        "written": hash_bytes(repr(written).encode()),
    }
    if facts := read_facts(out, FACTS_FILE, "dialogues", config):
        return facts

    asked = augmentation.deal(written) if written else dict.fromkeys(SPLITS, ())
    planned: dict[str, list[Dialogue]] = {}
    for split in SPLITS:
        pool = Pool.of(split, found[split], task_weights=tasks, written=asked[split])
        writer = Writer(pool, out.resolve(), forms, faults, seed)
        planned[split] = writer.write_chats(share(rows.get(split, 0), mix))
        planned[f"preferences_{split}"] = writer.write_preferences(share(preferences.get(split, 0), paired))
    spoken = [dialogue.spoken for several in planned.values() for dialogue in several if dialogue.spoken]
    with new_directory(out) as draft:
        digests = speak(spoken, draft, processes)
        for name, several in planned.items():
            write_jsonl(draft / f"{name}.jsonl", (dialogue.row for dialogue in several))
        rows_hash = hash_bytes(*((draft / f"{name}.jsonl").read_bytes() for name in planned))
        audio_hash = hash_bytes(*digests)
        facts = {
            "config": config,
            "kinds": {name: Counter(dialogue.row["kind"] for dialogue in several) for name, several in planned.items()},
            "modes": {name: Counter(dialogue.row["mode"] for dialogue in several) for name, several in planned.items()},
            "written_by": Counter(dialogue.row["written_by"] for several in planned.values() for dialogue in several),
            "preferred_by": ANNOTATOR,
            "refused": refused,
            "unused": {split: _unused(several) for split, several in found.items()},
            "recordings": len(spoken),
            "rows_hash": rows_hash,
            "audio_hash": audio_hash,
            "hash": hash_bytes(rows_hash.encode(), audio_hash.encode()),
        }
        write_json(draft / FACTS_FILE, facts)
    return facts


def share(total: int, weights: Weights) -> dict[str, int]:
    """`total` rows dealt by weight; the largest remainders are rounded up."""
    whole = sum(weights.values()) or 1
    exact = {key: total * weight / whole for key, weight in weights.items() if weight > 0}
    counts = {key: int(value) for key, value in exact.items()}
    for key in sorted(exact, key=lambda key: counts[key] - exact[key])[: total - sum(counts.values())]:
        counts[key] += 1
    return counts


def _write_questions(
    recording: Path, llm: Mapping[str, Any], found: Mapping[str, Sequence[Row]]
) -> tuple[list[Written], Counter[str]]:
    endpoint = None
    if llm["url"]:
        if not llm["model"]:
            raise UserError(f"llm.url={llm['url']} needs the name of a model: llm.model=NAME")
        if recording == SHIPPED:
            raise UserError("what the endpoint answers is kept in a file of yours: llm.recording=FILE.jsonl")
        endpoint = Endpoint(**{key: llm[key] for key in ("url", "model", "key_env", "temperature")})
    if not isinstance(llm["pairs"], int) or llm["pairs"] < 1:
        raise UserError(f"llm.pairs is {llm['pairs']!r}, expected at least 1 (llm.pairs=8)")
    rows = [row for several in found.values() for row in several if usable(row)]
    labels = {(row.labels["task"], answer(row)) for row in rows if row.labels["task"] in llm["tasks"]}
    if not labels:
        raise UserError(f"llm.tasks is {list(llm['tasks'])}, of which the corpus has no rows; set mix.augmented=0")
    return augmentation.write(Record(recording, endpoint), sorted(labels), llm["pairs"])


def _check_counts(counts: Mapping[str, Mapping[str, int]]) -> None:
    for key, by_split in counts.items():
        for split, count in by_split.items():
            if split not in SPLITS:
                raise UserError(f"{key} has the split {split!r}, expected {', '.join(SPLITS)}")
            check_count(f"{key}.{split}", count)


def _check_weights(key: str, weights: Weights, known: Iterable[str]) -> None:
    if unknown := set(weights) - set(known):
        raise UserError(f"{key} has {sorted(unknown)}, expected {', '.join(known)}")
    for name, weight in weights.items():
        if not isinstance(weight, (int, float)) or isinstance(weight, bool) or not 0 <= weight < float("inf"):
            raise UserError(f"{key}.{name} is {weight!r}, expected a weight of at least 0 ({key}.{name}=1)")
    if not any(weights.values()):
        raise UserError(f"all weights of {key} are 0; set one, for instance {key}.{next(iter(known))}=1")


def _unused(rows: Iterable[Row]) -> Counter[str]:
    """Count the rows that no dialogue can be made about, by reason."""
    unused = (row for row in rows if not usable(row))
    return Counter(row.problem or f"task {row.labels['task']} with {len(row.clips)} clips" for row in unused)


def tabulate(facts: Fields) -> Table:
    """Rows by kind and file. What no person and no language model wrote is said below."""
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
    """Make the dialogues and print how many of which kind there are."""
    arguments = dict(config)
    facts = instruct(Path(arguments.pop("corpus")), Path(arguments.pop("out")), **arguments)
    rich.print(tabulate(facts))
    for what, reasons in (("questions refused", facts["refused"]), *facts["unused"].items()):
        for reason, count in reasons.items():
            print(f"{what}: {count} ({reason})")
