"""What a section of the report is made of. The templates know these blocks, and nothing of sections.

Text is plain: it is escaped for the page and for markdown, wherever it comes from. `Mark` says what is emphasized.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from eval.reporting.results import Numbers
from eval.reporting.seeds import RunGroup
from eval.reporting.tables import Table, build_tables, format_number
from eval.results.runs import Run, find_conditions, objective_names
from utils.process.plain_text import markdown_text, printable

PAGE, MARKDOWN = "page", "markdown"
MOST_ROWS = 10  # of a table below a picture that shows the same


@dataclass(frozen=True)
class Mark:
    """A piece of text: 'strong', 'em', 'u'(nderlined), 'up' or 'down' (good or bad news; on the page only)."""

    text: str
    kind: str


@dataclass(frozen=True)
class Break:
    """A new line in markdown's source; a space to every reader."""


Words = list[str | Mark | Break]


@dataclass(frozen=True)
class Block:
    """`only` says that a block is for the page or for markdown alone; `kind` is what the templates call it."""

    only: str = field(default="", kw_only=True)

    @property
    def kind(self) -> str:
        return type(self).__name__.lower()

    def shown_in(self, medium: str) -> bool:
        return self.only in ("", medium)


@dataclass(frozen=True)
class Heading(Block):
    text: str


@dataclass(frozen=True)
class Text(Block):
    """A paragraph; a `note` is smaller on the page."""

    words: Words
    note: bool = False


@dataclass(frozen=True)
class Points(Block):
    """A list; an item is a few words."""

    items: list[Words]


@dataclass(frozen=True)
class Cards(Block):
    """Boxes beside each other on the page, one below the other in markdown: (title or '', blocks)."""

    cards: list[tuple[str, list[Block]]]


@dataclass(frozen=True)
class Figures(Block):
    """A table of figures. On the page it can be `folded` away under these words, and `dense`."""

    table: Table
    head: str = "run"
    title: str = ""
    folded: str = ""
    dense: bool = False


def long_figures(table: Table) -> Figures:
    """A table that the page folds away where it is long."""
    rows = len(table.rows)
    return Figures(table, folded=f"the figures of {rows} policies as a table" if rows > MOST_ROWS else "")


@dataclass(frozen=True)
class Picture(Block):
    """A png of the report's folder; the caption is for the page, whose readers have no file name."""

    file: str
    alternative: str
    caption: Words = field(default_factory=list)


@dataclass(frozen=True)
class Html(Block):
    """What the others cannot say: markup for the page, and markdown."""

    page: Markup = Markup("")
    markdown: Markup = Markup("")


@dataclass(frozen=True)
class Section:
    """A part of the report. `link` stands in the page's bar of links, and names the place that it leads to."""

    title: str
    link: str
    blocks: list[Block]

    @property
    def anchor(self) -> str:
        return self.link.lower().replace(" ", "-")

    def blocks_in(self, medium: str) -> list[Block]:
        return [block for block in self.blocks if block.shown_in(medium)]


@dataclass(frozen=True)
class Report:
    """What sections are made from.

    Attributes:
        runs: every seed.
        groups: seeds taken together, the default condition first.
        judgements: files of eval/judge.py.
        labels: {prompt: its row} of labelled test prompts.
        sample_count: prompts to show.
        folder: where pictures go.
    """

    numbers: Numbers
    judgements: list[dict[str, Any]]
    labels: dict[str, dict[str, Any]]
    sample_count: int
    preset: str
    folder: Path

    @property
    def runs(self) -> list[Run]:
        return self.numbers.runs

    @cached_property
    def groups(self) -> list[RunGroup]:
        return [group for name in self.conditions for group in self.numbers.groups if group.name.condition == name]

    @cached_property
    def conditions(self) -> list[str]:
        return find_conditions(self.numbers.groups)

    @cached_property
    def tables(self) -> list[tuple[str, Table]]:
        """[(title of a condition, its table of results)]."""
        return build_tables(self.numbers.groups)

    @property
    def objectives(self) -> list[str]:
        return objective_names(run.evaluation for run in self.runs)

    @property
    def has_gold(self) -> bool:
        return any(run.gold for run in self.runs)

    @property
    def several_conditions(self) -> bool:
        return len(self.conditions) > 1

    @property
    def several_seeds(self) -> bool:
        return any(len(group.runs) > 1 for group in self.groups)

    def file_of(self, stem: str, condition: str) -> str:
        """Name of a condition's picture; the first one adds nothing to it."""
        suffix = "" if condition == self.conditions[0] else "_" + re.sub(r"[^\w.-]", "_", condition)
        return f"{stem}{suffix}.png"

    def headed(self, title: str) -> list[Heading]:
        """The heading of a condition, where there are several."""
        return [Heading(title.capitalize())] if self.several_conditions else []


# ---- markup ------------------------------------------------------------------------------------------------


def inline(text: str) -> Markup:
    """Text as inert markdown within a line; a space at either end stays."""
    core = text.strip()
    before, after = text[:1].isspace(), bool(core) and text[-1:].isspace()
    return Markup(" " * before) + markdown_text(core) + Markup(" " * after)


def page_words(words: Words) -> Markup:
    """Text with its marks, for the page."""
    forms = {"strong": "<strong>{}</strong>", "em": "<em>{}</em>", "u": "<u>{}</u>"}
    forms |= {kind: f'<span class="{kind}">{{}}</span>' for kind in ("up", "down")}
    return join_words(words, forms, printable, Markup(" "))


def markdown_words(words: Words) -> Markup:
    """Text with its marks, for markdown."""
    return join_words(words, {"strong": "**{}**", "em": "*{}*", "u": "<u>{}</u>"}, inline, Markup("\n"))


def join_words(words: Words, forms: dict[str, str], plain: Callable[[str], str], line_break: Markup) -> Markup:
    """`forms`: {kind of mark: markup with a place for its text}."""
    return Markup("").join(
        line_break
        if isinstance(word, Break)
        else Markup(forms.get(word.kind, "{}")).format(plain(word.text))
        if isinstance(word, Mark)
        else plain(word)
        for word in words
    )


def environment(**options: Any) -> Environment:
    """Jinja as all of the report uses it: everything is escaped, nothing may be undefined."""
    made = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, **options)
    made.filters |= {"md": markdown_text, "number": format_number, "printable": printable}
    made.filters |= {"page_words": page_words, "markdown_words": markdown_words}
    return made


def fill(template: str, **values: Any) -> Markup:
    """A piece of markup of a section's own, its values escaped."""
    return Markup(environment().from_string(template).render(**values))
