"""Frozen models that live in the host's memory and come to the device while they are needed."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from utils.process.distributed import device


def tensors_of(module: nn.Module) -> list[torch.Tensor]:
    return [*module.parameters(), *module.buffers()]


def on_device(data: torch.Tensor) -> torch.Tensor:
    """A copy on this rank's device, or the very tensor if it is there."""
    return data.to(device(), non_blocking=True)


def on_host(data: torch.Tensor) -> torch.Tensor:
    """A copy in the host's memory, page-locked where that speeds the way back up; or the very tensor if it is there."""
    return data.cpu().pin_memory() if data.is_cuda else data.cpu()


def park(module: nn.Module) -> None:
    """Move a frozen module to the host."""
    for tensor in tensors_of(module):
        tensor.data = on_host(tensor.data)


@contextmanager
def resident(module: nn.Module) -> Iterator[None]:
    """A module's tensors on this rank's device for as long as the context lasts.

    Frozen ones do not change: the copies on the host stay, and those on the device are dropped. Nothing happens to what
    is on the device anyway, nor to what ZeRO-3 has partitioned.
    """
    parked = [(tensor, tensor.data) for tensor in tensors_of(module) if not hasattr(tensor, "ds_id")]
    for tensor, data in parked:
        tensor.data = on_device(data)
    try:
        yield
    finally:
        for tensor, data in parked:
            tensor.data = data
