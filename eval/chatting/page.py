"""Where answers appear: below one another, or in a terminal with room for it side by side, a column a policy."""

import sys
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

COLUMN_WIDTH = 36  # characters that a column needs at least


class Lines:
    """Answers one below the other, as plain text: for pipes, narrow terminals and a single policy."""

    def __enter__(self) -> "Lines":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Nothing is kept open."""

    def begin(self, name: str) -> None:
        print(f"\n── {name} " + "─" * max(4, 60 - len(name)), flush=True)

    def write(self, text: str) -> None:
        """The next piece of the answer."""
        print(text, end="", flush=True)

    def note(self, text: str) -> None:
        """A line that is no part of the answer."""
        print(text, flush=True)

    def values(self, parts: list[str]) -> None:
        """The objectives' values, 'name +1.23' each."""
        self.note(f"   [{' · '.join(parts)}]")

    def reasons(self, lines: list[str]) -> None:
        """Why the values are what they are, a line an objective."""
        for line in lines:
            self.note(f"   {line}")


class Columns:
    """Answers side by side, each growing in its column; one object is one question's page."""

    def __init__(self, names: list[str], console: Console):
        self.texts = {name: Text() for name in names}
        self.live = Live(console=console, auto_refresh=False, vertical_overflow="visible")
        self.name = names[0]

    def __enter__(self) -> "Columns":
        self.live.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.live.stop()

    def begin(self, name: str) -> None:
        self.name = name

    def write(self, text: str, style: str = "") -> None:
        self.texts[self.name].append(text, style)
        table = Table(expand=True)
        for name in self.texts:
            table.add_column(Text(name), ratio=1, overflow="fold")
        table.add_row(*self.texts.values())
        self.live.update(table, refresh=True)

    def note(self, text: str) -> None:
        self.write(f"{text}\n", "dim")

    def values(self, parts: list[str]) -> None:
        for part in parts:
            self.write(f"{part}\n", "green" if "+" in part else "red")

    def reasons(self, lines: list[str]) -> None:
        for line in lines:
            self.note(line)


def new_page(names: list[str]) -> Lines | Columns:
    """The page of a question: columns where several policies have room for theirs."""
    console = Console()
    has_room = console.width >= COLUMN_WIDTH * len(names)
    return Columns(names, console) if len(names) > 1 and sys.stdout.isatty() and has_room else Lines()
