"""Rendering of a page as HTML. All text from data passes through `clean` and Jinja's escaping."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from auris.results.html.pages import Page

# Characters that HTML forbids even if they are escaped: control characters, surrogates and non-characters.
_FORBIDDEN = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")


def clean(value: Any) -> Any:
    """Return a string with U+FFFD in place of characters that HTML forbids. Other values are returned unchanged."""
    return _FORBIDDEN.sub("\ufffd", value) if type(value) is str else value


def render(page: Page) -> str:
    """Return a page as HTML that includes its style and audio. It loads no other files and runs no scripts."""
    jinja = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=clean,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return jinja.get_template("page.html").render(page=page)
