"""How many sequences models have read: what training costs beside time."""

from typing import Any

import torch
from torch import nn

from utils.process.distributed import all_reduce_sum, device

_rows = 0  # that engines of this process have read


def count_passes(module: nn.Module) -> None:
    """Count the sequences of every forward pass of an engine's module from here on."""
    module.register_forward_pre_hook(_count, with_kwargs=True)


def _count(module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
    global _rows
    tensors = (value for value in (*inputs, *named.values()) if isinstance(value, torch.Tensor))
    _rows += len(next(tensors))


class Passes:
    """Forward passes since it was made."""

    def __init__(self) -> None:
        self.before = _rows

    def scalars(self) -> dict[str, float]:
        """Sequences that models have read, of all ranks; of generation, only what is read again. Call on every rank."""
        return {"cost/forward_passes": all_reduce_sum(torch.tensor(float(_rows - self.before), device=device())).item()}
