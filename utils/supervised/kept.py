"""What frozen models say of examples, computed once and kept on disk in pieces.

A piece is written by rename, once all ranks have done their share: a run that was killed goes on with the next one.
"""

import functools
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from utils.data.encoding import Encoded
from utils.engines.engines import Engine
from utils.output.files import flush_to_disk, remove_folder, write_json
from utils.output.metrics import Progress
from utils.process.distributed import all_gather_objects, barrier, is_main
from utils.process.errors import UserError
from utils.process.rank_watch import beat
from utils.supervised.steps import per_example

MANIFEST = "kept.json"
NAME, SECONDS = "values", "seconds"


class KeptTable:
    """A tensor of values for each of some examples, in pieces on disk. Call every method on every rank.

    Args:
        folder: of its own; None of another run may be there.
        facts: what the values depend on: at least the examples' fingerprint.
        size: examples of a piece.
        way_out: what to do where values of another run are in the way; None: they are removed.

    Raises:
        UserError: values of other examples or of another model are there, and may not be removed.
    """

    def __init__(self, folder: Path, examples: list[Encoded], facts: dict[str, Any], size: int, way_out: str | None):
        self.folder, self.examples, self.size = folder, examples, size
        manifest = facts | {"examples": len(examples), "--piece_size": size}
        found = self.other_than(manifest) if is_main() else None
        if found and way_out is None:
            print(f"note: {folder}: is of another run ({found}); it is made anew", flush=True)
            remove_folder(folder)
            found = self.other_than(manifest)
        if found := all_gather_objects(found)[0]:
            raise UserError(f"{folder}: is of another run ({found}); {way_out}")
        barrier()

    def other_than(self, manifest: dict[str, Any]) -> str | None:
        """What of an older manifest is other than now; writes this one where there is none."""
        path = self.folder / MANIFEST
        if not path.is_file() and any(self.folder.glob("*.safetensors")):
            return f"there is no {MANIFEST}"
        if not path.is_file():
            self.folder.mkdir(parents=True, exist_ok=True)
            write_json(path, manifest)
            return None
        then = json.loads(path.read_text())
        now = json.loads(json.dumps(manifest))
        names = [name for name in {**then, **now} if then.get(name) != now.get(name)]
        return ", ".join(names) or None

    @property
    def pieces(self) -> list[tuple[int, Path]]:
        """The first example of each piece, and its file."""
        starts = range(0, len(self.examples), self.size)
        return [(start, self.folder / f"{number:05d}.safetensors") for number, start in enumerate(starts)]

    def missing(self) -> list[tuple[int, Path]]:
        """The pieces that are to be computed, the same on every rank."""
        missing = [(start, path) for start, path in self.pieces if not path.is_file()]
        return all_gather_objects(missing)[0]  # the main rank may write while others look

    def compute(
        self,
        label: str,
        engine: Engine | None,
        batch_size: int,
        measure: Callable[[list[Encoded]], torch.Tensor],
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """The pieces that are missing.

        Args:
            engine: whose forward passes `measure` makes, if there is one.
            measure: b examples -> [b, ...].
            dtype: in which they are kept.
        """
        missing = self.missing()
        done = len(self.pieces) - len(missing)
        progress = Progress(len(self.pieces), label, 1, done)
        for number, (start, path) in enumerate(missing, start=done + 1):
            part = self.examples[start : start + self.size]
            shape: list[int] = []
            begun = time.monotonic()
            table = per_example(engine, part, batch_size, functools.partial(flattened, measure, shape))
            if is_main():
                values = table[:, :-1].to(dtype).view(len(part), *shape)
                write_tensor(path, values, {SECONDS: f"{time.monotonic() - begun:.3f}"})
                progress.update(number)
            barrier()

    def read(self) -> Iterator[tuple[int, torch.Tensor]]:
        """The index of each piece's first example, and its values, [rows, ...]."""
        for start, path in self.pieces:
            beat(f"reading {self.folder.name}")
            yield start, load_file(path)[NAME]

    def seconds(self) -> float:
        """That computing all of them has taken, in this run or an earlier one."""
        total = 0.0
        for _, path in self.pieces:
            with safe_open(path, "pt") as piece:
                total += float((piece.metadata() or {}).get(SECONDS, 0.0))
        return total

    def whole(self) -> torch.Tensor:
        """The values of all examples, [n, ...]."""
        return torch.cat([values for _, values in self.read()])


def flattened(
    measure: Callable[[list[Encoded]], torch.Tensor], shape: list[int], examples: list[Encoded]
) -> torch.Tensor:
    """A measure [b, ...] as [b, k]; leaves the other dimensions in `shape`."""
    values = measure(examples)
    shape[:] = values.shape[1:]
    return values.flatten(1) if values.ndim > 1 else values


def write_tensor(path: Path, values: torch.Tensor, metadata: dict[str, str]) -> None:
    """A file that is there whole or not at all."""
    mine = f"{socket.gethostname()}-{os.getpid()}"  # another run may write the same values
    temporary = path.with_suffix(f".{mine}.unfinished")
    save_file({NAME: values.contiguous()}, temporary, metadata)
    flush_to_disk([temporary])
    temporary.replace(path)
