"""Finished parts of a result that is not finished itself, so that a killed evaluation loses little.

They are lines of JSON beside the result, under its name with a dot before and `.partial` after it; the first line
says what they are parts of. A line that was cut off, or that its checksum contradicts, and all after it are dropped.
"""

import functools
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from utils.fingerprint import model_fingerprint
from utils.models import load_config
from utils.output import write_text

# What decides, beside the weights, what a model and its tokenizer do; weights without a fingerprint of their own.
MODEL_FILES = ("config.json", "tokenizer*", "chat_template*", "special_tokens_map.json", "*.bin")


class PartialFile:
    """The parts of one result.

    Args:
        result: the file that is to be.
        identity: JSON; everything that decides its content. Parts of another identity are discarded, with a line.

    Attributes:
        parts: JSON, in order, of an earlier run that was interrupted.
    """

    def __init__(self, result: Path, identity: dict[str, Any]):
        self.path, self.identity = partial_path(result), json.loads(json.dumps(identity))
        found = list(read_checked(self.path)) if self.path.is_file() else []
        self.parts = found[1:] if found and found[0] == self.identity else []
        if found and found[0] != self.identity:
            print(f"{self.path}: of other models, prompts or settings, discarded", flush=True)
        self.is_open = False

    def append(self, part: Any) -> None:
        """Add a finished part, JSON; it is on disk when this returns."""
        if not self.is_open:  # without what was dropped
            write_text(self.path, "".join(map(checked_line, [self.identity, *self.parts])))
            self.is_open = True
        with self.path.open("a", encoding="utf-8") as file:
            file.write(checked_line(part))

    def remove(self) -> None:
        """The result is there."""
        self.path.unlink(missing_ok=True)


def partial_path(result: Path) -> Path:
    return result.with_name(f".{result.name}.partial")


def checked_line(value: Any) -> str:
    text = json.dumps(value)
    return json.dumps({"sha256": sha256(text), "value": value}) + "\n"


def read_checked(path: Path) -> Iterator[Any]:
    """Values of the lines up to the first one that is not whole."""
    for line in path.read_bytes().splitlines(keepends=True):
        try:
            entry = json.loads(line)
            whole = line.endswith(b"\n") and entry["sha256"] == sha256(json.dumps(entry["value"]))
        except (ValueError, KeyError, TypeError):
            whole = False
        if not whole:
            return
        yield entry["value"]


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


@functools.cache
def model_identity(path: str, flag: str) -> dict[str, str]:
    """What a model is: its path, and fingerprints of its weights, configuration and tokenizer, or a hub's commit.

    Raises:
        UserError: see `load_config` and `weights_fingerprint`.
    """
    folder, digest = Path(path), hashlib.sha256()
    for file in sorted({file for pattern in MODEL_FILES for file in folder.glob(pattern)}):
        with file.open("rb") as content:
            digest.update(f"{file.name} ".encode() + hashlib.file_digest(content, "sha256").digest())
    commit = getattr(load_config(path, flag), "_commit_hash", None) or ""
    return {"path": path, "commit": commit, "weights": model_fingerprint(path, flag), "files": digest.hexdigest()}
