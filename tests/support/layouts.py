"""Miniature copies of published corpora: the folders, tables and names of their archives, with a few short clips."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import soundfile


def sound(path: Path, seconds: float = 0.5, rate: int = 16_000, *, pitch: float | None = None) -> Path:
    """Write a tone. By default its pitch follows from the file name, so that files differ in their audio."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pitch = pitch or 200 + sum(path.name.encode()) % 997
    soundfile.write(path, 0.3 * np.sin(2 * np.pi * pitch * np.arange(round(seconds * rate)) / rate), rate)
    return path


def text(path: Path, *lines: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def librispeech(root: Path) -> None:
    home = root / "LibriSpeech"
    text(
        home / "SPEAKERS.TXT",
        "; Some pretty tables about the speakers",
        ";ID  |SEX| SUBSET           |MINUTES| NAME",
        "84   | F | dev-clean        |  8.02 | Christie Nowak",
        "1272 | M | dev-clean        |  8.01 | John Rose",
        "103  | F | train-clean-100  | 25.05 | Karen Savage",
    )
    for split, speaker, chapter, texts in (
        ("dev-clean", "84", "121123", ["GO DO YOU HEAR", "BUT IN LESS THAN FIVE MINUTES"]),
        ("dev-clean", "1272", "128104", ["MISTER QUILTER IS THE APOSTLE"]),
        ("train-clean-100", "103", "1240", ["CHAPTER ONE MISSUS RACHEL LYNDE IS SURPRISED"]),
    ):
        folder = home / split / speaker / chapter
        keys = [f"{speaker}-{chapter}-{n:04d}" for n in range(len(texts))]
        text(
            folder / f"{speaker}-{chapter}.trans.txt", *(f"{key} {line}" for key, line in zip(keys, texts, strict=True))
        )
        for key in keys:
            sound(folder / f"{key}.flac")


def aishell1(root: Path) -> None:
    home = root / "data_aishell"
    text(
        home / "transcript/aishell_transcript_v0.8.txt",
        "BAC009S0002W0122 而 对 楼市 成交 抑制 作用 最 大 的 限 购",
        "BAC009S0724W0121 广州市 房地产 中介 协会 分析",
        "BAC009S0764W0121 甚至 出现 交易 几乎 停滞 的 情况",
    )
    for split, speaker, key in (
        ("train", "S0002", "BAC009S0002W0122"),
        ("dev", "S0724", "BAC009S0724W0121"),
        ("test", "S0764", "BAC009S0764W0121"),
    ):
        sound(home / "wav" / split / speaker / f"{key}.wav")
    text(root / "resource_aishell/speaker.info", "0002 F", "0724 M", "0764 F")


def aishell2(root: Path) -> None:
    for folder, key, text_ in (
        ("iOS/data", "IC0001W0001", "厨房用品"),
        ("iOS/test", "IT0011W0001", "换一首歌"),
        ("Android/test", "AT0011W0001", "换一首歌"),
    ):
        home = root / "AISHELL-2" / folder
        speaker = key[1:6]
        text(home / "wav.scp", f"{key}\twav/{speaker}/{key}.wav")
        text(home / "trans.txt", f"{key}\t{text_}")
        sound(home / "wav" / speaker / f"{key}.wav")


_COMMON_VOICE = ["client_id", "path", "sentence", "up_votes", "down_votes", "age", "gender", "accents", "variant"]
_COMMON_VOICE += ["locale", "segment"]


def common_voice(root: Path) -> None:
    home = root / "cv-corpus-15.0-2023-09-08"
    for language, locale, rows in (
        (
            "en",
            "en",
            {
                "train": [("a1", 'Joe "the hat" Keaton disapproved.', "twenties", "male")],
                "test": [("b2", "It is what it is.", "", "")],
            },
        ),
        ("zh-CN", "zh-CN", {"test": [("c3", "这个地区的人们", "thirties", "female_feminine")]}),
    ):
        for split, entries in rows.items():
            lines = ["\t".join(_COMMON_VOICE)]
            for client, sentence, age, gender in entries:
                clip = f"common_voice_{language}_{client}.mp3"
                lines.append("\t".join([client, clip, sentence, "2", "0", age, gender, "", "", locale, ""]))
                sound(home / language / "clips" / clip, rate=32_000)
            text(home / language / f"{split}.tsv", *lines)


def covost2(root: Path) -> None:
    home = root / "en"
    clips = {"one": "train", "two": "train_covost", "three": "dev", "four": "test"}
    file_names = [f"common_voice_en_{name}.mp3" for name in clips]
    validated = [f's{n}\t{clip}\tSentence {n}, \\"quoted\\".\t2\t0\t\t\t' for n, clip in enumerate(file_names)]
    text(home / "validated.tsv", "client_id\tpath\tsentence\tup_votes\tdown_votes\tage\tgender\taccent", *validated)
    lines = [
        f"{clip}\tSatz {n}.\t{split}" for n, (clip, split) in enumerate(zip(file_names, clips.values(), strict=True))
    ]
    text(home / "covost_v2.en_de.tsv", "path\ttranslation\tsplit", *lines)
    for clip in file_names:
        sound(home / "clips" / clip, rate=32_000)


def fleurs(root: Path) -> None:
    for language, split, name, raw, plain, gender in (
        ("en_us", "train", "10004088536354799741.wav", "A tornado is a column.", "a tornado is a column", "FEMALE"),
        ("cmn_hans_cn", "test", "1013848018653253112.wav", "“这 并不是 告别”", "这并不是告别", "MALE"),
    ):
        line = "\t".join(["1", name, raw, plain, "a | b |", "8000", gender])
        text(root / language / f"{split}.tsv", line)
        sound(root / language / "audio" / split / name)


def meld(root: Path) -> None:
    header = "Sr No.,Utterance,Speaker,Emotion,Sentiment,Dialogue_ID,Utterance_ID,Season,Episode,StartTime,EndTime"
    for split, table, folder in (
        ("train", "train", "train/train_splits"),
        ("dev", ".", "dev/dev_splits_complete"),
        ("test", ".", "test/output_repeated_splits_test"),
    ):
        lines = [f'1,"Oh, my {split}!",Chandler,surprise,positive,0,0,8,21,"00:16:16,059","00:16:21,731"']
        text(root / "MELD.Raw" / table / f"{split}_sent_emo.csv", header, *lines)
        sound(root / "MELD.Raw" / folder / "dia0_utt0.wav")
        (root / "MELD.Raw" / folder / "dia0_utt0.mp4").write_bytes(b"video")
        (root / "MELD.Raw" / folder / "._dia0_utt0.wav").write_bytes(b"left by a Mac")


def vocalsound(root: Path) -> None:
    text(
        root / "class_labels_indices_vs.csv",
        "index,mid,display_name",
        "0,/m/01j3sz,Laughter",
        "1,/m/07plz5l,Sigh",
        "2,/m/01b_21,Cough",
        "3,/m/0dl9sf8,Throat clearing",
    )
    for split, name, label in (
        ("tr", "f0003_0_cough", "/m/01b_21"),
        ("val", "m0012_0_throatclearing", "/m/0dl9sf8"),
        ("te", "m0044_1_laughter", "/m/01j3sz"),
    ):
        entry = {"wav": f"/data/sls/scratch/yuangong/vocalsound/data/audio_16k/{name}.wav", "labels": label}
        text(root / "datafiles" / f"{split}.json", json.dumps({"data": [entry]}))
        sound(root / "audio_16k" / f"{name}.wav")


def clotho(root: Path) -> None:
    header = "file_name," + ",".join(f"caption_{n}" for n in range(1, 6))
    for split, name in (("development", "Distorted AM Radio noise.wav"), ("evaluation", "Santa Motor.wav")):
        captions = ",".join(f'"A motor, number {n}, hums."' for n in range(1, 6))
        text(root / f"clotho_captions_{split}.csv", header, f"{name},{captions}")
        sound(root / f"clotho_audio_{split}" / split / name, rate=44_100)


def nsynth(root: Path) -> None:
    for split, name, family, pitch, qualities in (
        ("train", "bass_synthetic_033-022-050", "bass", 22, ["dark"]),
        ("test", "guitar_acoustic_014-068-127", "guitar", 68, []),
    ):
        note = {
            "note": 201034,
            "note_str": name,
            "pitch": pitch,
            "velocity": int(name[-3:]),
            "instrument": 417,
            "instrument_str": name[:-8],
            "instrument_family": 0,
            "instrument_family_str": family,
            "instrument_source": 2,
            "instrument_source_str": name.split("_")[1],
            "qualities": [0] * 10,
            "qualities_str": qualities,
            "sample_rate": 16000,
        }
        text(root / f"nsynth-{split}" / "examples.json", json.dumps({name: note}))
        sound(root / f"nsynth-{split}" / "audio" / f"{name}.wav")


def esc50(root: Path) -> None:
    header = "filename,fold,target,category,esc10,src_file,take"
    clips = [("1-100032-A-0.wav", 1, "dog"), ("5-9032-A-0.wav", 5, "dog"), ("5-181977-A-35.wav", 5, "washing_machine")]
    text(root / "meta/esc50.csv", header, *(f"{name},{fold},0,{kind},True,100032,A" for name, fold, kind in clips))
    for name, *_ in clips:
        sound(root / "audio" / name, rate=44_100)


def speech_commands(root: Path) -> None:
    """Write the data set as `datasets` exports it: audio inside the table, classes as numbers."""
    import pyarrow
    import pyarrow.parquet

    names = {"label": {"names": ["yes", "no"], "_type": "ClassLabel"}, "audio": {"_type": "Audio"}}
    for split, label, speaker in (("train", 1, "bob"), ("test", 0, "ann")):
        data = sound(root / "v0.01" / f"{speaker}.wav").read_bytes()
        row = {"audio": {"bytes": data, "path": f"{speaker}.wav"}, "label": label, "speaker_id": speaker}
        table = pyarrow.Table.from_pylist([row])
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": names}})})
        pyarrow.parquet.write_table(table, root / "v0.01" / f"{split}-00000-of-00001.parquet")


def fsdd(root: Path) -> None:
    for name in ("7_jackson_0", "7_jackson_32", "0_theo_5"):
        sound(root / "recordings" / f"{name}.wav", rate=8_000)
    text(root / "metadata.py", "metadata = {}")


def ravdess(root: Path) -> None:
    for actor, name in (("01", "03-01-06-01-02-01-01"), ("24", "03-01-01-01-01-02-24")):
        sound(root / f"Actor_{actor}" / f"{name}.wav", rate=48_000)
    sound(root / "Actor_01" / "03-02-06-01-02-01-01.wav")  # a song, which the layout leaves out
