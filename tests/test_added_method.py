"""A new method is one file and one row: built in a copy of the project, trained, and found in the report."""

import shutil
import sys
from pathlib import Path

import numpy
import pytest
from PIL import Image

from tests.evaluations import noisy_run, write_runs
from tests.helpers import ROOT, Workshop, read_metrics, run_command

pytestmark = pytest.mark.slow

FILE = '''"""A toy: weights by the place in the list."""

import torch

from utils.combining.algorithm import GradientLevel


class Toy(GradientLevel):
    """c_i = i / Σ i."""

    name, summary = "toy", "later objectives count more"

    def coefficients(self, gram: torch.Tensor, losses: torch.Tensor) -> torch.Tensor:
        return torch.arange(1, len(gram) + 1, dtype=torch.float64) / (len(gram) * (len(gram) + 1) / 2)
'''
COLOR = (0, 250, 154)
ROW = "toy | Toy | | method | #00FA9A X | | step3_gapo | sft scores | --algorithm toy {scope}"


def test_a_method_is_one_file_and_one_row(workshop: Workshop, tmp_path: Path) -> None:
    copy = tmp_path / "project"
    for folder in ("utils", "eval", "step3_gapo", "presets", "examples"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    (copy / "utils/combining/toy.py").write_text(FILE)
    table = copy / "presets/methods.txt"
    table.write_text(table.read_text().rstrip("\n") + f"\n{ROW}\n")
    root = write_runs(
        tmp_path / "runs", [noisy_run("sft", (0, 1)), noisy_run("gapo_p1", (1, 2)), noisy_run("toy", (2, 0))]
    )
    arguments = workshop.step3_flags("policy", algorithm="toy", max_steps=1, output_dir=root / "policies/toy")
    trained = run_command([sys.executable, copy / "step3_gapo/main.py", *arguments])
    assert trained.code == 0, trained.stderr
    (step,) = read_metrics(root / "policies/toy")
    assert step["coefficient/harmlessness"] == pytest.approx(2 / 3)
    reported = run_command([sys.executable, copy / "eval/report.py", "--input_dir", root])
    assert reported.code == 0, reported.stderr
    assert "| Toy |" in (root / "report/report.md").read_text()
    picture = numpy.asarray(Image.open(next((root / "report").glob("pareto*.png"))).convert("RGB"))
    assert (picture == COLOR).all(axis=-1).sum() > 20, "its marker is in the plane of the objectives"
