"""The benchmarks run as one command and fill every table; how fast anything is, no test asks."""

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.benchmarks import __main__ as command
from tests.benchmarks import critic_free
from tests.benchmarks.arguments import parse_settings
from tests.benchmarks.generation import SHARES, generation_rows
from tests.benchmarks.measure import Ratio, ratio_of
from tests.benchmarks.peer_turns import PHASES, Case
from tests.benchmarks.peers import GAPO, GROUP, MORLHF, PROJECT_SIDE, RATE, TRL, copy_score_models, rows_of, working
from tests.benchmarks.plan import make_models
from tests.benchmarks.ranks import BenchmarkError, run_ranks
from tests.benchmarks.rollout import rollout_rows
from tests.benchmarks.synthetic import SIZES, Load, make_decoder
from tests.cases import EXHAUSTIVE
from tests.helpers import Workshop, flags
from utils.process.distributed import rank
from utils.process.errors import UserError

pytestmark = pytest.mark.slow

TINY = {
    "quick": True, "stages": 3, "ranks": 1, "batch_size": 4, "prompt_length": 6, "response_length": 6, "rounds": 1,
    "memory_size": "tiny", "loading_size": "tiny", "growth_sizes": "tiny", "growth_objectives": (1, 3),
}  # fmt: skip


@EXHAUSTIVE
def test_every_section_fills_its_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """The command, in this process; what it measures runs in processes of its own."""
    path = tmp_path / "tables.json"
    # Section plan: see test_dry_run.py; generation: below, for here it would compile.
    sections = (
        "step", "critic_free", "memory", "objectives_memory", "loading", "growth", "pama", "accumulation", "rollout",
        "pieces",
    )  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["benchmarks", *flags(**TINY, sections=sections, output=path)])
    command.main()
    said = capsys.readouterr()
    sections = json.loads(path.read_text())["sections"]
    assert {name: len(section["rows"]) for name, section in sections.items()} == {
        "step": 1, "critic_free": 1, "memory": 1, "objectives_memory": 15, "loading": 2, "growth": 3, "pama": 8,
        "accumulation": 4, "rollout": 3, "pieces": 10,
    }  # fmt: skip
    for name, section in sections.items():
        assert section["title"] in said.out
        for row in section["rows"]:
            ratios = [cell for cell in row.values() if isinstance(cell, dict)]
            assert ratios, (name, row)
            assert all(math.isfinite(r["median"]) and 0 < r["low"] <= r["median"] <= r["high"] for r in ratios), name
    assert "[100%] pieces" in said.err
    assert {row["m"] for row in sections["growth"]["rows"]} == {1, 2, 3}
    step, memory = sections["step"]["rows"][0], sections["memory"]["rows"][0]
    assert (step["ZeRO"], step["ranks"], step["m"]) == (memory["ZeRO"], memory["ranks"], memory["m"]) == (3, 1, 2)
    assert (step["last_layer: step"]["bar"], step["full: step"]["bar"]) == pytest.approx((1.1, 1.6))
    passes = {(row["m"], row["method"]): row["backward passes"] for row in sections["pama"]["rows"]}
    assert passes.pop((3, "mgda, full")) == 3 and set(passes.values()) == {1}
    check_memory_of_objectives(sections["objectives_memory"]["rows"])


def check_memory_of_objectives(rows: list[dict[str, Any]]) -> None:
    """A critic each takes memory with every objective, no critics none; what is planned says so."""
    more = {(row["model"], row["critics"], row["scope"]): row["an objective more [MB a rank]"] for row in rows}
    assert {row["figures"] for row in rows if row["model"] == "tiny"} == {"measured"}
    assert {row["figures"] for row in rows if row["model"] != "tiny"} == {"planned"}
    for model in ("7b", "7b, --offload"):
        assert more[model, "one each", "last_layer"] > 9000 and more[model, "none", "last_layer"] == 0


@pytest.mark.parametrize(("objectives", "bar"), [(2, 1.35), (4, 1.75)])
def test_a_share_of_the_responses_has_a_bar_and_coefficients_that_are_kept_their_mean(
    objectives: int, bar: float
) -> None:
    seconds = {f"{variant} {objectives}": torch.tensor([2.0]).double() for variant in critic_free.FLAGS}
    seconds[f"full {objectives}"] *= 3
    cells = critic_free.compare(seconds, objectives)
    assert cells[critic_free.SHARE].bar == pytest.approx(bar) and cells[critic_free.KEPT].bar is None
    assert (cells["full"].median, cells[critic_free.KEPT].median, cells["morlhf [s]"]) == (3.0, 1.5, 2.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ranks": (1, 3)}, "--batch_size 64: not a multiple of 3 ranks × 4 micro-batches"),
        ({"output": "tables.txt"}, "--output tables.txt: must end in .md or .json"),
    ],
)
def test_impossible_settings_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        parse_settings(["step"], flags(**changes))
    assert str(error.value) == message


# --- section peers, as far as it goes without TRL


def test_peers_are_asked_for_by_their_environment(tmp_path: Path) -> None:
    sections, lacking = ["step", "peers"], flags(peer_environment=tmp_path / "none")
    assert parse_settings(sections, []).sections == ("step",)
    with pytest.raises(UserError, match="^--sections peers: TRL is needed.* --make_peer_environment") as error:
        parse_settings(sections, flags(sections="peers"))
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="none: lacks trl==1.16.0 .*; --make_peer_environment installs peers.txt"):
        parse_settings(sections, lacking)
    assert not (tmp_path / "none").exists()


@EXHAUSTIVE
def test_steps_of_this_project_are_timed_by_phase(workshop: Workshop, tmp_path: Path) -> None:
    make_models("tiny", tmp_path, workshop.base)
    copy_score_models(tmp_path)
    (tmp_path / "prompts.jsonl").write_text(workshop.prompts.read_text().splitlines(keepends=True)[0])
    case = Case(str(tmp_path), "fp32", responses=4, generations=4, response=5)
    with working(sys.executable, PROJECT_SIDE, case) as worker:
        counted = {name: worker.take_turn(name) for name in (GAPO, MORLHF, GROUP)}
        timed = {name: worker.take_turn(name) for name in (GAPO, MORLHF, GROUP)}
        assert worker.take_turn(RATE)[RATE] > 0
    for name, figures in timed.items():
        assert figures["step"] == pytest.approx(sum(figures[phase] for phase in PHASES))
        assert all(figures[phase] > 0 for phase in PHASES) and 4 <= figures["tokens"] <= 4 * 5
        assert counted[name].items() <= figures.items()
        assert figures["flops/step"] == sum(figures[f"flops/{phase}"] for phase in PHASES)


def test_a_side_that_ends_without_an_answer_is_heard(tmp_path: Path) -> None:
    with working(sys.executable, "tests.benchmarks.nobody", Case(str(tmp_path), "fp32", 8, 8, 5)) as worker:
        with pytest.raises(BenchmarkError, match="No module named tests.benchmarks.nobody"):
            worker.take_turn(TRL)


def test_rows_of_peers_pair_the_figures_of_a_round() -> None:
    def figures(*seconds: float) -> list[dict[str, float]]:
        phases = dict.fromkeys(("step", *PHASES))
        flops = {f"flops/{phase}": 60.0 for phase in phases}
        return [dict.fromkeys(phases, s) | flops | {"tokens": 30.0} for s in seconds]

    rate = [{RATE: rate} for rate in (60.0, 40.0, 30.0)]
    sides = {GAPO: figures(2.0, 3.0, 4.0), MORLHF: figures(1.0, 1.0, 1.0), TRL: figures(1.0, 2.0, 2.0)}
    sides[GROUP] = figures(1.0, 1.0, 2.0)
    rows = rows_of(Load("tiny", "fp32", 8, 0, 5), {RATE: rate} | sides)
    assert [row["phase"] for row in rows] == ["step", *PHASES]
    assert (rows[0][f"{GAPO} / {TRL}"].median, rows[0][f"{MORLHF} / {TRL}"].median) == (2.0, 0.5)
    assert (rows[0][f"{GAPO} [s]"], rows[0][f"{GAPO} [tokens/s]"], rows[0][f"{TRL} [tokens/s]"]) == (3.0, 10, 15)
    assert rows[0][f"{GAPO}: of the matrix rate"] == Ratio(0.5, 0.5, 0.5)


# --- single sections


def test_generation_on_two_ranks_gives_the_same_tokens_either_way() -> None:
    (row,) = run_ranks(rollout_rows, Load("tiny", "fp32", 4, 6, 6), 2, True, 1, ranks=2)
    assert (row["ranks"], row["prompts a rank"], row["same tokens"]) == (2, 2, "yes")


def test_generation_with_rows_that_leave_gives_the_same_tokens() -> None:
    (row,) = run_ranks(generation_rows, Load("tiny", "fp32", 8, 6, 24), 1, False, ranks=1)
    assert (row["prompts"], row["rows with the same tokens"]) == (8, "100%") and row["mean length"] < row["longest"]
    ratios = [cell for cell in row.values() if isinstance(cell, Ratio)]
    assert len(ratios) == len(SHARES) and all(ratio.median > 0 for ratio in ratios)


def fail_on_the_last_rank() -> None:
    if rank() == 1:
        raise ValueError("out of paper")
    torch.distributed.barrier()


def test_a_rank_that_fails_is_heard() -> None:
    with pytest.raises(BenchmarkError, match="out of paper"):
        run_ranks(fail_on_the_last_rank, ranks=2)


def test_ratios_pair_what_was_measured_in_the_same_round() -> None:
    slow, fast = torch.tensor([2.0, 30.0, 9.0]).double(), torch.tensor([1.0, 10.0, 4.5]).double()
    assert ratio_of(slow, fast, bar=2.0) == Ratio(2.0, 2.0, 2.5, 2.0)
    assert ratio_of(slow, fast, bar=2.0).holds and not ratio_of(slow, fast, bar=1.9).holds
    assert not ratio_of(slow, fast, bar=2.1, at_least=True).holds


@pytest.mark.parametrize("size", ["tiny", "5m"])
def test_sizes_count_their_parameters(size: str) -> None:
    assert make_decoder(Load(size, "fp32", 1, 8, 8)).num_parameters() == SIZES[size].parameters
