"""Ranks: starting DeepSpeed's process group on any device, and the few collectives the stages use."""

import os
import random
import socket
from datetime import timedelta
from typing import Any

import numpy
import torch
import torch.distributed as dist

from utils.process.errors import UserError
from utils.process.rank_watch import stop_watching

SECONDS_OF_A_COLLECTIVE = 1800.0  # at least, before torch gives it up


def init_distributed(rank_timeout: float = 600.0) -> None:
    """Join the process group the launcher describes, or form a group of one when there is no launcher.

    torch gives a collective up after twice `rank_timeout` seconds, half an hour at least, so that the rank watch,
    which knows more, speaks first; it alone sees on CPU and GPU alike, but not to other hosts. 0: never.

    Raises:
        UserError: this machine has fewer CUDA devices than ranks.

    On GPUs, torch's choice of an attention kernel leaves cuDNN's out: it builds a plan for every new shape, and in
    rollouts every token is one. On CPU, DeepSpeed would compile a shared-memory collective here (and fail where there
    is no C++ compiler); gloo gives the same results, so that extension is declared unavailable first.
    """
    import deepspeed

    if not torch.cuda.is_available():
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if "RANK" not in os.environ:
        # Port 0 would do for one rank, but DeepSpeed passes the number on as given.
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    # Where this is not set, as it is by DeepSpeed's launcher, every reduction on CPU starts `numactl` to count devices.
    os.environ.setdefault("LOCAL_SIZE", os.environ.get("LOCAL_WORLD_SIZE", os.environ["WORLD_SIZE"]))
    if torch.cuda.is_available():
        check_local_ranks(int(os.environ["LOCAL_SIZE"]), torch.cuda.device_count())
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        torch.backends.cuda.enable_cudnn_sdp(False)
    seconds = max(2 * rank_timeout, SECONDS_OF_A_COLLECTIVE) if rank_timeout else timedelta(days=365).total_seconds()
    deepspeed.init_distributed(
        dist_backend="nccl" if torch.cuda.is_available() else "gloo", verbose=False, timeout=timedelta(seconds=seconds)
    )


def check_local_ranks(ranks: int, devices: int) -> None:
    """Raise UserError if this machine has more ranks than devices; two on one would share its memory unasked."""
    if ranks > devices:
        raise UserError(f"--num_accelerators {ranks}: there are {devices} CUDA devices on this machine")


def shutdown_distributed() -> None:
    """Leave the process group, all ranks together, so that no rank warns about a group it never left.

    A rank that is done waits here for those that still write: it would see one of them being killed.
    """
    if dist.is_initialized():
        if dist.get_world_size() > 1:
            dist.barrier()
        stop_watching()
        dist.destroy_process_group()


def device() -> torch.device:
    """This rank's device."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else int(os.environ.get("RANK", "0"))


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else int(os.environ.get("WORLD_SIZE", "1"))


def is_main() -> bool:
    """Whether this rank prints and writes."""
    return rank() == 0


def print_main(*values: object) -> None:
    if is_main():
        print(*values, flush=True)


def all_reduce_sum(tensor: torch.Tensor) -> torch.Tensor:
    """Sum of `tensor` over ranks, in place; any shape."""
    if world_size() > 1:
        dist.all_reduce(tensor)
    return tensor


def all_reduce_max(tensor: torch.Tensor) -> torch.Tensor:
    """Maximum of `tensor` over ranks, in place; any shape."""
    if world_size() > 1:
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
    return tensor


def all_gather_rows(tensor: torch.Tensor) -> torch.Tensor:
    """The rows of all ranks, rank after rank; [n, ...] on every rank -> [ranks · n, ...]."""
    if world_size() > 1:
        parts = [torch.empty_like(tensor) for _ in range(world_size())]
        dist.all_gather(parts, tensor.contiguous())
        return torch.cat(parts)
    return tensor


def all_gather_objects(value: Any) -> list[Any]:
    """One small object of every rank, on every rank, in their order."""
    values: list[Any] = [value] * world_size()
    if world_size() > 1:
        dist.all_gather_object(values, value)
    return values


def barrier() -> None:
    """Wait until every rank is here."""
    if world_size() > 1:
        dist.barrier()


def broadcast_from_main(tensor: torch.Tensor) -> torch.Tensor:
    """The main rank's numbers on every rank; for few numbers on the host."""
    if world_size() > 1:
        shared = tensor.to(device())
        dist.broadcast(shared, src=0)
        return shared.to(tensor.device)
    return tensor


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch. Ranks that must draw differently add their rank to `seed`."""
    random.seed(seed)
    numpy.random.seed(seed % 2**32)
    torch.manual_seed(seed)
