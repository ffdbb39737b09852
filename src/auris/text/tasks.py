"""The task table: what each task needs from a row, how both prompting styles ask for it, and how its answer is scored.

Data, not code: all rows of Qwen-Audio's Table 1, and those that the language model and dialogues need. A new task is a
new entry. Templates name row fields in braces; `<|...|>` are single tokens of the vocabulary (`tokenizer.py`). Where no
prompt was published, the nearest published tokens are used and `tags_source` says "ours". Two pairs of tasks share
their tags, as no token tells them apart: dialects are asked for as speech is, questions on music as those on sound.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from auris.errors import UserError
from auris.text import answer_formats
from auris.text.answer_formats import LANGUAGES, part

# What stands for a language in Qwen-Audio's tags where it has none of its own (tokenization_qwen.py): the nearest one.
_NEAREST_TAG = {"yue": "zh"}

CAPTION_STYLES = ("clotho", "audiocaps", "plain")  # Qwen-Audio evaluate_caption.py; plain is nobody's house style

# How a dialogue is spoken to (Qwen2-Audio section 2): told from its messages, never from a switch in the prompt.
MODES = ("audio_analysis", "voice_chat", "text")

# Labels whose value becomes part of a control token: (what they are, the values that there are).
_CLOSED: dict[str, tuple[str, Collection[str]]] = {
    "language": ("languages", LANGUAGES),
    "target_language": ("languages", LANGUAGES),
    "caption_style": ("caption styles", CAPTION_STYLES),
    "mode": ("modes", MODES),
}

# Tasks whose `text` is what is said, word for word, in the language of the speech.
TRANSCRIPTS = ("asr", "dialect_asr")

# What evaluation data for a task can be: see `Task.grade`.
GRADES = {
    "A": "real recordings",
    "B": "real recordings mixed by us, so that labels are exact",
    "C": "synthetic audio, labels correct by construction: tests the mechanism, says nothing about people",
    "D": "the label is only a generator's knob: a test of the format, never a score",
}
_SYNTHETIC = {"tts", "procedural", "templates"}  # values of a row's `provenance`


@dataclass(frozen=True, kw_only=True)
class Task:
    """One row of the table.

    Args:
        code, name: in manifests; in words.
        family: speech, sound or music.
        hours: of training audio in Qwen-Audio's Table 1, under the table's own names; empty for tasks that it lacks.
        needs: labels without which a row cannot be used.
        clips: the least number of clips that is asked about.
        tags: the hierarchical-tag prompt that follows the audio (Qwen-Audio section 3.2 and its evaluation scripts).
        natural, paraphrases: the canonical instruction (Qwen2-Audio), and the other wordings it is trained with.
        optional: labels that have the value given here where a row is silent.
        uses: labels that count where a row has them, for its score.
        choices: the only answers there are, where the task itself says so.
        write, say: turn a row's labels into the pieces of its answer under tags and in natural language (None: alike).
        parse: turns an answer of either form back into labels.
        tagged: `write` uses control tokens, to be kept when an answer is decoded.
        metric, compared: its metric, and what of an answer it compares.
        also: further metrics, each with what it compares.
        group: names the line of a results table.
        closed: what is compared is one of a closed set, so that an answer outside it counts as unparsed.
        grade: of the best evaluation data that can be had, a key of GRADES.
        embedded: of what the embedded corpus can make for it.
    """

    code: str
    name: str
    needs: tuple[str, ...]
    metric: str
    family: str = ""
    hours: Mapping[str, str] = field(default_factory=dict)
    clips: int = 1
    tags: str = ""
    tags_source: str = "none"
    natural: str = ""
    natural_source: str = "ours"
    paraphrases: tuple[str, ...] = ()
    optional: Mapping[str, str] = field(default_factory=dict)
    uses: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    write: Callable[[Mapping[str, Any]], Sequence[str]] = answer_formats.write_text
    say: Callable[[Mapping[str, Any]], Sequence[str]] | None = None
    parse: Callable[[str], dict[str, Any]] = answer_formats.parse_text
    tagged: bool = False
    compared: Callable[[str], Any] = str
    also: Mapping[str, Callable[[str], Any]] = field(default_factory=dict)
    group: str
    closed: bool = False
    grade: str = ""
    embedded: str = ""

    def pieces(self, labels: Mapping[str, Any], *, natural: bool = False) -> Sequence[str]:
        """The answer that a row's labels ask for: text, and control tokens as `answers.Tag`."""
        return (natural and self.say or self.write)(labels)

    def render(self, labels: Mapping[str, Any], *, natural: bool = False) -> str:
        """That answer as one string, control tokens written out."""
        return "".join(self.pieces(labels, natural=natural))

    @property
    def wordings(self) -> tuple[str, ...]:
        """All instructions in natural language, the canonical one first."""
        return (self.natural, *self.paraphrases)


# Of a class: an answer is right or not; how rare classes fare, and how many answers are no class at all.
_CLASSES = {"macro_f1": str, "unparsed": str}

_ROWS = (
    # --- speech ---
    Task(
        code="asr",
        name="automatic speech recognition",
        family="speech",
        hours={"ASR": "30k"},
        needs=("text", "language"),
        tags="<|startoftranscript|><|{language_tag}|><|transcribe|><|{language_tag}|><|notimestamps|><|wo_itn|>",
        tags_source="published",
        natural="Detect the language and recognize the speech: <|{language}|>",
        natural_source="published (as read by third parties)",
        paraphrases=(
            "Recognize the speech and write it down: <|{language}|>",
            "Transcribe the audio into text: <|{language}|>",
            "What is said in this recording? <|{language}|>",
            "Write down what the speaker says: <|{language}|>",
            "Listen to the speech and give its transcript: <|{language}|>",
            "Turn the speech into text: <|{language}|>",
            "Which words are spoken? <|{language}|>",
            "Give the words of this recording: <|{language}|>",
        ),
        metric="wer",
        group="asr {language}",
        grade="A",
        embedded="C",
    ),
    Task(
        code="s2tt",
        name="speech-to-text translation",
        family="speech",
        hours={"S2TT": "3.7k"},
        needs=("text", "language", "target_language"),
        tags=("<|startoftranscript|><|{language_tag}|><|translate|><|{target_language_tag}|><|notimestamps|><|itn|>"),
        tags_source="published",
        natural="Detect the language and translate the speech into {target_language_name}: <|{language}|>",
        natural_source="published (as read by third parties)",
        paraphrases=(
            "Translate what is said into {target_language_name}: <|{language}|>",
            "Write the speech in {target_language_name}: <|{language}|>",
            "What does the speaker say, in {target_language_name}? <|{language}|>",
            "Give a {target_language_name} translation of the speech: <|{language}|>",
            "Listen and translate into {target_language_name}: <|{language}|>",
            "How would one say this in {target_language_name}? <|{language}|>",
            "Turn the speech into {target_language_name} text: <|{language}|>",
            "Put what you hear into {target_language_name}: <|{language}|>",
        ),
        metric="bleu",
        group="s2tt {language}-{target_language}",
        grade="C",
        embedded="C",
    ),
    Task(
        code="osr",
        name="overlapped speech recognition",
        family="speech",
        hours={"OSR": "<1k"},
        needs=("texts", "language"),
        tags="<|startoftranscript|><|{language_tag}|><|transcribe|><|{language_tag}|><|notimestamps|><|delim|>",
        tags_source="ours",
        natural="Recognize what each of the speakers says: <|{language}|>",
        paraphrases=(
            "Several people speak at once. Write down each of them: <|{language}|>",
            "Transcribe every speaker by themselves: <|{language}|>",
            "Who says what in this recording? <|{language}|>",
            "Separate the voices and give their words: <|{language}|>",
            "Write a transcript for each speaker: <|{language}|>",
            "The speech overlaps. What do the speakers say? <|{language}|>",
            "Give the words of each voice, one after the other: <|{language}|>",
            "Tell apart the speakers and recognize their speech: <|{language}|>",
        ),
        write=answer_formats.write_texts,
        say=answer_formats.say_texts,
        parse=answer_formats.parse_texts,
        tagged=True,
        metric="cpwer",
        compared=part(answer_formats.parse_texts, "texts"),
        group="osr {language}",
        grade="B",
        embedded="C",
    ),
    Task(
        code="dialect_asr",
        name="dialect speech recognition",
        family="speech",
        hours={"Dialect ASR": "2k"},
        needs=("text", "language", "dialect"),
        tags="<|startoftranscript|><|{language_tag}|><|transcribe|><|{language_tag}|><|notimestamps|><|wo_itn|>",
        tags_source="ours",
        natural="Detect the dialect and recognize the speech: <|{language}|>",
        paraphrases=(
            "Recognize the dialect speech and write it down: <|{language}|>",
            "Transcribe the dialect into text: <|{language}|>",
            "What does this dialect speaker say? <|{language}|>",
            "The speaker has an accent. Write down the words: <|{language}|>",
            "Listen to the regional speech and give its transcript: <|{language}|>",
            "Turn the accented speech into text: <|{language}|>",
            "Which words are spoken in this dialect? <|{language}|>",
            "Give the words of this dialect recording: <|{language}|>",
        ),
        metric="wer",
        group="dialect_asr {dialect}",
        grade="C",
        embedded="C",
    ),
    Task(
        code="srwt",
        name="speech recognition with word-level timestamps",
        family="speech",
        hours={"SRWT en": "10k", "SRWT zh": "11k"},
        needs=("words", "language"),
        tags="<|startoftranscript|><|{language_tag}|><|transcribe|><|{language_tag}|><|timestamps|><|0.00|>",
        tags_source="published",
        natural="Recognize the speech and the time of each word: <|{language}|>",
        paraphrases=(
            "Write down the speech with the times of its words: <|{language}|>",
            "Transcribe the audio with word timestamps: <|{language}|>",
            "What is said in this recording, and when? <|{language}|>",
            "Give each word with its start and its end in seconds: <|{language}|>",
            "When does each word begin and end? <|{language}|>",
            "Align the words with the audio: <|{language}|>",
            "List the spoken words and their times: <|{language}|>",
            "Turn the speech into text with the time of every word: <|{language}|>",
        ),
        write=answer_formats.write_words,
        say=answer_formats.say_words,
        parse=answer_formats.parse_words,
        tagged=True,
        metric="wer",
        compared=answer_formats.spoken_words,
        also={
            "aas_ms": part(answer_formats.parse_words, "words"),
            "word_coverage": part(answer_formats.parse_words, "words"),
            "aas_official": answer_formats.published_words,
        },
        group="srwt {language}",
        grade="C",
        embedded="C",
    ),
    Task(
        code="did",
        name="dialect identification",
        family="speech",
        hours={"DID": "2k"},
        needs=("text", "language"),
        tags="<|startofanalysis|><|{language_tag}|><|keyword|><|en|><|notimestamps|><|speech_understanding|>",
        tags_source="ours",
        natural="Identify the dialect of the speech in English:",
        paraphrases=(
            "Which dialect is spoken?",
            "Name the dialect of this recording:",
            "What dialect does the speaker use?",
            "What accent does the speaker have?",
            "Tell the dialect of the speaker:",
            "In which regional variety is this said?",
            "Recognize the accent of the speech:",
            "Where does this way of speaking come from?",
        ),
        metric="accuracy",
        also=_CLASSES,
        closed=True,
        group="did",
        grade="C",
        embedded="C",
    ),
    Task(
        code="lid",
        name="language identification",
        family="speech",
        hours={"LID": "11.7k"},
        needs=("language",),
        tags="<|startofanalysis|><|unknown|><|keyword|><|en|><|notimestamps|><|speech_understanding|>",
        tags_source="ours",
        natural="Identify the language of the speech in English:",
        paraphrases=(
            "Which language is spoken?",
            "Name the language of this recording:",
            "What language does the speaker use?",
            "Tell the language of the speech:",
            "In which language is this said?",
            "Recognize the spoken language:",
            "What is the language of the speaker?",
            "Listen and name the language:",
        ),
        write=answer_formats.write_language,
        parse=answer_formats.parse_language,
        metric="accuracy",
        also=_CLASSES,
        closed=True,
        group="lid",
        grade="C",
        embedded="C",
    ),
    Task(
        code="sgc",
        name="speaker gender classification",
        family="speech",
        hours={"SGC": "4.8k"},
        needs=("text",),
        tags="<|startofanalysis|><|unknown|><|keyword|><|en|><|notimestamps|><|speaker_meta|>",
        tags_source="ours",
        natural="Recognize the gender of the speaker with keywords in English:",
        paraphrases=(
            "Is the speaker male or female?",
            "What is the gender of the speaker?",
            "Classify the voice as male or female:",
            "Tell the gender of the speaker:",
            "Is this the voice of a man or of a woman?",
            "Name the gender of the voice:",
            "Who is speaking, male or female?",
            "Listen to the voice and give its gender:",
        ),
        metric="accuracy",
        also=_CLASSES,
        closed=True,
        group="sgc",
        grade="A",
        embedded="C",
    ),
    Task(
        code="er",
        name="speech emotion recognition",
        family="speech",
        hours={"ER": "<1k"},
        needs=("text",),
        tags="<|startofanalysis|><|en|><|keyword|><|en|><|notimestamps|><|emotion_recognition|>",
        tags_source="published",
        natural="Recognize the emotion with keywords in English:",
        natural_source="published (as read by third parties)",
        paraphrases=(
            "Which emotion does the speaker show?",
            "What is the mood of the speaker?",
            "Name the emotion in the voice:",
            "How does the speaker feel?",
            "Classify the emotion of the speech:",
            "Tell the emotion of the speaker:",
            "What feeling can be heard in the voice?",
            "Listen to the voice and give its emotion:",
        ),
        metric="accuracy",
        also=_CLASSES,
        closed=True,
        group="er",
        grade="A",
        embedded="D",
    ),
    Task(
        code="sv",
        name="speaker verification",
        family="speech",
        hours={"SV": "1.2k"},
        needs=("text",),
        clips=2,
        tags="<|startofanalysis|><|unknown|><|question|><|en|><|notimestamps|><|speaker_meta|>",
        tags_source="ours",
        natural="Are both recordings of the same speaker?",
        paraphrases=(
            "Does the same person speak in both recordings?",
            "Is it the same voice twice?",
            "Tell whether the two speakers are one person:",
            "Do these recordings have the same speaker?",
            "Compare the voices. Is it one speaker?",
            "Is the second speaker the first one again?",
            "Verify that both recordings are of one speaker:",
            "Were both recordings spoken by the same person?",
        ),
        choices=("yes", "no"),
        metric="accuracy",
        also={**_CLASSES, "eer": str},
        closed=True,
        group="sv",
        grade="A",
        embedded="C",
    ),
    Task(
        code="sd",
        name="speaker diarization",
        family="speech",
        hours={"SD": "<1k"},
        needs=("turns",),
        tags="<|startofanalysis|><|unknown|><|keyword|><|en|><|timestamps|><|speaker_meta|>",
        tags_source="ours",
        natural="Tell which speaker speaks when:",
        paraphrases=(
            "Who speaks when?",
            "Give the turns of each speaker with their times:",
            "When does each speaker begin and end?",
            "List the speakers with their times in seconds:",
            "Diarize the recording:",
            "Divide the recording by its speakers:",
            "At which times is each of the speakers heard?",
            "Mark the turns of the conversation:",
        ),
        write=answer_formats.write_turns,
        say=answer_formats.say_turns,
        parse=answer_formats.parse_turns,
        tagged=True,
        metric="der",
        compared=part(answer_formats.parse_turns, "turns"),
        also={"jer": part(answer_formats.parse_turns, "turns")},
        group="sd",
        grade="B",
        embedded="C",
    ),
    Task(
        code="ser",
        name="speech entity recognition",
        family="speech",
        hours={"SER": "<1k"},
        needs=("entities", "language"),
        tags="<|startofanalysis|><|{language_tag}|><|keyword|><|en|><|notimestamps|><|named_entity_recognition|>",
        tags_source="ours",
        natural="Recognize the entities of the speech and their types:",
        paraphrases=(
            "Which entities are named in the speech?",
            "List the named entities with their types:",
            "What people, places and things does the speaker name?",
            "Find the entities in what is said:",
            "Give each entity of the speech with its type:",
            "Name the entities that are spoken:",
            "Mark the entities of the recording:",
            "Which names, times and places can be heard?",
        ),
        write=answer_formats.write_entities,
        say=answer_formats.say_entities,
        parse=answer_formats.parse_entities,
        tagged=True,
        metric="slot_f1",
        compared=part(answer_formats.parse_entities, "entities"),
        group="ser {language}",
        grade="C",
        embedded="C",
    ),
    Task(
        code="ks",
        name="keyword spotting",
        family="speech",
        hours={"KS": "<1k"},
        needs=("text",),
        tags="<|startoftranscript|><|en|><|keyword|><|en|><|notimestamps|><|wo_itn|>",
        tags_source="ours",
        natural="Spot the keyword in the speech:",
        paraphrases=(
            "Which command word is spoken?",
            "Find the keyword in this recording:",
            "What is the keyword?",
            "Name the command in the speech:",
            "Which keyword can be heard?",
            "Listen for the keyword and write it down:",
            "What is the command word?",
            "Detect the spoken keyword:",
        ),
        metric="accuracy",
        also=_CLASSES,
        closed=True,
        group="ks",
        grade="A",
        embedded="C",
    ),
    Task(
        code="ic",
        name="intent classification",
        family="speech",
        hours={"IC": "<1k"},
        needs=("intent",),
        tags="<|startofanalysis|><|en|><|speech_understanding|><|en|><|notimestamps|><|scenario|><|action|>",
        tags_source="ours",
        natural="Recognize the intent of the speech in English:",
        paraphrases=(
            "What does the speaker want?",
            "Name the intent of the command:",
            "Classify the intent of this request:",
            "What is the speaker asking for?",
            "Which intent does the request have?",
            "Tell the purpose of the command:",
            "What should be done after this command?",
            "Listen to the request and give its intent:",
        ),
        write=answer_formats.write_intent,
        parse=answer_formats.parse_intent,
        metric="accuracy",
        also=_CLASSES,
        closed=True,
        group="ic",
        grade="C",
        embedded="C",
    ),
    Task(
        code="sf",
        name="slot filling, with the intent",
        family="speech",
        hours={"SF": "<1k"},
        needs=("intent", "slots"),
        tags="<|startofanalysis|><|en|><|speech_understanding|><|en|><|notimestamps|><|entities|>",
        tags_source="ours",
        natural="Recognize the intent and the slots of the speech in English:",
        paraphrases=(
            "What does the speaker want? Give the intent and its slots:",
            "Fill the slots of the command:",
            "List the intent and the slot values of this request:",
            "Give the intent with the name and value of each slot:",
            "What is asked for, and with which details?",
            "Understand the request: intent and slots:",
            "Which slots does the command fill?",
            "Take the command apart into its intent and slots:",
        ),
        write=answer_formats.write_slots,
        parse=answer_formats.parse_slots,
        metric="slot_f1",
        compared=answer_formats.parse_slots,
        also={"intent_accuracy": answer_formats.parse_slots},
        group="sf",
        grade="A",
        embedded="C",
    ),
    Task(
        code="sap",
        name="speaker age prediction",
        family="speech",
        hours={"SAP": "4.8k"},
        needs=("text",),
        tags="<|startofanalysis|><|unknown|><|keyword|><|en|><|notimestamps|><|speaker_meta|><|choice|>",
        tags_source="ours",
        natural="Recognize the age of the speaker with keywords in English:",
        paraphrases=(
            "How old is the speaker?",
            "What is the age of the speaker?",
            "Classify the age of the voice:",
            "Tell the age of the speaker:",
            "To which age group does the speaker belong?",
            "Guess the age from the voice:",
            "Is the speaker young or old?",
            "Listen to the voice and give its age:",
        ),
        metric="accuracy",
        also=_CLASSES,
        closed=True,
        group="sap",
        grade="A",
        embedded="D",
    ),
    Task(
        code="vsc",
        name="vocal sound classification",
        family="speech",
        hours={"VSC": "<1k"},
        needs=("text",),
        tags="<|startofanalysis|><|en|><|keyword|><|en|><|notimestamps|><|vocal_classification|>",
        tags_source="published",
        natural="Classify the human vocal sound to VocalSound in English:",
        natural_source="published (as read by third parties)",
        paraphrases=(
            "Which vocal sound does the person make?",
            "Name the sound that this person makes:",
            "What human sound can be heard?",
            "Classify the sound of the voice:",
            "Is it a cough, a laugh, a sigh or another vocal sound?",
            "What does the person do with the voice?",
            "Recognize the vocal sound:",
            "Tell which sound a human makes here:",
        ),
        metric="accuracy",
        also=_CLASSES,
        closed=True,
        group="vsc",
        grade="D",
        embedded="D",
    ),
    # --- sound ---
    Task(
        code="aac",
        name="automated audio captioning",
        family="sound",
        hours={"AAC": "8.4k"},
        needs=("text",),
        tags="<|startofanalysis|><|unknown|><|caption|><|en|><|notimestamps|><|caption_{caption_style}|>",
        tags_source="published",
        natural="Generate the caption in English:",
        natural_source="published",
        paraphrases=(
            "Describe the audio in one sentence:",
            "What can be heard in this recording?",
            "Write a caption for the audio:",
            "Tell what happens in the recording:",
            "Summarize the sounds in a sentence:",
            "Give a short description of the audio:",
            "What is going on in this recording?",
            "Say in one sentence what you hear:",
        ),
        optional={"caption_style": "plain"},
        uses=("references",),
        metric="cider",
        also={"bleu": str},
        group="aac",
        grade="B",
        embedded="C",
    ),
    Task(
        code="sec",
        name="sound event classification",
        family="sound",
        hours={"SEC": "5.4k"},
        needs=("text",),
        tags="<|startofanalysis|><|unknown|><|keyword|><|en|><|notimestamps|><|event|>",
        tags_source="ours",
        natural="Classify the sound with keywords in English:",
        paraphrases=(
            "What is the sound in this recording?",
            "Name the sound event:",
            "Which sound can be heard?",
            "Recognize the sound:",
            "What makes this sound?",
            "Tell which sound this is:",
            "Classify the sound event:",
            "Listen and name the sound:",
        ),
        metric="accuracy",
        also=_CLASSES,
        closed=True,
        group="sec",
        grade="A",
        embedded="C",
    ),
    Task(
        code="asc",
        name="acoustic scene classification",
        family="sound",
        hours={"ASC": "<1k"},
        needs=("text",),
        tags="<|startofanalysis|><|unknown|><|keyword|><|en|><|notimestamps|><|scene|>",
        tags_source="published",
        natural="Classify the acoustic scene with keywords in English:",
        paraphrases=(
            "Where was this recorded?",
            "Name the acoustic scene:",
            "What place does this recording come from?",
            "Recognize the scene of the recording:",
            "In which surroundings was this heard?",
            "Tell the place by its sound:",
            "What kind of place is this?",
            "Listen and name the scene:",
        ),
        metric="accuracy",
        also=_CLASSES,
        closed=True,
        group="asc",
        grade="D",
        embedded="D",
    ),
    Task(
        code="sed",
        name="sound event detection",
        family="sound",
        hours={"SED": "<1k"},
        needs=("events",),
        tags="<|startofanalysis|><|unknown|><|keyword|><|en|><|timestamps|><|event|>",
        tags_source="ours",
        natural="Detect the sound events and their times in English:",
        paraphrases=(
            "Which sounds can be heard, and when?",
            "List the sound events with their times:",
            "Give each sound with its start and its end in seconds:",
            "When does each sound begin and end?",
            "Find the sounds in the recording and their times:",
            "Name all sounds and say when they occur:",
            "Mark the sound events of the recording:",
            "What happens when in this recording?",
        ),
        write=answer_formats.write_events,
        say=answer_formats.say_events,
        parse=answer_formats.parse_events,
        tagged=True,
        metric="event_f1",
        compared=part(answer_formats.parse_events, "events"),
        group="sed",
        grade="B",
        embedded="C",
    ),
    Task(
        code="aqa",
        name="audio question answering",
        family="sound",
        hours={"AQA": "<1k"},
        needs=("text", "question"),
        tags="<|startofanalysis|><|en|><|question|>{question}<|answer|>",
        tags_source="published",
        natural="{question}",
        paraphrases=(
            "Listen to the audio and answer: {question}",
            "Answer the question about the audio: {question}",
            "Question: {question} Answer:",
            "{question} Answer in a word or two:",
            "{question} Listen and answer:",
            "Here is a question about the recording. {question}",
            "Tell me about this recording: {question}",
            "What is your answer? {question}",
        ),
        metric="accuracy",
        also=_CLASSES,
        closed=True,
        group="aqa",
        grade="B",
        embedded="C",
    ),
    # --- music ---
    Task(
        code="sid",
        name="singer identification",
        family="music",
        hours={"SID": "<1k"},
        needs=("text",),
        tags="<|startofanalysis|><|unknown|><|keyword|><|en|><|notimestamps|><|song_meta|><|speaker_meta|>",
        tags_source="ours",
        natural="Recognize the singer of the song:",
        paraphrases=(
            "Who sings this song?",
            "Name the singer:",
            "Whose voice is it in this song?",
            "Which singer can be heard?",
            "Identify the artist who sings:",
            "Tell who the singer is:",
            "By whom is this sung?",
            "Listen to the song and name its singer:",
        ),
        metric="accuracy",
        also=_CLASSES,
        closed=True,
        group="sid",
        grade="D",
        embedded="D",
    ),
    Task(
        code="smer",
        name="singer and music emotion recognition",
        family="music",
        hours={"SMER": "<1k"},
        needs=("text",),
        tags="<|startofanalysis|><|unknown|><|keyword|><|en|><|notimestamps|><|emotion_recognition|>",
        tags_source="ours",
        natural="Recognize the emotion of the music with keywords in English:",
        paraphrases=(
            "Which emotion does the music show?",
            "What is the mood of the music?",
            "Name the emotion in the song:",
            "How does this music feel?",
            "Classify the emotion of the music:",
            "Tell the mood of the song:",
            "What feeling is in this music?",
            "Listen to the music and give its emotion:",
        ),
        metric="accuracy",
        also=_CLASSES,
        closed=True,
        group="smer",
        grade="D",
        embedded="D",
    ),
    Task(
        code="mc",
        name="music captioning",
        family="music",
        hours={"MC": "25k"},
        needs=("text",),
        tags="<|startofanalysis|><|unknown|><|caption|><|en|><|notimestamps|><|music_description|>",
        tags_source="ours",
        natural="Generate the caption of the music in English:",
        paraphrases=(
            "Describe the music in one sentence:",
            "What kind of music is this?",
            "Write a caption for the music:",
            "Tell what the music is like:",
            "Summarize the music in a sentence:",
            "Give a short description of the music:",
            "How would you describe this piece?",
            "Say in one sentence what is played:",
        ),
        uses=("references",),
        metric="cider",
        also={"bleu": str},
        group="mc",
        grade="C",
        embedded="C",
    ),
    Task(
        code="mic",
        name="music instrument classification",
        family="music",
        hours={"MIC": "<1k"},
        needs=("text",),
        tags="<|startofanalysis|><|unknown|><|keyword|><|en|><|notimestamps|><|instrument|>",
        tags_source="ours",
        natural="Recognize the musical instrument with keywords in English:",
        paraphrases=(
            "Which instrument is playing?",
            "Name the instrument in the music:",
            "What instrument can be heard?",
            "Classify the musical instrument:",
            "What is this music played on?",
            "Tell the instrument by its sound:",
            "Which musical instrument is this?",
            "Listen and name the instrument:",
        ),
        metric="accuracy",
        also=_CLASSES,
        closed=True,
        group="mic",
        grade="A",
        embedded="C",
    ),
    Task(
        code="mna",
        name="music note analysis",
        family="music",
        hours={"MNA": "<1k"},
        needs=("notes",),
        tags="<|startofanalysis|><|unknown|><|keyword|><|en|><|notimestamps|><|note_analysis|>",
        tags_source="published",
        natural="Analyze the pitch, velocity, instrument and qualities of the note:",
        paraphrases=(
            "Which note is played, how loud, and on what instrument?",
            "Describe the musical note:",
            "Name the pitch, the velocity, the instrument and the sound of this note:",
            "Analyze the musical note:",
            "Give pitch, velocity, instrument and qualities of this note:",
            "What note is this, and how does it sound?",
            "Tell everything about the note that is played:",
            "Listen to the note and write down what it is:",
        ),
        write=answer_formats.write_notes,
        say=answer_formats.say_notes,
        parse=answer_formats.parse_notes,
        tagged=True,
        metric="instrument_accuracy",
        compared=answer_formats.instrument,
        also={
            "pitch_accuracy": part(answer_formats.parse_notes, "notes", "pitch"),
            "chroma_accuracy": part(answer_formats.parse_notes, "notes", "pitch"),
            "velocity_accuracy": part(answer_formats.parse_notes, "notes", "velocity"),
            "map": part(answer_formats.parse_notes, "notes", "sonic"),
        },
        group="mna",
        grade="A",
        embedded="C",
    ),
    Task(
        code="mgr",
        name="music genre recognition",
        family="music",
        hours={"MGR": "9.5k"},
        needs=("text",),
        tags="<|startofanalysis|><|unknown|><|keyword|><|en|><|notimestamps|><|music_description|>",
        tags_source="ours",
        natural="Recognize the genre of the music with keywords in English:",
        paraphrases=(
            "Which genre is this music?",
            "What is the style of the music?",
            "Name the genre of this piece:",
            "Classify the genre of the music:",
            "To which genre does this song belong?",
            "Tell the musical style:",
            "In what style is this music played?",
            "Listen to the music and give its genre:",
        ),
        metric="accuracy",
        also=_CLASSES,
        closed=True,
        group="mgr",
        grade="D",
        embedded="D",
    ),
    Task(
        code="mr",
        name="music recognition",
        family="music",
        hours={"MR": "<1k"},
        needs=("text",),
        tags="<|startofanalysis|><|unknown|><|keyword|><|en|><|notimestamps|><|song_meta|>",
        tags_source="ours",
        natural="Recognize the title of the music:",
        paraphrases=(
            "Which tune is this?",
            "Name the piece of music:",
            "What song is playing?",
            "Identify the tune:",
            "What is the title of this piece?",
            "Tell the name of the melody:",
            "Do you know this tune? Name it:",
            "Listen to the music and give its title:",
        ),
        metric="accuracy",
        also=_CLASSES,
        closed=True,
        group="mr",
        grade="C",
        embedded="C",
    ),
    Task(
        code="mqa",
        name="music question answering",
        family="music",
        hours={"MQA": "<1k"},
        needs=("text", "question"),
        tags="<|startofanalysis|><|en|><|question|>{question}<|answer|>",
        tags_source="ours",
        natural="{question}",
        paraphrases=(
            "Listen to the music and answer: {question}",
            "Answer the question about the music: {question}",
            "Question on the music: {question} Answer:",
            "{question} Answer in a word or two:",
            "{question} Listen to the music and answer:",
            "Here is a question about the piece. {question}",
            "Tell me about this music: {question}",
            "What do you hear? {question}",
        ),
        metric="accuracy",
        also=_CLASSES,
        closed=True,
        group="mqa",
        grade="C",
        embedded="C",
    ),
    # --- what is no task of Table 1 ---
    Task(
        code="text",
        name="plain text (no audio): next-token training of the language model alone",
        needs=("text",),
        clips=0,
        natural_source="none",
        metric="",
        group="text",
    ),
    Task(
        code="chat",
        name="dialogue (a row with `messages`): the assistant's messages are the answers",
        needs=("text", "mode"),  # both are read from the messages
        clips=0,
        natural_source="none",
        metric="contains",
        group="chat {mode}",
    ),
    Task(
        code="preference",
        name="dialogue with a better and a worse answer (`chosen` and `rejected`)",
        needs=("text", "mode", "chosen", "rejected"),
        clips=0,
        natural_source="none",
        metric="",
        group="preference {mode}",
    ),
)

TASKS: dict[str, Task] = {task.code: task for task in _ROWS}


def find(code: str) -> Task:
    """The task with this code. Raises ValueError that lists the known codes."""
    if code not in TASKS:
        raise UserError(f"unknown task {code!r}; known tasks: {', '.join(TASKS)}")
    return TASKS[code]


def published() -> Iterator[tuple[str, Task]]:
    """The 31 rows of Qwen-Audio's Table 1: its name for each, and the task. Two are `srwt`."""
    return ((name, task) for task in _ROWS for name in task.hours)


def is_synthetic(provenance: object) -> bool:
    """Return whether a `provenance`, kinds joined by `+`, names synthetic data alone."""
    return isinstance(provenance, str) and set(provenance.split("+")) <= _SYNTHETIC


def group(labels: Mapping[str, Any]) -> str:
    """The line of a results table that a row belongs to, as `asr en` or `s2tt de-en`.

    Synthetic rows of a task that nothing synthetic can show are a test of the format, on a line `fmt_...` of their own.
    """
    task = find(labels["task"])
    is_format = task.embedded == "D" and is_synthetic(labels.get("provenance"))
    return ("fmt_" if is_format else "") + task.group.format(**labels)


# Lines of the training loss in TensorBoard: a task each, and of dialogues a mode each.
CURVES = tuple(
    name
    for code, task in TASKS.items()
    for name in ([f"{code} {mode}" for mode in MODES] if "mode" in task.needs else [code])
)


def curve(labels: Mapping[str, Any]) -> str:
    """The one of `CURVES` that a row's loss counts for."""
    task = find(labels["task"])
    return f"{task.code} {labels['mode']}" if "mode" in task.needs else task.code


def closed(labels: Mapping[str, Any]) -> dict[str, str]:
    """Template fields whose values are our own, and so may stand within a control token."""
    optional = find(labels["task"]).optional
    known: dict[str, str] = {}
    for key, (_, values) in _CLOSED.items():
        given = labels.get(key)
        given = given if isinstance(given, str) else optional.get(key)
        if given in values:
            known[key] = given
    languages = {key: code for key, code in known.items() if key.endswith("language")}
    names = {f"{key}_name": LANGUAGES[code] for key, code in languages.items()}
    return known | names | {f"{key}_tag": _NEAREST_TAG.get(code, code) for key, code in languages.items()}


def is_text(task: Task) -> bool:
    """Whether an answer is the row's `text` as it stands, whatever it says."""
    return task.write is answer_formats.write_text and task.say is None and not task.choices and bool(task.clips)


def own_labels(task: Task) -> list[str]:
    """All labels but `text` that count for a row of this task: for its check, its wordings or its score."""
    return sorted({*task.needs, *task.optional, *task.uses, *_CLOSED} - {"text"})


def check(labels: Mapping[str, Any]) -> str | None:
    """Why a row cannot be used for its task, or None if it can."""
    if "task" not in labels:
        return "no `task` field"
    if not isinstance(labels["task"], str) or labels["task"] not in TASKS:
        return f"unknown task {labels['task']!r}; known tasks: {', '.join(TASKS)}"
    task = TASKS[labels["task"]]
    for name in task.needs:
        if labels.get(name) is None:
            return f"task {task.code!r} needs the label `{name}`"
    asked = (name for name in (*task.needs, *task.optional, *task.uses) if labels.get(name) is not None)
    return next((problem for name in asked for problem in _problems(task, name, labels)), None)


def _problems(task: Task, name: str, labels: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with a label, the first thing first."""
    if name in answer_formats.CHECKS:
        yield from answer_formats.CHECKS[name](labels)
        return
    value = labels[name]
    if not isinstance(value, str):
        yield f"label `{name}` is {type(value).__name__}, expected a string"
    if not value.strip():
        yield f"label `{name}` is empty"
    what, known = _CLOSED.get(name, ("", (value,)))
    if value not in known:
        yield f"label `{name}` is {value!r}; known {what}: {', '.join(known)}"
    if name == "text" and task.choices and value not in task.choices:
        yield f"label `text` is {value!r:.40}; task {task.code!r} has the answers {', '.join(task.choices)}"
