"""Parameters go to where their engine wants them while a model is read, one after the other.

    with arriving(frozen_config(args)):
        model = load_causal_lm(path, flag, dtype)

Under ZeRO-3 each is partitioned as soon as there are enough of them: no rank ever holds more of a model than its part
and what is being read. The main rank reads for all; DeepSpeed broadcasts what it partitions. Otherwise each goes to
this rank's device, so that the host never holds the model beside a GPU.
"""

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from utils.engines.deepspeed_config import quiet
from utils.process.distributed import all_gather_objects, broadcast_from_main, device, is_main
from utils.process.errors import UserError

AT_ONCE = 2**24  # bytes of parameters that wait to be partitioned together; a call of DeepSpeed takes milliseconds
SMALL = 2**16  # numbers; what is not larger, every rank reads itself


@dataclass
class Arrival:
    """How the model that is being read arrives.

    Attributes:
        config: of DeepSpeed, for its engine; None: it stays where it is read.
        compared: shapes of the parameters, as stored, that transformers compares once it has read them, before it ties
            them: they wait until the model is whole, and every rank reads them.
        waiting: parameters that were read and are to be partitioned.
    """

    config: dict[str, Any] | None = None
    compared: set[torch.Size] = field(default_factory=set)
    waiting: list[nn.Parameter] = field(default_factory=list)

    @property
    def partitions(self) -> bool:
        return self.config is not None and self.config["zero_optimization"]["stage"] == 3

    @property
    def device(self) -> torch.device:
        """Where the model computes, once it is there."""
        return torch.device("cpu") if self.config is None else device()

    def reads(self, shape: torch.Size) -> bool:
        """Whether this rank reads a tensor, or waits for that of the main rank."""
        return not self.partitions or is_main() or shape.numel() <= SMALL or shape in self.compared

    def receive(self, parameter: nn.Parameter) -> None:
        """Bring what has been read where it belongs, or have it wait."""
        if self.config is None:
            return
        if not self.partitions:
            parameter.data = parameter.data.to(device())
        elif not is_partitioned(parameter) and parameter.shape not in self.compared:
            self.partition(parameter)

    def partition(self, *parameters: nn.Parameter, at_last: bool = False) -> None:
        """Partition these and those that wait, if together they are large enough; else they wait, too."""
        self.waiting += parameters
        if at_last or sum(parameter.nbytes for parameter in self.waiting) >= AT_ONCE:
            arrived, self.waiting = self.waiting, []
            partition(arrived, self.config)

    def settle(self) -> None:
        """Partition what waits; call on every rank."""
        if self.waiting:
            self.partition(at_last=True)


_arrival = Arrival()


def arrival() -> Arrival:
    """That of the model which is being read."""
    return _arrival


def on_registration(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
    """Hook of torch for everything that becomes a module's parameter; transformers has marked what was read."""
    if parameter is not None and not parameter.is_meta and getattr(parameter, "_is_hf_initialized", False):
        _arrival.receive(parameter)


@contextmanager
def arriving(config: dict[str, Any] | None) -> Iterator[None]:
    """What is read in it goes where an engine of this DeepSpeed configuration wants it, but for a little that waits.

    Args:
        config: None: it stays on the host, whole on every rank.
    """
    global _arrival
    before, _arrival = _arrival, Arrival(config)
    hook = register_module_parameter_registration_hook(on_registration)
    try:
        yield
    finally:
        hook.remove()
        _arrival = before


def agreed(folder: Path | None, what: str) -> Path | None:
    """What every rank has found, all of them something or none: they read a model together or each by itself.

    Raises:
        UserError: some ranks have found nothing; names `what`.
    """
    if _arrival.partitions and len(set(all_gather_objects(folder is None))) > 1:
        raise UserError(f"{what}: some ranks find its safetensors, others do not")
    return folder


def is_partitioned(tensor: torch.Tensor) -> bool:
    return hasattr(tensor, "ds_id")


def shape_of(parameter: torch.Tensor) -> torch.Size:
    """The shape of the whole parameter, of which a rank may hold a part."""
    return parameter.ds_shape if is_partitioned(parameter) else parameter.shape


def persistent_buffers(model: nn.Module) -> dict[str, torch.Tensor]:
    """The buffers that are stored with a model's parameters, such as what routes tokens to experts."""
    stored = model.state_dict(keep_vars=True)
    return {name: tensor for name, tensor in stored.items() if not isinstance(tensor, nn.Parameter)}


def share_buffers(model: nn.Module) -> None:
    """Give every rank those of the stored buffers that the main rank alone has read."""
    for buffer in persistent_buffers(model).values():
        if _arrival.partitions and buffer.numel() > SMALL:
            buffer.copy_(broadcast_from_main(buffer))


def partition(parameters: Iterable[nn.Parameter], config: dict[str, Any]) -> None:
    """Give every rank its part of each; the numbers are the main rank's."""
    import deepspeed

    holder = nn.Module()
    holder._parameters.update({str(i): parameter for i, parameter in enumerate(parameters)})
    with quiet():
        deepspeed.zero.Init(module=holder, config_dict_or_path=config)


@contextmanager
def whole(*parameters: torch.Tensor, changed: bool = False) -> Iterator[None]:
    """The numbers of parameters that may be partitioned; call on every rank.

    Args:
        changed: the main rank's changes become everyone's.
    """
    partitioned = [parameter for parameter in parameters if is_partitioned(parameter)]
    if not partitioned:
        yield
        return
    import deepspeed

    with torch.no_grad(), deepspeed.zero.GatheredParameters(partitioned, modifier_rank=0 if changed else None):
        yield


def copy_of(model: nn.Module, config: dict[str, Any]) -> nn.Module:
    """A second model with parameters of its own, without reading anything, for an engine of another configuration.

    Args:
        model: has no engine yet, whose hooks would come along.
    """
    copies, there = {}, Arrival(config)
    for parameter in model.parameters():
        with whole(parameter):
            own = copies[id(parameter)] = nn.Parameter(parameter.detach().clone(), parameter.requires_grad)
        if is_partitioned(parameter):
            there.partition(own)
    there.settle()
    return copy.deepcopy(model, copies)
