"""Engines' checkpoints under another number of ranks or another ZeRO stage than they were saved with.

DeepSpeed 0.19.8 itself loads ZeRO-0 under any number of ranks and refuses the other stages under another number than
they were saved with. Its universal checkpoints would lift that for stages 1, 2 and 3 (not between 0, 1-2 and 3, and not
before the first optimizer step), by way of a folder three times as large as the model in float32. Here every
rank picks its numbers from the saved files directly: they are mapped into memory, not read whole, and not unpickled.

Written for DeepSpeed 0.19.8. Beside its files it knows these attributes of its optimizers: bit16_groups,
single_partition_of_fp32_groups and the parameters' _hp_mapping (ZeRO-1/2); fp16_groups, fp32_partitioned_groups_flat,
checkpoint_event_prologue and _epilogue, and the parameters' ds_tensor (ZeRO-3).
"""

import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from deepspeed.runtime.fp16.loss_scaler import LossScaler
from deepspeed.runtime.zero.config import ZeroStageEnum
from deepspeed.utils.tensor_fragment import fragment_address
from torch import nn

from utils.engines.deepspeed_config import quiet
from utils.engines.engines import Engine
from utils.process.distributed import rank, world_size
from utils.process.errors import UserError

MASTER = "fp32"  # the optimizer's own float32 copy of the weights
MOMENTS = ("exp_avg", "exp_avg_sq")  # of Adam
IMPLEMENTATION = ("foreach", "fused", "capturable")  # how this engine's optimizer computes, not what

Tensors = dict[str, torch.Tensor]  # MASTER and MOMENTS of the same numbers


def load_engine(engine: Engine, directory: Path, tag: str, saved_world_size: int, saved_stage: int) -> None:
    """Load weights, optimizer, learning-rate schedule and counters into an engine that has taken no step yet.

    Call on every rank. Exact: the same float32 numbers, whatever the layout.

    Args:
        directory, tag: as given to `engine.save_checkpoint`.
        saved_world_size, saved_stage: the number of ranks and the ZeRO stage of that call.

    Raises:
        UserError: the checkpoint is of another model.
    """
    stage = engine.zero_optimization_stage()
    with quiet():
        if stage == saved_stage and (stage == 0 or world_size() == saved_world_size):
            adapted = any(not parameter.requires_grad for parameter in engine.module.parameters())
            engine.load_checkpoint(str(directory), tag=tag, load_module_strict=not adapted)
        else:
            install(engine, read_saved(Path(directory) / tag, saved_stage, whole_shapes(engine.module)))


def whole_shapes(module: nn.Module) -> dict[str, torch.Size]:
    """Shapes of the trained parameters, tied ones once, in the order in which an optimizer is given them."""
    return {name: getattr(p, "ds_shape", p.shape) for name, p in trained_parameters(module)}


def trained_parameters(module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Parameters that are not frozen, with their names."""
    return [(name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad]


# --- what was saved


@dataclass(frozen=True)
class Piece:
    """Where consecutive numbers of a parameter lie: `length` of them from `offset` on, in flat tensors."""

    tensors: Tensors
    offset: int
    length: int


@dataclass(frozen=True)
class SavedEngine:
    """An engine's checkpoint.

    Attributes:
        shapes: of every trained parameter by name.
        pieces: of every parameter, in the order of its numbers.
        step: steps Adam has taken, None before the first; float32 scalar.
        hyperparameters: of the optimizer: learning rate, betas and so on.
        common: learning-rate schedule and counters, the same on every rank.
    """

    shapes: dict[str, torch.Size]
    pieces: dict[str, list[Piece]]
    step: torch.Tensor | None
    hyperparameters: dict[str, Any]
    common: dict[str, Any]

    def whole(self, name: str, key: str = MASTER) -> torch.Tensor:
        """A parameter's float32 weights or moments, in its shape; moments that no step has made yet are 0."""
        parts = [
            piece.tensors[key].view(-1).narrow(0, piece.offset, piece.length)
            if key in piece.tensors
            else torch.zeros(piece.length)
            for piece in self.pieces[name]
        ]
        return torch.cat(parts).float().view(self.shapes[name])


def read_saved(folder: Path, stage: int, shapes: dict[str, torch.Size]) -> SavedEngine:
    """The checkpoint of one engine.

    Args:
        folder: holds DeepSpeed's files.
        stage: ZeRO stage it was saved under.
        shapes: `whole_shapes` of the model.

    Raises:
        UserError: the checkpoint is of another model.
    """
    common = load_safely(folder / f"{'zero_pp_rank_0_' if stage == 3 else ''}mp_rank_00_model_states.pt")
    groups = (
        [{name: tensor.shape for name, tensor in common["module"].items()}] if stage == 0 else common["param_shapes"]
    )
    saved = {name: torch.Size(shape) for group in groups for name, shape in group.items()}
    for name, shape in shapes.items():
        if saved.get(name) != shape:
            raise UserError(f"{folder}: a checkpoint of another model ({name} is {saved.get(name)}, not {shape})")
    if stage == 0:
        return read_whole(common, list(shapes))
    return read_partitions(folder, stage, common)


def load_safely(file: Path) -> dict[str, Any]:
    """One of DeepSpeed's files, mapped into memory; nothing but tensors, numbers and three of its classes is made.

    Raises:
        UserError: it holds anything else, such as code.
    """
    try:
        with torch.serialization.safe_globals([LossScaler, ZeroStageEnum, fragment_address]):
            return torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError:
        raise UserError(f"{file}: holds other objects than DeepSpeed's checkpoints do; it is not read") from None


def read_whole(common: dict[str, Any], names: list[str]) -> SavedEngine:
    """ZeRO-0: one file, the optimizer's states numbered in the order of the parameters."""
    optimizer, weights = common["optimizer"], common["module"]
    masters = [weights[name] for name in names]
    if "fp32_groups" in optimizer:  # bf16
        masters = [master for group in optimizer["fp32_groups"] for master in group]
        optimizer = optimizer["optimizer_state_dict"]
    pieces = {}
    for number, (name, master) in enumerate(zip(names, masters, strict=True)):
        tensors = {MASTER: master} | optimizer["state"].get(number, {})
        pieces[name] = [Piece(tensors, 0, master.numel())]
    shapes = {name: weights[name].shape for name in names}
    return SavedEngine(shapes, pieces, adam_step(pieces), hyperparameters(optimizer), common)


def read_partitions(folder: Path, stage: int, common: dict[str, Any]) -> SavedEngine:
    """ZeRO-1, 2 and 3: one file a rank, which holds flat parts of everything."""
    ranks = len(list(folder.glob("*_optim_states.pt")))
    flats_key, state_key = (
        ("fp32_flat_groups", "optimizer_state_dict")
        if stage == 3
        else ("single_partition_of_fp32_groups", "base_optimizer_state")
    )
    shapes = {name: torch.Size(shape) for group in common["param_shapes"] for name, shape in group.items()}
    pieces: dict[str, list[Piece]] = {name: [] for name in shapes}
    for number in range(ranks):
        (file,) = folder.glob(f"*zero_pp_rank_{number}_mp_rank_00_optim_states.pt")
        shard = load_safely(file)["optimizer_state_dict"]
        for index, flat in enumerate(shard[flats_key]):
            tensors = {MASTER: flat} | shard[state_key]["state"].get(index, {})
            if stage == 3:
                found = equal_parts(common["param_shapes"][index], number, ranks)
            else:
                mapping = shard["param_slice_mappings"][index]
                found = ((name, address.start, address.numel) for name, address in mapping.items())
            for name, offset, length in found:
                pieces[name].append(Piece(tensors, offset, length))
    return SavedEngine(shapes, pieces, adam_step(pieces), hyperparameters(shard[state_key]), common)


def equal_parts(shapes: dict[str, torch.Size], number: int, ranks: int) -> Iterator[tuple[str, int, int]]:
    """ZeRO-3: (name, offset, length) of a rank's part of each parameter; the last parts may be shorter or empty."""
    offset = 0
    for name, shape in shapes.items():
        size = -(-shape.numel() // ranks)
        yield name, offset, clipped_length(shape.numel(), size, number)
        offset += size


def clipped_length(numel: int, size: int, number: int) -> int:
    """How many of a parameter's `numel` numbers are in its part `number` of `size`."""
    return max(0, min(size, numel - number * size))


def adam_step(pieces: dict[str, list[Piece]]) -> torch.Tensor | None:
    steps = [piece.tensors["step"] for parts in pieces.values() for piece in parts if "step" in piece.tensors]
    return max(steps) if steps else None


def hyperparameters(optimizer: dict[str, Any]) -> dict[str, Any]:
    """Those of the only parameter group that our engines have, from the optimizer's state dictionary."""
    first, *_ = optimizer["param_groups"]
    return {name: value for name, value in first.items() if name != "params"}


# --- what this rank's engine holds


@dataclass(frozen=True)
class Place:
    """Numbers `start` to `start + length` of a parameter, at `offset` of a flat tensor of this rank's optimizer."""

    name: str
    offset: int
    start: int
    length: int


@dataclass(frozen=True)
class Partition:
    """One tensor that the optimizer steps on this rank."""

    shape: torch.Size
    places: list[Place]

    def filled(self, saved: SavedEngine, key: str) -> torch.Tensor:
        """The saved numbers that belong here, padding 0; float32."""
        flat = torch.zeros(self.shape).view(-1)
        for place in self.places:
            values = saved.whole(place.name, key).view(-1).narrow(0, place.start, place.length)
            flat.narrow(0, place.offset, place.length).copy_(values)
        return flat.view(self.shape)


def partitions(engine: Engine) -> list[Partition]:
    """What the optimizer of this rank steps, in its order."""
    stage, optimizer = engine.zero_optimization_stage(), engine.optimizer
    if stage == 0:
        named = trained_parameters(engine.module)
        return [Partition(p.shape, [Place(name, 0, 0, p.numel())]) for name, p in named]
    names = {parameter: name for name, parameter in trained_parameters(engine.module)}
    if stage == 3:
        groups = zip(optimizer.fp16_groups, optimizer.fp32_partitioned_groups_flat, strict=True)
        return [Partition(flat.shape, equal_places(group, names)) for group, flat in groups]
    return [
        Partition(flat.shape, [mapped_place(p, names[p]) for p in group if p._hp_mapping is not None])
        for group, flat in zip(optimizer.bit16_groups, optimizer.single_partition_of_fp32_groups, strict=True)
    ]


def mapped_place(parameter: nn.Parameter, name: str) -> Place:
    """ZeRO-1 and 2."""
    low, high = parameter._hp_mapping.lp_fragment_address, parameter._hp_mapping.hp_fragment_address
    return Place(name, high.start, low.start, low.numel)


def equal_places(group: list[nn.Parameter], names: dict[nn.Parameter, str]) -> list[Place]:
    """ZeRO-3."""
    places, offset = [], 0
    for parameter in group:
        size = parameter.ds_tensor.numel()
        length = clipped_length(parameter.ds_numel, size, rank())
        places.append(Place(names[parameter], offset, rank() * size if length else 0, length))
        offset += size
    return places


def install(engine: Engine, saved: SavedEngine) -> None:
    """Put what was saved into an engine, in the form in which this engine would have saved it on this rank."""
    own = partitions(engine)
    masters = [partition.filled(saved, MASTER) for partition in own]
    states = {}
    if saved.step is not None:
        for number, partition in enumerate(own):
            moments = {key: partition.filled(saved, key) for key in MOMENTS}
            states[number] = {"step": saved.step.clone()} | moments
    (present,) = engine.optimizer.param_groups
    implementation = {name: present[name] for name in IMPLEMENTATION if name in present}
    group = saved.hyperparameters | implementation | {"params": list(range(len(own)))}
    put(engine, masters, {"state": states, "param_groups": [group]})
    if engine.zero_optimization_stage() < 3:  # there, the optimizer puts them in
        with torch.no_grad():
            for name, parameter in trained_parameters(engine.module):
                parameter.copy_(saved.whole(name))
    engine.lr_scheduler.load_state_dict(saved.common["lr_scheduler"])
    for counter in ("global_steps", "global_samples", "skipped_steps"):
        setattr(engine, counter, saved.common[counter])


def put(engine: Engine, masters: list[torch.Tensor], adam: dict[str, Any]) -> None:
    """Load the optimizer.

    Args:
        masters: float32 weights of each of `partitions`.
        adam: state dictionary of torch's optimizer over these.
    """
    stage, optimizer = engine.zero_optimization_stage(), engine.optimizer
    if stage == 0 and not hasattr(optimizer, "fp32_groups"):
        optimizer.load_state_dict(adam)  # torch's own; its master weights are the parameters
    elif stage == 0:
        optimizer.load_state_dict(optimizer.state_dict() | {"optimizer_state_dict": adam, "fp32_groups": [masters]})
    elif stage == 3:
        optimizer.checkpoint_event_prologue()
        own = optimizer.state_dict() | {"optimizer_state_dict": adam, "fp32_flat_groups": masters}
        optimizer.load_state_dict([own] * world_size())
        optimizer.checkpoint_event_epilogue()
    else:
        changes = {"base_optimizer_state": adam, "single_partition_of_fp32_groups": masters}
        own = optimizer.state_dict() | changes
        optimizer.load_state_dict([own] * world_size(), load_from_fp32_weights=True)
