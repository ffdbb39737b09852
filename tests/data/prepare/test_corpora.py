"""Tests of the layouts of published corpora: the rows of each, the selection of parts, and missing files."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from auris import config
from auris.text import tasks
from support import layouts

# Expected rows of each miniature corpus: id and some of the labels.
EXPECTED: dict[str, dict[str, dict[str, Any]]] = {
    "librispeech": {
        "librispeech/dev-clean/1272-128104-0000": {
            "task": "asr",
            "text": "mister quilter is the apostle",
            "language": "en",
            "speaker": "1272",
            "gender": "male",
            "split": "dev-clean",
        },
        "librispeech/dev-clean/84-121123-0000": {"text": "go do you hear"},
        "librispeech/dev-clean/84-121123-0001": {"gender": "female"},
        "librispeech/train-clean-100/103-1240-0000": {"split": "train-clean-100"},
    },
    "aishell1": {
        "aishell1/train/BAC009S0002W0122": {
            "task": "asr",
            "text": "而对楼市成交抑制作用最大的限购",
            "language": "zh",
            "speaker": "S0002",
            "gender": "female",
        },
        "aishell1/dev/BAC009S0724W0121": {"gender": "male"},
        "aishell1/test/BAC009S0764W0121": {"split": "test"},
    },
    "aishell2": {
        "aishell2/test-Android/AT0011W0001": {"split": "test-Android"},
        "aishell2/test-iOS/IT0011W0001": {"text": "换一首歌"},
        "aishell2/train-iOS/IC0001W0001": {"text": "厨房用品", "language": "zh", "speaker": "C0001"},
    },
    "common_voice": {
        "common_voice/en/train/common_voice_en_a1": {
            "task": "asr",
            "text": 'Joe "the hat" Keaton disapproved.',
            "language": "en",
            "gender": "male",
            "age": "twenties",
        },
        "common_voice/en/test/common_voice_en_b2": {"speaker": "b2"},
        "common_voice/zh-CN/test/common_voice_zh-CN_c3": {"language": "zh", "gender": "female"},
    },
    "covost2": {
        "covost2/en_de/train/common_voice_en_one": {
            "task": "s2tt",
            "text": "Satz 0.",
            "language": "en",
            "target_language": "de",
            "transcript": 'Sentence 0, "quoted".',
        },
        "covost2/en_de/train/common_voice_en_two": {"split": "train"},  # train_covost in the table
        "covost2/en_de/dev/common_voice_en_three": {"speaker": "s2"},
        "covost2/en_de/test/common_voice_en_four": {"split": "test"},
    },
    "fleurs": {
        "fleurs/en_us/train/10004088536354799741": {
            "task": "asr",
            "text": "a tornado is a column",
            "language": "en",
            "gender": "female",
        },
        "fleurs/cmn_hans_cn/test/1013848018653253112": {"language": "zh", "text": "这并不是告别"},
    },
    "meld": {
        f"meld/{split}/dia0_utt0": {
            "task": "er",
            "text": "surprise",
            "transcript": f"Oh, my {split}!",
            "speaker": "Chandler",
            "sentiment": "positive",
        }
        for split in ("train", "dev", "test")
    },
    "vocalsound": {
        "vocalsound/train/f0003_0_cough": {"task": "vsc", "text": "Cough", "gender": "female", "speaker": "f0003"},
        "vocalsound/valid/m0012_0_throatclearing": {"text": "Throat clearing"},
        "vocalsound/test/m0044_1_laughter": {"text": "Laughter", "gender": "male"},
    },
    "clotho": {
        **{
            f"clotho/train/Distorted AM Radio noise/{n}": {
                "task": "aac",
                "text": f"A motor, number {n}, hums.",
                "caption_style": "clotho",
            }
            for n in range(1, 6)
        },
        "clotho/test/Santa Motor": {
            "text": "A motor, number 1, hums.",
            "references": [f"A motor, number {n}, hums." for n in range(1, 6)],
        },
    },
    "nsynth": {
        "nsynth/train/bass_synthetic_033-022-050": {
            "task": "mna",
            "notes": {"pitch": 22, "velocity": 50, "instrument": "bass", "sonic": ["dark"]},
            "source": "synthetic",
        },
        "nsynth/test/guitar_acoustic_014-068-127": {
            "notes": {"pitch": 68, "velocity": 127, "instrument": "guitar", "sonic": []}
        },
    },
    "esc50": {
        "esc50/audio/1-100032-A-0": {"task": "sec", "text": "dog", "split": "train", "fold": "1"},
        "esc50/audio/5-9032-A-0": {"split": "test"},
        "esc50/audio/5-181977-A-35": {"text": "washing_machine"},
    },
    "fsdd": {
        "fsdd/recordings/7_jackson_0": {"task": "ks", "text": "seven", "speaker": "jackson", "split": "test"},
        "fsdd/recordings/7_jackson_32": {"split": "train"},
        "fsdd/recordings/0_theo_5": {"text": "zero", "split": "train"},
    },
    "ravdess": {
        "ravdess/Actor_01/03-01-06-01-02-01-01": {
            "task": "er",
            "text": "fearful",
            "transcript": "Dogs are sitting by the door",
            "speaker": "01",
            "split": "train",
        },
        "ravdess/Actor_24/03-01-01-01-01-02-24": {"text": "neutral", "split": "test"},
    },
}


def read(root: Path, corpus: str, *options: str) -> dict[str, dict[str, Any]]:
    """Read a corpus as `auris prepare` does, and return its rows by id."""
    run_config = config.resolve(config.compose([f"layout={corpus}", *options], "prepare"), "prepare")
    rows = list(config.build(run_config["layout"])(root))
    assert len({row["id"] for row in rows}) == len(rows)
    return {row["id"]: row for row in rows}


def write_corpus(root: Path, corpus: str) -> Path:
    """Write the miniature copy of a corpus."""
    getattr(layouts, corpus)(root)
    return root


@pytest.mark.parametrize("corpus", EXPECTED)
def test_every_layout_gives_the_expected_usable_rows(tmp_path, corpus):
    rows = read(write_corpus(tmp_path, corpus), corpus)
    assert rows.keys() == EXPECTED[corpus].keys()
    for name, row in rows.items():
        assert row.items() >= EXPECTED[corpus][name].items()
        assert row["audio"].is_file() and row["licence"] and row["split"] and "problem" not in row
        assert tasks.find_problem(row) is None


def test_a_hub_dataset_gives_usable_rows(tmp_path):
    """Speech Commands in the Parquet format of the Hugging Face Hub is an example in the README."""
    pytest.importorskip("pyarrow")
    layouts.speech_commands(tmp_path)
    rows = read(tmp_path, "speech_commands")
    assert [(row["text"], row["split"], row["speaker"]) for row in rows.values()] == [
        ("yes", "test", "ann"),
        ("no", "train", "bob"),
    ]
    assert all(row["audio"].data[:4] == b"RIFF" and tasks.find_problem(row) is None for row in rows.values())


# Folder inside the archive of each corpus. `root` may be this folder or its parent.
INNER_FOLDER = {
    "librispeech": "LibriSpeech",
    "aishell1": "data_aishell",
    "aishell2": "AISHELL-2/iOS",
    "common_voice": "cv-corpus-15.0-2023-09-08",
    "covost2": "en",
    "meld": "MELD.Raw",
}


@pytest.mark.parametrize("corpus", INNER_FOLDER)
def test_root_may_be_the_folder_inside_the_archive(tmp_path, corpus):
    write_corpus(tmp_path, corpus)
    expected = {name for name in EXPECTED[corpus] if corpus != "aishell2" or "iOS" in name}
    if corpus == "common_voice":
        rows = read(tmp_path / INNER_FOLDER[corpus], corpus)
        assert rows.keys() == expected
        [row_id] = read(tmp_path / INNER_FOLDER[corpus] / "zh-CN", corpus)
        assert row_id == "common_voice/zh-CN/test/common_voice_zh-CN_c3"
    else:
        assert read(tmp_path / INNER_FOLDER[corpus], corpus).keys() == expected


@pytest.mark.parametrize("corpus", ["clotho", "fleurs", "vocalsound"])
def test_root_may_be_the_parent_folder(tmp_path, corpus):
    write_corpus(tmp_path / "unpacked", corpus)
    assert read(tmp_path, corpus).keys() == EXPECTED[corpus].keys()


@pytest.mark.parametrize(
    ("corpus", "task", "name", "expected"),
    [
        ("librispeech", "sgc", "librispeech/dev-clean/1272-128104-0000#sgc", {"text": "male"}),
        ("aishell1", "sgc", "aishell1/test/BAC009S0764W0121#sgc", {"text": "female"}),
        ("common_voice", "lid", "common_voice/zh-CN/test/common_voice_zh-CN_c3#lid", {"language": "zh"}),
        ("covost2", "asr", "covost2/en_de/test/common_voice_en_four#asr", {"text": 'Sentence 3, "quoted".'}),
        ("fleurs", "sgc", "fleurs/en_us/train/10004088536354799741#sgc", {"text": "female"}),
        ("meld", "asr", "meld/test/dia0_utt0#asr", {"text": "Oh, my test!", "emotion": "surprise"}),
        ("vocalsound", "sgc", "vocalsound/test/m0044_1_laughter#sgc", {"text": "male", "sound": "Laughter"}),
        ("nsynth", "mic", "nsynth/test/guitar_acoustic_014-068-127#mic", {"text": "guitar"}),
    ],
)
def test_each_additional_task_gives_separate_rows(tmp_path, corpus, task, name, expected):
    row = read(write_corpus(tmp_path, corpus), corpus, f"layout.tasks=[{task}]")[name]
    assert row.items() >= {"task": task, **expected}.items() and tasks.find_problem(row) is None


@pytest.mark.parametrize(
    ("corpus", "option", "expected"),
    [
        ("librispeech", "splits=[train-clean-100]", {"librispeech/train-clean-100/103-1240-0000"}),
        ("aishell1", "splits=[dev]", {"aishell1/dev/BAC009S0724W0121"}),
        ("aishell2", "splits=[test-Android]", {"aishell2/test-Android/AT0011W0001"}),
        ("common_voice", "languages=[zh-CN]", {"common_voice/zh-CN/test/common_voice_zh-CN_c3"}),
        ("common_voice", "splits=[train]", {"common_voice/en/train/common_voice_en_a1"}),
        ("covost2", "splits=[dev]", {"covost2/en_de/dev/common_voice_en_three"}),
        ("fleurs", "languages=[en_us]", {"fleurs/en_us/train/10004088536354799741"}),
        ("fleurs", "splits=[test]", {"fleurs/cmn_hans_cn/test/1013848018653253112"}),
        ("meld", "splits=[dev]", {"meld/dev/dia0_utt0"}),
        ("vocalsound", "splits=[test]", {"vocalsound/test/m0044_1_laughter"}),
        ("clotho", "splits=[test]", {"clotho/test/Santa Motor"}),
        ("nsynth", "splits=[test]", {"nsynth/test/guitar_acoustic_014-068-127"}),
    ],
)
def test_splits_and_languages_can_be_selected(tmp_path, corpus, option, expected):
    assert read(write_corpus(tmp_path, corpus), corpus, f"layout.{option}").keys() == expected


@pytest.mark.parametrize("corpus", [name for name in EXPECTED if name not in ("esc50", "fsdd", "ravdess")])
def test_the_error_for_an_unknown_split_names_the_split(tmp_path, corpus):
    with pytest.raises((ValueError, FileNotFoundError), match="mystery"):
        read(write_corpus(tmp_path, corpus), corpus, "layout.splits=[mystery]")


@pytest.mark.parametrize("corpus", EXPECTED)
def test_the_error_for_a_wrong_folder_says_which_files_are_expected(tmp_path, corpus):
    layouts.text(tmp_path / "some/notes.txt", "hello")
    with pytest.raises(FileNotFoundError, match="expected|below"):
        read(tmp_path, corpus)


def test_a_task_that_the_corpus_has_no_labels_for_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"layout.tasks=\[er\]: expected some of asr, sgc for librispeech"):
        read(write_corpus(tmp_path, "librispeech"), "librispeech", "layout.tasks=[er]")


# --- faulty corpora ---


def test_audio_without_a_transcript_and_speakers_without_a_gender_are_unusable(tmp_path):
    write_corpus(tmp_path, "librispeech")
    chapter = tmp_path / "LibriSpeech/dev-clean/84/121123"
    layouts.sound(chapter / "84-121123-0002.flac")
    (tmp_path / "LibriSpeech/SPEAKERS.TXT").unlink()
    rows = read(tmp_path, "librispeech", "layout.tasks=[asr,sgc]")
    assert "no transcript" in rows["librispeech/dev-clean/84-121123-0002"]["problem"]
    assert (
        rows["librispeech/dev-clean/84-121123-0000#sgc"]["problem"] == "the corpus states no gender for this utterance"
    )
    assert "problem" not in rows["librispeech/dev-clean/84-121123-0000"]


def test_aishell_rows_without_audio_or_transcript_are_unusable(tmp_path):
    write_corpus(tmp_path, "aishell1")
    home = tmp_path / "data_aishell"
    layouts.sound(home / "wav/train/S0002/BAC009S0002W0999.wav")
    (home / "wav/dev/S0724/BAC009S0724W0121.wav").unlink()
    rows = read(tmp_path, "aishell1")
    assert "no transcript" in rows["aishell1/train/BAC009S0002W0999"]["problem"]
    assert "there is no BAC009S0724W0121.wav" in rows["aishell1/BAC009S0724W0121"]["problem"]
    assert len(read(tmp_path, "aishell1", "layout.splits=[test]")) == 1


def test_the_error_for_archives_that_are_not_unpacked_names_an_archive(tmp_path):
    write_corpus(tmp_path, "aishell1")
    home = tmp_path / "data_aishell/wav"
    shutil.rmtree(home / "train")
    layouts.text(home / "S0002.tar.gz", "packed")
    with pytest.raises(FileNotFoundError, match=r"unpack .*S0002.tar.gz"):
        read(tmp_path, "aishell1")
    write_corpus(tmp_path / "f", "fleurs")
    shutil.rmtree(tmp_path / "f/en_us/audio/train")
    layouts.text(tmp_path / "f/en_us/audio/train.tar.gz", "packed")
    with pytest.raises(FileNotFoundError, match=r"unpack .*train.tar.gz"):
        read(tmp_path / "f", "fleurs")


def test_an_aishell2_row_missing_from_wav_scp_is_unusable(tmp_path):
    write_corpus(tmp_path, "aishell2")
    layouts.text(tmp_path / "AISHELL-2/iOS/test/trans.txt", "IT0011W0001\t换一首歌", "IT0011W0002\t下一首")
    row = read(tmp_path, "aishell2")["aishell2/test-iOS/IT0011W0002"]
    assert row["problem"] == "wav.scp has no line for this file"


def test_an_incomplete_line_of_a_table_is_an_unusable_row(tmp_path):
    write_corpus(tmp_path, "common_voice")
    table = tmp_path / "cv-corpus-15.0-2023-09-08/en/test.tsv"
    table.write_text(table.read_text() + "b3\tclip.mp3\n")
    row = read(tmp_path / "cv-corpus-15.0-2023-09-08", "common_voice")["common_voice/en/test:3"]
    assert row["problem"] == "test.tsv:3: 2 columns, expected 11"


def test_a_table_without_a_required_column_is_an_error(tmp_path):
    write_corpus(tmp_path, "common_voice")
    layouts.text(tmp_path / "cv-corpus-15.0-2023-09-08/en/test.tsv", "client_id\tpath\ttext", "a\tb.mp3\thello")
    with pytest.raises(ValueError, match=r"test.tsv, after line 1: it has no column sentence; it has client_id, path"):
        read(tmp_path, "common_voice")


def test_invalid_json_in_nsynth_is_an_error_and_an_unknown_vocalsound_class_is_unusable(tmp_path):
    write_corpus(tmp_path, "nsynth")
    layouts.text(tmp_path / "nsynth-test/examples.json", '{"a": ')
    with pytest.raises(ValueError, match="examples.json: Expecting value"):
        read(tmp_path, "nsynth")
    write_corpus(tmp_path / "v", "vocalsound")
    layouts.text(tmp_path / "v/datafiles/te.json", '{"data": [{"wav": "b.wav", "labels": "/m/x"}]}')
    rows = read(tmp_path / "v", "vocalsound")
    assert rows["vocalsound/test/b"]["problem"] == "the corpus states no sound for this utterance"


def test_the_error_for_an_incomplete_line_in_the_vocalsound_class_table_gives_its_number(tmp_path):
    write_corpus(tmp_path, "vocalsound")
    table = tmp_path / "class_labels_indices_vs.csv"
    table.write_text(table.read_text() + "4,/m/01hsr_\n")
    with pytest.raises(ValueError, match="class_labels_indices_vs.csv:6: 2 columns, expected 3"):
        read(tmp_path, "vocalsound")


def test_a_covost2_translation_without_a_validated_clip_is_unusable(tmp_path):
    write_corpus(tmp_path, "covost2")
    table = tmp_path / "en/covost_v2.en_de.tsv"
    table.write_text(table.read_text() + "common_voice_en_five.mp3\tSatz.\ttest\n")
    row = read(tmp_path, "covost2")["covost2/en_de/test/common_voice_en_five"]
    assert row["problem"] == "validated.tsv has no line for common_voice_en_five.mp3"


def test_tables_written_by_covost2s_script_are_read_too(tmp_path):
    write_corpus(tmp_path, "covost2")
    (tmp_path / "en/covost_v2.en_de.tsv").unlink()
    header = "path\tsentence\ttranslation\tclient_id"
    layouts.text(tmp_path / "en/covost_v2.en_de.test.tsv", header, "common_voice_en_four.mp3\tHi.\tHallo.\ts3")
    [row] = read(tmp_path, "covost2").values()
    assert row.items() >= {"text": "Hallo.", "transcript": "Hi.", "split": "test", "speaker": "s3"}.items()


def test_the_error_for_meld_without_audio_gives_the_ffmpeg_command(tmp_path):
    write_corpus(tmp_path, "meld")
    for path in (tmp_path / "MELD.Raw").rglob("dia*.wav"):
        path.unlink()
    with pytest.raises(FileNotFoundError, match="has videos but no audio.*ffmpeg"):
        read(tmp_path / "MELD.Raw", "meld")


def test_fleurs_can_use_the_raw_transcription(tmp_path):
    write_corpus(tmp_path, "fleurs")
    rows = read(tmp_path, "fleurs", "layout.text=raw_transcription")
    assert rows["fleurs/en_us/train/10004088536354799741"]["text"] == "A tornado is a column."
    with pytest.raises(ValueError, match="layout.text=words: expected transcription or raw_transcription"):
        read(tmp_path, "fleurs", "layout.text=words")


def test_librispeech_transcripts_can_be_kept_in_upper_case(tmp_path):
    rows = read(write_corpus(tmp_path, "librispeech"), "librispeech", "layout.lower=false")
    assert rows["librispeech/dev-clean/84-121123-0000"]["text"] == "GO DO YOU HEAR"
