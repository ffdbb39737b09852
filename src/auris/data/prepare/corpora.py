"""Published corpora as rows: one reader for each folder layout, as its archives unpack it.

A reader yields every utterance that its corpus lists, also those that cannot be used, with the reason as `problem`.
Whether a sound file is there and can be read is looked at by who writes the rows (`auris.data.prepare.convert`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from auris.data.prepare.tables import Cells, Fields, read_delimited, read_map
from auris.errors import MissingFileError, UserError

# What a task asks of an utterance: its labels, and the facts that they are.
_LABELS: dict[str, dict[str, str]] = {
    "asr": {"text": "transcript", "language": "language"},
    "s2tt": {"text": "translation", "language": "language", "target_language": "target_language"},
    "lid": {"language": "language"},
    "sgc": {"text": "gender"},
    "er": {"text": "emotion"},
    "vsc": {"text": "sound"},
    "aac": {"text": "caption", "caption_style": "caption_style"},
    "mna": {"notes": "notes"},
    "mic": {"text": "instrument"},
}

# Codes of Common Voice, CoVoST and FLEURS that are not ours with a region behind.
_LANGUAGES = {"zh-HK": "yue", "cmn_hans_cn": "zh"}

_SPLITS = ("train", "dev", "test")

Choice = Sequence[str] | None
"""Names of splits, languages or pairs of languages; None: all that are there."""


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """What is said of all rows of a corpus. The first of its tasks is the one that it is known for."""

    name: str
    licence: str
    tasks: tuple[str, ...]

    def rows(self, facts: Fields, tasks: Sequence[str]) -> Iterator[Fields]:
        """A row for each task of an utterance: facts with `name`, `audio` and `split`, or `problem`."""
        if not tasks or not set(tasks) <= set(self.tasks):
            raise UserError(f"layout.tasks=[{','.join(tasks)}]: {self.name} has labels for {', '.join(self.tasks)}")
        for task in tasks:
            labels = _LABELS[task]
            suffix = "" if task == self.tasks[0] else f"#{task}"
            row = {key: value for key, value in facts.items() if key not in ("name", *labels.values())}
            row = {"id": f"{self.name}/{facts['name']}{suffix}", "task": task, **row}
            if "problem" not in facts:
                row |= {label: facts[fact] for label, fact in labels.items() if facts.get(fact) is not None}
                if missing := [fact for fact in labels.values() if facts.get(fact) is None]:
                    row["problem"] = f"its {' and its '.join(missing)} is not known"
                row |= {"provenance": "real", "licence": self.licence}
            yield row


# --- what the layouts have in common ------------------------------------------------------------------------------


def _below(root: Path, name: str) -> Path | None:
    """A file or folder within a folder, or within one or two more."""
    found = (path for depth in range(3) for path in sorted(root.glob("*/" * depth + name)))
    return next(found, None)


def _tables_below(root: Path, names: Mapping[str, str]) -> dict[str, Path]:
    """The splits' tables that are there."""
    return {split: path for split, name in names.items() if (path := _below(root, name)) is not None}


def _choose(wanted: Choice, there: Iterable[str], home: Path, layout: str, key: str = "splits") -> list[str]:
    """The splits (or what else `key` lists) that are asked for, or all that are there.

    Raises FileNotFoundError if none is there, ValueError for one that is not.
    """
    there = list(there)
    if not there:
        raise MissingFileError(f"{home} does not have the layout of this corpus: expected {layout}")
    if missing := [name for name in wanted or () if name not in there]:
        raise UserError(f"layout.{key}={list(wanted)}: {home} has no {', '.join(missing)}; it has {', '.join(there)}")
    return list(wanted or there)


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error


def _unspaced(text: str) -> str:
    """Text without the spaces between words of Chinese, which only show how it was segmented."""
    return re.sub(r"(?<![A-Za-z0-9])\s+|\s+(?![A-Za-z0-9])", "", text)


def _gender(written: str | None) -> str | None:
    """What is heard of a speaker: corpora write M, male, male_masculine, ...; whatever else they write is not known."""
    return {"m": "male", "f": "female"}.get((written or "").strip().lower()[:1])


def _language(code: str) -> str:
    return _LANGUAGES.get(code) or re.split("[-_]", code)[0]


def _check_unpacked(folder: Path, archives: Path, pattern: str) -> None:
    """Raises FileNotFoundError for a folder whose archives are there and still packed."""
    if not folder.is_dir() and (packed := sorted(archives.glob(pattern))):
        raise MissingFileError(f"{folder} is missing: unpack {packed[0]}" + (" and the like" if packed[1:] else ""))


# --- LibriSpeech --------------------------------------------------------------------------------------------------

LIBRISPEECH = Corpus(name="librispeech", licence="CC-BY-4.0", tasks=("asr", "sgc"))


def librispeech(root: Path, *, tasks: Sequence[str], splits: Choice, lower: bool) -> Iterator[Fields]:
    """openslr.org/12: `train-clean-100/103/1240/103-1240-0000.flac` with `103-1240.trans.txt`, `SPEAKERS.TXT`.

    Args:
        root: the folder `LibriSpeech`, or the one around it.
        lower: transcripts in lower case; they are published in capitals.
    """
    home = _below(root, "LibriSpeech") or root
    there = sorted({path.parents[2].name for path in home.glob("*/*/*/*.trans.txt")})
    genders = _librispeech_genders(home / "SPEAKERS.TXT")
    for split in _choose(splits, there, home, "SPLIT/SPEAKER/CHAPTER/SPEAKER-CHAPTER.trans.txt"):
        for transcripts in sorted((home / split).glob("*/*/*.trans.txt")):
            chapter, speaker = transcripts.parent, transcripts.parents[1].name
            said = read_map(transcripts)
            for key in sorted({*said, *(path.stem for path in chapter.glob("*.flac"))}):
                text = said.get(key, "")
                facts = {"name": f"{split}/{key}", "audio": chapter / f"{key}.flac", "split": split}
                facts |= {"transcript": text.lower() if lower else text, "language": "en"}
                facts |= {"speaker": speaker, "gender": genders.get(speaker)}
                facts |= {} if key in said else {"problem": f"{transcripts.name} has no transcript of it"}
                yield from LIBRISPEECH.rows(facts, tasks)


def _librispeech_genders(path: Path) -> dict[str, str | None]:
    """`14   | F | train-clean-360  | 25.03 | ...`; `;` begins a comment."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    cells = ([cell.strip() for cell in line.split("|")] for line in lines if "|" in line and line[0] != ";")
    return {speaker: _gender(sex) for speaker, sex, *_ in cells}


# --- AISHELL ------------------------------------------------------------------------------------------------------

AISHELL1 = Corpus(name="aishell1", licence="Apache-2.0", tasks=("asr", "sgc"))
AISHELL2 = Corpus(name="aishell2", licence="AISHELL-2 (academic)", tasks=("asr",))


def aishell1(root: Path, *, tasks: Sequence[str], splits: Choice) -> Iterator[Fields]:
    """openslr.org/33: `wav/train/S0002/BAC009S0002W0122.wav`, `transcript/aishell_transcript_v0.8.txt`, and beside
    them `resource_aishell/speaker.info`.

    Args:
        root: the folder `data_aishell`, or the one around it.
    """
    home = _below(root, "data_aishell") or root
    for split in _SPLITS:
        _check_unpacked(home / "wav" / split, home / "wav", "*.tar.gz")
    there = [split for split in _SPLITS if (home / "wav" / split).is_dir()]
    chosen = _choose(splits, there, home, "wav/train, wav/dev, wav/test and transcript/aishell_transcript_v0.8.txt")
    transcripts = home / "transcript" / "aishell_transcript_v0.8.txt"
    said = read_map(transcripts)
    info = read_map(home.parent / "resource_aishell" / "speaker.info")
    genders = {key.removeprefix("S"): _gender(sex) for key, sex in info.items()}
    heard: set[str] = set()
    for split in chosen:
        for path in sorted((home / "wav" / split).glob("*/*.wav")):
            key, speaker = path.stem, path.parent.name
            heard.add(key)
            facts = {"name": f"{split}/{key}", "audio": path, "split": split, "language": "zh"}
            facts |= {"transcript": _unspaced(said.get(key, ""))}
            facts |= {"speaker": speaker, "gender": genders.get(speaker.removeprefix("S"))}
            facts |= {} if key in said else {"problem": f"{transcripts.name} has no transcript of it"}
            yield from AISHELL1.rows(facts, tasks)
    if len(chosen) == 3:  # of a part of the corpus, nothing is missed
        for key in sorted(set(said) - heard):
            problem = f"{transcripts.name} has a transcript, and there is no {key}.wav"
            yield from AISHELL1.rows({"name": key, "problem": problem}, tasks)


def aishell2(root: Path, *, tasks: Sequence[str], splits: Choice) -> Iterator[Fields]:
    """`iOS/data/wav.scp` and `iOS/data/trans.txt`, keys and tabs, with `wav/C0001/IC0001W0001.wav`; the sets `dev` and
    `test` are of the same form, for each of iOS, Android and Mic (egs/aishell2 of Kaldi).

    Splits are named as `train-iOS`: the training data's folder is called `data`.

    Args:
        root: any folder from the whole to one set.
    """
    scripts = [path for depth in range(4) for path in sorted(root.glob("*/" * depth + "wav.scp"))]
    folders = [path.parent for path in scripts if path.with_name("trans.txt").is_file()]
    sets = {f"{folder.name.replace('data', 'train')}-{folder.parent.name}": folder for folder in folders}
    layout = "iOS/data/wav.scp with iOS/data/trans.txt, and such pairs in iOS/dev, iOS/test, Android/dev, ..."
    for split in _choose(splits, sorted(sets), root, layout):
        said, paths = (read_map(sets[split] / name) for name in ("trans.txt", "wav.scp"))
        for key in sorted({*said, *paths}):
            path = Path(paths.get(key, ""))
            facts = {"name": f"{split}/{key}", "split": split, "language": "zh", "audio": sets[split] / path}
            facts |= {"transcript": _unspaced(said.get(key, "")), "speaker": path.parent.name}
            absent = "trans.txt" if key not in said else "wav.scp"
            facts |= {} if key in said and key in paths else {"problem": f"{absent} does not have it"}
            yield from AISHELL2.rows(facts, tasks)


# --- Common Voice, CoVoST 2, FLEURS -------------------------------------------------------------------------------

COMMON_VOICE = Corpus(name="common_voice", licence="CC0-1.0", tasks=("asr", "lid", "sgc"))
COVOST2 = Corpus(name="covost2", licence="CC0-1.0 (audio), CC-BY-NC-4.0 (translations)", tasks=("s2tt", "asr"))
FLEURS = Corpus(name="fleurs", licence="CC-BY-4.0", tasks=("asr", "lid", "sgc"))


def _language_tables(root: Path, languages: Choice, splits: Choice, layout: str) -> dict[tuple[str, str], Path]:
    """Table of each language and split of a corpus that has a folder for each language: the given one, or those in it
    or in its only release. Without `splits`: train, dev and test."""
    for pattern in ("", "*/", "*/*/"):
        found = sorted({path.parent for name in (*_SPLITS, "validated") for path in root.glob(f"{pattern}{name}.tsv")})
        if found:
            break
    folders = {path.resolve().name: path for path in found}
    if len(folders) < len(found):
        raise UserError(f"root={root} holds a language more than once: expected the folder of one release")
    languages = _choose(languages, folders, root, layout, "languages")
    tables = {(language, path.stem): path for language in languages for path in folders[language].glob("*.tsv")}
    there = sorted({split for _, split in tables})
    chosen = _choose(splits or [split for split in _SPLITS if split in there], there, root, layout)
    return {key: tables[key] for key in product(languages, chosen) if key in tables}


# Of a table; there are more, and other ones in other releases.
_COMMON_VOICE_COLUMNS = ("client_id", "path", "sentence")


def common_voice(root: Path, *, tasks: Sequence[str], splits: Choice, languages: Choice) -> Iterator[Fields]:
    """`cv-corpus-15.0-2023-09-08/en/train.tsv` and `clips/*.mp3`: any release; TSV without quotation.

    Args:
        root: the folder of a release, or of one language in it.
        splits: `train`, `dev` and `test` by default; also `validated`, `other`, `invalidated`, whose rows are partly
            the same ones.
        languages: as the folders are called (`zh-CN`).
    """
    tables = _language_tables(root, languages, splits, "LANGUAGE/train.tsv with LANGUAGE/clips")
    for (language, split), path in tables.items():
        for number, cells in read_delimited(path, "\t", needs=_COMMON_VOICE_COLUMNS, quoted=False):
            if isinstance(cells, str):
                yield from COMMON_VOICE.rows({"name": f"{language}/{split}:{number}", "problem": cells}, tasks)
                continue
            clip = Path(cells["path"])
            facts = {"name": f"{language}/{split}/{clip.stem}", "split": split}
            # The first releases name their clips without a suffix.
            facts |= {"audio": path.parent / "clips" / (clip if clip.suffix else f"{clip}.mp3")}
            facts |= {"transcript": cells["sentence"], "language": _language(language)}
            facts |= {"speaker": cells["client_id"], "gender": _gender(cells.get("gender"))}
            facts |= {key: cells[key] for key in ("age", "accents", "accent") if cells.get(key)}
            yield from COMMON_VOICE.rows(facts, tasks)


# `covost_v2.en_de.tsv` has all splits in a column; the corpus' own script makes `covost_v2.en_de.train.tsv` of it.
_COVOST_TABLE = re.compile(r"covost_v2\.(?P<pair>[^_.]+_[^_.]+)(?:\.(?P<split>\w+))?\.tsv")


def covost2(root: Path, *, tasks: Sequence[str], splits: Choice, pairs: Choice) -> Iterator[Fields]:
    """`en/covost_v2.en_de.tsv` beside what it translates, Common Voice 4: `en/validated.tsv`, `en/clips/*.mp3`.

    As in fairseq's prep_covost_data.py, `train` holds the split `train_covost` too, and TSV has backslashes for
    escapes.

    Args:
        root: the folder of a source language, or the one around several.
        pairs: as `[en_de, zh-CN_en]`; all by default.
    """
    tables: dict[str, dict[str | None, Path]] = {}
    for path in sorted([*root.glob("covost_v2.*.tsv"), *root.glob("*/covost_v2.*.tsv")]):
        if match := _COVOST_TABLE.fullmatch(path.name):
            tables.setdefault(match["pair"], {})[match["split"]] = path
    chosen = _choose(pairs, sorted(tables), root, "en/covost_v2.en_de.tsv", "pairs")
    wanted = _choose(splits, _SPLITS, root, "")
    for pair in chosen:
        if len(tables[pair]) > 1:
            tables[pair].pop(None, None)  # it holds what the tables of the splits do
        for split, path in tables[pair].items():
            for facts in _covost_table(pair, split, path):
                if facts.get("split") in (*wanted, None):
                    yield from COVOST2.rows(facts, tasks)


def _covost_table(pair: str, split: str | None, path: Path) -> Iterator[Fields]:
    """The utterances of a table: of one split, or with a column `split` and the sentences in Common Voice's table."""
    form = {"delimiter": "\t", "quoted": False, "escape": "\\"}
    source, target = pair.split("_")
    validated = path.parent / "validated.tsv"
    spoken: dict[str, Cells] | None = None
    if split is None and validated.is_file():
        lines = (cells for _, cells in read_delimited(validated, needs=_COMMON_VOICE_COLUMNS, **form))
        spoken = {cells["path"]: cells for cells in lines if isinstance(cells, Mapping)}
    needs = ("path", "translation", "sentence" if split else "split")
    for number, cells in read_delimited(path, needs=needs, **form):
        if isinstance(cells, str):
            yield {"name": f"{pair}:{number}", "problem": cells}
            continue
        own, clip = (split or cells["split"]).removesuffix("_covost"), cells["path"]
        facts = {"name": f"{pair}/{own}/{Path(clip).stem}", "split": own, "audio": path.parent / "clips" / clip}
        facts |= {"language": _language(source), "target_language": _language(target)}
        facts |= {"translation": cells["translation"]}
        if spoken is not None and clip not in spoken:
            yield facts | {"problem": f"validated.tsv does not have {clip}"}
            continue
        told = cells if spoken is None else spoken[clip]
        yield facts | {"transcript": told.get("sentence"), "speaker": told.get("client_id")}


_FLEURS_COLUMNS = ["id", "file_name", "raw_transcription", "transcription", "characters", "num_samples", "gender"]


def fleurs(root: Path, *, tasks: Sequence[str], splits: Choice, languages: Choice, text: str) -> Iterator[Fields]:
    """`cmn_hans_cn/test.tsv`, without a line of names, and `cmn_hans_cn/audio/test/*.wav` (google/fleurs, `data/`).

    Args:
        root: the folder of all languages, or of one.
        languages: as the folders are called (`en_us`).
        text: `transcription`, in lower case and without punctuation, or `raw_transcription`.
    """
    if text not in ("transcription", "raw_transcription"):
        raise UserError(f"layout.text={text}: expected transcription or raw_transcription")
    tables = _language_tables(root, languages, splits, "LANGUAGE/train.tsv with LANGUAGE/audio")
    for (_, split), path in tables.items():
        _check_unpacked(path.parent / "audio" / split, path.parent / "audio", f"{split}.tar.gz")
    for (language, split), path in tables.items():
        for number, cells in read_delimited(path, "\t", quoted=False, header=_FLEURS_COLUMNS):
            if isinstance(cells, str):
                yield from FLEURS.rows({"name": f"{language}/{split}:{number}", "problem": cells}, tasks)
                continue
            audio = path.parent / "audio" / split / cells["file_name"]
            facts = {"name": f"{language}/{split}/{audio.stem}", "audio": audio, "split": split}
            facts |= {"transcript": cells[text], "language": _language(language)}
            facts |= {"sentence": cells["id"], "gender": _gender(cells["gender"])}
            yield from FLEURS.rows(facts, tasks)


# --- MELD, VocalSound ---------------------------------------------------------------------------------------------

MELD = Corpus(name="meld", licence="GPL-3.0 (annotations)", tasks=("er", "asr"))
VOCALSOUND = Corpus(name="vocalsound", licence="CC-BY-SA-4.0", tasks=("vsc", "sgc"))

_MELD_COLUMNS = ("Utterance", "Speaker", "Emotion", "Sentiment", "Dialogue_ID", "Utterance_ID")

# As the archives within MELD.Raw.tar.gz unpack.
_MELD_FOLDERS = {"train": "train_splits", "dev": "dev_splits_complete", "test": "output_repeated_splits_test"}


def meld(root: Path, *, tasks: Sequence[str], splits: Choice) -> Iterator[Fields]:
    """`train_sent_emo.csv` and `train_splits/dia0_utt0.mp4`. The clips are videos; their sound is expected beside
    them (`dia0_utt0.wav` or `.flac`), and a folder without any is told how to make it.

    Args:
        root: the folder `MELD.Raw`, or the one around it.
    """
    tables = _tables_below(root, {split: f"{split}_sent_emo.csv" for split in _MELD_FOLDERS})
    layout = ", ".join(f"{split}_sent_emo.csv with {folder}" for split, folder in _MELD_FOLDERS.items())
    chosen = _choose(splits, tables, root, layout)
    sounds = {split: _meld_sounds(root, split) for split in chosen}
    for split in chosen:
        folder, heard = sounds[split]
        for number, cells in read_delimited(tables[split], ",", needs=_MELD_COLUMNS):
            if isinstance(cells, str):
                yield from MELD.rows({"name": f"{split}:{number}", "problem": cells}, tasks)
                continue
            clip = f"dia{cells['Dialogue_ID']}_utt{cells['Utterance_ID']}"
            facts = {"name": f"{split}/{clip}", "audio": heard.get(clip, folder / f"{clip}.wav"), "split": split}
            facts |= {"emotion": cells["Emotion"], "sentiment": cells["Sentiment"], "speaker": cells["Speaker"]}
            facts |= {"transcript": cells["Utterance"], "language": "en"}
            yield from MELD.rows(facts, tasks)


def _meld_sounds(root: Path, split: str) -> tuple[Path, dict[str, Path]]:
    """The folder of a split's clips, and their sound by name."""
    folder = _below(root, _MELD_FOLDERS[split])
    if folder is None:
        raise MissingFileError(f"{root} has {split}_sent_emo.csv and no {_MELD_FOLDERS[split]}: unpack {split}.tar.gz")
    # `._dia0_utt0.mp4` is what a Mac left in the archive.
    heard = {path.stem: path for path in folder.glob("dia*") if path.suffix in (".wav", ".flac")}
    if not heard and any(folder.glob("dia*.mp4")):
        raise MissingFileError(
            f"{folder} has videos and no sound. This takes it out of them: for f in {folder}/dia*.mp4; do "
            'ffmpeg -n -loglevel error -i "$f" -vn -ac 1 -ar 16000 "${f%.mp4}.wav"; done'
        )
    return folder, heard


def vocalsound(root: Path, *, tasks: Sequence[str], splits: Choice, rate: str) -> Iterator[Fields]:
    """`datafiles/tr.json`, `val.json` and `te.json`, whose paths are those of their authors' machine;
    `audio_16k/f0003_0_cough.wav`; `class_labels_indices_vs.csv`.

    Args:
        root: the folder of the unpacked archive, or the one around it.
        rate: `16k` or `44k`, the version of the audio.
    """
    names = {"train": "datafiles/tr.json", "valid": "datafiles/val.json", "test": "datafiles/te.json"}
    lists = _tables_below(root, names)
    chosen = _choose(splits, lists, root, "datafiles/tr.json, val.json, te.json with audio_16k or audio_44k")
    home = lists[chosen[0]].parents[1]
    folder = home / f"audio_{rate}"
    if not folder.is_dir():
        raise MissingFileError(f"layout.rate={rate}: {home} has no {folder.name}, expected layout.rate=16k or 44k")
    classes = {}
    for _, cells in read_delimited(home / "class_labels_indices_vs.csv", ",", needs=("mid", "display_name")):
        if isinstance(cells, str):  # without the line, rows of its class would all be unusable
            raise UserError(f"{home}: {cells}")
        classes[cells["mid"]] = cells["display_name"]
    for split in chosen:
        for entry in _read_json(lists[split])["data"]:
            path = folder / Path(entry["wav"]).name
            facts = {"name": f"{split}/{path.stem}", "audio": path, "split": split, "gender": _gender(path.stem)}
            facts |= {"sound": classes.get(entry["labels"]), "speaker": path.stem.split("_")[0]}
            yield from VOCALSOUND.rows(facts, tasks)


# --- Clotho, NSynth -----------------------------------------------------------------------------------------------

CLOTHO = Corpus(name="clotho", licence="Tampere University (non-commercial)", tasks=("aac",))
NSYNTH = Corpus(name="nsynth", licence="CC-BY-4.0", tasks=("mna", "mic"))

_CLOTHO_SPLITS = {"train": "development", "valid": "validation", "test": "evaluation"}


def clotho(root: Path, *, tasks: Sequence[str], splits: Choice) -> Iterator[Fields]:
    """`clotho_captions_development.csv` with `file_name, caption_1, ..., caption_5`, and `development/*.wav`.

    In training each caption is a row; of a clip that is held out, the first is its answer and all are its
    `references`.

    Args:
        root: the folder that the archives were unpacked in, or the one around it.
    """
    tables = _tables_below(root, {split: f"clotho_captions_{name}.csv" for split, name in _CLOTHO_SPLITS.items()})
    chosen = _choose(splits, tables, root, "clotho_captions_development.csv with development, and so on")
    folders = {split: _below(root, _CLOTHO_SPLITS[split]) for split in chosen}
    if missing := [_CLOTHO_SPLITS[split] for split, folder in folders.items() if folder is None]:
        raise MissingFileError(f"{root} has no {missing[0]}: unpack clotho_audio_{missing[0]}.7z")
    for split, folder in folders.items():
        for number, cells in read_delimited(tables[split], ",", needs=("file_name", "caption_1")):
            if isinstance(cells, str):
                yield from CLOTHO.rows({"name": f"{split}:{number}", "problem": cells}, tasks)
                continue
            clip = folder / cells["file_name"]
            captions = [cells[key].strip() for key in cells if key.startswith("caption_")]
            facts = {"name": f"{split}/{clip.stem}", "audio": clip, "split": split, "caption_style": "clotho"}
            if split != "train":
                yield from CLOTHO.rows(facts | {"caption": captions[0], "references": captions}, tasks)
                continue
            for n, caption in enumerate(captions, start=1):
                yield from CLOTHO.rows(facts | {"name": f"{facts['name']}/{n}", "caption": caption}, tasks)


def nsynth(root: Path, *, tasks: Sequence[str], splits: Choice) -> Iterator[Fields]:
    """`nsynth-train/examples.json` and `nsynth-train/audio/bass_synthetic_033-022-050.wav` (the JSON and WAV version).

    The instrument is its family, as in Qwen-Audio's evaluation.

    Args:
        root: the folder that holds `nsynth-train`, `nsynth-valid`, `nsynth-test`, or one of them.
    """
    homes = [root, *sorted(root.glob("nsynth-*"))]
    lists = {home.resolve().name.removeprefix("nsynth-"): home for home in homes if (home / "examples.json").is_file()}
    for split in _choose(splits, lists, root, "nsynth-train/examples.json with nsynth-train/audio, and so on"):
        notes: dict[str, Cells] = _read_json(lists[split] / "examples.json")
        for name, note in sorted(notes.items()):
            facts = {"name": f"{split}/{name}", "audio": lists[split] / "audio" / f"{name}.wav", "split": split}
            family = note["instrument_family_str"]
            heard = {"pitch": note["pitch"], "velocity": note["velocity"], "instrument": family}
            facts |= {"notes": heard | {"sonic": note["qualities_str"]}, "instrument": family}
            facts |= {"source": note["instrument_source_str"]}
            yield from NSYNTH.rows(facts, tasks)
