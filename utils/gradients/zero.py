"""Where DeepSpeed keeps gradients: the one place that knows.

After a backward pass at an accumulation boundary, every ZeRO stage holds the data-parallel mean gradient somewhere
else: whole in `.grad` (stage 0), as this rank's part of a flat buffer (1, 2), as this rank's part of every parameter
(3); with an offloaded optimizer in float32 on the CPU. The functions below read it, write it and forget it. To the
rest of step 3 a gradient is a list of shards, in which every number of it appears on exactly one rank.

Written for DeepSpeed 0.19.8. Beside its public interface they use these attributes of its ZeRO-1/2 and ZeRO-3
optimizers: averaged_gradients, all_grad_tensors, single_partition_of_fp32_groups, params_in_partition, grad_position,
get_param_id, norm_for_param_grads, micro_step_id, reset_cpu_buffers, cpu_offload, offload_optimizer.
"""

import math
from collections.abc import Iterator

import torch
from deepspeed.accelerator import get_accelerator
from deepspeed.utils import safe_get_local_grad, safe_set_local_grad

from utils.engines.engines import Engine
from utils.process.distributed import all_reduce_sum, device, rank, world_size

BEFORE_FIRST_BACKWARD = -1  # ZeRO-1/2 count the backward passes of a step from here


class ObjectiveGradients:
    """Gradients of m objectives over one optimizer step, as shards: m · n / ranks float32 numbers on every rank.

    Every objective's backward pass is reduced and partitioned by ZeRO itself; `add` copies the result here, `combine`
    hands Σ c_i g_i back. No rank ever holds a second unsharded gradient.
    """

    def __init__(self, engine: Engine, objectives: int):
        self.engine, self.objectives = engine, objectives
        self.shards: torch.Tensor | None = None  # [m, n / ranks] float32

    def add(self, objective: int) -> None:
        """Add what the last backward pass has left in the engine to an objective's gradient."""
        sizes = shard_sizes(self.engine)
        if self.shards is None:
            place = "cpu" if is_offloaded(self.engine) else device()
            self.shards = torch.zeros(self.objectives, sum(sizes), device=place)
        for own, shard in zip(self.shards[objective].split(sizes), gradient_shards(self.engine), strict=True):
            own.add_(shard.to(own.device))

    def gram(self, first: int | None = None) -> torch.Tensor:
        """Gram matrix of the objectives' data-parallel mean gradients, or of the first m of them; [m, m] float64 on the
        host."""
        return all_reduce_sum(shard_gram(self.shards[:first]).to(device())).cpu()

    def combine(self, coefficients: torch.Tensor) -> None:
        """Leave Σ c_i g_i in the engine, ready for its step. Works in place: the gradients are used up.

        Args:
            coefficients: [m].
        """
        combined, *others = self.shards
        first, *rest = coefficients.tolist()
        combined.mul_(first)
        for gradient, c in zip(others, rest, strict=True):
            combined.add_(gradient, alpha=c)
        write_gradient_shards(self.engine, combined)
        self.shards = None


def shard_gram(shards: torch.Tensor, chunk_size: int = 2**18) -> torch.Tensor:
    """This rank's part of the Gram matrix; float32 products, float64 sums over chunks.

    [m, k] float32 -> [m, m] float64 on the same device.
    """
    gram = torch.zeros(len(shards), len(shards), dtype=torch.float64, device=shards.device)
    for chunk in shards.split(chunk_size, dim=1):
        gram += (chunk @ chunk.T).double()
    return gram


def gradient_norm(engine: Engine) -> float:
    """Norm of the gradient of all ranks, before clipping; not finite, on every rank, where a part of it is not."""
    norms = torch.stack(
        [torch.linalg.vector_norm(s, dtype=torch.float32).to(device()) for s in gradient_shards(engine)]
    )
    return all_reduce_sum(norms.square().sum()).sqrt().item()


def step_if_finite(engines: dict[str, Engine]) -> tuple[dict[str, float], str | None]:
    """Let all engines take their optimizer steps, or none: where a NaN or Inf is in the gradient of one, on any rank.

    Args:
        engines: by what their gradient is called.

    Returns:
        Norms of the gradients before clipping; the name of one that is not finite, for which there was no step.
    """
    norms = {name: gradient_norm(engine) for name, engine in engines.items()}
    not_finite = next((name for name, norm in norms.items() if not math.isfinite(norm)), None)
    for engine in engines.values():
        if not_finite:
            forget_gradients(engine)
        else:
            engine.step()
    return norms, not_finite


def is_offloaded(engine: Engine) -> bool:
    """Whether ZeRO keeps gradients and optimizer on the CPU."""
    optimizer = engine.optimizer
    return bool(getattr(optimizer, "cpu_offload", False) or getattr(optimizer, "offload_optimizer", False))


def trained_parameters(engine: Engine) -> list[torch.nn.Parameter]:
    return [parameter for parameter in engine.module.parameters() if parameter.requires_grad]


def gradient_shards(engine: Engine) -> Iterator[torch.Tensor]:
    """This rank's shards of the gradient after a backward pass at a boundary; flat tensors of any float dtype.

    Except on stage 3, where DeepSpeed hands out float32 copies (one at a time here), they are the gradient's memory.
    """
    stage, optimizer = engine.zero_optimization_stage(), engine.optimizer
    if is_offloaded(engine):
        get_accelerator().synchronize()  # the copies to the CPU are asynchronous
    if stage == 3:
        return (safe_get_local_grad(parameter).flatten() for parameter in trained_parameters(engine))
    if stage == 0:
        gradients = (parameter.grad for parameter in trained_parameters(engine) if parameter.grad is not None)
        return (gradient.view(-1).tensor_split(world_size())[rank()] for gradient in gradients)
    if is_offloaded(engine):
        return (partition.grad.view(-1) for partition in optimizer.single_partition_of_fp32_groups)
    return (gradient.view(-1) for group in optimizer.averaged_gradients.values() for gradient in group)


def shard_sizes(engine: Engine) -> list[int]:
    """How many numbers each of `gradient_shards` has."""
    if engine.zero_optimization_stage() == 3:
        return [parameter.ds_tensor.numel() for parameter in trained_parameters(engine)]
    return [shard.numel() for shard in gradient_shards(engine)]


def write_gradient_shards(engine: Engine, flat: torch.Tensor) -> None:
    """Put a gradient where the engine's step looks for it.

    Args:
        flat: [k] float32, what `gradient_shards` gives, concatenated.
    """
    stage, optimizer = engine.zero_optimization_stage(), engine.optimizer
    values = flat.split(shard_sizes(engine))
    if stage == 3:
        for parameter, value in zip(trained_parameters(engine), values, strict=True):
            safe_set_local_grad(parameter, value)
        return
    for shard, value in zip(gradient_shards(engine), values, strict=True):
        shard.copy_(value)
    if stage == 0:
        gather_gradients(trained_parameters(engine))
    elif is_offloaded(engine):
        for group, partition in zip(
            optimizer.params_in_partition, optimizer.single_partition_of_fp32_groups, strict=True
        ):
            for parameter in group:
                number = optimizer.get_param_id(parameter)
                _, _, start, length = optimizer.grad_position[number]
                optimizer.norm_for_param_grads[number] = partition.grad.view(-1).narrow(0, start, length).norm()


def gather_gradients(parameters: list[torch.nn.Parameter]) -> None:
    """Make the whole `.grad` of every rank from each rank's own shard of it (stage 0)."""
    for parameter in parameters:
        if world_size() > 1 and parameter.grad is not None:
            for owner, shard in enumerate(parameter.grad.view(-1).tensor_split(world_size())):
                if owner != rank():
                    shard.zero_()
            all_reduce_sum(parameter.grad)


def forget_gradients(engine: Engine) -> None:
    """Drop what backward passes have left, on all stages; the next one starts from zero."""
    stage, optimizer = engine.zero_optimization_stage(), engine.optimizer
    engine.zero_grad()
    if stage == 0:
        return
    optimizer.zero_grad()
    optimizer.averaged_gradients.clear()
    if is_offloaded(engine):
        optimizer.reset_cpu_buffers()
    if stage < 3:
        optimizer.all_grad_tensors.clear()
        optimizer.micro_step_id = BEFORE_FIRST_BACKWARD
