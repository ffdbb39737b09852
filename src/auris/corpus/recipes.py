"""Recipes of the corpus: how the rows of each task are made, and in which variants.

To add a task, write a function that takes a `RowSpec` and the row's random generator, and returns a `Recording` (for
tasks with speech, a `Script`). Then add an entry to `RECIPES`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from auris.corpus import conversations, music, requests, scenes, sound, speech, spoken, tunes, vocal
from auris.corpus.draws import Rng
from auris.corpus.grammar import KEYWORDS, LANGUAGES
from auris.corpus.recording import Recording, RowSpec, Script
from auris.text.tasks import TASKS

_DIRECTIONS = ("de-en", "es-en", "fr-en", "it-en", "zh-en", "ja-en", "en-de", "en-zh")
_ALL_DIRECTIONS = tuple(f"{source}-{target}" for source in LANGUAGES for target in LANGUAGES if source != target)


@dataclass(frozen=True)
class Recipe:
    """Recipe for the rows of a task.

    Attributes:
        make: Makes the labels and the audio of a row.
        variants: Variants of the rows, such as languages or classes. If the size of the task is one number, the rows
            are divided evenly among them.
        optional_variants: Further variants, which have rows only if the sizes name them.
    """

    make: Callable[[RowSpec, Rng], Recording | Script]
    variants: tuple[str, ...]
    optional_variants: tuple[str, ...] = ()


_OPTIONAL_SRWT_LANGUAGES = tuple(
    language for language in LANGUAGES if language not in ("en", "zh", *speech.UNTIMED_LANGUAGES)
)
_INTENTS = tuple(requests.INTENTS)

RECIPES = {
    "asr": Recipe(spoken.write_asr, LANGUAGES),
    "s2tt": Recipe(spoken.write_s2tt, _DIRECTIONS, _ALL_DIRECTIONS),
    "lid": Recipe(spoken.write_lid, LANGUAGES),
    "sgc": Recipe(spoken.write_sgc, ("male", "female")),
    "ks": Recipe(spoken.write_ks, KEYWORDS),
    "srwt": Recipe(spoken.write_lid, ("en", "zh"), _OPTIONAL_SRWT_LANGUAGES),  # written like lid, with word times
    "dialect_asr": Recipe(spoken.write_dialect_asr, tuple(d for d in spoken.DIALECTS if d not in spoken.STANDARDS)),
    "did": Recipe(spoken.write_did, tuple(spoken.DIALECTS)),
    "osr": Recipe(conversations.write_osr, ("en",)),
    "sd": Recipe(conversations.write_sd, ("en",)),
    "sv": Recipe(conversations.write_sv, ("yes", "no")),
    "ser": Recipe(spoken.write_request, _INTENTS),
    "ic": Recipe(spoken.write_request, _INTENTS),
    "sf": Recipe(spoken.write_request, _INTENTS),
    "er": Recipe(spoken.write_er, tuple(spoken.EMOTIONS)),
    "sap": Recipe(spoken.write_sap, tuple(spoken.AGES)),
    "sec": Recipe(scenes.record_sec, tuple(sound.SOUNDS)),
    "mic": Recipe(tunes.record_mic, tuple(music.INSTRUMENTS)),
    "aqa": Recipe(scenes.record_aqa, ("exist", "order", "count")),
    "sed": Recipe(scenes.record_sed, ("scene",)),
    "aac": Recipe(scenes.record_aac, ("scene",)),
    "asc": Recipe(scenes.record_asc, tuple(scenes.SCENES)),
    "vsc": Recipe(scenes.record_vsc, tuple(vocal.VOCAL_SOUNDS)),
    "mna": Recipe(tunes.record_mna, tunes.PITCHED),
    "mc": Recipe(tunes.record_mc, tuple(tunes.MODES)),
    "mqa": Recipe(tunes.record_mqa, tuple(tunes.QUESTIONS)),
    "mr": Recipe(tunes.record_mr, tuple(tunes.TUNES)),
    "smer": Recipe(tunes.record_smer, tuple(tunes.MOODS)),
    "mgr": Recipe(tunes.record_mgr, tuple(tunes.GENRES)),
    "sid": Recipe(tunes.record_sid, tuple(vocal.SINGERS)),
}


def id_prefix(task: str) -> str:
    """Return the prefix of a task in row ids: `fmt_` for grade D, otherwise empty.

    Synthetic rows of grade D test only the format of a task, because their labels are settings of the generator.
    """
    return "fmt_" if TASKS[task].synthetic_grade == "D" else ""
