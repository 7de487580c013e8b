"""Text of a model, which may hold anything, made harmless for a page, a markdown table or a terminal."""

import re

from markupsafe import Markup, escape

# All control characters but line break and tab: no page format allows them, and terminals obey them (ESC begins
# commands that move the cursor, retitle the window or answer as if typed). Those of direction reorder what follows, and
# half a surrogate pair cannot be written at all.
CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """`text` with a replacement character for every control character; line breaks and tabs stay."""
    return CONTROLS.sub("\N{REPLACEMENT CHARACTER}", text.replace("\r\n", "\n"))


def markdown_text(text: str) -> Markup:
    """`text` as one inert line of markdown: no emphasis, link, html or table cell in it."""
    inert = re.sub(r"([\\`*_\[\]|~$])", r"\\\1", str(escape(printable(text))))
    return Markup("<br>".join(line.strip() for line in inert.splitlines() if line.strip()))
