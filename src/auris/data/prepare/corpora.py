"""Published corpora as rows: one reader for each folder layout, as its archives unpack it.

A reader yields every utterance that its corpus lists, also those that cannot be used, with the reason as `problem`.
Whether a sound file is there and can be read is looked at by who writes the rows (`auris.data.prepare.convert`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from auris.data.prepare.tables import Cells, Fields, read_delimited
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

# How corpora write what is heard of a speaker; whatever else they write is not known here.
_GENDERS = {
    "m": "male",
    "male": "male",
    "male_masculine": "male",
    "f": "female",
    "female": "female",
    "female_feminine": "female",
}

# Codes of Common Voice, CoVoST and FLEURS that are not ours with a region behind.
_LANGUAGES = {"zh-HK": "yue", "cmn_hans_cn": "zh"}


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """What is said of all rows of a corpus. The first of its tasks is the one that it is known for."""

    name: str
    licence: str
    tasks: tuple[str, ...]

    def rows(self, utterances: Iterable[Fields], tasks: Sequence[str]) -> Iterator[Fields]:
        """A row for each task of each utterance, a dict of facts with `name`, `audio` and `split`, or `problem`."""
        if not tasks or not set(tasks) <= set(self.tasks):
            raise UserError(f"layout.tasks=[{','.join(tasks)}]: {self.name} has labels for {', '.join(self.tasks)}")
        for facts in utterances:
            for task in tasks:
                yield self._row(facts, task)

    def _row(self, facts: Fields, task: str) -> Fields:
        labels = _LABELS[task]
        suffix = "" if task == self.tasks[0] else f"#{task}"
        row = {key: value for key, value in facts.items() if key not in ("name", *labels.values())}
        row = {"id": f"{self.name}/{facts['name']}{suffix}", "task": task, **row}
        if "problem" in facts:
            return row
        row |= {label: facts[fact] for label, fact in labels.items() if facts.get(fact) is not None}
        if missing := [fact for fact in labels.values() if facts.get(fact) is None]:
            row["problem"] = f"its {' and its '.join(missing)} is not known"
        return {**row, "provenance": "real", "licence": self.licence}


# --- what the layouts have in common ------------------------------------------------------------------------------


def _home(root: Path, inner: str) -> Path:
    """The folder that an archive unpacks to, whether it or the one around it was given."""
    return root / inner if (root / inner).is_dir() else root


def _choose(splits: Sequence[str] | None, there: Sequence[str], home: Path, layout: str) -> list[str]:
    """The splits that are asked for, or all that are there.

    Raises FileNotFoundError if none is there, ValueError for one that is not.
    """
    if not there:
        raise MissingFileError(f"{home} does not have the layout of this corpus: expected {layout}")
    if missing := [split for split in splits or () if split not in there]:
        raise UserError(f"layout.splits={list(splits)}: {home} has no {', '.join(missing)}; it has {', '.join(there)}")
    return list(splits or there)


def _keyed_lines(path: Path) -> Iterator[tuple[str, str]]:
    """`key text`, line by line; an utterance without text is left for its row to complain."""
    try:
        with path.open(encoding="utf-8-sig") as lines:
            for key, *words in filter(None, map(str.split, lines)):
                yield key, " ".join(words)
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: {error}") from error


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error


def _unspaced(text: str) -> str:
    """Text without the spaces between words of Chinese, which only show how it was segmented."""
    return re.sub(r"(?<![A-Za-z0-9])\s+|\s+(?![A-Za-z0-9])", "", text)


def _gender(written: str | None) -> str | None:
    return _GENDERS.get((written or "").strip().lower())


def _language(code: str) -> str:
    return _LANGUAGES.get(code) or re.split("[-_]", code)[0]


def _check_unpacked(folder: Path, archives: Path, pattern: str) -> None:
    """Raises FileNotFoundError for a folder whose archives are there and still packed."""
    if not folder.is_dir() and (packed := sorted(archives.glob(pattern))):
        raise MissingFileError(f"{folder} is missing: unpack {packed[0]}" + (" and the like" if packed[1:] else ""))


# --- LibriSpeech --------------------------------------------------------------------------------------------------

LIBRISPEECH = Corpus(name="librispeech", licence="CC-BY-4.0", tasks=("asr", "sgc"))


def librispeech(root: Path, *, tasks: Sequence[str], splits: Sequence[str] | None, lower: bool) -> Iterator[Fields]:
    """openslr.org/12: `train-clean-100/103/1240/103-1240-0000.flac` with `103-1240.trans.txt`, `SPEAKERS.TXT`.

    Args:
        root: the folder `LibriSpeech`, or the one around it.
        lower: transcripts in lower case; they are published in capitals.
    """
    home = _home(root, "LibriSpeech")
    there = sorted({path.parents[2].name for path in home.glob("*/*/*/*.trans.txt")})
    chosen = _choose(splits, there, home, "SPLIT/SPEAKER/CHAPTER/SPEAKER-CHAPTER.trans.txt")
    genders = _librispeech_genders(home / "SPEAKERS.TXT")

    def utterances() -> Iterator[Fields]:
        for split in chosen:
            for transcripts in sorted((home / split).glob("*/*/*.trans.txt")):
                chapter, speaker = transcripts.parent, transcripts.parents[1].name
                said = dict(_keyed_lines(transcripts))
                heard = {path.stem for path in chapter.glob("*.flac")}
                for key in sorted({*said, *heard}):
                    facts = {"name": f"{split}/{key}", "audio": chapter / f"{key}.flac", "split": split}
                    text = said.get(key, "")
                    facts |= {"transcript": text.lower() if lower else text, "language": "en"}
                    facts |= {"speaker": speaker, "gender": genders.get(speaker)}
                    yield facts if key in said else facts | {"problem": f"{transcripts.name} has no transcript of it"}

    return LIBRISPEECH.rows(utterances(), tasks)


def _librispeech_genders(path: Path) -> dict[str, str | None]:
    """`14   | F | train-clean-360  | 25.03 | ...`; `;` begins a comment."""
    if not path.is_file():
        return {}
    lines = (line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith(";"))
    cells = ([cell.strip() for cell in line.split("|")] for line in lines if "|" in line)
    return {speaker: _gender(sex) for speaker, sex, *_ in cells}


# --- AISHELL ------------------------------------------------------------------------------------------------------

AISHELL1 = Corpus(name="aishell1", licence="Apache-2.0", tasks=("asr", "sgc"))
AISHELL2 = Corpus(name="aishell2", licence="AISHELL-2 (academic)", tasks=("asr",))


def aishell1(root: Path, *, tasks: Sequence[str], splits: Sequence[str] | None) -> Iterator[Fields]:
    """openslr.org/33: `wav/train/S0002/BAC009S0002W0122.wav`, `transcript/aishell_transcript_v0.8.txt`, and beside
    them `resource_aishell/speaker.info`.

    Args:
        root: the folder `data_aishell`, or the one around it.
    """
    home = _home(root, "data_aishell")
    for split in ("train", "dev", "test"):
        _check_unpacked(home / "wav" / split, home / "wav", "*.tar.gz")
    there = [split for split in ("train", "dev", "test") if (home / "wav" / split).is_dir()]
    chosen = _choose(splits, there, home, "wav/train, wav/dev, wav/test and transcript/aishell_transcript_v0.8.txt")
    transcripts = home / "transcript" / "aishell_transcript_v0.8.txt"
    said = dict(_keyed_lines(transcripts))
    info = home.parent / "resource_aishell" / "speaker.info"
    genders = {key.removeprefix("S"): _gender(sex[:1]) for key, sex in _keyed_lines(info)} if info.is_file() else {}

    def utterances() -> Iterator[Fields]:
        heard: set[str] = set()
        for split in chosen:
            for path in sorted((home / "wav" / split).glob("*/*.wav")):
                heard.add(path.stem)
                speaker = path.parent.name
                facts = {"name": f"{split}/{path.stem}", "audio": path, "split": split, "language": "zh"}
                facts |= {"transcript": _unspaced(said.get(path.stem, ""))}
                facts |= {"speaker": speaker, "gender": genders.get(speaker.removeprefix("S"))}
                yield facts if path.stem in said else facts | {"problem": f"{transcripts.name} has no transcript of it"}
        if len(chosen) == 3:  # of a part of the corpus, nothing is missed
            for key in sorted(set(said) - heard):
                yield {"name": key, "problem": f"{transcripts.name} has a transcript, and there is no {key}.wav"}

    return AISHELL1.rows(utterances(), tasks)


def aishell2(root: Path, *, tasks: Sequence[str], splits: Sequence[str] | None) -> Iterator[Fields]:
    """`iOS/data/wav.scp` and `iOS/data/trans.txt`, keys and tabs, with `wav/C0001/IC0001W0001.wav`; the sets `dev` and
    `test` are of the same form, for each of iOS, Android and Mic (egs/aishell2 of Kaldi).

    Splits are named as `train-iOS`: the training data's folder is called `data`.

    Args:
        root: any folder from the whole to one set.
    """
    scripts = [path for depth in range(4) for path in sorted(root.glob("*/" * depth + "wav.scp"))]
    sets = {_aishell2_split(path.parent): path.parent for path in scripts if (path.parent / "trans.txt").is_file()}
    layout = "iOS/data/wav.scp with iOS/data/trans.txt, and such pairs in iOS/dev, iOS/test, Android/dev, ..."
    chosen = _choose(splits, sorted(sets), root, layout)

    def utterances() -> Iterator[Fields]:
        for split in chosen:
            folder = sets[split]
            said = dict(_keyed_lines(folder / "trans.txt"))
            paths = dict(_keyed_lines(folder / "wav.scp"))
            for key in sorted({*said, *paths}):
                facts = {"name": f"{split}/{key}", "split": split, "language": "zh"}
                facts |= {"transcript": _unspaced(said.get(key, "")), "audio": folder / paths.get(key, "")}
                facts |= {"speaker": Path(paths.get(key, "")).parent.name}
                absent = [name for name, keys in (("trans.txt", said), ("wav.scp", paths)) if key not in keys]
                yield facts | {"problem": f"{absent[0]} does not have it"} if absent else facts

    return AISHELL2.rows(utterances(), tasks)


def _aishell2_split(folder: Path) -> str:
    part = {"data": "train"}.get(folder.name, folder.name)
    return f"{part}-{folder.parent.name}"


# --- Common Voice, CoVoST 2, FLEURS -------------------------------------------------------------------------------

COMMON_VOICE = Corpus(name="common_voice", licence="CC0-1.0", tasks=("asr", "lid", "sgc"))
COVOST2 = Corpus(name="covost2", licence="CC0-1.0 (audio), CC-BY-NC-4.0 (translations)", tasks=("s2tt", "asr"))
FLEURS = Corpus(name="fleurs", licence="CC-BY-4.0", tasks=("asr", "lid", "sgc"))


def _language_folders(root: Path, languages: Sequence[str] | None, marks: Sequence[str]) -> dict[str, Path]:
    """The folders of a corpus that has one for each language: the given one, or those in it or in its only release."""
    for pattern in ("", "*/", "*/*/"):
        found = sorted({path.parent for mark in marks for path in root.glob(pattern + mark)})
        if found:
            break
    else:
        raise MissingFileError(f"{root} does not have the layout of this corpus: expected LANGUAGE/{marks[0]}")
    folders = {path.resolve().name: path for path in found}
    if len(folders) < len(found):
        raise UserError(f"root={root} holds a language more than once: expected the folder of one release")
    if missing := [language for language in languages or () if language not in folders]:
        there = ", ".join(folders)
        raise UserError(f"layout.languages={list(languages)}: {root} has no {', '.join(missing)}; it has {there}")
    return {language: folders[language] for language in languages or folders}


# Of a table; there are more, and other ones in other releases.
_COMMON_VOICE_COLUMNS = ("client_id", "path", "sentence")


def common_voice(
    root: Path, *, tasks: Sequence[str], splits: Sequence[str] | None, languages: Sequence[str] | None
) -> Iterator[Fields]:
    """`cv-corpus-15.0-2023-09-08/en/train.tsv` and `clips/*.mp3`: any release; TSV without quotation.

    Args:
        root: the folder of a release, or of one language in it.
        splits: `train`, `dev` and `test` by default; also `validated`, `other`, `invalidated`, whose rows are partly
            the same ones.
        languages: as the folders are called (`zh-CN`).
    """
    folders = _language_folders(root, languages, ["train.tsv", "dev.tsv", "test.tsv", "validated.tsv"])
    there = sorted({path.stem for folder in folders.values() for path in folder.glob("*.tsv")})
    usual = [split for split in ("train", "dev", "test") if split in there]
    chosen = _choose(splits or usual, there, root, "LANGUAGE/train.tsv with LANGUAGE/clips")
    found = {
        (language, split): path
        for language, folder in folders.items()
        for split in chosen
        if (path := folder / f"{split}.tsv").is_file()
    }

    def utterances() -> Iterator[Fields]:
        for (language, split), path in found.items():
            for number, cells in read_delimited(path, "\t", needs=_COMMON_VOICE_COLUMNS, quoted=False):
                if isinstance(cells, str):
                    yield {"name": f"{language}/{split}:{number}", "problem": cells}
                    continue
                clip = Path(cells["path"])
                facts = {"name": f"{language}/{split}/{clip.stem}", "split": split}
                # The first releases name their clips without a suffix.
                facts |= {"audio": path.parent / "clips" / (clip if clip.suffix else f"{clip}.mp3")}
                facts |= {"transcript": cells["sentence"], "language": _language(language)}
                facts |= {"speaker": cells["client_id"], "gender": _gender(cells.get("gender"))}
                facts |= {key: cells[key] for key in ("age", "accents", "accent") if cells.get(key)}
                yield facts

    return COMMON_VOICE.rows(utterances(), tasks)


# `covost_v2.en_de.tsv` has all splits in a column; the corpus' own script makes `covost_v2.en_de.train.tsv` of it.
_COVOST_TABLE = re.compile(r"covost_v2\.(?P<pair>[^_.]+_[^_.]+)(?:\.(?P<split>\w+))?\.tsv")


def covost2(
    root: Path, *, tasks: Sequence[str], splits: Sequence[str] | None, pairs: Sequence[str] | None
) -> Iterator[Fields]:
    """`en/covost_v2.en_de.tsv` beside what it translates, Common Voice 4: `en/validated.tsv`, `en/clips/*.mp3`.

    As in fairseq's prep_covost_data.py, `train` holds the split `train_covost` too, and TSV has backslashes for
    escapes.

    Args:
        root: the folder of a source language, or the one around several.
        pairs: as `[en_de, zh-CN_en]`; all by default.
    """
    tables: dict[str, list[tuple[str | None, Path]]] = {}
    for path in sorted([*root.glob("covost_v2.*.tsv"), *root.glob("*/covost_v2.*.tsv")]):
        if match := _COVOST_TABLE.fullmatch(path.name):
            tables.setdefault(match["pair"], []).append((match["split"], path))
    chosen = pairs or sorted(tables)
    if not tables:
        raise MissingFileError(f"{root} does not have the layout of CoVoST 2: expected en/covost_v2.en_de.tsv")
    if missing := [pair for pair in chosen if pair not in tables]:
        raise UserError(f"layout.pairs={list(chosen)}: {root} has no {', '.join(missing)}; it has {', '.join(tables)}")
    wanted = splits or ("train", "dev", "test")
    _choose(wanted, ("train", "dev", "test"), root, "")

    def utterances() -> Iterator[Fields]:
        for pair in chosen:
            of_split = [entry for entry in tables[pair] if entry[0]]
            for split, path in of_split or tables[pair]:
                yield from _covost_table(pair, split, path, wanted)

    return COVOST2.rows(utterances(), tasks)


def _covost_table(pair: str, split: str | None, path: Path, wanted: Sequence[str]) -> Iterator[Fields]:
    source, target = pair.split("_")
    validated = path.parent / "validated.tsv"
    spoken = _covost_sentences(validated) if split is None and validated.is_file() else None
    needs = ("path", "translation", *(("split",) if split is None else ("sentence",)))
    for number, cells in read_delimited(path, "\t", needs=needs, quoted=False, escape="\\"):
        if isinstance(cells, str):
            yield {"name": f"{pair}:{number}", "problem": cells}
            continue
        own = (split or cells["split"]).removesuffix("_covost")
        if own not in wanted:
            continue
        clip = cells["path"]
        facts = {"name": f"{pair}/{own}/{Path(clip).stem}", "split": own, "audio": path.parent / "clips" / clip}
        facts |= {"language": _language(source), "target_language": _language(target)}
        facts |= {"translation": cells["translation"]}
        if spoken is not None and clip not in spoken:
            yield facts | {"problem": f"validated.tsv does not have {clip}"}
            continue
        sentence, speaker = (cells.get("sentence"), cells.get("client_id")) if spoken is None else spoken[clip]
        yield facts | {"transcript": sentence, "speaker": speaker}


def _covost_sentences(validated: Path) -> dict[str, tuple[str, str]]:
    """Sentence and speaker of each clip."""
    read = read_delimited(validated, "\t", needs=_COMMON_VOICE_COLUMNS, quoted=False, escape="\\")
    lines = (cells for _, cells in read)
    return {cells["path"]: (cells["sentence"], cells["client_id"]) for cells in lines if isinstance(cells, Mapping)}


_FLEURS_COLUMNS = ["id", "file_name", "raw_transcription", "transcription", "characters", "num_samples", "gender"]


def fleurs(
    root: Path, *, tasks: Sequence[str], splits: Sequence[str] | None, languages: Sequence[str] | None, text: str
) -> Iterator[Fields]:
    """`cmn_hans_cn/test.tsv`, without a line of names, and `cmn_hans_cn/audio/test/*.wav` (google/fleurs, `data/`).

    Args:
        root: the folder of all languages, or of one.
        languages: as the folders are called (`en_us`).
        text: `transcription`, in lower case and without punctuation, or `raw_transcription`.
    """
    if text not in ("transcription", "raw_transcription"):
        raise UserError(f"layout.text={text}: expected transcription or raw_transcription")
    folders = _language_folders(root, languages, ["train.tsv", "dev.tsv", "test.tsv"])
    found = {
        (language, split): folder / f"{split}.tsv"
        for language, folder in folders.items()
        for split in ("train", "dev", "test")
        if (folder / f"{split}.tsv").is_file()
    }
    chosen = _choose(splits, sorted({split for _, split in found}), root, "LANGUAGE/train.tsv with LANGUAGE/audio")
    found = {key: path for key, path in found.items() if key[1] in chosen}
    for (_, split), path in found.items():
        _check_unpacked(path.parent / "audio" / split, path.parent / "audio", f"{split}.tar.gz")

    def utterances() -> Iterator[Fields]:
        for (language, split), path in found.items():
            for number, cells in read_delimited(path, "\t", quoted=False, header=_FLEURS_COLUMNS):
                if isinstance(cells, str):
                    yield {"name": f"{language}/{split}:{number}", "problem": cells}
                    continue
                audio = path.parent / "audio" / split / cells["file_name"]
                facts = {"name": f"{language}/{split}/{audio.stem}", "audio": audio, "split": split}
                facts |= {"transcript": cells[text], "language": _language(language)}
                yield facts | {"sentence": cells["id"], "gender": _gender(cells["gender"])}

    return FLEURS.rows(utterances(), tasks)


# --- MELD, VocalSound ---------------------------------------------------------------------------------------------

MELD = Corpus(name="meld", licence="GPL-3.0 (annotations)", tasks=("er", "asr"))
VOCALSOUND = Corpus(name="vocalsound", licence="CC-BY-SA-4.0", tasks=("vsc", "sgc"))

_MELD_COLUMNS = ("Utterance", "Speaker", "Emotion", "Sentiment", "Dialogue_ID", "Utterance_ID")

# As the archives within MELD.Raw.tar.gz unpack.
_MELD_FOLDERS = {"train": "train_splits", "dev": "dev_splits_complete", "test": "output_repeated_splits_test"}


def meld(root: Path, *, tasks: Sequence[str], splits: Sequence[str] | None) -> Iterator[Fields]:
    """`train_sent_emo.csv` and `train_splits/dia0_utt0.mp4`. The clips are videos; their sound is expected beside
    them (`dia0_utt0.wav` or `.flac`), and a folder without any is told how to make it.

    Args:
        root: the folder `MELD.Raw`, or the one around it.
    """
    tables = {split: _below(root, f"{split}_sent_emo.csv") for split in _MELD_FOLDERS}
    there = [split for split, path in tables.items() if path is not None]
    layout = ", ".join(f"{split}_sent_emo.csv with {folder}" for split, folder in _MELD_FOLDERS.items())
    chosen = _choose(splits, there, root, layout)
    sounds = {split: _meld_sounds(root, split) for split in chosen}

    def utterances() -> Iterator[Fields]:
        for split in chosen:
            folder, heard = sounds[split]
            for number, cells in read_delimited(tables[split], ",", needs=_MELD_COLUMNS):
                if isinstance(cells, str):
                    yield {"name": f"{split}:{number}", "problem": cells}
                    continue
                clip = f"dia{cells['Dialogue_ID']}_utt{cells['Utterance_ID']}"
                facts = {"name": f"{split}/{clip}", "audio": heard.get(clip, folder / f"{clip}.wav"), "split": split}
                facts |= {"emotion": cells["Emotion"], "sentiment": cells["Sentiment"], "speaker": cells["Speaker"]}
                yield facts | {"transcript": cells["Utterance"], "language": "en"}

    return MELD.rows(utterances(), tasks)


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


def _below(root: Path, name: str) -> Path | None:
    """A file or folder within a folder, or within one or two more."""
    found = (path for depth in range(3) for path in sorted(root.glob("*/" * depth + name)))
    return next(found, None)


def vocalsound(root: Path, *, tasks: Sequence[str], splits: Sequence[str] | None, rate: str) -> Iterator[Fields]:
    """`datafiles/tr.json`, `val.json` and `te.json`, whose paths are those of their authors' machine;
    `audio_16k/f0003_0_cough.wav`; `class_labels_indices_vs.csv`.

    Args:
        root: the folder of the unpacked archive, or the one around it.
        rate: `16k` or `44k`, the version of the audio.
    """
    home = found.parent if (found := _below(root, "datafiles")) else root
    names = {"train": "tr", "valid": "val", "test": "te"}
    lists = {split: home / "datafiles" / f"{name}.json" for split, name in names.items()}
    there = [split for split, path in lists.items() if path.is_file()]
    chosen = _choose(splits, there, home, "datafiles/tr.json, val.json, te.json with audio_16k or audio_44k")
    folder = home / f"audio_{rate}"
    if not folder.is_dir():
        raise MissingFileError(f"layout.rate={rate}: {home} has no {folder.name}, expected layout.rate=16k or 44k")
    classes = dict(_vocalsound_classes(home / "class_labels_indices_vs.csv"))

    def utterances() -> Iterator[Fields]:
        for split in chosen:
            for number, entry in enumerate(_read_json(lists[split])["data"]):
                if not {"wav", "labels"} <= entry.keys():
                    yield {"name": f"{split}:{number}", "problem": f"it is {entry!r:.80}, expected wav and labels"}
                    continue
                path = folder / Path(entry["wav"]).name
                facts = {"name": f"{split}/{path.stem}", "audio": path, "split": split}
                facts |= {"sound": classes.get(entry["labels"]), "speaker": path.stem.split("_")[0]}
                yield facts | {"gender": _gender(path.stem[:1])}

    return VOCALSOUND.rows(utterances(), tasks)


def _vocalsound_classes(path: Path) -> Iterator[tuple[str, str]]:
    for number, cells in read_delimited(path, ",", needs=("mid", "display_name")):
        if isinstance(cells, str):
            raise UserError(f"{path}, line {number}: {cells}")
        yield cells["mid"], cells["display_name"]


# --- Clotho, NSynth -----------------------------------------------------------------------------------------------

CLOTHO = Corpus(name="clotho", licence="Tampere University (non-commercial)", tasks=("aac",))
NSYNTH = Corpus(name="nsynth", licence="CC-BY-4.0", tasks=("mna", "mic"))

_NSYNTH_KEYS = {"pitch", "velocity", "instrument_family_str", "instrument_source_str", "qualities_str"}
_CLOTHO_SPLITS = {"train": "development", "valid": "validation", "test": "evaluation"}


def clotho(root: Path, *, tasks: Sequence[str], splits: Sequence[str] | None) -> Iterator[Fields]:
    """`clotho_captions_development.csv` with `file_name, caption_1, ..., caption_5`, and `development/*.wav`.

    In training each caption is a row; of a clip that is held out, the first is its answer and all are its
    `references`.

    Args:
        root: the folder that the archives were unpacked in, or the one around it.
    """
    tables = {split: _below(root, f"clotho_captions_{name}.csv") for split, name in _CLOTHO_SPLITS.items()}
    there = [split for split, path in tables.items() if path is not None]
    chosen = _choose(splits, there, root, "clotho_captions_development.csv with development, and so on")
    folders = {split: _below(root, _CLOTHO_SPLITS[split]) for split in chosen}
    for split, folder in folders.items():
        if folder is None:
            name = _CLOTHO_SPLITS[split]
            raise MissingFileError(f"{root} has no {name}: unpack clotho_audio_{name}.7z")

    def utterances() -> Iterator[Fields]:
        for split in chosen:
            for number, cells in read_delimited(tables[split], ",", needs=("file_name", "caption_1")):
                if isinstance(cells, str):
                    yield {"name": f"{split}:{number}", "problem": cells}
                    continue
                clip = cells["file_name"]
                captions = [cells[key].strip() for key in cells if key.startswith("caption_")]
                facts = {"audio": folders[split] / clip, "split": split, "caption_style": "clotho"}
                name = f"{split}/{Path(clip).stem}"
                if split == "train":
                    for n, caption in enumerate(captions, start=1):
                        yield facts | {"name": f"{name}/{n}", "caption": caption}
                else:
                    yield facts | {"name": name, "caption": captions[0], "references": captions}

    return CLOTHO.rows(utterances(), tasks)


def nsynth(root: Path, *, tasks: Sequence[str], splits: Sequence[str] | None) -> Iterator[Fields]:
    """`nsynth-train/examples.json` and `nsynth-train/audio/bass_synthetic_033-022-050.wav` (the JSON and WAV version).

    The instrument is its family, as in Qwen-Audio's evaluation.

    Args:
        root: the folder that holds `nsynth-train`, `nsynth-valid`, `nsynth-test`, or one of them.
    """
    homes = [root, *sorted(root.glob("nsynth-*"))]
    lists = {home.resolve().name.removeprefix("nsynth-"): home for home in homes if (home / "examples.json").is_file()}
    chosen = _choose(splits, list(lists), root, "nsynth-train/examples.json with nsynth-train/audio, and so on")

    def utterances() -> Iterator[Fields]:
        for split in chosen:
            notes: dict[str, Cells] = _read_json(lists[split] / "examples.json")
            for name, note in sorted(notes.items()):
                facts = {"name": f"{split}/{name}", "audio": lists[split] / "audio" / f"{name}.wav", "split": split}
                if missing := sorted(_NSYNTH_KEYS - note.keys()):
                    yield facts | {"problem": f"examples.json does not tell its {', '.join(missing)}"}
                    continue
                family = note["instrument_family_str"]
                heard = {"pitch": note["pitch"], "velocity": note["velocity"], "instrument": family}
                facts |= {"notes": heard | {"sonic": note["qualities_str"]}, "instrument": family}
                yield facts | {"source": note["instrument_source_str"]}

    return NSYNTH.rows(utterances(), tasks)
