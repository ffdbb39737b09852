"""A page as HTML. All that comes from rows, answers and names passes one door: `clean`, then Jinja's escaping."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from auris.results.html.pages import Page

# What no HTML file may hold, escaped or not: control characters, halves of characters, and non-characters.
_FORBIDDEN = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")


def clean(value: Any) -> Any:
    """A text without characters that HTML forbids, each replaced by U+FFFD; anything else as it is."""
    return _FORBIDDEN.sub("\ufffd", value) if type(value) is str else value


def render(page: Page) -> str:
    """The page, whole: with its style and its sound, and without anything that is loaded or run."""
    jinja = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=clean,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return jinja.get_template("page.html").render(page=page)
