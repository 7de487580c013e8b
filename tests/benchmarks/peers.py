"""Whole steps of this project beside those of TRL's GRPO, on the same models, prompts and score models.

TRL lives in an environment of its own (`peer_environment`): the project itself does not need it.
"""

import contextlib
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from tests.benchmarks.measure import ratio_of
from tests.benchmarks.peer_environment import python_of
from tests.benchmarks.peer_project import ALGORITHMS, OBJECTIVES, RATE
from tests.benchmarks.peer_turns import PHASES, Case
from tests.benchmarks.plan import make_models
from tests.benchmarks.ranks import BenchmarkError
from tests.benchmarks.section import Job, Row, Section, Settings, in_order
from tests.benchmarks.synthetic import SIZES, Load
from tests.helpers import ROOT, flags, run_command
from utils.data.encoding import end_ids
from utils.models.configs import load_tokenizer
from utils.output.metrics import Progress

GENERATIONS = 8  # responses to a prompt: GRPO compares them
FEW, MANY, LARGE = 32, 128, 10**6  # responses of a step, many for fewer parameters than this
RESPONSE = 48  # tokens, at most
GAPO, MORLHF, GROUP = ALGORITHMS
BARS = {  # of whole steps, by the number of responses
    MANY: {GAPO: 1.15, GROUP: 0.80},
    FEW: {GAPO: 1.75, GROUP: 0.90},
}
TRL = "grpo"
PROJECT_SIDE, TRL_SIDE = "tests.benchmarks.peer_project", "tests.benchmarks.peer_trl"


class Worker:
    """One side: a process that lives through all rounds, and works only while it has its turn."""

    def __init__(self, python: str | Path, module: str, case: Case):
        self.module, self.log = module, tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen(
            [python, "-m", module, case.to_json()], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=self.log, text=True,
        )  # fmt: skip

    def take_turn(self, variant: str) -> dict[str, float]:
        """The figures of one step.

        Raises:
            BenchmarkError: the process has ended; holds what it said.
        """
        with contextlib.suppress(BrokenPipeError):
            print(variant, file=self.process.stdin, flush=True)
        if answer := self.process.stdout.readline():
            return json.loads(answer)
        self.log.seek(0)
        raise BenchmarkError(f"{self.module} has failed\n{self.log.read()}")

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        self.log.close()


# --- what both sides work on


def make_case(folder: Path, load: Load) -> Case:
    """Prompts and a tokenizer made by the project's own commands; a policy and a score model with random weights."""
    data, base = folder / "data", folder / "base"
    run([sys.executable, "-m", "utils.safe_rlhf_mini", *flags(output_dir=data, num_preferences=8)])
    vocabulary = {"sft_data": data / "sft_train.jsonl", "vocab_size": SIZES[load.size].vocabulary}
    folders = {"tokenizer_dir": folder / "tokenizer", "model_dir": base}
    run([sys.executable, "utils/make_base.py", *flags(**vocabulary, **folders)])
    make_models(load.size, folder, base)
    copy_score_models(folder)
    lines = (data / "prompts_train.jsonl").read_text().splitlines(keepends=True)
    (folder / "prompts.jsonl").write_text("".join(lines[: load.batch // GENERATIONS]))
    never = read_otherwise(base)
    return Case(str(folder), load.dtype, load.batch, GENERATIONS, load.response, never=never)


def read_otherwise(folder: Path) -> list[int]:
    """Ids of all tokens but the end and whole words after a space.

    Score models read texts. That of a random policy, which samples pieces of characters, has up to twice as many tokens
    when it is read again, which no trained policy's has.
    """
    tokenizer = load_tokenizer(str(folder), "--actor_model")
    words = [" word" + tokenizer.decode([i]) for i in range(len(tokenizer))]
    kept = {
        i for i, word in enumerate(words)
        if word.removeprefix(" word ").isalpha() and tokenizer(word, add_special_tokens=False)["input_ids"][-1] == i
    }  # fmt: skip
    return [i for i in range(len(tokenizer)) if i not in {*kept, *end_ids(tokenizer)}]


def copy_score_models(folder: Path) -> None:
    """One an objective: objectives of one folder would share a model."""
    for number in range(OBJECTIVES):
        shutil.copytree(folder / "score", folder / f"score_{number}")


def run(command: list[str]) -> None:
    """Raises: BenchmarkError: the command fails; what it said."""
    result = run_command(command)
    if result.code:
        raise BenchmarkError(result.stderr)


# --- rounds


def measure(case: Case, python: Path, rounds: int, label: str) -> dict[str, list[dict[str, float]]]:
    """The figures of every variant in every round, and under `RATE` the machine's matrix rate at the time.

    A first round, in which the workers load their models, does not count. In every round the variants take their turns
    in another order.
    """
    figures = {name: [] for name in (RATE, *ALGORITHMS, TRL)}
    with working(sys.executable, PROJECT_SIDE, case) as project, working(python, TRL_SIDE, case) as peer:
        workers = dict.fromkeys((RATE, *ALGORITHMS), project) | {TRL: peer}
        progress = Progress(rounds + 1, label, every=1)
        for number in range(rounds + 1):
            first = number % len(workers)
            names = list(workers)[first:] + list(workers)[:first]
            taken = {name: workers[name].take_turn(name) for name in names}
            if number:
                for name, answer in taken.items():
                    figures[name].append(answer)
            with contextlib.redirect_stdout(sys.stderr):
                progress.update(number + 1)
    return figures


@contextlib.contextmanager
def working(python: str | Path, module: str, case: Case) -> Iterator[Worker]:
    worker = Worker(python, module, case)
    try:
        yield worker
    finally:
        worker.end()


def peer_rows(load: Load, environment: str, rounds: int) -> list[Row]:
    """A row for the whole step and one for each of its phases.

    Raises:
        AssertionError: the two sides have not run with as many threads.
    """
    with tempfile.TemporaryDirectory() as folder:
        case = make_case(Path(folder), load)
        figures = measure(case, python_of(environment), rounds, f"peers, {load.size}: round")
    threads = {figures[name][0]["threads"] for name in (GAPO, TRL)}
    assert len(threads) == 1, f"threads: {threads}"
    return rows_of(load, figures)


def rows_of(load: Load, figures: dict[str, list[dict[str, float]]]) -> list[Row]:
    """The rows from the figures of all rounds."""
    table = []
    for phase in ("step", *PHASES):
        seconds = {name: column(figures[name], phase) for name in (*ALGORITHMS, TRL)}
        tokens = {name: column(figures[name], "tokens") / seconds[name] for name in (GAPO, TRL)}
        flops = column(figures[GAPO], f"flops/{phase}")
        row = {"parameters": f"{SIZES[load.size].parameters:,}", "responses": load.batch, "phase": phase}
        bars = BARS.get(load.batch, {}) if phase == "step" else {}
        row |= {f"{name} / {TRL}": ratio_of(seconds[name], seconds[TRL], bar=bars.get(name)) for name in ALGORITHMS}
        row |= {f"{name} [s]": round(seconds[name].quantile(0.5).item(), 3) for name in (GAPO, TRL)}
        row |= {f"{name} [tokens/s]": round(tokens[name].quantile(0.5).item()) for name in (GAPO, TRL)}
        row[f"{GAPO}: of the matrix rate"] = ratio_of(flops / seconds[GAPO], column(figures[RATE], RATE))
        table.append(row)
    return table


def column(figures: list[dict[str, float]], name: str) -> torch.Tensor:
    """One figure of all rounds; [rounds] float64."""
    return torch.tensor([answer[name] for answer in figures], dtype=torch.float64)


def jobs(settings: Settings) -> list[Job]:
    loads = [
        Load(size, settings.load.dtype, MANY if SIZES[size].parameters < LARGE else FEW, 0, RESPONSE)
        for size in settings.peer_sizes
    ]
    return [
        Job(
            f"{load.size}, {load.batch} responses",
            peer_rows,
            (load, settings.peer_environment, settings.rounds),
            ranks=0,
            weight=40 * settings.rounds * load.batch * SIZES[load.size].parameters / 1e8,
        )
        for load in loads
    ]


SECTION = Section(
    title="Time of a whole step, over that of TRL's GRPO",
    note=f"Two score models, {GENERATIONS} responses a prompt; GAPO and MORLHF train a critic for each model, GAPO"
    " on group-relative advantages and GRPO have none. With critics, --keep_graphs: a rollout is one micro-batch. The"
    " same random decoder, prompts of SafeRLHF-mini, score models, responses a step, and a KL term towards the"
    " reference on all sides; one optimizer step a rollout. Tokens are of the responses. The matrix rate is that of a"
    " large product in the same process; only linear maps count, 2·n·tokens forward, 4·n·tokens backward.",
    jobs=jobs,
    rows=in_order,
)
