"""How a text is to be laid out: lists, JSON, quotes, a title, a postscript, marked parts."""

import json
import re

from utils.instructions.draws import near, nothing
from utils.instructions.kinds import kind
from utils.instructions.texts import count_bullets, count_highlights, count_numbered, count_placeholders, item_numbers

BULLETS = 'beginning with "- " or "* "'


@kind("lists", f"Give a list of exactly {{count:line}} {BULLETS}.", near(count_bullets))
def exactly_bullets(text: str, count: int) -> bool:
    return count_bullets(text) == count


@kind("lists", f"Give a list of at least {{count:line}} {BULLETS}.", near(count_bullets))
def at_least_bullets(text: str, count: int) -> bool:
    return count_bullets(text) >= count


@kind("lists digits", "Give a list of at least {count:item}, numbered as 1. 2. 3., each on a line of its own.",
      near(count_numbered, 2))  # fmt: skip
def numbered_list(text: str, count: int) -> bool:
    return count_numbered(text) >= count


@kind("lists", "Do not give any list, numbered or of bullets.", nothing)
def no_lists(text: str) -> bool:
    return not count_bullets(text) and not item_numbers(text)


@kind("form opening closing lists paragraphs postscript question",
      "Give the whole answer as valid JSON, an object or a list.", nothing)  # fmt: skip
def valid_json(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict | list)
    except (ValueError, RecursionError):
        return False


@kind("form", "Put the whole answer in double quotes.", nothing)
def double_quotes(text: str) -> bool:
    text = text.strip()
    return len(text) > 2 and text[0] in '"“' and text[-1] in '"”'


@kind("title", "Give the answer a title in double angle brackets, as <<title>>.", nothing)
def title(text: str) -> bool:
    return any(part.strip() for part in re.findall(r"<<([^<>\n]+)>>", text))


@kind("postscript closing", "Add a line at the end that begins with P.S.", nothing)
def postscript(text: str) -> bool:
    lines = [line for line in text.splitlines() if line.strip()]
    return len(lines) > 1 and bool(re.match(r"\s*p\. ?s\.:?\s*\w", lines[-1], re.IGNORECASE))


@kind("placeholders", "Leave at least {count:placeholder} to be filled in, in square brackets as [name].",
      near(count_placeholders))  # fmt: skip
def placeholders(text: str, count: int) -> bool:
    return count_placeholders(text) >= count


@kind("highlights", "Highlight at least {count:part} of the answer in asterisks, as *this*.", near(count_highlights))
def highlights(text: str, count: int) -> bool:
    return count_highlights(text) >= count
