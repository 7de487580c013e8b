"""What README and docs name is there: flags, files, and pictures."""

import re
from collections.abc import Callable

import pytest

import step1_sft.main
import step2_reward.main
import step3_dpa.arguments
import step3_dpo.arguments
import step3_gapo.arguments
from tests.helpers import ROOT

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
SOURCES = (
    *("*.sh", "step*/**/*", "eval/**/*", "utils/**/*", "presets/*", "examples/*"),
    *("tests/golden_runs.py", "tests/benchmarks/*", "tests/gpu_check/*"),
)
FLAG = re.compile(r"(?<![\w-])--[a-z][a-z0-9_-]*")
# Of deepspeed, TensorBoard, Slurm, and this suite.
FOREIGN = {"--num_accelerators", "--logdir", "--nodes", "--gpus-per-node", "--all"}
STAGES = {
    "step1_sft": step1_sft.main.parse_args,
    "step2_reward": step2_reward.main.parse_args,
    "step3_dpa": step3_dpa.arguments.parse_args,
    "step3_dpo": step3_dpo.arguments.parse_args,
    "step3_gapo": step3_gapo.arguments.parse_args,
}


def flags_of(parse_args: Callable[[list[str]], object], capsys: pytest.CaptureFixture[str]) -> set[str]:
    with pytest.raises(SystemExit):
        parse_args(["--help"])
    return set(FLAG.findall(capsys.readouterr().out))


def test_the_table_of_other_projects_flags_names_flags_that_are_here(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [line for line in (ROOT / "docs/coming_from.md").read_text().splitlines() if line.startswith("| ")]
    here = [line.split("|")[1] for line in rows]
    assert sum(len(FLAG.findall(cell)) for cell in here) > 40
    known = {stage: flags_of(parse_args, capsys) for stage, parse_args in STAGES.items()}
    for cell in here:
        stage = next((stage for stage in STAGES if f"`{stage} " in cell), "step3_gapo")
        assert set(FLAG.findall(cell)) <= known[stage], cell


def test_every_flag_that_a_page_names_is_one_of_the_project(capsys: pytest.CaptureFixture[str]) -> None:
    known = {flag for parse_args in STAGES.values() for flag in flags_of(parse_args, capsys)} | FOREIGN
    for source in (file for pattern in SOURCES for file in ROOT.glob(pattern)):
        if source.suffix in (".py", ".sh"):
            known |= set(FLAG.findall(source.read_text()))
    for page in PAGES:
        if page.name != "coming_from.md":  # whose other columns are others' flags
            named = set(FLAG.findall(page.read_text())) - known
            unknown = [flag for flag in named if not (flag.endswith("_") and any(k.startswith(flag) for k in known))]
            assert not unknown, f"{page.name}: {sorted(unknown)}"


def test_every_link_of_a_page_leads_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?:)([^)#\s]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
