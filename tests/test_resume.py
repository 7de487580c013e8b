"""Training that is killed goes on: the same weights and metrics, bit for bit, as without the interruption."""

import json
import math
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from step3_gapo.health import AVERAGED, RECENT, SILENT, Health
from tests.cases import EXHAUSTIVE, cases
from tests.helpers import STEP3, Result, Workshop, flags, read_metrics, run_killed, run_script, untimed

pytestmark = pytest.mark.slow

STEP1, STEP2 = "step1_sft/main.py", "step2_reward/main.py"


def metrics_lines(folder: Path) -> int:
    try:
        return (folder / "metrics.jsonl").read_bytes().count(b"\n")
    except FileNotFoundError:  # not there yet, or being replaced
        return 0


def whole_checkpoints(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").glob("step_*"))


def assert_same_run(first: Path, second: Path) -> None:
    """Exported weights byte for byte, metrics without their seconds, and TensorBoard's points, each once."""
    assert (first / "model.safetensors").read_bytes() == (second / "model.safetensors").read_bytes()
    metrics = untimed(read_metrics(first))
    assert json.dumps(metrics) == json.dumps(untimed(read_metrics(second)))
    assert points(second) == logged_points(read_metrics(second))
    assert sorted(path.name for path in first.iterdir()) == sorted(path.name for path in second.iterdir())


def points(folder: Path) -> dict[str, list[int]]:
    """Steps of each scalar as TensorBoard shows them."""
    accumulator = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0})
    accumulator.Reload()
    return {tag: [event.step for event in accumulator.Scalars(tag)] for tag in sorted(accumulator.Tags()["scalars"])}


def logged_points(metrics: list[dict[str, float]]) -> dict[str, list[int]]:
    tags = sorted({tag for line in metrics for tag in line} - {"step"})
    return {tag: [line["step"] for line in metrics if tag in line] for tag in tags}


# --- killed and started again


def step3_run(workshop: Workshop, folder: Path, **changes: Any) -> list[str]:
    settings = {"max_steps": 6, "num_train_epochs": 9, "checkpoint_interval": 2, "output_dir": folder} | changes
    return workshop.step3_flags("unused", **settings)


STEP3_RUNS = [
    (2, {"zero_stage": 2}),
    (2, {"zero_stage": 2, "lora_dim": 4, "gradient_scope": "full", "critic": "shared"}),
    (2, {"zero_stage": 3, "gradient_scope": "full"}),
    (2, {"zero_stage": 1, "dtype": "bf16", "gradient_accumulation_steps": 2, "per_device_train_batch_size": 2}),
    (1, {"critic": "shared", "algorithm": "ppo_lagrangian", "cost_threshold": "harmlessness=-1", "ppo_epochs": 2}),
    (1, {"algorithm": "pcgrad", "offload": True, "zero_stage": 2}),
    (1, {"algorithm": "fast_rl", "dtype": "bf16"}),
]
BEFORE_A_CHECKPOINT = STEP3_RUNS[-1][1]  # is killed there, too: nothing of that depends on how the engines lie


@pytest.mark.parametrize(
    ("ranks", "changes"),
    cases(STEP3_RUNS, always=[STEP3_RUNS[2], STEP3_RUNS[4], STEP3_RUNS[6]]),
    ids=[str(changes) for _, changes in STEP3_RUNS],
)
def test_step3_goes_on(workshop: Workshop, tmp_path: Path, ranks: int, changes: dict[str, Any]) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    result = run_script(STEP3, step3_run(workshop, whole, max_steps=4, **changes), ranks, pictures=False)
    assert result.code == 0, result.stderr
    arguments = step3_run(workshop, killed, max_steps=4, **changes)
    if changes is BEFORE_A_CHECKPOINT:
        run_killed(STEP3, arguments, ranks, lambda: metrics_lines(killed) >= 1, pictures=False)
    run_killed(STEP3, arguments, ranks, lambda: metrics_lines(killed) >= 3, pictures=False)
    assert (killed / "unfinished").is_file() and whole_checkpoints(killed) == ["step_00000002"]
    result = run_script(STEP3, arguments, ranks, pictures=False)
    assert result.code == 0, result.stderr
    assert f"going on from {killed / 'checkpoints/step_00000002'}" in result.stdout
    assert_same_run(whole, killed)
    assert not (killed / "checkpoints").exists() and not (killed / "unfinished").exists()


def supervised_flags(workshop: Workshop, stage: str, folder: Path, **changes: Any) -> list[str]:
    data = workshop.folder / "data"
    shared = {
        "model_name_or_path": workshop.base, "max_length": 160, "learning_rate": 3e-3, "num_train_epochs": 3,
        "per_device_train_batch_size": 8, "checkpoint_interval": 3, "output_dir": folder,
    }  # fmt: skip
    own = {
        STEP1: {"data": f"{data}/sft_train.jsonl:0.25", "validation_data": f"{data}/sft_validation.jsonl"},
        STEP2: {"data": f"{data}/preferences_train.jsonl", "validation_data": f"{data}/preferences_validation.jsonl",
                "objective": "harmlessness", "kind": "cost", "per_device_train_batch_size": 2},
    }  # fmt: skip
    return flags(**shared | own[stage] | changes)


SUPERVISED_RUNS = [
    (STEP1, 2, {"zero_stage": 2}),
    (STEP1, 1, {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 4, "dtype": "bf16"}),
    # Learning too fast, so that the first epoch's model is the best, which a checkpoint has to carry along.
    (STEP1, 1, {"learning_rate": 1.0, "max_grad_norm": 0, "lr_scheduler_type": "constant"}),
    (STEP2, 2, {"zero_stage": 3}),
    (STEP2, 1, {}),
]


@pytest.mark.parametrize(("stage", "ranks", "changes"), cases(SUPERVISED_RUNS, always=SUPERVISED_RUNS[2:4]))
def test_supervised_stages_go_on(
    workshop: Workshop, tmp_path: Path, stage: str, ranks: int, changes: dict[str, Any]
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    result = run_script(stage, supervised_flags(workshop, stage, whole, **changes), ranks)
    assert result.code == 0, result.stderr
    lines, arguments = metrics_lines(whole), supervised_flags(workshop, stage, killed, **changes)
    for part in (0.4, 0.8) if "dtype" in changes else (0.8,):
        run_killed(stage, arguments, ranks, lambda part=part: metrics_lines(killed) >= part * lines)
    result = run_script(stage, arguments, ranks)
    assert result.code == 0 and "going on from" in result.stdout, result.stderr
    assert_same_run(whole, killed)
    if changes.get("max_grad_norm") == 0:
        assert json.loads((whole / "evaluation.json").read_text())["epoch"] < 3, "this run is to export an early epoch"
    assert (whole / "evaluation.json").read_bytes() == (killed / "evaluation.json").read_bytes()


# --- what is found


@pytest.fixture(scope="module")
def interrupted(workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(a finished run of two ranks, the same run killed after its fifth of six rollouts)."""
    whole, killed = (tmp_path_factory.mktemp("interrupted") / name for name in ("whole", "killed"))
    result = run_script(STEP3, step3_run(workshop, whole, zero_stage=2), 2, pictures=False)
    assert result.code == 0, result.stderr
    run_killed(STEP3, step3_run(workshop, killed, zero_stage=2), 2, lambda: metrics_lines(killed) >= 5, pictures=False)
    return whole, killed


@pytest.fixture
def copy(interrupted: tuple[Path, Path], tmp_path: Path) -> Path:
    """The killed run, to damage."""
    shutil.copytree(interrupted[1], tmp_path / "run")
    return tmp_path / "run"


def go_on(workshop: Workshop, folder: Path, ranks: int = 2, **changes: Any) -> Result:
    return run_script(STEP3, step3_run(workshop, folder, **{"zero_stage": 2} | changes), ranks, pictures=False)


def flip_byte(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "truncated": (
        lambda step: (file := step / "rank_1.pt").write_bytes(file.read_bytes()[:-7]),
        "rank_1.pt has ",
    ),
    "flipped byte": (
        lambda step: flip_byte(step / "engines/critic_1/mp_rank_00_model_states.pt"),
        "the checksum of engines/critic_1/mp_rank_00_model_states.pt is wrong",
    ),
    "missing rank": (
        lambda step: next((step / "engines/actor").glob("*zero_pp_rank_1*optim_states.pt")).unlink(),
        "optim_states.pt is missing",
    ),
    "altered manifest": (
        lambda step: (file := step / "manifest.json").write_text(file.read_text().replace('"seed": 42', '"seed": 43')),
        "the checksum of manifest.json is wrong",
    ),
    "no manifest": (lambda step: (step / "manifest.json").unlink(), "manifest.json cannot be read"),
    "torn manifest": (
        lambda step: (file := step / "manifest.json").write_bytes(file.read_bytes()[:300]),
        "manifest.json cannot be read",
    ),
}


@pytest.mark.parametrize("damage", cases(DAMAGES, always=["flipped byte", "missing rank"]))
def test_a_damaged_checkpoint_is_passed_over(
    workshop: Workshop, interrupted: tuple[Path, Path], copy: Path, damage: str
) -> None:
    spoil, said = DAMAGES[damage]
    spoil(copy / "checkpoints/step_00000004")
    result = go_on(workshop, copy)
    assert result.code == 0, result.stderr
    (line,) = [line for line in result.stdout.splitlines() if "is damaged" in line]
    assert line.startswith(f"{copy / 'checkpoints/step_00000004'} is damaged (") and said in line
    assert f"going on from {copy / 'checkpoints/step_00000002'}" in result.stdout
    assert_same_run(interrupted[0], copy)


@EXHAUSTIVE
def test_only_damaged_checkpoints_are_not_started_over(workshop: Workshop, copy: Path) -> None:
    for step in whole_checkpoints(copy):
        (copy / "checkpoints" / step / "state.json").unlink()
    result = go_on(workshop, copy)
    assert result.code == 2 and "is whole; --fresh starts over" in result.stderr
    assert len(whole_checkpoints(copy)) == 2
    result = go_on(workshop, copy, fresh=True, max_steps=2)
    assert result.code == 0 and "going on" not in result.stdout, result.stderr


def test_left_overs_of_a_kill_while_writing_do_no_harm(
    workshop: Workshop, interrupted: tuple[Path, Path], copy: Path
) -> None:
    shutil.copytree(copy / "checkpoints/step_00000002", copy / "checkpoints/.export.step_00000006")
    for left_over in (copy / ".export.a1b2c3/x", copy / ".removed.checkpoints/x", copy / ".args.json.123"):
        left_over.parent.mkdir(exist_ok=True)
        left_over.write_text("x")
    assert go_on(workshop, copy, keep_checkpoints=True).code == 0
    assert [path.name for path in sorted((copy / "checkpoints").iterdir())] == ["step_00000004", "step_00000006"]
    shutil.rmtree(copy / "checkpoints")
    assert_same_run(interrupted[0], copy)


def test_a_finished_run_whose_checkpoints_were_kept_only_exports_again(workshop: Workshop, copy: Path) -> None:
    assert go_on(workshop, copy, keep_checkpoints=True).code == 0
    before = (copy / "metrics.jsonl").read_bytes()
    weights = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").unlink()
    result = go_on(workshop, copy, keep_checkpoints=True)
    assert result.code == 0 and "6/6" not in result.stdout, result.stderr
    assert (copy / "metrics.jsonl").read_bytes() == before
    assert (copy / "model.safetensors").read_bytes() == weights


def dates(folder: Path) -> dict[Path, int]:
    """When each file was changed, but for the ranks' records of each other."""
    files = [path for path in folder.rglob("*") if path.is_file() and ".ranks" not in path.parts]
    return {path: path.stat().st_mtime_ns for path in files}


REFUSED = {
    "algorithm": ({"algorithm": "mgda"}, "--algorithm gapo -> mgda"),
    "seed": ({"seed": 7}, "--seed 42 -> 7"),
    "steps": ({"max_steps": 8}, "--max_steps 6 -> 8"),
    "data": ({"data": "{folder}/other.jsonl"}, "--data contents "),
    "model": ({"reward_model": "helpfulness={cost}"}, "--reward_model helpfulness contents "),
    "objectives": (
        {"reward_model": "kindness={reward}"},
        "objectives helpfulness harmlessness -> kindness harmlessness",
    ),
    "batch": ({"per_device_train_batch_size": 8}, "--per_device_train_batch_size 4 -> 8"),
    "objective": ({"monitor": "helpfulness"}, "objectives helpfulness harmlessness -> (helpfulness) harmlessness"),
}


@pytest.mark.parametrize("what", cases(REFUSED, always=["algorithm", "model"]))
def test_other_flags_are_refused(workshop: Workshop, copy: Path, tmp_path: Path, what: str) -> None:
    changes, said = REFUSED[what]
    lines = workshop.prompts.read_text().splitlines(keepends=True)
    (tmp_path / "other.jsonl").write_text("".join(reversed(lines)))
    places = {"folder": tmp_path, "cost": workshop.cost, "reward": workshop.reward}
    changes = {name: value.format(**places) if isinstance(value, str) else value for name, value in changes.items()}
    before = dates(copy)
    result = go_on(workshop, copy, **changes)
    assert result.code == 2 and result.stderr.count("error:") == 1 and said in result.stderr, result.stderr
    assert "--fresh starts over" in result.stderr
    assert dates(copy) == before


def test_harmless_flags_and_paths_may_change(workshop: Workshop, copy: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved.jsonl"
    shutil.copy(workshop.prompts, moved)
    harmless = {"print_interval": 3, "checkpoint_interval": 5, "data": moved, "gradient_checkpointing": True}
    result = go_on(workshop, copy, **harmless)
    assert result.code == 0 and "--allow_changed_flags" not in result.stdout, result.stderr


@pytest.mark.parametrize(
    "layout", cases([{"zero_stage": 2}, {"zero_stage": 0}, {"zero_stage": 3}], always=[{"zero_stage": 3}])
)
def test_allowed_changes_count(workshop: Workshop, copy: Path, layout: dict[str, int]) -> None:
    """More steps and another learning rate, which the schedule multiplies from then on; another algorithm."""
    changes = {"max_steps": 7, "actor_learning_rate": 3e-7, "critic_learning_rate": 2e-7, "weight_decay": 0.1}
    changes |= {"algorithm": "fast_rl"} | layout
    result = go_on(workshop, copy, allow_changed_flags=True, keep_checkpoints=True, **changes)
    assert result.code == 0, result.stderr
    for line in ("--max_steps 6 -> 7", "--actor_learning_rate 0.001 -> 3e-07", "--algorithm gapo -> fast_rl"):
        assert line in result.stdout
    metrics = read_metrics(copy)
    assert [line["step"] for line in metrics] == list(range(1, 8))
    rates = [line["learning_rate/actor"] for line in metrics]
    assert all(rate > 1e-5 for rate in rates[:4]) and all(0 <= rate <= 3e-7 for rate in rates[4:]) and rates[4] > 0
    # The run after it takes these flags for its own.
    again = go_on(workshop, copy, **changes)
    assert again.code == 0 and "--allow_changed_flags" not in again.stdout, again.stderr


@EXHAUSTIVE
def test_what_makes_other_engines_cannot_be_allowed(workshop: Workshop, copy: Path) -> None:
    for changes in ({"dtype": "bf16"}, {"critic": "shared"}, {"monitor": "helpfulness", "algorithm": "ppo"}):
        result = go_on(workshop, copy, allow_changed_flags=True, **changes)
        assert result.code == 2 and "(--fresh starts over)" in result.stderr, result.stderr


@EXHAUSTIVE
def test_a_model_is_its_configuration_too(workshop: Workshop, copy: Path, tmp_path: Path) -> None:
    other = tmp_path / "reward"
    shutil.copytree(workshop.reward, other)
    assert go_on(workshop, copy, reward_model=f"helpfulness={other}", max_steps=6).code == 0
    shutil.rmtree(copy)
    assert go_on(workshop, copy, keep_checkpoints=True, max_steps=2).code == 0
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"score_mean": 5.0}))
    result = go_on(workshop, copy, reward_model=f"helpfulness={other}", max_steps=2)
    assert result.code == 2 and "--reward_model helpfulness (configuration, tokenizer) contents " in result.stderr


def test_more_epochs_may_be_added_to_a_finished_run(workshop: Workshop, tmp_path: Path) -> None:
    """The first epoch is the best, was to be the last, and is exported in the end."""
    changes = {"learning_rate": 1.0, "max_grad_norm": 0, "lr_scheduler_type": "constant", "keep_checkpoints": True}
    run = supervised_flags(workshop, STEP1, tmp_path, num_train_epochs=1, **changes)
    assert run_script(STEP1, run).code == 0
    weights = (tmp_path / "model.safetensors").read_bytes()
    run = supervised_flags(workshop, STEP1, tmp_path, num_train_epochs=2, allow_changed_flags=True, **changes)
    result = run_script(STEP1, run)
    assert result.code == 0, result.stderr
    evaluation = json.loads((tmp_path / "evaluation.json").read_text())
    assert evaluation["epoch"] == 1 and (tmp_path / "model.safetensors").read_bytes() == weights


def test_a_finished_result_is_not_trained_over(workshop: Workshop, copy: Path) -> None:
    assert go_on(workshop, copy).code == 0
    before = dates(copy)
    result = go_on(workshop, copy)
    assert result.code == 2 and f"--output_dir {copy}: a finished result is there; --fresh replaces it" in result.stderr
    assert dates(copy) == before
    result = go_on(workshop, copy, fresh=True, max_steps=1)
    assert result.code == 0 and len(read_metrics(copy)) == 1, result.stderr


def test_a_damaged_checkpoint_does_not_drive_out_good_ones(workshop: Workshop, copy: Path) -> None:
    flip_byte(copy / "checkpoints/step_00000004/state.json")
    arguments = step3_run(workshop, copy, zero_stage=2, checkpoint_interval=1, checkpoints_kept=1)
    run_killed(STEP3, arguments, 2, lambda: whole_checkpoints(copy) == ["step_00000003"])
    result = go_on(workshop, copy)
    assert result.code == 0 and f"going on from {copy / 'checkpoints/step_00000003'}" in result.stdout, result.stderr


def test_another_number_of_ranks_with_the_same_batches_is_taken(workshop: Workshop, copy: Path) -> None:
    shutil.copytree(copy, copy.with_name("other"))
    result = go_on(workshop, copy, ranks=1, per_device_prompt_batch_size=16, per_device_train_batch_size=8)
    assert result.code == 0, result.stderr
    assert "number of ranks 2 -> 1" in result.stdout
    refused = go_on(workshop, copy.with_name("other"), ranks=1, per_device_prompt_batch_size=16)
    assert "sequences an optimizer step (--per_device_train_batch_size and others) 8 -> 4" in refused.stderr
    metrics = read_metrics(copy)
    assert [line["step"] for line in metrics] == list(range(1, 7))
    assert all(math.isfinite(value) for line in metrics for value in line.values())


def test_a_bounded_number_is_kept(workshop: Workshop, tmp_path: Path) -> None:
    arguments = step3_run(workshop, tmp_path, checkpoint_interval=1, checkpoints_kept=3, keep_checkpoints=True)
    assert run_script(STEP3, arguments).code == 0
    assert whole_checkpoints(tmp_path) == ["step_00000004", "step_00000005", "step_00000006"]
    none = workshop.step3("no_checkpoints", checkpoint_interval=0)
    assert not (none / "checkpoints").exists() and (none / "config.json").is_file()


# --- disks


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """`small_disk(kilobytes)`: a folder on a disk of its own."""
    mounted = []

    def mount(kilobytes: int) -> Path:
        folder = tmp_path / f"disk{len(mounted)}"
        folder.mkdir()
        made = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", folder], check=False)
        if made.returncode:
            pytest.skip("mounting a tmpfs takes privileges that are missing here")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "-l", folder], check=True)


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("ranks", cases([1, 2], always=[2]))
def test_disk_full_while_a_checkpoint_is_written(
    workshop: Workshop, interrupted: tuple[Path, Path], small_disk: Callable[[int], Path], ranks: int
) -> None:
    """The checkpoint before is whole, and the run goes on from it once there is room."""
    one = size_of(interrupted[1] / "checkpoints/step_00000004")
    disk = small_disk(int(1.9 * one) // 1024)
    arguments = step3_run(workshop, disk / "run", zero_stage=2, checkpoint_interval=3)
    result = run_script(STEP3, arguments, ranks)
    assert result.code == 1 and "Traceback" not in result.stderr, result.stderr
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    assert "the checkpoint of step 6 cannot be written" in line and "step_00000003" in line
    assert whole_checkpoints(disk / "run") == ["step_00000003"]
    subprocess.run(["mount", "-o", "remount,size=100m", disk], check=True)
    result = run_script(STEP3, arguments, ranks)
    assert result.code == 0 and "going on from" in result.stdout, result.stderr
    if ranks == 2:
        again = interrupted[0]
        assert (disk / "run/model.safetensors").read_bytes() == (again / "model.safetensors").read_bytes()


def test_disk_full_while_exporting(
    workshop: Workshop, interrupted: tuple[Path, Path], small_disk: Callable[[int], Path]
) -> None:
    """The older result in the folder still loads, and so does the last checkpoint."""
    disk = small_disk(100_000)
    run = disk / "run"
    shutil.copytree(interrupted[0], run, ignore=shutil.ignore_patterns("tensorboard"))
    before = (run / "model.safetensors").read_bytes(), (run / "config.json").read_bytes()
    # Another run has replaced it but for the export, and is killed there.
    other = step3_run(workshop, disk / "other", zero_stage=2, checkpoint_interval=6, seed=7, keep_checkpoints=True)
    assert run_script(STEP3, other).code == 0
    (disk / "other/checkpoints").rename(run / "checkpoints")
    (run / "unfinished").touch()
    arguments = step3_run(workshop, run, zero_stage=2, checkpoint_interval=6, seed=7)
    used = int(subprocess.run(["du", "-sk", disk], capture_output=True, text=True, check=True).stdout.split()[0])
    subprocess.run(["mount", "-o", f"remount,size={used + 60}k", disk], check=True)
    result = run_script(STEP3, arguments)
    assert result.code == 1 and "Traceback" not in result.stderr, result.stderr
    assert result.stderr.count("error:") == 1 and "No space left on device" in result.stderr
    assert ((run / "model.safetensors").read_bytes(), (run / "config.json").read_bytes()) == before
    assert (run / "unfinished").is_file() and whole_checkpoints(run) == ["step_00000006"]
    subprocess.run(["mount", "-o", "remount,size=100m", disk], check=True)
    result = run_script(STEP3, arguments)
    assert result.code == 0 and not (run / "unfinished").exists(), result.stderr
    assert (run / "model.safetensors").read_bytes() == (disk / "other/model.safetensors").read_bytes() != before[0]


# --- health


def figures(kl: float = 2.0, reward: tuple[float, float] = (0.5, 0.5), std: float = 1.0) -> dict[str, float]:
    a, b = reward
    return {"kl": kl, "response_length": 20.0, "reward/a": a, "reward/b": b, "reward_std/a": std, "reward_std/b": std}


def warnings_of(rollouts: list[dict[str, float]]) -> list[tuple[int, str]]:
    health = Health(["a", "b"])
    return [(step, text) for step, one in enumerate(rollouts, start=1) for text in health.observe(step, one)]


def test_health_warns_of_a_kl_that_explodes() -> None:
    assert not warnings_of([figures(kl=2.0 + step / 10) for step in range(50)])
    ((step, text),) = warnings_of([figures()] * 20 + [figures(kl=50)] + [figures()] * 20)
    assert step == 21 and "2.5 a token: try a higher --kl_coeff" in text
    slow = [figures(kl=2.0) | {"response_length": 200.0}] * RECENT + [figures(kl=21) | {"response_length": 200.0}]
    ((step, text),) = warnings_of(slow)
    assert step == RECENT + 1 and "has jumped from 2 to 21 nats" in text
    steps = [step for step, _ in warnings_of([figures(kl=50)] * 25)]
    assert steps == [1, 1 + SILENT, 1 + 2 * SILENT]


def test_health_warns_of_a_reward_that_collapses() -> None:
    assert not warnings_of([figures()] * 5 + [figures(reward=(-9, 0.6))] * 20), "one objective is traded for another"
    ((step, text),) = warnings_of([figures()] * 5 + [figures(reward=(-0.2, -0.1))] * SILENT)
    assert step == 5 + AVERAGED and "(a 0.5 -> -0.2, b 0.5 -> -0.1): try a lower --actor_learning_rate" in text
    ((_, text),) = warnings_of([figures()] * 5 + [figures(std=0.01)] * SILENT)
    assert "have become nearly equal" in text
    broken = figures(kl=math.nan, reward=(math.nan, math.nan))
    assert not warnings_of([figures()] * 5 + [broken] * 5 + [figures()] * 5)


def test_health_warns_of_a_task_that_teaches_nothing() -> None:
    """Once three rollouts in a row had nothing to learn from, and again while it stays so."""
    learned, silent = figures() | {"task/a/serves": 0.1}, figures() | {"task/a/serves": 0.0}
    assert not warnings_of([learned, silent, silent] * 10)
    found = warnings_of([learned] * 5 + [silent] * (AVERAGED + SILENT))
    assert [step for step, _ in found] == [5 + AVERAGED, 5 + AVERAGED + SILENT]
    assert all("nothing is learned of a" in text for _, text in found)
