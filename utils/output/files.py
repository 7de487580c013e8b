"""Writing results so that a finished file or folder appears whole, by rename, or not at all."""

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from utils.process.errors import UserError


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


UNFINISHED = "unfinished"
WEIGHT_FILES = ("model.safetensors", "adapter_model.safetensors", "adapter_config.json")  # of a model, or of adapters
RUN_FILES = (UNFINISHED, "metrics.jsonl", "args.json", "algorithm_state.json", "evaluation.json", "calibration.png",
             "config.json", "generation_config.json", "tokenizer.json", *WEIGHT_FILES)  # fmt: skip
RUN_FOLDERS = ("checkpoints", "tensorboard", ".ranks")
EXPORT_PREFIX, REMOVED_PREFIX = ".export.", ".removed."  # of folders that are being written, and removed


@contextmanager
def finished_directory(path: str | Path) -> Iterator[Path]:
    """Yield a temporary sibling of `path`; on success it takes the place of `path`, on failure it is removed."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    temporary.chmod(0o755)  # mkdtemp makes it private; an artefact is readable like any other folder
    old = temporary.with_name(f"{temporary.name}.old")
    try:
        yield temporary
        flush_to_disk(path for path in temporary.rglob("*") if path.is_file())
        if path.exists():
            path.rename(old)
        temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


@contextmanager
def finished_files(directory: str | Path, last: str = "config.json") -> Iterator[Path]:
    """Yield a temporary folder whose files then move into `directory`, `last` after all others.

    Other files of `directory` stay, except an older model's weights. Whoever sees `last` there sees a complete set.
    """
    directory = Path(directory)
    with tempfile.TemporaryDirectory(prefix=EXPORT_PREFIX, dir=directory) as temporary:
        yield Path(temporary)
        flush_to_disk(Path(temporary).iterdir())
        (directory / last).unlink(missing_ok=True)
        for name in WEIGHT_FILES:
            (directory / name).unlink(missing_ok=True)
        for file in sorted(Path(temporary).iterdir(), key=lambda file: file.name == last):
            file.chmod(0o644)  # safetensors makes it private
            file.replace(directory / file.name)


def flush_to_disk(files: Iterable[Path]) -> None:
    """Have files survive a loss of power."""
    for path in files:
        with path.open("rb") as file:
            os.fsync(file.fileno())


def remove_folder(folder: Path) -> None:
    """Remove a folder that others may look at: gone at once, by name, and then from the disk."""
    gone = folder.with_name(f"{REMOVED_PREFIX}{folder.name}")
    shutil.rmtree(gone, ignore_errors=True)
    if folder.exists():
        folder.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)


def remove_left_overs(directory: Path) -> None:
    """Remove what runs that were killed have left under temporary names."""
    for path in directory.iterdir() if directory.is_dir() else ():
        if path.name.startswith((EXPORT_PREFIX, REMOVED_PREFIX)):
            shutil.rmtree(path, ignore_errors=True)
        elif re.fullmatch(r"\..+\.\d+", path.name) and path.is_file():  # of write_text
            path.unlink(missing_ok=True)


def check_output(directory: str | Path, fresh: bool) -> None:
    """Make sure that a training run may write into `directory`.

    Raises:
        UserError: nothing can be written there, or a finished result is there that nobody said is to be replaced.
    """
    directory = Path(directory)
    for name in RUN_FILES:
        if (directory / name).is_dir():
            raise UserError(f"--output_dir {directory}: {name} there is a folder")
    for name in RUN_FOLDERS:
        if (directory / name).exists() and not (directory / name).is_dir():
            raise UserError(f"--output_dir {directory}: {name} there is not a folder")
    finished = (directory / "config.json").exists() and not (directory / UNFINISHED).exists()
    if finished and not fresh and not (directory / "checkpoints").exists():
        raise UserError(f"--output_dir {directory}: a finished result is there; --fresh replaces it")
    check_writable(directory)


def mark_unfinished(directory: str | Path) -> None:
    """Say that a run works in `directory`: an older result, which stays until it is replaced, is not its outcome."""
    write_text(Path(directory) / UNFINISHED, "a run writes here; started again, it goes on from checkpoints/\n")


def mark_finished(directory: str | Path) -> None:
    """Take `mark_unfinished` back: what lies in `directory` is the outcome of the last run there."""
    (Path(directory) / UNFINISHED).unlink(missing_ok=True)


def write_bytes(path: str | Path, content: bytes) -> None:
    """Write `content` to `path` by rename, so that a reader never sees half of it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(content)
    temporary.replace(path)


def write_text(path: str | Path, text: str) -> None:
    """`write_bytes` of text as UTF-8."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: str | Path, value: Any) -> None:
    """`write_text` of indented JSON."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")
