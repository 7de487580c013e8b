"""How a script ends when it cannot go on: one line on stderr and an exit code.

UserError   bad input, 2: the line names the flag, or the file and line; a dry run has a line for every mistake
Failure     the surroundings fail (disk full, read-only, a rank lost, a planned run that does not fit in memory), 1; the
            same for errors of the file system
others      a mistake of the program, 1, with its traceback
"""

import atexit
import contextlib
import errno
import gc
import os
import re
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn, TypeVar

import torch.distributed as dist

from utils.process import rank_watch
from utils.process.plain_text import printable

Result = TypeVar("Result")

EXIT_BAD_INPUT, EXIT_FAILURE, EXIT_INTERRUPTED = 2, 1, 130
SECONDS_FOR_RANK_0 = 5  # the launcher kills all ranks once one has ended: rank 0 must have spoken by then
SECONDS_FOR_A_RANK = 2  # and so must each further rank, where they do not watch each other
FILE_SYSTEM_ERRORS = {
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE,
    errno.ENXIO, errno.ENODEV, errno.EMFILE, errno.ENFILE, errno.ENAMETOOLONG,
}  # fmt: skip
# torch.save reports a full disk as a position in its file that it did not expect.
TORCH_SAVE = re.compile(r"inline_container.*(unexpected pos|open file failed|PytorchStreamWriter)", re.DOTALL)
LOST_CONNECTION = re.compile(
    r"closed by peer|reset by peer|broken pipe|connection (closed|refused|lost)|socket (closed|error|timeout)"
    r"|timed out (waiting|after)|nccl|gloo|tcpstore|recvvalue|sendbytes|recvbytes",
    re.IGNORECASE,
)


class UserError(Exception):
    """Bad input. A message is one line and names the culprit (a flag, or `file:line`). Every rank meets it alike."""


class Failure(Exception):
    """Something out of the program's reach went wrong, perhaps on one rank only. The message is one line."""


class Problems:
    """What is wrong with the input of a run: the first of it ends a real run, a dry run finds and lists all.

    Args:
        collecting: whether it is a dry run.
    """

    def __init__(self, collecting: bool = False):
        self.collecting = collecting
        self.found: list[str] = []

    def add(self, message: str) -> None:
        """Take note of a problem; said twice, it counts once. Raises UserError in a real run."""
        if not self.collecting:
            raise UserError(message)
        if message not in self.found:
            self.found.append(message)

    def take(self, check: Callable[..., Result], *arguments: object) -> Result | None:
        """What `check` returns for these arguments; None if it finds a problem.

        None, too, without a call, where a problem has left None of an argument: what would be found depends on it.
        """
        if self.found and any(argument is None for argument in arguments):
            return None
        try:
            return check(*arguments)
        except UserError as error:
            for message in error.args:
                self.add(message)
            return None

    def passes(self, check: Callable[..., object], *arguments: object) -> bool:
        """Whether `check`, called as by `take`, finds no problem."""
        return self.take(lambda *given: (check(*given), True), *arguments) is not None

    def report(self) -> None:
        """Raise UserError with all that was found, if anything was."""
        if self.found:
            raise UserError(*self.found)


AT_ONCE = Problems()  # for what is checked outside of dry runs: the first problem ends it


_one_of_ranks = False


def expect_ranks() -> None:
    """This script forms a process group, of the ranks that a launcher describes; others ignore what it describes."""
    global _one_of_ranks
    _one_of_ranks = "LOCAL_RANK" in os.environ


def fail(*messages: str) -> NoReturn:
    """End the script over bad input, with a line for each message."""
    if speaks():
        lines = [f"error: {printable(' '.join(message.split()))}" for message in messages]  # names may hold line breaks
        print("\n".join(lines), file=sys.stderr, flush=True)
    leave(EXIT_BAD_INPUT)


def speaks() -> bool:
    """Whether this rank is to tell of bad input: all ranks meet the same, and so others wait for the first to do it.

    Where they do not watch each other yet, the launcher ends those that wait once the first has spoken and ended; if
    none does, they find it gone.
    """
    if rank_watch.watching():
        if dist.get_rank() == 0:
            return True
        time.sleep(SECONDS_FOR_RANK_0)
        return rank_watch.claim()
    local_rank = int(os.environ["LOCAL_RANK"]) if _one_of_ranks else 0
    if local_rank == 0:
        return True
    time.sleep(SECONDS_FOR_RANK_0 + SECONDS_FOR_A_RANK * (local_rank - 1))
    return rank_watch.first_rank_runs()


def leave(code: int) -> NoReturn:
    """End this process, which has said why if it is the one to; its peers leave quietly.

    Where there is a process group, at once: its threads abort an interpreter that shuts down around them, at random.
    """
    rank_watch.leave()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):  # nobody may be reading any more
            stream.flush()
    if dist.is_initialized():
        os._exit(code)
    sys.exit(code)


def run_main(main: Callable[[], None]) -> None:
    """Run a script's `main`; whatever goes wrong ends it as the table above says.

    Garbage collections leave alone what the imports have made, a million objects, and the one at the end all there is:
    it would take a fifth of a short command's time. Scripts switch them off while they import.
    """
    gc.freeze()
    gc.enable()
    atexit.register(gc.freeze)
    try:
        main()
    except UserError as error:
        fail(*error.args)
    except KeyboardInterrupt:
        if not rank_watch.watching():
            sys.excepthook = lambda *_: print("error: interrupted", file=sys.stderr, flush=True)
            raise  # so that the process ends by the signal, and a shell's loop around it, too
        if rank_watch.claim():
            print(f'error: interrupted; the last message: "{rank_watch.last_message()}"', file=sys.stderr, flush=True)
        leave(EXIT_INTERRUPTED)
    except Exception as error:
        if is_lost_connection(error):
            rank_watch.await_verdict()  # returns if no other rank is to blame
        reason = str(error) if isinstance(error, Failure) else file_system_reason(error)
        if reason is None and not dist.is_initialized():
            raise
        if reason is None:
            traceback.print_exc()
            if rank_watch.watching():
                message = f'rank {dist.get_rank()} failed; its last message: "{rank_watch.last_message()}"'
                print(f"error: {message}", file=sys.stderr, flush=True)
        elif not rank_watch.watching() or rank_watch.claim():  # a full disk is met by several ranks at once
            print(f"error: {printable(' '.join(reason.split()))}", file=sys.stderr, flush=True)
        leave(EXIT_FAILURE)


def file_system_reason(error: BaseException) -> str | None:
    """`file: reason` in one line, for errors of writing and reading by whichever library; None for all others."""
    found = file_system_error(error)
    if found is None:
        return None
    file, reason = found
    return f"{file}: {reason}" if file else f'{reason} (last message: "{rank_watch.last_message()}")'


def file_system_error(error: BaseException) -> tuple[str | None, str] | None:
    """(file, reason) of an error of writing and reading; where a disk is full, Python names no file."""
    text = " ".join(str(error).split())
    if isinstance(error, OSError) and error.errno in FILE_SYSTEM_ERRORS:
        return error.filename2 or error.filename, os.strerror(error.errno)
    number = re.search(r"\(os error (\d+)\)", text)  # safetensors
    if number and int(number[1]) in FILE_SYSTEM_ERRORS:
        file = re.search(r'at path "([^"]*)"', text)
        return file and file[1], os.strerror(int(number[1]))
    if isinstance(error, RuntimeError) and TORCH_SAVE.search(text):
        cause = file_system_error(error.__context__) if error.__context__ else None
        return cause or (None, f"torch.save could not write its file; is the disk full? ({text})")
    return None


@contextlib.contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """Turn errors of the file system into one line that names `path` where they name no file.

    Raises:
        Failure: `file: reason`.
    """
    try:
        yield
    except Exception as error:
        found = file_system_error(error)
        if found is None:
            raise
        raise Failure(f"{found[0] or path}: {found[1]}") from error


def is_lost_connection(error: Exception) -> bool:
    """Whether a collective may have failed because another rank is gone."""
    return type(error).__name__.startswith("Dist") or bool(LOST_CONNECTION.search(str(error)))
