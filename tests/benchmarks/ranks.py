"""Running an importable function on several ranks at once, each a fresh process, and getting rank 0's answer."""

import multiprocessing
import os
import tempfile
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from tests.helpers import FORKSERVER, free_port
from utils.process.distributed import init_distributed, shutdown_distributed


class BenchmarkError(RuntimeError):
    """A rank has failed; the message is what it said."""


def run_ranks(function: Callable[..., Any], *arguments: Any, ranks: int) -> Any:
    """Call `function` on every rank of a new process group; what rank 0 returns.

    Without ranks it is called here: it starts processes of its own.

    Raises:
        BenchmarkError: a rank ended without an answer.
    """
    if not ranks:
        return function(*arguments)
    # A fork after CUDA has been asked for anything cannot use it: there, every process starts from nothing.
    context = multiprocessing.get_context("spawn") if torch.cuda.is_available() else FORKSERVER
    receiver, sender = context.Pipe(duplex=False)
    with tempfile.TemporaryDirectory() as folder:
        logs = [Path(folder) / str(rank) for rank in range(ranks)]
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(ranks)}
        processes = []
        for rank, log in enumerate(logs):
            variables = shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            arguments_of_rank = (function, arguments, variables, log, sender)
            processes.append(context.Process(target=_on_rank, args=arguments_of_rank, daemon=True))
            processes[-1].start()
        sender.close()
        try:
            return answer_of(receiver, processes)
        except EOFError:
            said = "\n".join(log.read_text() for log in logs)
            raise BenchmarkError(f"{function.__name__} has failed on {ranks} ranks\n{said}") from None
        finally:
            for process in processes:
                process.kill()
                process.join()


def answer_of(receiver: Connection, processes: list[Any]) -> Any:
    """What a rank sends; raises EOFError when one has failed, even where the others wait for it."""
    while not receiver.poll(timeout=1):
        if any(process.exitcode for process in processes):
            raise EOFError
    return receiver.recv()


def _on_rank(
    function: Callable[..., Any], arguments: tuple, variables: dict[str, str], log: Path, sender: Connection
) -> None:
    os.environ.update(variables)
    with log.open("w") as file:
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)
    init_distributed()
    answer = function(*arguments)
    shutdown_distributed()
    if variables["RANK"] == "0":
        sender.send(answer)
