"""Finished parts of a result that is not finished itself, so that a killed evaluation loses little.

They are lines of JSON beside the result, under its name with a dot before and `.partial` after it; the first line
says what they are parts of. Lines are numbered: one that was cut off, that its checksum contradicts or that is not the
next one, and all after it are dropped. Whoever writes holds a lock, which ends with the process.
"""

import fcntl
import functools
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from utils.models.configs import load_config
from utils.models.fingerprint import files_fingerprint, model_fingerprint
from utils.process.errors import UserError


class PartialFile:
    """The parts of one result.

    Args:
        result: the file that is to be.
        identity: JSON; everything that decides its content. Parts of another identity are discarded, with a line.

    Attributes:
        parts: JSON, in order, of an earlier run that was interrupted.

    Raises:
        UserError: another process is writing this result, also when the first part is added.
    """

    def __init__(self, result: Path, identity: dict[str, Any]):
        self.result, self.path, self.identity = result, partial_path(result), json.loads(json.dumps(identity))
        self.file = self.open_locked("r+b") if self.path.is_file() else None
        self.parts: list[Any] = []
        self.is_open, self.count = False, 0
        lines = list(whole_lines(self.file)) if self.file else []
        if lines and lines[0][1] == self.identity:
            self.parts = [value for _, value in lines[1:]]
        elif lines:
            print(f"{self.path}: of other models, prompts or settings, discarded", flush=True)
        self.size = lines[-1][0] if self.parts else 0  # bytes that are kept

    def open_locked(self, mode: str) -> BinaryIO:
        """The file, locked where the file system can."""
        while True:
            file = self.path.open(mode)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.close()
                raise UserError(f"{self.result}: another process is writing it") from None
            except OSError:  # a file system without locks
                return file
            if self.path.is_file() and self.path.stat().st_ino == os.fstat(file.fileno()).st_ino:
                return file
            file.close()  # removed by the process that had it locked
            mode = "a+b"

    def append(self, part: Any) -> None:
        """Add a finished part, JSON; it is on disk when this returns."""
        if not self.is_open:  # without what was dropped
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.file = self.file or self.open_locked("a+b")
            self.file.truncate(self.size)
            self.file.seek(0, os.SEEK_END)
            self.count, self.is_open = len(self.parts) + 1 if self.size else 0, True
            if not self.size:
                self.write(self.identity)
        self.write(part)

    def write(self, value: Any) -> None:
        self.file.write(checked_line(self.count, value))
        self.file.flush()
        self.count += 1

    def remove(self) -> None:
        """The result is there."""
        self.path.unlink(missing_ok=True)
        self.close()

    def close(self) -> None:
        """Let others write."""
        if self.file:
            self.file.close()
            self.file = None


def partial_path(result: Path) -> Path:
    return result.with_name(f".{result.name}.partial")


def checked_line(number: int, value: Any) -> bytes:
    entry = [number, value]
    return (json.dumps({"sha256": sha256(json.dumps(entry)), "entry": entry}) + "\n").encode()


def whole_lines(file: BinaryIO) -> Iterator[tuple[int, Any]]:
    """(where it ends in bytes, value) of the lines up to the first one that is not whole or not the next one."""
    end = 0
    for number, line in enumerate(file):
        end += len(line)
        try:
            found = json.loads(line)
            whole = line.endswith(b"\n") and found["sha256"] == sha256(json.dumps(found["entry"]))
            place, value = found["entry"]
        except (ValueError, KeyError, TypeError):
            return
        if not whole or place != number:
            return
        yield end, value


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


@functools.cache
def model_identity(path: str, flag: str) -> dict[str, str]:
    """What a model is: its path, and fingerprints of its weights, configuration and tokenizer, or a hub's commit.

    Raises:
        UserError: see `load_config` and `weights_fingerprint`.
    """
    commit = getattr(load_config(path, flag), "_commit_hash", None) or ""
    weights, files = model_fingerprint(path, flag), files_fingerprint(path)
    return {"path": path, "commit": commit, "weights": weights, "files": files}
