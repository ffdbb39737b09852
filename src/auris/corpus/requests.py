"""Requests to an assistant: a finite set of sentences with an intent, slots and named entities.

As in `grammar`, the split of a sentence follows from its hash and is the same in every task.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from auris.corpus.draws import Rng, pick
from auris.corpus.grammar import assign_split

# The entity type and the possible values of each slot. Numbers are spelt out, because the sentences are spoken.
SLOTS = {
    "person": ("person", ("anna", "peter", "maria", "david", "lisa", "tom")),
    "city": ("place", ("london", "paris", "berlin", "rome", "madrid", "tokyo")),
    "room": ("place", ("kitchen", "garden", "house", "castle", "hall", "bathroom")),
    "instrument": ("thing", ("piano", "guitar", "violin", "flute")),
    "time": ("time", ("two", "three", "four", "five", "six", "seven", "eight", "nine")),
    "day": ("time", ("today", "tonight", "tomorrow")),
}
# Sentence templates of each intent. Text in brackets is optional.
INTENTS = {
    "alarm_set": ("wake me at {time} [{day}]", "set the alarm for {time} [{day}]"),
    "light_on": ("turn on the light in the {room} [{day}]", "light the {room} [at {time}] [{day}]"),
    "light_off": ("turn off the light in the {room} [{day}]", "make the {room} dark [at {time}] [{day}]"),
    "music_play": ("play {instrument} music [in the {room}] [{day}]", "play the {instrument} [at {time}] [{day}]"),
    "call_make": ("call {person} [at {time}] [{day}]", "make a call to {person} [{day}]"),
    "weather_query": ("how is the weather in {city} [{day}]", "is there rain in {city} [at {time}] [{day}]"),
}
_OPENINGS = ("", "please ", "hello ")

_SLOT_NAME = re.compile(r"{(\w+)}")
_OPTIONAL_TEXT = re.compile(r" \[([^]]*)\]")


@dataclass(frozen=True)
class Request:
    """A request.

    Attributes:
        intent: Name of the intent.
        text: The sentence.
        slots: Values of the slots by name, in the order of the sentence.
    """

    intent: str
    text: str
    slots: dict[str, str]

    @property
    def entities(self) -> list[dict[str, str]]:
        """Named entities in the order of the sentence."""
        return [{"type": SLOTS[name][0], "value": value} for name, value in self.slots.items()]


def draw_request(rng: Rng, split: str, intent: str) -> Request:
    """Draw a request with the intent `intent` that belongs to `split`."""
    while True:
        template = pick(rng, _OPENINGS) + pick(rng, INTENTS[intent])
        template = _OPTIONAL_TEXT.sub(lambda match: f" {match[1]}" if rng.random() < 0.4 else "", template)
        slots = {name: pick(rng, SLOTS[name][1]) for name in _SLOT_NAME.findall(template)}
        text = template.format(**slots)
        if assign_split(text) == split:
            return Request(intent, text, slots)
