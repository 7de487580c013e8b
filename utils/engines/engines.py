"""DeepSpeed engines that train, and their whole weights, for all three stages."""

import argparse
from typing import Any

import deepspeed
import torch
from deepspeed.accelerator import get_accelerator
from torch import nn
from transformers import PreTrainedModel, get_scheduler

from utils.cli.arguments import warmup_steps
from utils.engines.arrival import persistent_buffers
from utils.engines.deepspeed_config import frozen_config, quiet, training_config
from utils.engines.passes import count_passes
from utils.process.distributed import device, is_main, world_size

Engine = deepspeed.DeepSpeedEngine


def make_training_engine(
    model: nn.Module,
    args: argparse.Namespace,
    learning_rate: float,
    total_steps: int,
    further_config: dict[str, Any] | None = None,
) -> Engine:
    """Engine with AdamW and a learning-rate schedule over `total_steps` optimizer steps.

    Args:
        args: batch sizes, `--adam_betas`, `--adam_eps`, and the optimization and DeepSpeed groups of flags.
        further_config: sections of DeepSpeed's configuration beside `training_config`.
    """
    model.train()  # models are loaded in evaluation mode, in which activations are never recomputed
    if args.gradient_checkpointing:
        decoder = next(module for module in model.modules() if isinstance(module, PreTrainedModel))
        decoder.activation_checkpointing_enable()
    config = engine_config(args)
    place(model, config)
    optimizer = torch.optim.AdamW(
        [parameter for parameter in model.parameters() if parameter.requires_grad],
        lr=learning_rate,
        betas=tuple(args.adam_betas),
        eps=args.adam_eps,
        weight_decay=args.weight_decay,
        fused=torch.cuda.is_available() and not args.offload,
    )
    scheduler = get_scheduler(args.lr_scheduler_type, optimizer, warmup_steps(args, total_steps), total_steps)
    config |= further_config or {}
    engine = initialize_quietly(model=model, optimizer=optimizer, lr_scheduler=scheduler, config=config)
    count_passes(engine.module)
    # Its optimizer for bf16 without ZeRO allocates the states by an empty step, which Adam's bias correction counts.
    if args.dtype == "bf16" and args.zero_stage == 0:
        optimizer.state.clear()
    return engine


def make_frozen_engine(model: nn.Module, args: argparse.Namespace) -> Engine:
    """Engine that only runs forward: partitioned under ZeRO-3, whole otherwise."""
    config = engine_config(args, frozen=True)
    place(model.requires_grad_(False), config)
    engine = initialize_quietly(model=model.eval(), config=config)
    engine.eval()
    count_passes(engine.module)
    return engine


def release(engine: Engine) -> None:
    """Give back the memory of a frozen engine's weights, whatever still refers to the engine."""
    for tensor in (*engine.module.parameters(), *engine.module.buffers()):
        if hasattr(tensor, "ds_tensor"):
            tensor.ds_tensor.data = tensor.ds_tensor.data.new_empty(0)
        tensor.data = tensor.data.new_empty(0)
    get_accelerator().empty_cache()


def engine_config(args: argparse.Namespace, frozen: bool = False) -> dict[str, Any]:
    """DeepSpeed's configuration of an engine; `utils.engines.arrival.arriving` takes it, too."""
    if frozen:
        return frozen_config(args)
    return training_config(args, args.per_device_train_batch_size, world_size(), args.gradient_accumulation_steps)


def place(model: nn.Module, config: dict[str, Any]) -> None:
    """Bring what of a model has not arrived yet to where its engine wants it; under ZeRO-3 partitioned, one by one.

    DeepSpeed by itself would first move the whole model to the device; and of a model that shares parameters with one
    that is partitioned already (LoRA) it would leave the buffers on the host.
    """
    if config["zero_optimization"]["stage"] < 3:
        model.to(device())
        return
    with quiet():
        deepspeed.zero.Init(module=model, config_dict_or_path=config)
    for buffer in model.buffers():
        buffer.data = buffer.data.to(device())


def hyperparameters_of(engine: Engine) -> tuple[list[dict[str, Any]], list[float]]:
    """An engine's optimizer settings by parameter group, and the learning rates its schedule multiplies."""
    groups = [{k: v for k, v in group.items() if k != "params"} for group in engine.optimizer.param_groups]
    return groups, list(engine.lr_scheduler.base_lrs)


def set_hyperparameters(engine: Engine, settings: tuple[list[dict[str, Any]], list[float]]) -> None:
    """Put `hyperparameters_of` in place of a checkpoint's, at the step that the schedule has come to."""
    groups, rates = settings
    scheduler = engine.lr_scheduler
    scheduler.base_lrs = rates
    rates = [rate * factor(scheduler.last_epoch) for rate, factor in zip(rates, scheduler.lr_lambdas, strict=True)]
    for group, own, rate in zip(engine.optimizer.param_groups, groups, rates, strict=True):
        group.update(own | {"lr": rate})


def initialize_quietly(**arguments: Any) -> Engine:
    """`deepspeed.initialize` without the memory figures that its bf16 optimizer prints; errors go to stderr as ever."""
    with quiet():
        engine, *_ = deepspeed.initialize(**arguments)
    return engine


def gathered_weights(model: nn.Module, trained_only: bool = False) -> dict[str, torch.Tensor]:
    """Whole parameters and persistent buffers by name, copied to the CPU of the main rank; empty on other ranks.

    Gathered one parameter at a time, so that under ZeRO-3 no device ever holds the whole model. Call on every rank.

    Args:
        trained_only: leave out what is frozen, and buffers.
    """
    weights = {}
    for name, parameter in model.named_parameters():
        if trained_only and not parameter.requires_grad:
            continue
        with deepspeed.zero.GatheredParameters([parameter], enabled=hasattr(parameter, "ds_id")):
            if is_main():
                weights[name] = parameter.detach().cpu().clone()
    if is_main() and not trained_only:
        weights |= {name: buffer.cpu().clone() for name, buffer in persistent_buffers(model).items()}
    return weights


def restore_weights(model: nn.Module, weights: dict[str, torch.Tensor], trained_only: bool = False) -> None:
    """Put the main rank's `gathered_weights` back on every rank; the optimizer's own copies stay."""
    buffers = {} if trained_only else persistent_buffers(model)
    parameters = [(n, p) for n, p in model.named_parameters() if p.requires_grad or not trained_only]
    for name, tensor in [*parameters, *buffers.items()]:
        partitioned = hasattr(tensor, "ds_id")
        whole = deepspeed.zero.GatheredParameters([tensor], modifier_rank=0, enabled=partitioned)
        with torch.no_grad(), whole:
            if is_main() and not (name in buffers and name not in weights):  # older checkpoints lack buffers
                tensor.copy_(weights[name])
            if world_size() > 1 and not partitioned:
                torch.distributed.broadcast(tensor.data, src=0)
