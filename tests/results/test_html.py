"""HTML pages of runs and studies: valid, safe for any text, and with the numbers of the result files."""

from __future__ import annotations

import base64
import io
import json
import random
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml

from auris import audio, cli
from auris.data.rows import Clip, Row
from auris.evaluation import answer_cache
from auris.evaluation.audio_ablation import Silence
from auris.evaluation.benchmarks import Benchmark
from auris.metrics import edits
from auris.metrics.measures import row_stats
from auris.metrics.records import Prediction, ResultRow
from auris.results.html import confusion, examples, recordings, tables, template
from auris.results.runs import RunPrediction
from support.manifests import write_wave

HOSTILE = "<script>alert('1')</script> \"><img src=x onerror=alert(2)> {{ 7*7 }} </style></title>&lt;b\u202e\ufffe\0"
DISPLAYED = HOSTILE.replace("\ufffe", "\ufffd").replace("\0", "\ufffd")
VOID = {"meta", "br", "img", "link", "input", "hr"}  # elements without an end tag
# Allowed parents of elements that a browser would otherwise move or close.
PARENTS = {"tr": {"thead", "tbody"}, "td": {"tr"}, "th": {"tr"}, "li": {"ul"}, "dt": {"dl"}, "dd": {"dl"}}
PARENTS |= {"thead": {"table"}, "tbody": {"table"}, "caption": {"table"}, "figcaption": {"figure"}}
BLOCKS = {"p", "div", "table", "ul", "dl", "section", "article", "figure", "h1", "h2", "h3", "h4", "pre"}


class PageParser(HTMLParser):
    """Parser that collects tags and texts of a page and records unbalanced or misplaced elements as errors."""

    def __init__(self, page: str):
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.errors: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(page)
        self.close()
        self.errors += [f"<{tag}> is never closed" for tag in self.open]

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        parent = self.open[-1] if self.open else ""
        if parent not in PARENTS.get(tag, {parent}):
            self.errors.append(f"<{tag}> in <{parent}>")
        if tag in BLOCKS and {"p", "span"} & set(self.open):
            self.errors.append(f"<{tag}> inside <p> or <span>")
        if len(dict(attributes)) < len(attributes):
            self.errors.append(f"<{tag}> has an attribute twice")
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.errors.append(f"</{tag}> closes nothing")

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def values(self, name: str) -> list[str]:
        return [attributes[name] or "" for _, attributes in self.tags if name in attributes]


def check_page(page: str) -> PageParser:
    """Assert that a page is valid, loads nothing and runs nothing. Return the parsed page."""
    parsed = PageParser(page)
    assert (
        parsed.errors == []
        and page.startswith("<!DOCTYPE html>")
        and {"html", "head", "body", "title"} <= {tag for tag, _ in parsed.tags}
    )
    anchors = parsed.values("id")
    assert len(set(anchors)) == len(anchors)
    for address in parsed.values("href"):
        assert address[0] == "#" and address[1:] in anchors
    for source in parsed.values("src"):
        assert source.startswith("data:audio/flac;base64,")
    assert not {"script", "img", "link", "iframe", "object", "form", "base"} & {tag for tag, _ in parsed.tags}
    assert not [name for _, attributes in parsed.tags for name in attributes if name.startswith("on")]
    style = page[page.index("<style>") : page.index("</style>")]
    assert "url(" not in style and "@import" not in style
    assert not re.search("[\0-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]", page)
    return parsed


def prediction(number: int, task: str, language: str, metric: str, hypothesis: str, reference: str) -> dict:
    group = f"asr {language}" if task == "asr" else task
    stats = row_stats(metric, hypothesis, reference, language)
    fields = {"id": f"{task}-{language}-{number}", "task": task, "language": language, "group": group, "metric": metric}
    return fields | {
        "stats": stats,
        "hypothesis": hypothesis,
        "reference": reference,
        "provenance": "tts",
        "audio_seconds": 1.0,
    }


PREDICTIONS = [
    prediction(0, "asr", "en", "wer", "the cat sat", "the cat sat"),
    prediction(1, "asr", "en", "wer", HOSTILE, "a dog ran off"),
    prediction(2, "asr", "en", "wer", "a dog ran", "a dog ran off"),
    prediction(3, "asr", "en", "wer", "", "good evening"),
    prediction(0, "asr", "zh", "cer", "你好世界", "你們好世"),
    prediction(0, "sec", "en", "accuracy", "bell", "bell"),
    prediction(1, "sec", "en", "accuracy", "Dog ", "bell"),
    prediction(2, "sec", "en", "accuracy", "a bell, I think", "dog"),
]


def write_run(root: Path, arm: str = "first", lines: list[dict] = PREDICTIONS) -> Path:
    """Write an evaluated run in which one recording is missing."""
    run = root / "runs" / "demo" / arm / "seed_0"
    (run / "predictions").mkdir(parents=True)
    (run / "predictions" / "embedded.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    score = {"study": "demo", "arm": arm, "seed": 0, "benchmark": "embedded", "split": "test", "n": 3}
    score |= {"value": 0.5, "low": 0.25, "high": 0.75, "provenance": "tts", "units": "3 rows", "detectable": None}
    pairs = dict.fromkeys((line["group"], line["metric"]) for line in lines)
    scores = [score | {"task": group, "metric": metric, "signature": f"{metric}|x<y"} for group, metric in pairs]
    (run / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in scores))
    rows = []
    for name, line in {line["id"]: line for line in lines}.items():
        rows.append({"id": name, "task": line["task"], "audio": f"{name}.wav", "text": "x", "language": "en"})
        if name != "asr-en-3":
            write_wave(root / f"{name}.wav", 0.3)
    (root / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (run / "recipe.yaml").write_text(yaml.safe_dump({"data": {"test": [str(root / "test.jsonl")]}}))
    return run


def write_page(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert cli.main(["report", *arguments]) == 0
    return Path(capsys.readouterr().out.removeprefix("wrote ").strip()).read_text(encoding="utf-8")


def test_pages_are_well_formed_and_safe_for_any_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    lines = [line | {"id": f"{line['id']}{HOSTILE}"} for line in PREDICTIONS]
    lines.append(prediction(3, "sec", "en", "accuracy", "bell", HOSTILE) | {"group": HOSTILE})
    run = write_run(tmp_path, lines=PREDICTIONS)
    (run / "predictions" / "embedded.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    scores = [json.loads(row) | {"arm": HOSTILE} for row in (run / "results.jsonl").read_text().splitlines()]
    (run / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in scores))
    (run.parent.parent / "study.yaml").write_text(yaml.safe_dump({"question": "a < b & <script>?"}))
    page = write_page(capsys, f"run={run}", "worst=9")
    parsed = check_page(page)
    assert sum(text.strip() == DISPLAYED.strip() for text in parsed.texts) >= 2, "the text is displayed unchanged"
    assert "a < b & <script>?" in parsed.texts and "<script" not in page


def test_the_page_of_a_run_has_scores_worst_rows_and_their_audio(tmp_path: Path, capsys):
    run = write_run(tmp_path)
    page = write_page(capsys, f"run={run}", "worst=2")
    parsed = check_page(page)
    assert "50.0" in parsed.texts and "25.0 to 75.0" in parsed.texts
    n_headings = sum(tag == "h4" for tag, _ in parsed.tags)
    ids = re.findall("<h4>(.*?)</h4>", page)
    assert ids == ["asr-en-1", "asr-en-3", "asr-zh-0", "sec-en-1", "sec-en-2"] and n_headings == 5
    assert "3 of 4 rows have less than a perfect score" in page and "<li>1 clips are missing or cannot be read" in page
    assert re.search(
        r"asr-en-3\.wav\s*: <strong>the recording is missing or cannot be read: .*no such file", page, re.I
    )
    clips = [base64.b64decode(source.partition(",")[2]) for source in parsed.values("src")]
    assert len(clips) == 4
    wave, rate = soundfile.read(io.BytesIO(clips[0]), dtype="float32")
    assert rate == 16000
    np.testing.assert_allclose(wave, audio.read(tmp_path / "asr-en-1.wav"), atol=1e-4)


def test_audio_beyond_the_size_limit_is_omitted_and_reported(tmp_path: Path, capsys):
    page = write_page(capsys, f"run={write_run(tmp_path)}", "audio_mb=0")
    assert check_page(page).values("src") == []
    assert "left out: the page is limited to 0 MB of audio" in page and "5 clips were left out" in page


def test_the_rows_of_a_reading_are_found_in_the_manifests(tmp_path: Path):
    rows, notes = recordings.find_rows(write_run(tmp_path), "embedded@text", ["asr-en-1"])
    assert rows["asr-en-1"].clips[0].path == tmp_path / "asr-en-1.wav" and notes == []


def test_a_clip_used_by_two_rows_is_embedded_once(tmp_path: Path):
    write_wave(tmp_path / "a.wav", 0.4)
    players = recordings.Players(1)
    first, second = (players.play(Clip(tmp_path / "a.wav")) for _ in range(2))
    segment = players.play(Clip(tmp_path / "a.wav", 0.0, 0.2))
    assert first.source and not second.source and second.repeats == first.anchor
    assert segment.source and segment.seconds == pytest.approx(0.2)


def test_a_page_plays_the_replaced_audio_that_the_model_received(tmp_path: Path):
    write_wave(tmp_path / "other.wav", 0.3)
    labels = {"task": "sec", "text": "bell"}
    for kind, clip in (("shuffled", Clip(tmp_path / "other.wav")), ("silence", Clip(Silence(400)))):
        cache = answer_cache.AnswerCache(tmp_path / answer_cache.CACHE_DIR, {"kind": "task", "of": kind})
        cache.add({"k": answer_cache.Response(Row("r", (clip,), labels), "x")})
        with cache.path.open("ab") as file:
            file.write('{"key": "half a line ü'.encode()[:-1])  # another evaluation is still writing
        before = cache.path.read_bytes()
        part = answer_cache.Part(kind="task", file=cache.path.name, keys=["k"], windows={})
        evaluation = answer_cache.Evaluation(
            benchmark=Benchmark(name="b"),
            version="v2",
            audio=kind,
            changes=[],
            judged=False,
            run={"study": "s", "arm": "a", "seed": 0},
            skipped={},
            parts=[part],
        )
        answer_cache.save_evaluation(tmp_path / answer_cache.CACHE_DIR, f"b@{kind}", evaluation)
        rows, notes = recordings.find_rows(tmp_path, f"b@{kind}", ["r", "gone"])
        assert notes == [] and set(rows) == {"r"} and str(rows["r"].clips[0].path) == str(clip.path)
        assert cache.path.read_bytes() == before
    assert recordings.describe_replaced_audio("b@silence") and recordings.describe_replaced_audio("b") == ""


def test_a_missing_manifest_or_recipe_is_reported(tmp_path: Path, capsys):
    run = write_run(tmp_path)
    (tmp_path / "test.jsonl").unlink()
    page = write_page(capsys, f"run={run}")
    check_page(page)
    assert "there is no file" in page and page.count("the row was not found") == 6
    (run / "recipe.yaml").unlink()
    page = write_page(capsys, f"run={run}")
    assert "does not state its test rows" in page


@pytest.mark.parametrize(("metric", "language"), [("wer", "en"), ("wer", "zh"), ("cer", "en"), ("cer", "fr")])
def test_the_edits_of_an_alignment_equal_those_counted_by_the_metric(metric: str, language: str):
    rng = random.Random(0)
    for _ in range(40):
        predicted, reference = (
            " ".join(rng.choices(["der", "Käse", "sat", "好", "on"], k=rng.randrange(6))) for _ in range(2)
        )
        alignment = edits.align_texts(predicted, reference, language, unit=edits.unit_of(metric, language))
        errors, length = row_stats(metric, predicted, reference, language)
        assert sum(edit.kind != "equal" for edit in alignment) == errors
        assert sum(bool(edit.reference) for edit in alignment) == length
        for edit in alignment:
            empty = {"insert": (True, False), "delete": (False, True)}.get(edit.kind, (False, False))
            assert (edit.reference == "", edit.hypothesis == "") == empty
            assert (edit.reference == edit.hypothesis) == (edit.kind == "equal")


def test_edits_are_marked_per_word_and_per_character(tmp_path: Path, capsys):
    page = write_page(capsys, f"run={write_run(tmp_path)}")
    assert '<span><del>off</del><span class="gap"></span></span>' in page
    assert '<div class="edits characters" lang="zh"' in page and "<del>們</del>" in page


def run_predictions(
    lines: list[dict], *, arm: str = "a", benchmark: str = "b", **changes: object
) -> list[RunPrediction]:
    return [RunPrediction(arm, 0, benchmark, Prediction(**line | changes)) for line in lines]


def test_the_worst_rows_have_the_lowest_scores():
    english = [line for line in PREDICTIONS if line["group"] == "asr en"]
    worst = examples.choose_worst_rows(run_predictions(english), 2)
    assert worst.ids == ["asr-en-1", "asr-en-3"] and "ranked by WER; 3 of 4 rows" in worst.description
    sounds = [line for line in PREDICTIONS if line["group"] == "sec"]
    worst = examples.choose_worst_rows(run_predictions(sounds), 1)
    assert (
        worst.ids == ["sec-en-1"]
        and "2 rows have the same score as the last one shown; of these, the page shows the first 1 by id"
        in worst.description
    )
    assert examples.choose_worst_rows(run_predictions(sounds[:1]), 3).ids == []
    worst = examples.choose_worst_rows(
        [*run_predictions(sounds), *run_predictions(sounds, arm="b", stats=[1.0, 1.0])], 3
    )
    assert worst.ids == ["sec-en-1", "sec-en-2"] and "mean over the systems" in worst.description


def test_rows_are_ranked_by_a_metric_that_scores_single_rows():
    error_rates = examples.row_scores("wer", [[2.0, 0.0], [0.0, 0.0], [1.0, 4.0]])
    assert error_rates[0] == np.inf and np.isnan(error_rates[1]) and error_rates[2] == 0.25
    captions = ["a dog barks loudly", "rain", "a dog barks at night"]
    stats = [
        row_stats("cider", predicted, [reference], "en")
        for predicted, reference in zip(captions, captions[::-1], strict=True)
    ]
    assert examples.row_scores("cider", stats)[1] == max(examples.row_scores("cider", stats)) > 0
    assert examples.row_scores("macro_f1", [["a", "a"], ["a", "b"]]).tolist() == [1.0, 0.0]
    assert np.isnan(examples.row_scores("eer", [[0.3, 1.0]])).all()
    assert examples.choose_metric(["unparsed", "accuracy", "macro_f1"]) == "accuracy"
    assert (
        examples.choose_metric(["eer", "accuracy", "unparsed"]) == "accuracy"
        and examples.choose_metric(["eer"]) == "eer"
    )
    assert (
        examples.choose_metric(["contains", "judged"]) == "judged"
        and examples.choose_metric(["unparsed"]) == "unparsed"
    )


def test_a_confusion_matrix_counts_every_row_once():
    sounds = [row for row in PREDICTIONS if row["group"] == "sec"]
    matrix = confusion.build_matrix([row.prediction for row in run_predictions(sounds)], "a", "accuracy")
    assert matrix.columns == ["bell", "dog", "anything else"] and matrix.counts == [[1, 1, 0], [0, 0, 1]]
    assert matrix.share(0, 1) == 0.5 and matrix.note == ""
    many_classes = [prediction(n, "sec", "en", "accuracy", "c0", f"c{n // 2 if n < 50 else 99}") for n in range(51)]
    matrix = confusion.build_matrix([row.prediction for row in run_predictions(many_classes)], "a", "accuracy")
    assert (
        len(matrix.classes) == confusion.MAX_CLASSES
        and sum(map(sum, matrix.counts)) == 40
        and "6 more classes with 11 rows" in matrix.note
    )


def test_the_page_of_a_study_shows_its_arms_side_by_side(tmp_path: Path, capsys):
    write_run(tmp_path)
    better = [
        line | {"hypothesis": line["reference"], "stats": [0.0, 4.0]} for line in PREDICTIONS if line["task"] == "asr"
    ]
    write_run(tmp_path, "second", better)
    page = write_page(capsys, "study=demo", f"runs={tmp_path / 'runs'}", "arms=[first,second]")
    parsed = check_page(page)
    assert "Benchmark embedded: differences to first" in parsed.texts and "Responses of first; second." in parsed.texts
    assert re.search(r"<dt>second: 0\.0\s%</dt>\s*<dd><span[^>]*>a dog ran off", page)
    assert "sec, accuracy: first was scored, second was not" in page


def test_arms_appear_in_order_and_only_where_they_have_a_score(tmp_path: Path, capsys):
    write_run(tmp_path, "zero")
    write_run(tmp_path, "partial", [line for line in PREDICTIONS if line["task"] == "asr"])
    page = write_page(capsys, "study=demo", f"runs={tmp_path / 'runs'}", "arms=[zero,partial]")
    groups = re.findall(r"<tbody>\s*<tr>\s*<th scope=\"rowgroup\" rowspan=\"(\d)\">(.*?)</th>(.*?)</tbody>", page, re.S)
    arms = {task: re.findall("<td>(zero|partial)</td>", rest) for _, task, rest in groups}
    assert arms == {"asr en": ["zero", "partial"], "asr zh": ["zero", "partial"], "sec": ["zero"]}
    assert [int(span) for span, *_ in groups] == [2, 2, 1]
    assert "Responses of zero; partial." in page and "<dt>zero; partial: " in page


def test_an_interval_is_drawn_on_the_scale_of_its_metric():
    common = {"study": "s", "arm": "a", "seed": 0, "benchmark": "b", "task": "t", "split": "test", "n": 3}
    common |= {"units": "3 rows", "provenance": "tts", "signature": "s"}
    scores = [
        {**common, "metric": "accuracy", "value": 0.5, "low": 0.25, "high": 0.75},
        {**common, "metric": "wer", "value": 1.2, "low": 0.9, "high": 1.5},
        {**common, "metric": "bleu", "value": 40.0, "low": 30.0, "high": 50.0},
        {**common, "metric": "cider", "value": 1.0, "low": 0.5, "high": 1.5},
        {**common, "metric": "eer", "value": float("nan"), "low": float("nan"), "high": float("nan")},
    ]
    [table] = tables.build_run_tables([ResultRow(**score) for score in scores])
    [group] = table.groups
    intervals = [[cell.interval for cell in row if cell.interval] for row in group.rows]
    assert intervals[0] == [{"value": 50.0, "low": 25.0, "high": 75.0}]
    assert intervals[1] == [{"value": 120.0, "low": 90.0, "high": 100.0}]  # drawn as an arrow at the border
    assert intervals[2] == [{"value": 40.0, "low": 30.0, "high": 50.0}] and intervals[3:] == [[], []]
    assert {len(row) + len(group.shared) for row in group.rows} == {len(table.head)}
    assert "MDD" not in table.head  # the minimum detectable difference, which no score states


def test_the_details_of_an_error_rate_are_columns_next_to_it():
    common = {"study": "s", "arm": "a", "seed": 0, "benchmark": "b", "task": "asr en", "split": "test", "n": 3}
    common |= {"units": "3 rows", "provenance": "tts", "signature": "s", "low": 0.0, "high": 1.0}
    values = {"wer": 0.5, "insertions": 0.2, "deletions": 0.1, "substitutions": 0.2, "empty": 0.0, "runaway": 0.25}
    scores = [ResultRow(**common, metric=metric, value=value) for metric, value in values.items()]
    score_table, error_table = tables.build_run_tables(scores)
    assert [row[0].text for group in score_table.groups for row in group.rows] == ["WER (%) ↓"]
    assert error_table.head == ["task", "WER, CER", "ins.", "del.", "sub.", "empty", "runaway"]
    [group] = error_table.groups
    assert [cell.text for cell in group.shared] == ["asr en"]
    assert [cell.text for cell in group.rows[0]] == ["50.0", "20.0", "10.0", "20.0", "0.0", "25.0"]


def test_a_reference_is_shown_in_the_style_of_the_responses():
    events = {"task": "sed", "events": [{"label": "bell", "start": 0.5, "end": 1.0}]}
    fields = {"id": "r", "task": "sed", "language": "en", "group": "sed", "metric": "event_f1", "stats": [0, 0, 1]}
    fields |= {"reference": "<|0.50|>bell<|1.00|>", "provenance": "tts"}
    row, worst = Row("r", (), events), examples.WorstRows("event_f1", "", ["r"])
    for hypothesis, expected in (("bell (0.10-0.20)", "bell (0.50-1.00)"), ("<|0.10|>bell", "<|0.50|>bell<|1.00|>")):
        lines = run_predictions([fields | {"hypothesis": hypothesis}], benchmark="b@silence")
        [example] = examples.build_examples(lines, worst, {"r": row}, {("a", 0): "answer"}, recordings.Players(0))
        assert example.reference == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "set either run=RUN or study=NAME"),
        (["run=a", "study=b"], "run=a and study=b: set either"),
        (["run=nowhere"], "nowhere has no scores; evaluate it"),
        (["run=a", "worst=many"], "worst=many: expected an integer >= 0"),
    ],
)
def test_user_errors_are_reported_in_one_sentence(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
):
    assert cli.main(["report", *arguments]) != 0
    assert message in capsys.readouterr().err


def test_characters_forbidden_in_html_are_replaced():
    assert template.clean("a\x1b[1m\ud800\x85\n\t") == "a\ufffd[1m\ufffd\ufffd\n\t"
