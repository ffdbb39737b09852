"""Mock language model: a local OpenAI-compatible endpoint that answers from templates.

`python tests/support/mock_llm.py` asks this model about every label of the synthetic corpus, and records the replies in
the file that ships with auris. The code that asks is the one that would ask a real model.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from auris.completions import Endpoint, ReplyLog
from auris.corpus import music, sound
from auris.corpus.dialogues.augmentation import SHIPPED_REPLIES, write_request
from auris.corpus.dialogues.pool import noun_phrase
from auris.corpus.grammar import KEYWORDS, LANGUAGES
from auris.text.tasks import LANGUAGES as LANGUAGE_NAMES
from auris.text.tasks import TASKS

MODEL = "a script of templates, not a language model"
PAIRS = 8  # questions with answers for each label

_CODES = {task.name: code for code, task in TASKS.items()}
_TEMPLATES = {
    "lid": [
        ("Do you know this language?", "Yes, it is {}."),
        ("I do not know this language. What is it?", "The speaker uses {}."),
        ("Where in the world do they speak like this?", "It sounds like {}."),
        ("What would you call this language?", "I would call it {}."),
        ("Which language should I learn to understand this?", "You should learn {}."),
        ("Help me: what language do I hear?", "You hear {}."),
        ("In what language does the recording go on?", "It goes on in {}."),
        ("Can you say what language that is?", "I can: {}."),
    ],
    "sgc": [
        ("What can you say about the voice?", "The voice is {}."),
        ("Describe the person who speaks.", "The person sounds {}."),
        ("Whose voice is it?", "It is a {} voice."),
        ("Do I hear a man or a woman?", "You hear a {} voice."),
        ("How does the speaker sound?", "The speaker sounds {}."),
        ("What kind of voice is that?", "That is a {} voice."),
        ("Is it he or she?", "The speaker is {}."),
        ("Can you tell the gender?", "I can: {}."),
    ],
    "ks": [
        ("What does the command say?", "The command says {}."),
        ("Which order is given?", "The order is {}."),
        ("A machine listens to this. What should it do?", "It should do this: {}."),
        ("Which word matters here?", "The word that matters is {}."),
        ("What button would you push for this?", "I would push {}."),
        ("Do you hear a command, and which?", "Yes, I hear {}."),
        ("What is the one word to catch?", "The one word is {}."),
        ("Which command did you understand?", "I understood {}."),
    ],
    "sec": [
        ("What is going on here?", "I can hear {}."),
        ("What do I hear?", "You hear {}."),
        ("Describe this recording.", "There is {} in it."),
        ("What happens in the background?", "There is {}."),
        ("I cannot see. What is near me?", "Near you is {}."),
        ("What was recorded?", "They recorded {}."),
        ("Do you know this sound?", "Yes, it is {}."),
        ("What would a sign for this show?", "It would show {}."),
    ],
    "mic": [
        ("What do the musicians play?", "They play {}."),
        ("I like this music. What is it played on?", "It is played on {}."),
        ("Which instrument should I learn for this?", "You should learn {}."),
        ("Describe the music.", "Somebody plays {}."),
        ("What is on stage?", "On stage is {}."),
        ("Do you know this instrument?", "Yes, it is {}."),
        ("What did they record in the studio?", "They recorded {}."),
        ("Which player do I hear?", "You hear somebody with {}."),
    ],
}


def reply(messages: list[Mapping[str, str]]) -> str:
    """Return the reply to a request of `auris.corpus.dialogues.augmentation`."""
    facts = json.loads(messages[-1]["content"])
    code = _CODES[facts["task"]]
    label = noun_phrase(code, facts["label"]) if code in ("sec", "mic") else facts["label"]
    pairs = _TEMPLATES[code][: facts["pairs"]]
    return json.dumps([{"question": question, "answer": answer.format(label)} for question, answer in pairs])


@dataclass(frozen=True)
class Refused:
    """HTTP error to send instead of a reply."""

    status: int
    body: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)


@contextmanager
def serve(answer=reply) -> Iterator[tuple[str, list[dict]]]:
    """Serve replies. Yield the address of the endpoint and the growing list of requests ({path, headers, body}).

    Args:
        answer: Returns a reply, or a `Refused`, to the messages of a request.
    """
    requests: list[dict] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            requests.append({"path": self.path, "headers": dict(self.headers), "body": body})
            answer_text = answer(body["messages"])
            if isinstance(answer_text, Refused):
                data, status, headers = answer_text.body.encode(), answer_text.status, answer_text.headers
            else:
                choice = {"message": {"role": "assistant", "content": answer_text}}
                data, headers = json.dumps({"model": MODEL, "choices": [choice]}).encode(), {}
                status = 200 if self.path == "/v1/chat/completions" else 404
            self.send_response(status)
            for header in headers.items():
                self.send_header(*header)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", requests
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def labels() -> list[tuple[str, str]]:
    """Return (task, label) of every closed label set of the synthetic corpus, sorted."""
    sets = {
        "ks": KEYWORDS,
        "lid": [LANGUAGE_NAMES[language] for language in LANGUAGES],
        "mic": music.INSTRUMENTS,
        "sec": sound.SOUNDS,
        "sgc": ("female", "male"),
    }
    return sorted((task, label) for task, members in sets.items() for label in members)


def record(path: Path) -> None:
    """Ask about every label and record the replies in the new file `path`."""
    with serve() as (url, _):
        reply_log = ReplyLog(path, Endpoint(url=url, model="stand-in"))
        for task, label in labels():
            reply_log.ask(write_request(task, label, PAIRS))


if __name__ == "__main__":
    SHIPPED_REPLIES.unlink(missing_ok=True)
    record(SHIPPED_REPLIES)
