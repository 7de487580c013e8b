"""The tensors of a model folder, read one by one as transformers asks for them, by as few ranks as must.

By itself transformers maps the files into memory, whose pages then count as the process's, and casts tensors in threads
ahead of need: the stored model would lie in every rank's memory beside what is made of it. What is read here lies
there once, until it has gone where it belongs (`utils.engines.arrival`).
"""

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import EllipsisType
from unittest import mock

import huggingface_hub
import torch
from huggingface_hub import constants
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from safetensors import safe_open
from transformers.modeling_utils import str_to_torch_dtype

from utils.cli.hub import is_local, source_of
from utils.models.fingerprint import INDEX, WEIGHTS
from utils.process.distributed import print_main
from utils.process.rank_watch import beat

SECONDS_OF_SILENCE = 10.0
GIGABYTE = 10**9


class StoredTensor:
    """A tensor of a safetensors file, which `tensor[...]` reads, as of the slices that safetensors has.

    Args:
        reads: whether this rank reads it; else its numbers are whatever lies in memory, for another rank's to come.
        arrived: is told the bytes of what has been read.
    """

    def __init__(self, file: safe_open, name: str, reads: Callable[[torch.Size], bool], arrived: Callable[[int], None]):
        stored = file.get_slice(name)
        self.shape, self.dtype = torch.Size(stored.get_shape()), str_to_torch_dtype[stored.get_dtype()]
        self.file, self.name, self.arrived, self.is_read = file, name, arrived, reads(self.shape)

    def __getitem__(self, everything: EllipsisType) -> torch.Tensor:
        tensor = self.file.get_tensor(self.name) if self.is_read else torch.empty(self.shape, dtype=self.dtype)
        self.arrived(tensor.nbytes)
        return tensor


def weights_folder(path: str) -> Path | None:
    """The folder of a model's safetensors, those of a hub name downloaded; None where there are none of usual names."""
    if is_local(path):
        return Path(path) if any((Path(path) / name).is_file() for name in (INDEX, WEIGHTS)) else None
    source = dict(source_of(path))
    name = source.pop("pretrained_model_name_or_path")

    def find(file: str) -> Path | None:
        try:
            return Path(huggingface_hub.hf_hub_download(name, file, **source))
        except LocalEntryNotFoundError:  # no copy in the cache, and nobody who could say that there is no such file
            if not constants.HF_HUB_OFFLINE:
                raise
        except EntryNotFoundError:
            pass
        return None

    if whole := find(WEIGHTS):
        return whole.parent
    if (index := find(INDEX)) is None:
        return None
    shards = [find(shard) for shard in set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())]
    return None if None in shards else index.parent


def stored_tensors(files: dict[str, Path], reads: Callable[[torch.Size], bool], what: str) -> dict[str, StoredTensor]:
    """{name: what is stored under it} of what `utils.models.fingerprint.find_tensors` found.

    Args:
        reads: whether this rank reads a tensor of such a shape.
        what: the model, for the screen.
    """
    progress = ReadingProgress(what)
    opened = {path: safe_open(path, framework="pt", device="cpu", backend="pread") for path in set(files.values())}
    tensors = {name: StoredTensor(opened[path], name, reads, progress) for name, path in files.items()}
    progress.total = sum(tensor.shape.numel() * tensor.dtype.itemsize for tensor in tensors.values())
    return tensors


class ReadingProgress:
    """A line every few seconds while a large model is read, and a sign of life to the other ranks."""

    def __init__(self, what: str):
        self.what, self.total, self.done = what, 0, 0
        self.start = self.shown = time.monotonic()

    def __call__(self, size: int) -> None:
        self.done += size
        beat(f"loading {self.what}")
        now = time.monotonic()
        if now - self.shown < SECONDS_OF_SILENCE or not 0 < self.done <= self.total:
            return
        self.shown, left = now, (now - self.start) * (self.total / self.done - 1)
        read, all_of_it = self.done / GIGABYTE, self.total / GIGABYTE
        print_main(f"loading {self.what}: {read:.1f} of {all_of_it:.1f} GB · ETA {left:.0f} s")


@contextmanager
def one_by_one() -> Iterator[None]:
    """transformers reads and casts a tensor when its turn has come, not all of them ahead in threads."""
    with mock.patch.dict(os.environ, {"HF_DEACTIVATE_ASYNC_LOAD": "1"}):
        yield
