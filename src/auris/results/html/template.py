"""Rendering of a page as HTML. All text from rows, responses and names passes `clean` and Jinja's escaping."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from auris.results.html.pages import Page

# Forbidden in HTML even if escaped: control characters, surrogates and non-characters.
_FORBIDDEN = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")


def clean(value: Any) -> Any:
    """Replace characters that HTML forbids by U+FFFD. Values that are not plain strings are returned unchanged."""
    return _FORBIDDEN.sub("\ufffd", value) if type(value) is str else value


def render(page: Page) -> str:
    """Return a page as HTML, including its style and audio; it loads and runs nothing else."""
    jinja = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=clean,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return jinja.get_template("page.html").render(page=page)
