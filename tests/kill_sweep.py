"""Kill a whole preset at random moments, start it again each time, and compare what comes out with an undisturbed run.

    python -m tests.kill_sweep --kills 20 --seed 0 --output_dir DIR

DIR/baseline is the undisturbed run (made once, then kept), DIR/run the killed one, which is made in the same place as
the baseline was, so that recorded paths agree; DIR/output_<n>.log is what the command said. Every piece of run_all.sh
gets its share of the kills; the moment within it is random. SIGKILL goes to all processes of the command at once.

Weights, responses, evaluations, results.json and metrics.jsonl (without the fields time/*) must be the same byte for
byte, and TensorBoard must show every point of metrics.jsonl once. The exit code says whether they are.
"""

import argparse
import collections
import dataclasses
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from utils.cli.arguments import Parser
from utils.cli.types import positive_int
from utils.output.files import check_writable, write_json
from utils.output.metrics import Progress, format_duration
from utils.process.errors import UserError, run_main

ROOT = Path(__file__).resolve().parents[1]
MARK = "KILL_SWEEP"  # an environment variable that only the processes of one command have with one value
POLL_SECONDS = 0.1
TIMES = "times.json"  # in the baseline: {piece: fields of Times}
LAUNCHER = re.compile(r"\[(INFO|WARNING)\]")
PROGRESS = re.compile(r"(.*) (\d+)/(\d+) · ")
PATIENCE = 10  # times as long as the undisturbed run, and the command is taken to hang
RESUMED = re.compile("going on|is there already|is complete|have scores|discarded|damaged")
# What must be the same byte for byte; of metrics.jsonl without the fields time/*.
COMPARED = ("*.safetensors", "*.json", "*.jsonl", "*.csv", "*.html", "*.md", "*.png")
METRICS = "metrics.jsonl"


@dataclasses.dataclass(frozen=True)
class Times:
    """Of a piece in the undisturbed run, in seconds: when it started, after the command's start; how long it took, and
    how long to its first line of progress. A piece without such lines, or with several counts, is all start."""

    start: float
    whole: float
    starting: float


@dataclasses.dataclass
class Kill:
    """A kill that is planned, and what came of it.

    Attributes:
        piece: during which piece of run_all.sh; `moment`: after which share of what it has to do.
        delay: how long after the line of progress that says so, as a share of the time between two such lines.
        running: {piece: seconds since its start} when it fell; reached: {piece: share of its work that was done}.
        last_lines: {piece: what it said last}; resumed: what the pieces said about going on when started again.
    """

    piece: str
    moment: float
    delay: float
    running: dict[str, float] = dataclasses.field(default_factory=dict)
    reached: dict[str, float] = dataclasses.field(default_factory=dict)
    last_lines: dict[str, str] = dataclasses.field(default_factory=dict)
    resumed: dict[str, str] = dataclasses.field(default_factory=dict)


# --- the command


def marked_processes(mark: str) -> dict[int, str]:
    """{process: the piece it works for, or ''} of the processes that have `MARK=mark` in their environment."""
    found = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                pairs = (folder / "environ").read_bytes().split(b"\0")
            except OSError:  # gone, or not ours
                continue
            if f"{MARK}={mark}".encode() in pairs:
                piece = next((pair[6:].decode() for pair in pairs if pair.startswith(b"PIECE=")), "")
                found[int(folder.name)] = piece
    return found


def kill_all(mark: str) -> int:
    """SIGKILL to every marked process until none is left; how many there were."""
    killed: set[int] = set()
    while alive := marked_processes(mark):
        for process in alive:
            try:
                os.kill(process, signal.SIGKILL)
            except ProcessLookupError:
                continue
        killed |= alive.keys()
    return len(killed)


class Command:
    """`bash run_all.sh PRESET`, watched.

    Attributes:
        started: {piece: seconds after the command's start} when its first process was seen; last_seen: likewise.
        said: {piece: its lines}; progress: {piece: {what is counted: [(when it was said, share that is done)]}}.
        limit: seconds after which it is taken to hang.
    """

    def __init__(self, args: argparse.Namespace, output: Path, log: Path, limit: float = float("inf")):
        self.mark, self.begin, self.log, self.limit = uuid.uuid4().hex, time.monotonic(), log, limit
        self.started: dict[str, float] = {}
        self.last_seen: dict[str, float] = {}
        self.progress: dict[str, dict[str, list[tuple[float, float]]]] = {}
        self.said: dict[str, list[str]] = collections.defaultdict(list)
        variables = {"OUTPUT": str(output), "RANKS": str(args.ranks), "ZERO_STAGE": str(args.zero_stage)}
        self.process = subprocess.Popen(
            ["bash", "run_all.sh", args.preset], cwd=ROOT, env=os.environ | variables | {MARK: self.mark},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", start_new_session=True,
        )  # fmt: skip
        self.reader = threading.Thread(target=self.read, daemon=True)
        self.reader.start()

    def __enter__(self) -> "Command":
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def read(self) -> None:
        """Note what it says, and when."""
        with self.log.open("w", encoding="utf-8") as file:
            for line in self.process.stdout:
                file.write(f"{self.seconds():7.1f} {line}")
                file.flush()
                if match := re.match(r"\[(.+?)\] (.*)", line):
                    self.said[match[1]].append(match[2])
                    if count := PROGRESS.match(match[2]):
                        points = self.progress.setdefault(match[1], {}).setdefault(count[1], [])
                        points.append((self.seconds(), int(count[2]) / int(count[3])))

    def seconds(self) -> float:
        return time.monotonic() - self.begin

    def look(self) -> bool:
        """Note which pieces run; whether the command does.

        Raises:
            UserError: it hangs.
        """
        for piece in set(marked_processes(self.mark).values()) - {""}:
            self.started.setdefault(piece, self.seconds())
            self.last_seen[piece] = self.seconds()
        if self.seconds() > self.limit:
            raise UserError(f"run_all.sh has not ended in {format_duration(self.limit)}; see {self.log}")
        return self.process.poll() is None

    def times(self, piece: str) -> Times:
        """Of a piece that has ended."""
        start, end = self.started[piece], self.last_seen[piece]
        counts = list(self.progress.get(piece, {}).values())
        return Times(start, end - start, (counts[0][0][0] if len(counts) == 1 else end) - start)

    def share_done(self, piece: str) -> float:
        """How much of a piece's work is done, as its last line of progress says."""
        counts = list(self.progress.get(piece, {}).values())
        return counts[0][-1][1] if counts else 0.0

    def seconds_between(self, piece: str) -> float:
        """The time between the last two lines of progress; 0 where there is none."""
        moments = [moment for points in self.progress[piece].values() for moment, _ in points]
        return moments[-1] - moments[-2] if len(moments) > 1 else 0.0

    def is_done(self, piece: str) -> bool:
        return any(line.startswith(("done in", "is there already")) for line in self.said.get(piece, [])[-1:])

    def running(self) -> list[str]:
        return [piece for piece in self.started if not self.is_done(piece)]

    def kill(self) -> None:
        """End whatever is left of it."""
        kill_all(self.mark)
        self.process.wait()
        self.reader.join()

    def finish(self) -> None:
        """Wait for its good end.

        Raises:
            UserError: it has ended otherwise.
        """
        while self.look():
            time.sleep(POLL_SECONDS)
        self.reader.join()
        if self.process.returncode != 0:
            raise UserError(f"run_all.sh has ended with exit code {self.process.returncode}; see {self.log}")


# --- when to kill


def plan_kills(times: dict[str, Times], pieces: list[str], kills: int, seed: int) -> list[Kill]:
    """An equal share of the kills for each of `pieces`, the rest for the longest; in the order of their starts."""
    draw = random.Random(seed)
    longest = sorted(pieces, key=lambda piece: -times[piece].whole)
    shares = [piece for _ in range(kills // len(pieces)) for piece in pieces] + longest[: kills % len(pieces)]
    shares.sort(key=lambda piece: times[piece].start)
    return [Kill(piece, draw.uniform(0.02, 0.95), draw.random()) for piece in shares]


def wait_for(kill: Kill, earlier: Iterable[Kill], times: Times, command: Command) -> bool:
    """Until the moment has come, or the piece is done; whether the command still runs then."""
    starting = times.starting / times.whole
    reached = max((other.reached.get(kill.piece, 0.0) for other in earlier), default=0.0)
    target = reached + (1 - reached) * (kill.moment - starting) / max(1 - starting, 1e-9)
    while command.look():
        if command.is_done(kill.piece):
            return True
        if kill.moment < starting and has_started_for(kill.moment * times.whole, kill.piece, command):
            return True
        if kill.moment >= starting and command.share_done(kill.piece) >= target:
            time.sleep(kill.delay * command.seconds_between(kill.piece))
            return command.look()
        time.sleep(POLL_SECONDS)
    return False


def has_started_for(seconds: float, piece: str, command: Command) -> bool:
    """Whether so much time has passed since the piece was started, or it has started faster than that.

    Beyond its start a piece is followed by its progress, because the machine may be slower or faster than it was.
    """
    if piece not in command.started:
        return False
    return command.seconds() - command.started[piece] >= seconds or len(command.progress.get(piece, {})) == 1


def note_kill(kill: Kill, command: Command) -> None:
    kill.running = {piece: command.seconds() - command.started[piece] for piece in command.running()}
    kill.reached = {piece: command.share_done(piece) for piece in kill.running}
    own = {piece: [line for line in command.said[piece] if not LAUNCHER.search(line)] for piece in kill.running}
    kill.last_lines = {piece: (lines or ["(nothing yet)"])[-1] for piece, lines in own.items()}


def note_restart(kill: Kill, command: Command) -> None:
    """What the killed pieces, started again, said about where they go on."""
    for piece in kill.running:
        lines = command.said.get(piece, [])
        kill.resumed[piece] = next((line for line in lines if RESUMED.search(line)), "starts over" if lines else "-")


# --- the two runs


def folders_of(piece: str) -> list[str]:
    """Where a piece of run_all.sh leaves its results, below the output folder."""
    kind, _, objective = piece.partition("_")
    if piece == "data":
        return ["data", "tokenizer", "base"]
    if piece == "sft":
        return ["sft"]
    if piece == "evaluation":
        return ["eval", "report"]
    if kind == "responses":
        return ["eval/responses"]
    return [f"{kind}/{objective}"] if kind in ("reward", "cost") else [f"policies/{piece}"]


def make_baseline(args: argparse.Namespace, folder: Path) -> None:
    """The undisturbed run, and how long its pieces took."""
    print(f"the undisturbed run first, into {folder / 'baseline'}", flush=True)
    shutil.rmtree(folder / "run", ignore_errors=True)
    with Command(args, folder / "run", folder / "output_baseline.log") as command:
        command.finish()
    write_json(folder / "run" / TIMES, {piece: dataclasses.asdict(command.times(piece)) for piece in command.started})
    (folder / "run").rename(folder / "baseline")
    print(f"it took {format_duration(command.seconds())}", flush=True)


def prepare_run(folder: Path, order: list[str], pieces: list[str]) -> None:
    """DIR/run with the baseline's results of all that comes before the first of `pieces`."""
    shutil.rmtree(folder / "run", ignore_errors=True)
    (folder / "run").mkdir()
    for piece in order[: min(map(order.index, pieces))]:
        for name in folders_of(piece):
            source, target = folder / "baseline" / name, folder / "run" / name
            if source.is_dir() and not target.exists():
                shutil.copytree(source, target)


@dataclasses.dataclass(frozen=True)
class Sweep:
    """The killed run: `plan`, then on until piece `last` is done, in `folder`/run."""

    args: argparse.Namespace
    folder: Path
    plan: list[Kill]
    times: dict[str, Times]
    last: str

    def run(self) -> None:
        """
        Raises:
            UserError: run_all.sh hangs, or has ended otherwise than it should.
        """
        progress = Progress(len(self.plan) + 1, "attempt", every=1)
        for number, kill in enumerate(self.plan, start=1):
            while not self.is_killed(number):
                # Everything is done. Without its report the last piece is run again.
                shutil.rmtree(self.folder / "run/report")
                kill.moment /= 2
            print(f"kill {number}: {describe(kill.running)}", flush=True)
            progress.update(number)
        with self.start(len(self.plan) + 1) as command:
            if self.last == max(self.times, key=lambda piece: self.times[piece].start):
                command.finish()
            else:
                wait_until_done(self.last, command)
        note_restart(self.plan[-1], command)
        progress.update(len(self.plan) + 1)

    def start(self, number: int) -> Command:
        limit = PATIENCE * sum(piece.whole for piece in self.times.values())
        return Command(self.args, self.folder / "run", self.folder / f"output_{number}.log", limit)

    def is_killed(self, number: int) -> bool:
        """Run until the kill of this number; False if the command ended, well, before the moment had come."""
        kill, earlier = self.plan[number - 1], self.plan[: number - 1]
        with self.start(number) as command:
            alive = wait_for(kill, earlier, self.times[kill.piece], command)
            if alive:
                note_kill(kill, command)
            else:
                command.finish()
        if earlier and not earlier[-1].resumed:
            note_restart(earlier[-1], command)
        return alive


def wait_until_done(piece: str, command: Command) -> None:
    """Raises: UserError: the command has ended before the piece was done."""
    while not command.is_done(piece):
        if not command.look() and not command.is_done(piece):
            raise UserError(f"run_all.sh has ended before {piece} was done; see {command.log}")
        time.sleep(POLL_SECONDS)


# --- the comparison


def untimed_lines(path: Path) -> bytes:
    """metrics.jsonl without the seconds that things took."""
    rows = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return "".join(
        json.dumps({tag: value for tag, value in row.items() if not tag.startswith("time/")}) + "\n" for row in rows
    ).encode()


def find_results(root: Path, names: Iterable[str]) -> dict[str, str]:
    """{file below `root`: sha256 of what must be the same} of the results in folders `names`."""
    found = {}
    for name in names:
        for pattern in COMPARED:
            for path in (root / name).rglob(pattern):
                content = untimed_lines(path) if path.name == METRICS else path.read_bytes()
                found[str(path.relative_to(root))] = hashlib.sha256(content).hexdigest()
    return found


def compare_results(baseline: Path, run: Path, names: list[str]) -> tuple[int, list[str]]:
    """How many files were compared, and what is wrong with which."""
    first, second = find_results(baseline, names), find_results(run, names)
    faults = [f"{name}: missing" for name in sorted(first.keys() - second.keys())]
    faults += [f"{name}: not in the undisturbed run" for name in sorted(second.keys() - first.keys())]
    faults += [f"{name}: differs" for name in sorted(first.keys() & second.keys()) if first[name] != second[name]]
    return len(first), faults


def check_tensorboard(folder: Path) -> list[str]:
    """What TensorBoard shows otherwise than `folder`/metrics.jsonl: points doubled, missing, or of another value."""
    rows = [json.loads(line) for line in (folder / METRICS).read_text(encoding="utf-8").splitlines()]
    logged: dict[str, list[tuple[int, Any]]] = {}
    for row in rows:
        for tag, value in row.items():
            if tag != "step":
                logged.setdefault(tag, []).append((row["step"], np.float32(value)))
    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    shown = {
        tag: [(event.step, np.float32(event.value)) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }
    return [
        f"{folder}: TensorBoard shows {tag} at {len(shown.get(tag, []))} steps, metrics.jsonl has {len(points)}"
        if len(shown.get(tag, [])) != len(points)
        else f"{folder}: TensorBoard shows other values of {tag} than metrics.jsonl"
        for tag, points in logged.items()
        if not np.array_equal(np.array(shown.get(tag, [])), np.array(points), equal_nan=True)
    ]


def left_overs(baseline: Path, run: Path) -> list[str]:
    """Hidden files and checkpoints that only the killed run has."""
    first, second = ({str(p.relative_to(root)) for p in root.rglob("*")} for root in (baseline, run))
    return sorted(name for name in second - first if "/." in f"/{name}" or "checkpoints" in name)


# --- the report


def describe(running: dict[str, float]) -> str:
    return ", ".join(f"{piece} {seconds:.1f} s" for piece, seconds in running.items()) or "between two pieces"


def print_table(plan: list[Kill]) -> None:
    print("\nkill  piece and seconds since its start     what it had said last, and what it said when started again")
    for number, kill in enumerate(plan, start=1):
        print(f"{number:4}  {describe(kill.running)}")
        for piece in kill.running:
            print(f"{'':6}  {piece}: {kill.last_lines[piece][:100]}")
            print(f"{'':6}  {'':{len(piece)}}  -> {kill.resumed.get(piece, '-')[:110]}")


def parse_args() -> argparse.Namespace:
    parser = Parser(prog="python -m tests.kill_sweep", description=__doc__.split("\n")[0])
    parser.add_argument(
        "--output_dir", required=True, help="folder of the sweep; an undisturbed run there is used again"
    )
    parser.add_argument("--kills", type=positive_int, default=20, help="how often everything is killed")
    parser.add_argument("--seed", type=int, default=0, help="decides the moments")
    parser.add_argument("--preset", choices=("smoke", "tiny", "hh"), default="smoke", help="preset of run_all.sh")
    parser.add_argument("--ranks", type=positive_int, default=2, help="ranks of every training run")
    parser.add_argument("--zero_stage", type=int, choices=(0, 1, 2, 3), default=2, help="ZeRO stage of every stage")
    parser.add_argument(
        "--only",
        nargs="+",
        metavar="PIECE",
        help="for a quick look: kill in these pieces alone, by the beginnings of their names (data, sft, reward, cost,"
        " gapo, responses, evaluation, ...); what comes before them is taken from the undisturbed run, what comes"
        " after them is left out",
    )
    return parser.parse_args()


def chosen_pieces(only: list[str] | None, order: list[str]) -> list[str]:
    """Raises: UserError: no piece begins like one of `only`."""
    for name in only or []:
        if not any(piece.startswith(name) for piece in order):
            raise UserError(f"--only {name}: there are {', '.join(order)}")
    return [piece for piece in order if not only or piece.startswith(tuple(only))]


def main() -> None:
    args = parse_args()
    folder = check_writable(args.output_dir).resolve()
    if not (folder / "baseline" / TIMES).is_file():
        make_baseline(args, folder)
    times = {piece: Times(**found) for piece, found in json.loads((folder / "baseline" / TIMES).read_text()).items()}
    order = sorted(times, key=lambda piece: times[piece].start)
    pieces = chosen_pieces(args.only, order)
    plan = plan_kills(times, pieces, args.kills, args.seed)
    prepare_run(folder, order, pieces)
    Sweep(args, folder, plan, times, pieces[-1]).run()
    print_table(plan)
    names = sorted({name for piece in pieces for name in folders_of(piece)})
    count, faults = compare_results(folder / "baseline", folder / "run", names)
    records = sorted({file.parent for name in names for file in (folder / "run" / name).rglob(METRICS)})
    for record in records:
        faults += check_tensorboard(record)
    print(f"\n{count} files compared, {len(records)} TensorBoard records")
    for name in left_overs(folder / "baseline", folder / "run"):
        print(f"left behind: {name}")
    for fault in faults:
        print(f"error: {fault}", file=sys.stderr)
    print("the killed run is the undisturbed run" if not faults else f"{len(faults)} differences")
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    run_main(main)
