"""The checks for a GPU run in small on the CPU, and nothing that goes wrong in one of them stops the others."""

import os
import re
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tests.cases import EXHAUSTIVE
from tests.gpu_check import __main__ as command
from tests.gpu_check.jobs import FAILED, LATE, MISSING, OK, Checks, Job, NotThere, Settings, run_jobs
from tests.gpu_check.record import Record
from tests.gpu_check.updates import step_operations
from tests.gpu_check.versions import device, script_files
from tests.helpers import flags, run_script

pytestmark = pytest.mark.slow

WITHOUT_GPU = {"device", "CUDA toolkit", "Llama: hybrid engine"}


def rows_of(path: Path) -> list[list[str]]:
    """Cells of the table, without its heading."""
    lines = [line for line in path.read_text().splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines[2:]]


def run(monkeypatch: pytest.MonkeyPatch, folder: Path, **options: object) -> int:
    """The exit code of the command, in this process; those of its jobs are its own."""
    monkeypatch.setattr(sys, "argv", ["gpu_check", *flags(output=folder, **options)])
    with pytest.raises(SystemExit) as end:
        command.main()
    return end.value.code


@EXHAUSTIVE
def test_every_section_has_its_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    code, said = run(monkeypatch, tmp_path, minutes=30), capsys.readouterr().out
    assert code == 0, said + (tmp_path / "gpu_check.log").read_text()
    rows = rows_of(tmp_path / "gpu_check.md")
    assert tuple(dict.fromkeys(row[0] for row in rows)) == command.SECTIONS
    statuses, results = {row[1]: row[2] for row in rows}, {row[1]: row[3] for row in rows}
    assert {check for check, status in statuses.items() if status == MISSING} <= WITHOUT_GPU
    assert set(statuses.values()) == {OK, MISSING} and statuses["Llama: hybrid engine"] == MISSING
    assert len(results) == len(rows) >= len(command.JOBS)
    assert "bit for bit" in results["step3_gapo/main.py: 2 rollouts against 1 and a resumed one"]
    assert "policy 0.0e+00" in results["gapo, full, again (no CUDA: CPU against CPU)"]
    assert all(f"ZeRO-{stage}: gapo, {scope}" in results for stage in (0, 2, 3) for scope in ("last_layer", "full"))
    assert "Complete" in (tmp_path / "gpu_check.md").read_text()
    assert all(f"{section} | {check} | {status} | " in said for section, check, status, *_ in rows)


def test_without_time_every_job_is_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(monkeypatch, tmp_path, minutes=1e-6, sections=("recovery", "memory")) == 0
    rows = rows_of(tmp_path / "gpu_check.md")
    assert [row[1] for row in rows] == [job.label for job in command.JOBS if job.section in ("recovery", "memory")]
    assert {row[2] for row in rows} == {LATE}


# --- what happens in the processes of the jobs below


def good(settings: Settings) -> Checks:
    return {"sum": lambda: f"{1 + 1} | {settings.folder}"}


def broken(settings: Settings, word: str) -> Checks:
    raise ValueError(f"no {word}\ntoday")


def mixed(settings: Settings) -> Checks:
    def differs() -> str:
        raise AssertionError("weights differ by 2")

    def absent() -> str:
        raise NotThere("no kernels")

    return {"first": differs, "second": absent, "third": lambda: "three"}


def killed(settings: Settings) -> Checks:
    return {"before": lambda: "fine", "here": lambda: os.kill(os.getpid(), signal.SIGKILL), "after": lambda: "?"}


def endless(settings: Settings) -> Checks:
    return {"sleep": lambda: time.sleep(600), "later": lambda: "?"}


def jobs(*names: str, **changes: object) -> list[Job]:
    return [Job(name, "label", f"tests.test_gpu_check:{name}", **changes) for name in names]


def outcome(folder: Path, jobs: list[Job], seconds: float = 120.0) -> Record:
    record = Record(folder, "A test", seconds)
    run_jobs(jobs, Settings(True, str(folder)), seconds, record)
    return record


def test_failures_are_rows_and_the_others_go_on(tmp_path: Path) -> None:
    broken_job = Job("broken", "label", "tests.test_gpu_check:broken", ("luck",))
    record = outcome(tmp_path, [broken_job, *jobs("mixed", "killed", "good")])
    assert [(row.section, row.check, row.status, row.result) for row in record.rows] == [
        ("broken", "label", FAILED, "ValueError: no luck today"),
        ("mixed", "first", FAILED, "weights differ by 2"),
        ("mixed", "second", MISSING, "no kernels"),
        ("mixed", "third", OK, "three"),
        ("killed", "before", OK, "fine"),
        ("killed", "here", FAILED, "the process ended with signal SIGKILL; see the log"),
        ("killed", "after", FAILED, "not reached: see above"),
        ("good", "sum", OK, f"2 | {tmp_path}"),
    ]
    assert record.failed
    log = (tmp_path / "gpu_check.log").read_text()
    assert "in broken" in log and "raise AssertionError" in log and "NotThere" not in log
    record.finish()
    text = (tmp_path / "gpu_check.md").read_text()
    assert "4 failed" in text and [row[3] for row in rows_of(record.path)][-1] == rf"2 \| {tmp_path}"


def test_a_failed_check_is_the_exit_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for job, code in (("mixed", 1), ("good", 0)):
        monkeypatch.setattr(command, "JOBS", jobs(job))
        monkeypatch.setattr(command, "SECTIONS", (job,))
        assert run(monkeypatch, tmp_path) == code


def test_a_job_that_hangs_ends_with_its_share(tmp_path: Path) -> None:
    start = time.monotonic()
    share = {"share": 1.0}
    record = outcome(tmp_path, [*jobs("endless", **share), *jobs("good", share=9.0)], seconds=20.0)
    assert time.monotonic() - start < 60, "it was waited for"
    statuses = [(row.section, row.check, row.status) for row in record.rows]
    assert statuses == [("endless", "sleep", LATE), ("endless", "later", LATE), ("good", "sum", OK)]
    assert record.rows[0].result == "stopped after 3 s, more than its share of the time"
    assert not record.failed


def test_an_unknown_section_is_named() -> None:
    result = run_script("tests/gpu_check/__main__.py", ["--sections", "weather"])
    assert result.code == 2 and "weather" in result.stderr


def test_all_scripts_are_imported() -> None:
    names = {str(path) for path in script_files()}
    assert all(any(name.endswith(script) for name in names) for script in (
        "step1_sft/main.py", "step2_reward/main.py", "step3_gapo/main.py", "eval/generate.py", "eval/score.py",
    ))  # fmt: skip


def test_operations_of_a_step_are_those_of_its_matrix_products() -> None:
    """6 a weight and token, for the weights of the linear layers; PyTorch's own count of a backward pass agrees."""
    from torch.utils.flop_counter import FlopCounterMode

    from tests.benchmarks.synthetic import Load, make_decoder

    tokens = 16
    model = make_decoder(Load("tiny", "fp32", 1, tokens, tokens)).train()
    with FlopCounterMode(display=False) as counter:
        model(torch.arange(tokens).unsqueeze(0) + 3).logits.sum().backward()
    counted = counter.get_total_flops()
    assert step_operations("tiny", 0, tokens) == pytest.approx(counted, rel=0.05)


def test_a_gpu_is_described(monkeypatch: pytest.MonkeyPatch) -> None:
    """What torch says of one; there is none here to ask."""
    found = SimpleNamespace(name="GPU of a test", total_memory=80 * 2**30, major=9, minor=0)
    told = {"is_available": True, "get_device_properties": found, "is_bf16_supported": True, "device_count": 1}
    for name, value in told.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, value=value: value)
    monkeypatch.setattr(torch.cuda.nccl, "version", lambda: (2, 27))
    assert re.match(r"GPU of a test, 80\.0 GiB, compute capability 9\.0, driver .+, CUDA .+, NCCL 2\.27", device())
