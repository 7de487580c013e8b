"""The kill sweep must see what it is there to see: processes left alive, other weights, points doubled or lost."""

import json
import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from torch.utils.tensorboard import SummaryWriter

from tests.kill_sweep import (
    Times,
    check_tensorboard,
    compare_results,
    kill_all,
    left_overs,
    marked_processes,
    plan_kills,
)

TIMES = {
    "data": Times(0, 5, 5),
    "sft": Times(5, 30, 10),
    "reward_a": Times(35, 20, 10),
    "gapo_p1": Times(55, 25, 15),
}


def test_every_piece_has_its_share_of_the_kills() -> None:
    plan = plan_kills(TIMES, list(TIMES), 10, seed=0)
    assert [kill.piece for kill in plan] == ["data"] * 2 + ["sft"] * 3 + ["reward_a"] * 2 + ["gapo_p1"] * 3
    assert plan == plan_kills(TIMES, list(TIMES), 10, seed=0) != plan_kills(TIMES, list(TIMES), 10, seed=1)
    assert len({kill.moment for kill in plan}) == 10 and all(0 < kill.moment < 1 for kill in plan)


def test_every_process_of_the_command_is_killed() -> None:
    """Those in process groups and sessions of their own, too; nothing else."""
    script = "(export PIECE=a; setsid sleep 60 & bash -c 'sleep 60; true' & wait) & wait"
    mine, other = (
        subprocess.Popen(["bash", "-c", script], env=os.environ | {"KILL_SWEEP": mark}, start_new_session=True)
        for mark in ("mine", "other")
    )
    try:
        deadline = time.monotonic() + 20
        while min(list(marked_processes(mark).values()).count("a") for mark in ("mine", "other")) < 3:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert kill_all("mine") == 5
        assert mine.wait(5) == -9 and not marked_processes("mine")
        assert other.poll() is None and len(marked_processes("other")) == 5
    finally:
        for mark in ("mine", "other"):
            kill_all(mark)
        other.wait()


def write_run(folder: Path, seconds: float, points: list[tuple[int, float]]) -> Path:
    """A finished policy in `folder/policies/a`; TensorBoard shows the points of steps 1 to 3 with `points` besides."""
    run = folder / "policies/a"
    run.mkdir(parents=True)
    (run / "model.safetensors").write_bytes(b"weights")
    rows = [{"step": step, "kl": step / 10, "time/update": seconds} for step in (1, 2, 3)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with SummaryWriter(str(run / "tensorboard")) as writer:
        for row in rows:
            writer.add_scalar("kl", row["kl"], row["step"])
            writer.add_scalar("time/update", row["time/update"], row["step"])
        for step, value in points:
            writer.add_scalar("kl", value, step)
    return folder


@pytest.fixture
def baseline(tmp_path: Path) -> Path:
    return write_run(tmp_path / "baseline", 0.5, [])


def test_only_times_may_differ(baseline: Path, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", 0.7, [])
    assert compare_results(baseline, run, ["policies/a"]) == (2, [])
    metrics = run / "policies/a/metrics.jsonl"
    whole = metrics.read_text()
    lines = whole.splitlines(keepends=True)
    for damaged in (whole.replace("0.2", "0.20000001"), whole + lines[2], "".join(lines[:2])):
        metrics.write_text(damaged)
        assert compare_results(baseline, run, ["policies/a"])[1] == ["policies/a/metrics.jsonl: differs"]
    metrics.write_text(whole)
    (run / "policies/a/model.safetensors").write_bytes(b"Weights")
    (run / "policies/a/results.json").touch()
    assert compare_results(baseline, run, ["policies/a"])[1] == [
        "policies/a/results.json: not in the undisturbed run", "policies/a/model.safetensors: differs",
    ]  # fmt: skip
    (run / "policies/a/model.safetensors").unlink()
    assert "policies/a/model.safetensors: missing" in compare_results(baseline, run, ["policies/a"])[1]


@pytest.mark.parametrize(
    ("points", "said"),
    [([], None), ([(2, 0.2)], "shows kl at 4 steps"), ([(4, 0.4)], "shows kl at 4 steps")],
)
def test_points_that_tensorboard_shows_twice_are_seen(points, said, tmp_path: Path) -> None:
    faults = check_tensorboard(write_run(tmp_path / "run", 0.7, points) / "policies/a")
    assert [said in fault for fault in faults] == ([] if said is None else [True])


def test_points_that_tensorboard_lacks_are_seen(baseline: Path) -> None:
    metrics = baseline / "policies/a/metrics.jsonl"
    metrics.write_text(metrics.read_text() + json.dumps({"step": 4, "kl": 0.4}) + "\n")
    assert len(check_tensorboard(baseline / "policies/a")) == 1
    shutil.rmtree(baseline / "policies/a/tensorboard")
    (baseline / "policies/a/tensorboard").mkdir()
    assert len(check_tensorboard(baseline / "policies/a")) == 2


def test_what_is_left_behind_is_named(baseline: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(baseline, run)
    assert left_overs(baseline, run) == []
    (run / "policies/a/checkpoints").mkdir()
    (run / "policies/.a.x1").touch()
    assert left_overs(baseline, run) == ["policies/.a.x1", "policies/a/checkpoints"]
