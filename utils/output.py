"""Writing results so that a finished file or folder appears whole, by rename, or not at all."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from utils.errors import UserError


def check_writable(directory: str | Path, flag: str = "--output_dir") -> Path:
    """Create `directory` if needed and make sure a file can be written in it.

    Raises:
        UserError: the folder cannot be created or written to; names `flag`.
    """
    directory = Path(directory)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        raise UserError(f"{flag} {directory}: cannot write there ({error.strerror})") from None
    return directory


@contextmanager
def finished_directory(path: str | Path) -> Iterator[Path]:
    """Yield a temporary sibling of `path`; on success it replaces `path`, on failure it is removed."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    temporary.chmod(0o755)  # mkdtemp makes it private; an artefact is readable like any other folder
    try:
        yield temporary
        if path.exists():
            shutil.rmtree(path)
        temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def finished_files(directory: str | Path, last: str = "config.json") -> Iterator[Path]:
    """Yield a temporary folder whose files then move into `directory`, `last` after all others.

    Other files of `directory` stay. Whoever sees `last` there sees a complete set.
    """
    directory = Path(directory)
    with tempfile.TemporaryDirectory(prefix=".unfinished.", dir=directory) as temporary:
        yield Path(temporary)
        (directory / last).unlink(missing_ok=True)
        for file in sorted(Path(temporary).iterdir(), key=lambda file: file.name == last):
            file.replace(directory / file.name)


UNFINISHED = "unfinished"


def mark_unfinished(directory: str | Path) -> None:
    """Say that a run works in `directory`: an older result, which stays until it is replaced, is not its outcome."""
    write_text(Path(directory) / UNFINISHED, "a run writes here; started again, it goes on from checkpoints/\n")


def mark_finished(directory: str | Path) -> None:
    """Take `mark_unfinished` back: what lies in `directory` is the outcome of the last run there."""
    (Path(directory) / UNFINISHED).unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write `text` to `path` by rename, so that a reader never sees half of it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def write_json(path: str | Path, value: Any) -> None:
    """`write_text` of indented JSON."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")
