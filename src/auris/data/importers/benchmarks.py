"""Rows of the evaluation files of Qwen-Audio and Qwen2-Audio, and of AIR-Bench."""

from __future__ import annotations

import re

from auris.data.importers.fields import Fields
from auris.errors import UserError, shorten
from auris.text.answer_formats import Notes, Words
from auris.text.tasks import LANGUAGES

# (prefix of `source`, task, language if neither source nor prompt states it), from EVALUATION.md of Qwen-Audio and of
# Qwen2-Audio. If several prefixes match, the first one counts.
_TASKS_BY_SOURCE = (
    ("librispeech", "asr", "en"),
    ("aishell", "asr", "zh"),
    ("cv15", "asr", None),
    ("fleurs", "asr", None),
    ("covost", "s2tt", None),
    ("meld", "er", None),
    ("vocalsound", "vsc", None),
    ("clothoaqa", "aqa", None),
    ("clotho", "aac", None),
    ("audiocaps", "aac", None),
    ("tut2017", "asc", None),
    ("cochlscene", "asc", None),
    ("nsynth", "mna", None),
    ("srwt", "srwt", "zh"),
)
_LANGUAGE_PATTERN = re.compile(rf"<\|({'|'.join(LANGUAGES)})\|>|(?:^|_)({'|'.join(LANGUAGES)})(?=_|$)")


def convert_official(fields: Fields) -> Fields:
    """Convert evaluation rows of Qwen-Audio and Qwen2-Audio to task rows.

    Qwen-Audio's rows have `{audio, gt, source}` (and `question` for ClothoAQA), Qwen2-Audio's rows also have `prompt`.
    `source` determines the task. `prompt` is only searched for the language of a speech recognition row, because auris
    writes the prompt of the task in its own styles.
    """
    source = str(fields.get("source", "")).lower()
    match = next((entry for entry in _TASKS_BY_SOURCE if source.startswith(entry[0])), None)
    if match is None:
        prefixes = ", ".join(prefix for prefix, _, _ in _TASKS_BY_SOURCE)
        raise UserError(f"`source` is {shorten(fields.get('source'))}, expected it to start with one of {prefixes}")
    _, task, language = match
    row = {**fields, "task": task, "text": fields["gt"]}
    del row["gt"]
    languages = [tag or name for tag, name in _LANGUAGE_PATTERN.findall(source)]
    if task == "s2tt":
        if len(languages) < 2:
            raise UserError(
                f"`source` is {shorten(fields['source'])}, expected two languages, for example covost2_en_de_test"
            )
        row["language"], row["target_language"] = languages[-2:]
    elif task == "asr":
        prompt_languages = [tag for tag, _ in _LANGUAGE_PATTERN.findall(str(fields.get("prompt", ""))) if tag]
        row["language"] = next(iter([*prompt_languages, *languages, *filter(None, [language])]), None)
    elif task == "aac":
        row["caption_style"] = "clotho" if source.startswith("clotho") else "audiocaps"
        if isinstance(row["text"], list) and row["text"]:  # all captions of a clip
            row["references"], row["text"] = row["text"], row["text"][0]
    elif task == "mna":
        row |= Notes().parse(row.pop("text"))
    elif task == "srwt":
        row |= {"language": (languages or [language])[0], **Words().parse(_OPENING_TAGS.sub("", row.pop("text")))}
    return row


_OPENING_TAGS = re.compile(r"^(?:<\|\w+\|>)*<\|0\.00\|>")  # start of a timed reference, which is part of the prompt

# From Inference_Foundation.py of AIR-Bench. As in that script, a missing choice is written as "None".
_INSTRUCTION = (
    "Choose the most suitable answer from options A, B, C, and D to respond the question in next line, you may only "
    "choose A or B or C or D."
)


def convert_air_bench(fields: Fields) -> Fields:
    """Convert `{path, question, answer_gt, task_name, dataset_name}` of AIR-Bench to a dialogue.

    Rows of the foundation part of AIR-Bench have `choice_a` to `choice_d`, rows of the chat part have `meta_info`. The
    audio files of each pair of `task_name` and `dataset_name` are in a folder of their own.
    """
    missing = sorted({"path", "question", "task_name", "dataset_name"} - fields.keys())
    if missing:
        raise UserError(f"a row of AIR-Bench (with `answer_gt`) has no {', '.join(missing)}")
    # Name of the folder with the row's audio, and of the group in which the row is scored.
    skill = f"{fields['task_name']}_{fields['dataset_name']}"
    path = f"{skill}/{fields['path']}"
    if fields["task_name"] == "Audio_Grounding":  # its files are listed as .wav but stored as .flac
        path = f"{path[:-3]}flac"
    question = fields["question"]
    if not isinstance(question, str):
        raise UserError(f"`question` is {shorten(question)}, expected a string")
    if "choice_a" in fields:
        options = {letter: fields.get(f"choice_{letter.lower()}") for letter in "ABCD"}
        if fields["answer_gt"] not in options.values():
            raise UserError(f"`answer_gt` is {shorten(fields['answer_gt'])}, expected one of the choices")
        question = "\n".join([_INSTRUCTION, question, *(f"{letter}. {text}" for letter, text in options.items())])
    parts = [{"type": "audio", "audio": path}, {"type": "text", "text": question}]
    answer = {"role": "assistant", "content": fields["answer_gt"]}
    other_fields = {key: value for key, value in fields.items() if key != "path"}
    return {**other_fields, "skill": skill, "messages": [{"role": "user", "content": parts}, answer]}
