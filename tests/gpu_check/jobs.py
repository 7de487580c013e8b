"""Checks in processes of their own: one that crashes, hangs or runs out of memory costs its own rows alone.

A process reports row by row. While it works, the next one already imports what it needs.
"""

import contextlib
import importlib
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from tests.helpers import FORKSERVER
from utils.process.plain_text import printable

OK, FAILED, MISSING, LATE = "ok", "failed", "not there", "no time left"
REASON_LENGTH = 300
SLACK = 1.5  # times its share that a job may take, if there is as much left
SECONDS_TO_END = 5.0  # for a process and what it has started, before it is killed

Checks = dict[str, Callable[[], str]]  # what is checked -> does it, and says what came out


class NotThere(Exception):
    """What a check is about does not exist on this machine. The message is one line."""


@dataclass(frozen=True)
class Settings:
    """What all checks share.

    Attributes:
        small: tiny models and loads, for a machine without a GPU.
        folder: for files that one process leaves to another.
    """

    small: bool
    folder: str


@dataclass(frozen=True)
class Job:
    """One process.

    Attributes:
        function: "module:name" of `name(settings, *arguments)`, which prepares and returns `Checks`.
        share: of the time, relative to that of the others; about its seconds on a GPU.
        environment: variables it is started with.
    """

    section: str
    label: str
    function: str
    arguments: tuple = ()
    share: float = 20.0
    environment: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """What came out of a check; `status` is one of the four above."""

    section: str
    check: str
    status: str
    result: str
    seconds: float = 0.0


class Worker:
    """The process of a job: imports what it needs, then waits for its turn."""

    def __init__(self, job: Job, settings: Settings, log: Path):
        # A fork after CUDA has been asked for anything cannot use it: there, every process starts from nothing.
        context = multiprocessing.get_context("spawn") if torch.cuda.is_available() else FORKSERVER
        self.job = job
        self.pipe, end = context.Pipe()
        self.process = context.Process(target=work, args=(job, settings, end, log))
        with mock.patch.dict(os.environ, job.environment):
            self.process.start()
        end.close()

    def await_imports(self, seconds: float) -> None:
        """Wait until it has imported what it needs; they are no part of its share."""
        with contextlib.suppress(EOFError, OSError):  # `rows` tells of a process that has ended
            if self.pipe.poll(max(0.0, seconds)):
                self.pipe.recv()

    def rows(self, limit: float) -> Iterator[Row]:
        """Let it work for at most `limit` seconds; its rows, as they come, and one for every check it owes then."""
        deadline, begun = time.monotonic() + limit, time.monotonic()
        open_checks = [self.job.label]
        with contextlib.suppress(EOFError, OSError):
            self.pipe.send("go")
        while open_checks:
            try:
                message = self.pipe.recv() if self.pipe.poll(max(0.0, deadline - time.monotonic())) else None
            except (EOFError, OSError):
                yield self.row(open_checks.pop(0), FAILED, self.how_it_ended(), time.monotonic() - begun)
                yield from (self.row(check, FAILED, "not reached: see above") for check in open_checks)
                return
            if message is None:
                late = f"stopped after {limit:.0f} s, more than its share of the time"
                yield self.row(open_checks.pop(0), LATE, late, time.monotonic() - begun)
                yield from (self.row(check, LATE, "") for check in open_checks)
                return
            if isinstance(message, list):
                open_checks = message
            else:
                open_checks.pop(0)
                yield self.row(*message, time.monotonic() - begun)
            begun = time.monotonic()

    def row(self, check: str, status: str, result: str, seconds: float = 0.0) -> Row:
        return Row(self.job.section, check, status, result, seconds)

    def how_it_ended(self) -> str:
        self.process.join(SECONDS_TO_END)
        code = self.process.exitcode
        how = f"signal {signal.Signals(-code).name}" if code and code < 0 else f"exit code {code}"
        return f"the process ended with {how}; see the log"

    def end(self) -> None:
        """End the process, and what it has started if it can still see to that."""
        self.process.terminate()
        self.process.join(SECONDS_TO_END)
        self.process.kill()
        self.process.join()
        self.pipe.close()


def work(job: Job, settings: Settings, pipe: Connection, log: Path) -> None:
    """The process of a job. It ends at once: a process group that is torn down may hang or abort."""
    code = 1
    try:
        do_checks(job, settings, pipe, log)
        code = 0
    except Exception:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def do_checks(job: Job, settings: Settings, pipe: Connection, log: Path) -> None:
    """Send the names of a job's checks as a list, then (check, status, result) of each."""
    os.setsid()  # an interrupt from the terminal is the command's to handle
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    with log.open("a") as file:
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)
    module, _, name = job.function.partition(":")
    prepare = attempt(lambda: getattr(importlib.import_module(module), name))
    pipe.send("ready")
    pipe.recv()
    print(f"\n=== {job.section}: {job.label}", flush=True)
    checks = attempt(lambda: prepare.value()(settings, *job.arguments))
    if checks.status != OK:
        pipe.send((job.label, checks.status, checks.reason))
        return
    pipe.send(list(checks.result))
    for check, function in checks.result.items():
        print(f"--- {check}", flush=True)
        done = attempt(function)
        pipe.send((check, done.status, done.result if done.status == OK else done.reason))
        del done  # an error holds what was allocated where it happened
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


@dataclass(frozen=True)
class Attempt:
    """What a call returned, or why it did not."""

    status: str
    result: Any = None
    error: Exception | None = None

    def value(self) -> Any:
        if self.error:
            raise self.error
        return self.result

    @property
    def reason(self) -> str:
        """One line."""
        line = " ".join(printable(str(self.error)).split())[:REASON_LENGTH]
        if isinstance(self.error, NotThere | AssertionError | ModuleNotFoundError):
            return line or type(self.error).__name__
        return f"{type(self.error).__name__}: {line}"


def attempt(function: Callable[[], Any]) -> Attempt:
    """Call it; the traceback of a failure goes to the log."""
    try:
        return Attempt(OK, function())
    except (NotThere, ModuleNotFoundError) as error:
        return Attempt(MISSING, error=error)
    except Exception as error:
        traceback.print_exc()
        return Attempt(FAILED, error=error)


def run_jobs(jobs: list[Job], settings: Settings, seconds: float, record: Any) -> None:
    """One job after another, each with its share of what is left; every row goes to `record`.

    Args:
        record: a `Record`; also its log takes what the processes say.
    """
    deadline = time.monotonic() + seconds
    log = record.log
    worker: Worker | None = Worker(jobs[0], settings, log)
    following = None
    try:
        for number, job in enumerate(jobs):
            following = Worker(jobs[number + 1], settings, log) if number + 1 < len(jobs) else None
            worker.await_imports(deadline - time.monotonic())
            left = deadline - time.monotonic()
            if left <= 0:
                record.add(Row(job.section, job.label, LATE, ""))
            else:
                limit = min(left, SLACK * left * job.share / sum(later.share for later in jobs[number:]))
                record.begin(job, limit, [later.section for later in jobs[number + 1 :]])
                for row in worker.rows(limit):
                    record.add(row)
            worker.end()
            worker, following = following, None
    finally:
        for started in (worker, following):
            if started:
                started.end()
