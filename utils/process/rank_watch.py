"""Ranks watch each other: when one is killed or stuck, the whole run ends, naming it and what it said last.

    watch_ranks(folder, timeout)     on every rank, right after `init_distributed`
    beat("generating", step=12)      whenever a phase begins
    stop_watching()                  at the good end; `shutdown_distributed` does it

Every rank keeps a record of its last message in `<folder>/.ranks/rank_<r>.json`; a record that has been removed is of a
rank that left by itself. A thread on every rank looks once a second and ends the run when

  - a rank on the same host is gone although its record is there (ranks elsewhere are missed by the collectives);
  - no rank on its host has begun a phase for `timeout` seconds: one hangs and the others wait for it. While one rank
    works alone and the others wait, as in an export, its phases count for all, so the longest of them must fit;
  - a launcher is gone: nobody would see these ranks any more, and the next run would write into the same folder.

The rank that creates `.ranks/said` first prints one line, waits a little for the others, and kills those that are left.
The thread needs the interpreter's lock. Where a long call holds it the thread is late, never wrong.
"""

import contextlib
import json
import os
import select
import shutil
import signal
import socket
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import psutil
import torch.distributed as dist

ROOT = Path(__file__).resolve().parents[2]
FOLDER, SAID = ".ranks", "said"
SECONDS_BETWEEN_LOOKS = 1.0
SECONDS_TO_LEAVE = 5.0  # a launcher returns the first exit code it sees, so that who has spoken ends first
SECONDS_BEFORE_KILLING = 8.0  # longer than that
RECORD_BYTES = 1024  # written in place: also a full disk takes it, and no reader sees a missing file
MESSAGE_LENGTH = 200
LAUNCHERS = ("deepspeed", "deepspeed.launcher.runner", "deepspeed.launcher.launch", "torchrun", "torch.distributed.run",
             "accelerate", "mpirun")  # fmt: skip
SHELLS = ("sh", "bash", "dash", "zsh", "fish", "ksh", "tcsh", "csh")


@dataclass(frozen=True)
class Watched:
    """A process of this host; `process` is None if it was gone when first looked for."""

    pid: int
    process: psutil.Process | None

    @classmethod
    def find(cls, pid: int) -> "Watched":
        with contextlib.suppress(psutil.NoSuchProcess):
            return cls(pid, psutil.Process(pid))
        return cls(pid, None)

    def status(self) -> str | None:
        """psutil's status, None once it has ended; another process with the same id is told apart."""
        if self.process is None or not self.process.is_running():
            return None
        try:
            status = self.process.status()
        except psutil.NoSuchProcess:
            return None
        return None if status in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD) else status

    def kill(self) -> None:
        with contextlib.suppress(psutil.Error):
            if self.process:
                self.process.kill()


class RankWatch:
    """One rank's side of the watch.

    Args:
        folder: of the records; None for a single rank, which has no peers.
        timeout: seconds in which a rank on this host must begin a phase; 0: any. Not looked at for a single rank.
        rank: this one.
        peers: the other ranks on this host.
        launchers: the processes without which the run is to end.
    """

    def __init__(
        self, folder: Path | None, timeout: float, rank: int, peers: dict[int, Watched], launchers: list[Watched]
    ) -> None:
        self.folder, self.timeout, self.rank, self.peers, self.launchers = folder, timeout, rank, peers, launchers
        self.beats, self.message, self.began, self.where, self.waiting = 0, "starting", time.time(), "", False
        unread = {"message": "unknown", "time": self.began, "where": "", "waiting": True}
        self.records: dict[int, dict[str, Any]] = dict.fromkeys(peers, unread)  # as last read
        self.publishing, self.ending = threading.Lock(), threading.Lock()
        self.stopped = False
        if folder:
            self.file = os.open(self.path_of(rank), os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
            self.publish()
        self.reader, self.writer = os.pipe()
        os.set_blocking(self.writer, False)
        self.thread = threading.Thread(target=self.watch, name="rank watch", daemon=True)

    def start(self) -> None:
        """Watch from now on. SIGTERM, by which a launcher ends ranks, goes to the thread: it has a line to write.

        The main thread, where Python runs handlers, may be inside a collective; the wake-up pipe is written anyway.
        """
        if self.folder:
            self.handler = signal.signal(signal.SIGTERM, lambda *_: None)
            self.wakeup = signal.set_wakeup_fd(self.writer, warn_on_full_buffer=False)
        self.thread.start()

    def stop(self) -> None:
        """End the watch; the peers see a rank that has finished."""
        self.stopped = True
        os.write(self.writer, b"\0")
        self.thread.join()
        if self.folder:
            signal.set_wakeup_fd(self.wakeup)
            signal.signal(signal.SIGTERM, self.handler)
            os.close(self.file)
            self.remove_record()
            with contextlib.suppress(OSError):  # not empty: the last rank removes it
                self.folder.rmdir()
        os.close(self.reader)
        os.close(self.writer)

    # --- records

    def path_of(self, rank: int) -> Path:
        return self.folder / f"rank_{rank}.json"

    def beat(self, message: str) -> None:
        self.message, self.began, self.beats = message[:MESSAGE_LENGTH], time.time(), self.beats + 1
        self.publish()

    def publish(self) -> None:
        """Write this rank's record, in one call."""
        if not self.folder:
            return
        with self.publishing:
            record = {"rank": self.rank, "pid": os.getpid(), "message": self.message, "time": self.began,
                      "where": self.where, "waiting": self.waiting}  # fmt: skip
            with contextlib.suppress(OSError):  # a disk that fails ends the run where something is lost by it
                os.pwrite(self.file, json.dumps(record).encode().ljust(RECORD_BYTES), 0)

    def record_of(self, rank: int) -> dict[str, Any] | None:
        """The record of a rank on this host, None if it has left by itself."""
        try:
            self.records[rank] = json.loads(self.path_of(rank).read_text())
        except FileNotFoundError:
            return None
        except (OSError, ValueError):  # a failing disk, or read while it was written: the rank is there
            return self.records[rank]
        return self.records[rank]

    def remove_record(self) -> None:
        with contextlib.suppress(OSError):
            self.path_of(self.rank).unlink()

    def said(self) -> bool:
        """Whether a rank has said why the run ends."""
        return self.folder is not None and (self.folder / SAID).exists()

    def claim(self) -> bool:
        """Whether this rank is the first to say why the run ends; on a disk that fails, every rank is."""
        if not self.folder:
            return True
        try:
            os.close(os.open(self.folder / SAID, os.O_CREAT | os.O_EXCL, 0o644))
        except OSError as error:
            return not isinstance(error, FileExistsError)
        return True

    # --- the thread

    def watch(self) -> None:
        """Look once a second until the watch is stopped; does not return where the run is to end.

        Silence is counted in looks, not read from a clock: a run that was suspended as a whole has not been silent.
        """
        silence, phases = 0.0, self.phases()
        while True:
            terminated = self.pause(SECONDS_BETWEEN_LOOKS)
            if self.stopped:
                return
            before, phases = phases, self.phases()
            silence = silence + SECONDS_BETWEEN_LOOKS if phases == before else 0.0
            self.look_at_main_thread()
            line = self.loss()
            if line is None and self.folder and self.timeout and silence > self.timeout:
                line = self.describe_stuck()
            if line is None and self.said():
                terminated = terminated or self.pause(SECONDS_TO_LEAVE)
                self.end(None)
            if line is None and terminated:
                self.end(f'rank {self.rank} was ended by SIGTERM; its last message: "{self.message}"', 128 + 15)
            if line is not None:
                self.end(line)

    def pause(self, seconds: float) -> bool:
        """Wait; whether a SIGTERM has come, which cuts it short."""
        if not select.select([self.reader], [], [], seconds)[0]:
            return False
        return signal.SIGTERM in os.read(self.reader, 64)

    def phases(self) -> list[float]:
        """What changes when a rank on this host begins a phase: this one's number of them, the peers' times."""
        records = (self.record_of(peer) for peer in self.peers)
        return [self.beats, *(record["time"] for record in records if record)]

    def look_at_main_thread(self) -> None:
        """Note where the main thread is and whether it waits in a collective."""
        place = position(sys._current_frames().get(threading.main_thread().ident))
        if place != (self.where, self.waiting):
            self.where, self.waiting = place
            self.publish()

    def loss(self) -> str | None:
        """A line on a rank or a launcher that is gone, if one is."""
        for rank, peer in self.peers.items():
            if peer.status() is None and (record := self.record_of(rank)):
                ago = max(0.0, time.time() - record["time"])
                return (
                    f"rank {rank} was killed or crashed (process {peer.pid} is gone);"
                    f' its last message: "{record["message"]}" {ago:.0f} s ago'
                )
        for launcher in self.launchers:
            if launcher.status() is None:
                return f"the launcher (process {launcher.pid}) is gone: its ranks end"
        return None

    def describe_stuck(self) -> str:
        """A line on who is stuck: a stopped process, else a rank that is not waiting in a collective, else all."""
        own = {"message": self.message, "time": self.began, "where": self.where, "waiting": self.waiting}
        records = {self.rank: own} | {r: record for r in self.peers if (record := self.record_of(r))}
        halted = [r for r in self.peers if self.peers[r].status() == psutil.STATUS_STOPPED]
        busy = halted or [r for r in records if not records[r]["waiting"]]
        if not busy:
            messages = ", ".join(f'rank {r} "{records[r]["message"]}"' for r in sorted(records))
            return f"the ranks have waited for one another for {self.timeout:g} s; their last messages: {messages}"
        rank = min(busy, key=lambda r: records[r]["time"])
        state = " (its process is stopped)" if rank in halted else ""
        where = f" in {records[rank]['where']}" if records[rank]["where"] and not state else ""
        who, likely, others = f"rank {rank}", "", "; the others wait for it"
        if len(busy) > 1:  # none of these is known to wait for another
            who, likely, others = f"one of the ranks {', '.join(map(str, sorted(busy)))}", f", perhaps rank {rank}", ""
        return (
            f"{who} has not moved for {self.timeout:g} s{likely}{state};"
            f' its last message: "{records[rank]["message"]}"{where}{others}'
        )

    # --- the end of the run

    def end(self, line: str | None, code: int = 1) -> NoReturn:
        """Leave at once, with a line if no rank has said anything yet; who speaks kills what is left in a while.

        By SIGTERM, launchers end one rank after the other and wait for each: such a rank does not wait itself.
        """
        with self.ending:  # never released: the thread must not leave while the main thread still writes
            try:
                if line is not None and self.claim():
                    with contextlib.suppress(OSError):  # nobody may be reading any more
                        os.write(2, f"error: {line}\n".encode())
                    if code == 1:
                        self.kill_peers()
            finally:
                os._exit(code)

    def kill_peers(self) -> None:
        for peer in self.peers.values():
            if peer.status() == psutil.STATUS_STOPPED:
                peer.kill()
        deadline = time.monotonic() + SECONDS_BEFORE_KILLING
        while time.monotonic() < deadline and any(peer.status() for peer in self.peers.values()):
            time.sleep(0.1)
        for peer in self.peers.values():
            peer.kill()

    def await_verdict(self, seconds: float) -> None:
        """After a connection broke: end like the other ranks if a rank is to blame, else return."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if line := self.loss():
                self.end(line)
            if self.said():
                time.sleep(SECONDS_TO_LEAVE)
                self.end(None)
            time.sleep(0.1)

    def leave(self) -> None:
        """This rank ends by itself and has said why: the others leave quietly."""
        self.claim()
        self.remove_record()


# --- the interface


_watch: RankWatch | None = None
_step, _message = 0, "starting"


def watch_ranks(folder: str | Path, timeout: float) -> None:
    """Begin the watch; a collective call, right after `init_distributed`.

    A single rank only looks after its launcher, if it has one.

    Args:
        folder: shared by the ranks of a host: the output directory. What an earlier run left in `.ranks` is removed.
        timeout: seconds within which a rank of every host begins another phase (see `beat`); 0: no limit.
    """
    global _watch
    folder, rank = Path(folder) / FOLDER, dist.get_rank()
    places: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(places, (place(), os.getpid()))
    here = {r: pid for r, (where, pid) in enumerate(places) if where == place()}
    if rank == min(here):
        shutil.rmtree(folder, ignore_errors=True)
        if len(places) > 1:
            folder.mkdir(exist_ok=True)  # hosts may share it
    dist.barrier()
    peers = {r: Watched.find(pid) for r, pid in here.items() if r != rank}
    several, found = len(places) > 1, launchers(len(places))
    if several or found:
        _watch = RankWatch(folder if several else None, timeout, rank, peers, found)
        _watch.start()
    dist.barrier()  # from here on, a missing record is of a rank that left


def beat(phase: str, step: int | None = None) -> None:
    """This rank begins a phase: "generating" of step 12; costs microseconds, no collective.

    Args:
        step: kept for the phases after it until another is given.
    """
    global _message, _step
    _step = _step if step is None else step
    _message = f"step {_step}: {phase}" if _step else phase
    if _watch:
        _watch.beat(_message)


def last_message() -> str:
    """What `beat` was told last."""
    return _message


def stop_watching() -> None:
    """The good end: this rank is done, and so are all others (call after a barrier)."""
    global _watch
    if _watch:
        _watch.stop()
    _watch = None


def watching() -> bool:
    """Whether this is one of several ranks that watch each other."""
    return _watch is not None and _watch.folder is not None


def await_verdict(seconds: float = SECONDS_TO_LEAVE) -> None:
    """See `RankWatch.await_verdict`."""
    if watching():
        _watch.await_verdict(seconds)


def leave() -> None:
    """See `RankWatch.leave`; nothing for a single rank."""
    if watching():
        _watch.leave()


def claim() -> bool:
    """Whether this is one of several ranks, and the first to say why the run ends."""
    return watching() and _watch.claim()


# --- processes


def place() -> str:
    """The host, told apart by process ids: containers may share a host's name, but not its processes."""
    try:
        return f"{socket.gethostname()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # not Linux
        return socket.gethostname()


def first_rank_runs() -> bool:
    """Whether the launch that this process belongs to has a living first rank on this host."""
    siblings = psutil.Process(os.getppid()).children()
    for process in siblings:
        with contextlib.suppress(psutil.Error):  # one that has ended
            variables = process.environ()
            same_launch = variables.get("MASTER_PORT") == os.environ.get("MASTER_PORT")
            if same_launch and variables.get("LOCAL_RANK") == "0" and process.status() != psutil.STATUS_ZOMBIE:
                return True
    return False


def launchers(ranks: int) -> list[Watched]:
    """The processes that look after this one: what LAUNCHER_PIDS lists, ancestors that are known as launchers, and the
    parent of one of several ranks, whatever it is, except a shell: its jobs may outlive it.
    """
    pids = [int(pid) for pid in os.environ.get("LAUNCHER_PIDS", "").split()]
    for generation, process in enumerate(psutil.Process().parents()):
        with contextlib.suppress(psutil.Error):
            known = any(Path(word).name in LAUNCHERS for word in process.cmdline()[:4])
            parent = generation == 0 and ranks > 1 and process.pid != 1
            if (known or parent) and process.name() not in SHELLS:
                pids.append(process.pid)
    return [Watched.find(pid) for pid in dict.fromkeys(pids)]


def position(frame: FrameType | None) -> tuple[str, bool]:
    """(the line of this project's code that a thread is in, whether it is waiting in a collective)."""
    where, waiting = "", False
    while frame:
        file = frame.f_code.co_filename
        waiting = waiting or file.endswith("distributed_c10d.py")
        if not where and file.startswith(str(ROOT)) and "site-packages" not in file:
            where = f"{frame.f_code.co_name} ({file.removeprefix(f'{ROOT}/')}:{frame.f_lineno})"
        frame = frame.f_back
    return where, waiting
