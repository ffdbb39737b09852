"""Readers of published corpora. Each reads the folders into which the archives of one corpus unpack.

A reader yields every utterance that its corpus lists. An utterance that cannot be used has the reason as `problem`.
Audio files are checked later, when the rows are written (`auris.data.prepare.convert`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from auris.data.prepare.tables import Cells, RowDict, read_delimited, read_map
from auris.errors import MissingFileError, UserError

# {task: {label of the row: field of the utterance}}
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

# Language codes of Common Voice, CoVoST and FLEURS whose first part is not the auris code.
_LANGUAGES = {"zh-HK": "yue", "cmn_hans_cn": "zh"}

_SPLITS = ("train", "dev", "test")

Choice = Sequence[str] | None
"""Names of chosen splits, languages or language pairs; None: all existing ones."""


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """Properties of all rows of a corpus.

    Attributes:
        name: Prefix of row ids.
        licence: Licence of the corpus.
        tasks: Tasks for which the corpus has labels. Row ids of the first task have no suffix, those of
            the others end with `#TASK`.
    """

    name: str
    licence: str
    tasks: tuple[str, ...]

    def make_rows(self, utterance: RowDict, tasks: Sequence[str]) -> Iterator[RowDict]:
        """Yield a row for each task of an utterance.

        Args:
            utterance: Fields of the utterance: `name`; `audio` and `split`, which may be missing if there is a
                `problem`; and labels, named as in the values of `_LABELS`.
            tasks: The requested tasks.
        """
        if not tasks or not set(tasks) <= set(self.tasks):
            raise UserError(
                f"layout.tasks=[{','.join(tasks)}]: expected some of {', '.join(self.tasks)} for {self.name}"
            )
        for task in tasks:
            labels = _LABELS[task]
            suffix = "" if task == self.tasks[0] else f"#{task}"
            row = {key: value for key, value in utterance.items() if key not in ("name", *labels.values())}
            row = {"id": f"{self.name}/{utterance['name']}{suffix}", "task": task, **row}
            if "problem" not in utterance:
                row |= {label: utterance[field] for label, field in labels.items() if utterance.get(field) is not None}
                if missing := [field for field in labels.values() if utterance.get(field) is None]:
                    row["problem"] = f"the corpus states no {' and no '.join(missing)} for this utterance"
                # The provenance is the origin of the audio: recorded (`real`) or synthesised.
                row |= {"provenance": "real", "licence": self.licence}
            yield row


# --- helpers ------------------------------------------------------------------------------------------------------


def _find_below(root: Path, name: str) -> Path | None:
    """Find a file or folder in `root` or up to two levels below it."""
    matches = (path for depth in range(3) for path in sorted(root.glob("*/" * depth + name)))
    return next(matches, None)


def _tables_below(root: Path, names: Mapping[str, str]) -> dict[str, Path]:
    """Find the tables of splits, given as {split: file name}; return {split: path} of those that exist."""
    return {split: path for split, name in names.items() if (path := _find_below(root, name)) is not None}


def _choose(choice: Choice, existing: Iterable[str], home: Path, layout: str, key: str = "splits") -> list[str]:
    """Return the chosen splits (or languages or language pairs, see `key`), or all existing ones if none is chosen.

    Raises:
        MissingFileError: The folder contains no split.
        UserError: A chosen split does not exist.
    """
    existing, chosen = list(existing), list(choice or ())
    if not existing:
        raise MissingFileError(f"{home} does not have the layout of this corpus, expected {layout}")
    if missing := [name for name in chosen if name not in existing]:
        raise UserError(f"layout.{key}={chosen}: {home} has no {', '.join(missing)}, expected {', '.join(existing)}")
    return chosen or existing


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error


def _remove_spaces(text: str) -> str:
    """Remove the spaces between Chinese words, which only show the segmentation."""
    return re.sub(r"(?<![A-Za-z0-9])\s+|\s+(?![A-Za-z0-9])", "", text)


def _gender(value: str | None) -> str | None:
    """Return male or female for a value that starts with m or f (M, male_masculine, Female), None for other values."""
    return {"m": "male", "f": "female"}.get((value or "").strip().lower()[:1])


def _language(code: str) -> str:
    return _LANGUAGES.get(code) or re.split("[-_]", code)[0]


def _check_unpacked(folder: Path, archives: Path, pattern: str) -> None:
    """Raise MissingFileError if a folder does not exist but an archive of it does."""
    if not folder.is_dir() and (packed := sorted(archives.glob(pattern))):
        raise MissingFileError(
            f"{folder} is missing: unpack {packed[0]}" + (" and the other archives" if packed[1:] else "")
        )


# --- LibriSpeech --------------------------------------------------------------------------------------------------

LIBRISPEECH = Corpus(name="librispeech", licence="CC-BY-4.0", tasks=("asr", "sgc"))


def librispeech(root: Path, *, tasks: Sequence[str], splits: Choice, lower: bool) -> Iterator[RowDict]:
    """Read LibriSpeech (openslr.org/12).

    Files: `train-clean-100/103/1240/103-1240-0000.flac` with `103-1240.trans.txt` in the same folder; `SPEAKERS.TXT`.

    Args:
        root: The folder `LibriSpeech` or its parent.
        tasks: Tasks of the rows.
        splits: Names of splits, which are the names of their folders.
        lower: Convert transcripts, which are published in capitals, to lower case.
    """
    home = _find_below(root, "LibriSpeech") or root
    existing = sorted({path.parents[2].name for path in home.glob("*/*/*/*.trans.txt")})
    genders = _librispeech_genders(home / "SPEAKERS.TXT")
    for split in _choose(splits, existing, home, "SPLIT/SPEAKER/CHAPTER/SPEAKER-CHAPTER.trans.txt"):
        for transcripts in sorted((home / split).glob("*/*/*.trans.txt")):
            chapter, speaker = transcripts.parent, transcripts.parents[1].name
            texts = read_map(transcripts)
            for utt_id in sorted({*texts, *(path.stem for path in chapter.glob("*.flac"))}):
                text = texts.get(utt_id, "")
                utterance = {"name": f"{split}/{utt_id}", "audio": chapter / f"{utt_id}.flac", "split": split}
                utterance |= {"transcript": text.lower() if lower else text, "language": "en"}
                utterance |= {"speaker": speaker, "gender": genders.get(speaker)}
                utterance |= (
                    {} if utt_id in texts else {"problem": f"{transcripts.name} has no transcript of this file"}
                )
                yield from LIBRISPEECH.make_rows(utterance, tasks)


def _librispeech_genders(path: Path) -> dict[str, str | None]:
    """Read speakers and genders from lines `14   | F | train-clean-360  | 25.03 | ...`; comments start with `;`."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    cells = ([cell.strip() for cell in line.split("|")] for line in lines if "|" in line and line[0] != ";")
    return {speaker: _gender(sex) for speaker, sex, *_ in cells}


# --- AISHELL ------------------------------------------------------------------------------------------------------

AISHELL1 = Corpus(name="aishell1", licence="Apache-2.0", tasks=("asr", "sgc"))
AISHELL2 = Corpus(name="aishell2", licence="AISHELL-2 (academic)", tasks=("asr",))


def aishell1(root: Path, *, tasks: Sequence[str], splits: Choice) -> Iterator[RowDict]:
    """Read AISHELL-1 (openslr.org/33).

    Files: `wav/train/S0002/BAC009S0002W0122.wav` and `transcript/aishell_transcript_v0.8.txt` in `data_aishell`;
    `speaker.info` in the folder `resource_aishell` next to `data_aishell`.

    Args:
        root: The folder `data_aishell` or its parent.
        tasks: Tasks of the rows.
        splits: Some of train, dev, test.
    """
    home = _find_below(root, "data_aishell") or root
    for split in _SPLITS:
        _check_unpacked(home / "wav" / split, home / "wav", "*.tar.gz")
    existing = [split for split in _SPLITS if (home / "wav" / split).is_dir()]
    chosen_splits = _choose(
        splits, existing, home, "wav/train, wav/dev, wav/test and transcript/aishell_transcript_v0.8.txt"
    )
    transcripts = home / "transcript" / "aishell_transcript_v0.8.txt"
    texts = read_map(transcripts)
    info = read_map(home.parent / "resource_aishell" / "speaker.info")
    genders = {name.removeprefix("S"): _gender(sex) for name, sex in info.items()}
    with_audio: set[str] = set()
    for split in chosen_splits:
        for path in sorted((home / "wav" / split).glob("*/*.wav")):
            utt_id, speaker = path.stem, path.parent.name
            with_audio.add(utt_id)
            utterance = {"name": f"{split}/{utt_id}", "audio": path, "split": split, "language": "zh"}
            utterance |= {"transcript": _remove_spaces(texts.get(utt_id, ""))}
            utterance |= {"speaker": speaker, "gender": genders.get(speaker.removeprefix("S"))}
            utterance |= {} if utt_id in texts else {"problem": f"{transcripts.name} has no transcript of this file"}
            yield from AISHELL1.make_rows(utterance, tasks)
    if len(chosen_splits) == 3:  # the split of a transcript without audio is unknown
        for utt_id in sorted(set(texts) - with_audio):
            problem = f"{transcripts.name} has a transcript, but there is no {utt_id}.wav"
            yield from AISHELL1.make_rows({"name": utt_id, "problem": problem}, tasks)


def aishell2(root: Path, *, tasks: Sequence[str], splits: Choice) -> Iterator[RowDict]:
    """Read AISHELL-2 (egs/aishell2 of Kaldi).

    Files: `iOS/data/wav.scp` and `iOS/data/trans.txt`, both tab-separated; `iOS/data/wav/C0001/IC0001W0001.wav`. The
    folders `dev` and `test` of iOS, Android and Mic have the same layout.

    Args:
        root: The folder of the corpus, of one channel, or of one split of a channel.
        tasks: Tasks of the rows.
        splits: Splits, such as `train-iOS` (folder `iOS/data`) and `dev-Mic`.
    """
    scripts = [path for depth in range(4) for path in sorted(root.glob("*/" * depth + "wav.scp"))]
    folders = [path.parent for path in scripts if path.with_name("trans.txt").is_file()]
    split_folders = {f"{folder.name.replace('data', 'train')}-{folder.parent.name}": folder for folder in folders}
    layout = "iOS/data/wav.scp with iOS/data/trans.txt, and the same in iOS/dev, iOS/test, Android/dev, ..."
    for split in _choose(splits, sorted(split_folders), root, layout):
        texts, paths = (read_map(split_folders[split] / name) for name in ("trans.txt", "wav.scp"))
        for utt_id in sorted({*texts, *paths}):
            path = Path(paths.get(utt_id, ""))
            utterance = {
                "name": f"{split}/{utt_id}",
                "split": split,
                "language": "zh",
                "audio": split_folders[split] / path,
            }
            utterance |= {"transcript": _remove_spaces(texts.get(utt_id, "")), "speaker": path.parent.name}
            absent = "trans.txt" if utt_id not in texts else "wav.scp"
            utterance |= (
                {} if utt_id in texts and utt_id in paths else {"problem": f"{absent} has no line for this file"}
            )
            yield from AISHELL2.make_rows(utterance, tasks)


# --- Common Voice, CoVoST 2, FLEURS -------------------------------------------------------------------------------

COMMON_VOICE = Corpus(name="common_voice", licence="CC0-1.0", tasks=("asr", "lid", "sgc"))
COVOST2 = Corpus(name="covost2", licence="CC0-1.0 (audio), CC-BY-NC-4.0 (translations)", tasks=("s2tt", "asr"))
FLEURS = Corpus(name="fleurs", licence="CC-BY-4.0", tasks=("asr", "lid", "sgc"))


def _language_tables(root: Path, languages: Choice, splits: Choice, layout: str) -> dict[tuple[str, str], Path]:
    """Return {(language, split): table} of a corpus with one folder per language.

    `root` is the folder of a language or of a release, or the parent folder of a single release. By default, the splits
    train, dev and test are chosen as far as they exist.
    """
    paths: list[Path] = []
    for pattern in ("", "*/", "*/*/"):
        paths = sorted({path.parent for name in (*_SPLITS, "validated") for path in root.glob(f"{pattern}{name}.tsv")})
        if paths:
            break
    folders = {path.resolve().name: path for path in paths}
    if len(folders) < len(paths):
        raise UserError(f"root={root} contains a language more than once, expected the folder of one release")
    languages = _choose(languages, folders, root, layout, "languages")
    tables = {(language, path.stem): path for language in languages for path in folders[language].glob("*.tsv")}
    existing = sorted({split for _, split in tables})
    chosen_splits = _choose(splits or [split for split in _SPLITS if split in existing], existing, root, layout)
    return {key: tables[key] for key in product(languages, chosen_splits) if key in tables}


# Required columns. The others differ between releases.
_COMMON_VOICE_COLUMNS = ("client_id", "path", "sentence")


def common_voice(root: Path, *, tasks: Sequence[str], splits: Choice, languages: Choice) -> Iterator[RowDict]:
    """Read any release of Common Voice.

    Files: `cv-corpus-15.0-2023-09-08/en/train.tsv`, a TSV without quoting, and `en/clips/*.mp3`.

    Args:
        root: The folder of a release, or of one language in the release.
        tasks: Tasks of the rows.
        splits: By default `train`, `dev` and `test`. `validated` includes the clips of these splits, `invalidated`
            contains rejected clips and `other` clips that were not reviewed.
        languages: Names of languages, which are the names of their folders (`zh-CN`).
    """
    tables = _language_tables(root, languages, splits, "LANGUAGE/train.tsv with LANGUAGE/clips")
    for (language, split), path in tables.items():
        for number, cells in read_delimited(path, "\t", needs=_COMMON_VOICE_COLUMNS, quoted=False):
            if isinstance(cells, str):
                yield from COMMON_VOICE.make_rows({"name": f"{language}/{split}:{number}", "problem": cells}, tasks)
                continue
            clip = Path(cells["path"])
            utterance = {"name": f"{language}/{split}/{clip.stem}", "split": split}
            # The tables of the first releases have no suffix in the names of clips.
            utterance |= {"audio": path.parent / "clips" / (clip if clip.suffix else f"{clip}.mp3")}
            utterance |= {"transcript": cells["sentence"], "language": _language(language)}
            utterance |= {"speaker": cells["client_id"], "gender": _gender(cells.get("gender"))}
            utterance |= {key: cells[key] for key in ("age", "accents", "accent") if cells.get(key)}
            yield from COMMON_VOICE.make_rows(utterance, tasks)


# `covost_v2.en_de.tsv` has a column `split`; the script of the corpus splits it into `covost_v2.en_de.train.tsv` etc.
_COVOST_TABLE = re.compile(r"covost_v2\.(?P<pair>[^_.]+_[^_.]+)(?:\.(?P<split>\w+))?\.tsv")


def covost2(root: Path, *, tasks: Sequence[str], splits: Choice, pairs: Choice) -> Iterator[RowDict]:
    """Read CoVoST 2. Its tables of translations are expected in the folders of Common Voice 4, which has the audio.

    Files: `en/covost_v2.en_de.tsv`, `en/validated.tsv`, `en/clips/*.mp3`. As in fairseq's prep_covost_data.py, `train`
    includes the split `train_covost`, and the escape character of the tables is the backslash.

    Args:
        root: The folder of a source language, or the parent of such folders.
        tasks: Tasks of the rows.
        splits: Some of train, dev, test.
        pairs: Language pairs, such as `[en_de, zh-CN_en]`; by default all pairs.
    """
    tables: dict[str, dict[str | None, Path]] = {}
    for path in sorted([*root.glob("covost_v2.*.tsv"), *root.glob("*/covost_v2.*.tsv")]):
        if match := _COVOST_TABLE.fullmatch(path.name):
            tables.setdefault(match["pair"], {})[match["split"]] = path
    chosen_pairs = _choose(pairs, sorted(tables), root, "en/covost_v2.en_de.tsv", "pairs")
    chosen_splits = _choose(splits, _SPLITS, root, "")
    for pair in chosen_pairs:
        if len(tables[pair]) > 1:
            tables[pair].pop(None, None)  # this table of all splits repeats the rows of the other tables
        for split, path in tables[pair].items():
            for utterance in _covost_table(pair, split, path):
                if utterance.get("split") in (*chosen_splits, None):
                    yield from COVOST2.make_rows(utterance, tasks)


def _covost_table(pair: str, split: str | None, path: Path) -> Iterator[RowDict]:
    """Yield the fields of each utterance in a table of one split or, if `split` is None, in a table of all splits.

    A table of all splits has a column `split`, and its sentences are in Common Voice's `validated.tsv`.
    """
    dialect: dict[str, Any] = {"delimiter": "\t", "quoted": False, "escape": "\\"}
    source, target = pair.split("_")
    validated = path.parent / "validated.tsv"
    sentences: dict[str, Cells] | None = None
    if split is None and validated.is_file():
        lines = (cells for _, cells in read_delimited(validated, needs=_COMMON_VOICE_COLUMNS, **dialect))
        sentences = {cells["path"]: cells for cells in lines if isinstance(cells, Mapping)}
    needs = ("path", "translation", "sentence" if split else "split")
    for number, cells in read_delimited(path, needs=needs, **dialect):
        if isinstance(cells, str):
            yield {"name": f"{pair}:{number}", "problem": cells}
            continue
        row_split, clip = (split or cells["split"]).removesuffix("_covost"), cells["path"]
        utterance: RowDict = {"name": f"{pair}/{row_split}/{Path(clip).stem}", "split": row_split}
        utterance |= {"audio": path.parent / "clips" / clip}
        utterance |= {"language": _language(source), "target_language": _language(target)}
        utterance |= {"translation": cells["translation"]}
        if sentences is not None and clip not in sentences:
            yield utterance | {"problem": f"validated.tsv has no line for {clip}"}
            continue
        source_cells = cells if sentences is None else sentences[clip]
        yield utterance | {"transcript": source_cells.get("sentence"), "speaker": source_cells.get("client_id")}


_FLEURS_COLUMNS = ["id", "file_name", "raw_transcription", "transcription", "characters", "num_samples", "gender"]


def fleurs(root: Path, *, tasks: Sequence[str], splits: Choice, languages: Choice, text: str) -> Iterator[RowDict]:
    """Read FLEURS (google/fleurs, `data/`).

    Files: `cmn_hans_cn/test.tsv`, without a header, and `cmn_hans_cn/audio/test/*.wav`.

    Args:
        root: The folder of all languages or of one language.
        tasks: Tasks of the rows.
        splits: Some of train, dev, test.
        languages: Names of languages, which are the names of their folders (`en_us`).
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
                yield from FLEURS.make_rows({"name": f"{language}/{split}:{number}", "problem": cells}, tasks)
                continue
            audio = path.parent / "audio" / split / cells["file_name"]
            utterance = {"name": f"{language}/{split}/{audio.stem}", "audio": audio, "split": split}
            utterance |= {"transcript": cells[text], "language": _language(language)}
            utterance |= {"sentence": cells["id"], "gender": _gender(cells["gender"])}
            yield from FLEURS.make_rows(utterance, tasks)


# --- MELD, VocalSound ---------------------------------------------------------------------------------------------

MELD = Corpus(name="meld", licence="GPL-3.0 (annotations)", tasks=("er", "asr"))
VOCALSOUND = Corpus(name="vocalsound", licence="CC-BY-SA-4.0", tasks=("vsc", "sgc"))

_MELD_COLUMNS = ("Utterance", "Speaker", "Emotion", "Sentiment", "Dialogue_ID", "Utterance_ID")

# Folders that the archives in MELD.Raw.tar.gz unpack to.
_MELD_FOLDERS = {"train": "train_splits", "dev": "dev_splits_complete", "test": "output_repeated_splits_test"}


def meld(root: Path, *, tasks: Sequence[str], splits: Choice) -> Iterator[RowDict]:
    """Read MELD.

    Files: `train_sent_emo.csv` and `train_splits/dia0_utt0.mp4`. The clips are videos. Their audio is expected in
    the same folder as `.wav` or `.flac`. If a folder has no audio, the error message contains a command to extract it.

    Args:
        root: The folder `MELD.Raw` or its parent.
        tasks: Tasks of the rows.
        splits: Some of train, dev, test.
    """
    tables = _tables_below(root, {split: f"{split}_sent_emo.csv" for split in _MELD_FOLDERS})
    layout = ", ".join(f"{split}_sent_emo.csv with {folder}" for split, folder in _MELD_FOLDERS.items())
    chosen_splits = _choose(splits, tables, root, layout)
    sounds = {split: _meld_sounds(root, split) for split in chosen_splits}
    for split in chosen_splits:
        folder, audio_files = sounds[split]
        for number, cells in read_delimited(tables[split], ",", needs=_MELD_COLUMNS):
            if isinstance(cells, str):
                yield from MELD.make_rows({"name": f"{split}:{number}", "problem": cells}, tasks)
                continue
            clip = f"dia{cells['Dialogue_ID']}_utt{cells['Utterance_ID']}"
            utterance = {
                "name": f"{split}/{clip}",
                "audio": audio_files.get(clip, folder / f"{clip}.wav"),
                "split": split,
            }
            utterance |= {"emotion": cells["Emotion"], "sentiment": cells["Sentiment"], "speaker": cells["Speaker"]}
            utterance |= {"transcript": cells["Utterance"], "language": "en"}
            yield from MELD.make_rows(utterance, tasks)


def _meld_sounds(root: Path, split: str) -> tuple[Path, dict[str, Path]]:
    """Return the folder of a split's clips, and {name of a clip: audio file}."""
    folder = _find_below(root, _MELD_FOLDERS[split])
    if folder is None:
        raise MissingFileError(f"{root} has {split}_sent_emo.csv but no {_MELD_FOLDERS[split]}: unpack {split}.tar.gz")
    # The pattern excludes `._dia0_utt0.mp4`, which macOS has added to the archives.
    audio_files = {path.stem: path for path in folder.glob("dia*") if path.suffix in (".wav", ".flac")}
    if not audio_files and any(folder.glob("dia*.mp4")):
        raise MissingFileError(
            f"{folder} has videos but no audio. To extract it, run: for f in {folder}/dia*.mp4; do "
            'ffmpeg -n -loglevel error -i "$f" -vn -ac 1 -ar 16000 "${f%.mp4}.wav"; done'
        )
    return folder, audio_files


def vocalsound(root: Path, *, tasks: Sequence[str], splits: Choice, rate: str) -> Iterator[RowDict]:
    """Read VocalSound.

    Files: `datafiles/tr.json`, `val.json` and `te.json`; `audio_16k/f0003_0_cough.wav`; `class_labels_indices_vs.csv`.
    Only the file names of the paths in the JSON files are used.

    Args:
        root: The folder of the unpacked archive or its parent.
        tasks: Tasks of the rows.
        splits: Some of train, valid, test.
        rate: Version of the audio by its sampling rate, `16k` or `44k`.
    """
    names = {"train": "datafiles/tr.json", "valid": "datafiles/val.json", "test": "datafiles/te.json"}
    lists = _tables_below(root, names)
    chosen_splits = _choose(splits, lists, root, "datafiles/tr.json, val.json, te.json with audio_16k or audio_44k")
    home = lists[chosen_splits[0]].parents[1]
    folder = home / f"audio_{rate}"
    if not folder.is_dir():
        raise MissingFileError(f"layout.rate={rate}: {home} has no {folder.name}, expected layout.rate=16k or 44k")
    classes = {}
    for _, cells in read_delimited(home / "class_labels_indices_vs.csv", ",", needs=("mid", "display_name")):
        if isinstance(cells, str):  # without this line, all rows of the class would be unusable
            raise UserError(f"{home}: {cells}")
        classes[cells["mid"]] = cells["display_name"]
    for split in chosen_splits:
        for entry in _read_json(lists[split])["data"]:
            path = folder / Path(entry["wav"]).name
            utterance = {"name": f"{split}/{path.stem}", "audio": path, "split": split, "gender": _gender(path.stem)}
            utterance |= {"sound": classes.get(entry["labels"]), "speaker": path.stem.split("_")[0]}
            yield from VOCALSOUND.make_rows(utterance, tasks)


# --- Clotho, NSynth -----------------------------------------------------------------------------------------------

CLOTHO = Corpus(name="clotho", licence="Tampere University (non-commercial)", tasks=("aac",))
NSYNTH = Corpus(name="nsynth", licence="CC-BY-4.0", tasks=("mna", "mic"))

_CLOTHO_SPLITS = {"train": "development", "valid": "validation", "test": "evaluation"}


def clotho(root: Path, *, tasks: Sequence[str], splits: Choice) -> Iterator[RowDict]:
    """Read Clotho.

    Files: `clotho_captions_development.csv` with `file_name, caption_1, ..., caption_5`, and `development/*.wav`.

    In the training split, each caption is a row. In the other splits, each clip is a row with the first caption as
    answer and all captions as `references`.

    Args:
        root: The folder of the unpacked archives or its parent.
        tasks: Tasks of the rows.
        splits: Some of train, valid, test.
    """
    tables = _tables_below(root, {split: f"clotho_captions_{name}.csv" for split, name in _CLOTHO_SPLITS.items()})
    chosen_splits = _choose(splits, tables, root, "clotho_captions_development.csv with development, and so on")
    folders: dict[str, Path] = {}
    for split in chosen_splits:
        name = _CLOTHO_SPLITS[split]
        if (folder := _find_below(root, name)) is None:
            raise MissingFileError(f"{root} has no {name}: unpack clotho_audio_{name}.7z")
        folders[split] = folder
    for split, folder in folders.items():
        for number, cells in read_delimited(tables[split], ",", needs=("file_name", "caption_1")):
            if isinstance(cells, str):
                yield from CLOTHO.make_rows({"name": f"{split}:{number}", "problem": cells}, tasks)
                continue
            clip = folder / cells["file_name"]
            captions = [cells[key].strip() for key in cells if key.startswith("caption_")]
            utterance = {"name": f"{split}/{clip.stem}", "audio": clip, "split": split, "caption_style": "clotho"}
            if split != "train":
                yield from CLOTHO.make_rows(utterance | {"caption": captions[0], "references": captions}, tasks)
                continue
            for n, caption in enumerate(captions, start=1):
                yield from CLOTHO.make_rows(utterance | {"name": f"{utterance['name']}/{n}", "caption": caption}, tasks)


def nsynth(root: Path, *, tasks: Sequence[str], splits: Choice) -> Iterator[RowDict]:
    """Read the JSON and WAV version of NSynth.

    Files: `nsynth-train/examples.json` and `nsynth-train/audio/bass_synthetic_033-022-050.wav`. The instrument label is
    the instrument family, as in Qwen-Audio's evaluation.

    Args:
        root: The folder that contains `nsynth-train`, `nsynth-valid` and `nsynth-test`, or one of these three folders.
        tasks: Tasks of the rows.
        splits: Some of train, valid, test.
    """
    homes = [root, *sorted(root.glob("nsynth-*"))]
    lists = {home.resolve().name.removeprefix("nsynth-"): home for home in homes if (home / "examples.json").is_file()}
    for split in _choose(splits, lists, root, "nsynth-train/examples.json with nsynth-train/audio, and so on"):
        notes: dict[str, Cells] = _read_json(lists[split] / "examples.json")
        for name, note in sorted(notes.items()):
            utterance = {"name": f"{split}/{name}", "audio": lists[split] / "audio" / f"{name}.wav", "split": split}
            family = note["instrument_family_str"]
            labels = {"pitch": note["pitch"], "velocity": note["velocity"], "instrument": family}
            utterance |= {"notes": labels | {"sonic": note["qualities_str"]}, "instrument": family}
            utterance |= {"source": note["instrument_source_str"]}
            yield from NSYNTH.make_rows(utterance, tasks)
