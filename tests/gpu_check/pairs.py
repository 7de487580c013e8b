"""step3_dpo: three steps of a run on the device, against the same steps in plain torch on the CPU."""

import sys
from pathlib import Path
from types import SimpleNamespace

import torch

from tests.architectures import Architecture, make_language_model
from tests.gpu_check.jobs import Checks, Settings
from tests.helpers import read_weights, run_command, run_script
from tests.pair_training import PAIRS_A_STEP, STEP3_DPO, expected_run, gapo, pair_flags

LAYOUTS = {"last_layer, ZeRO-2": ("last_layer", 2), "full, ZeRO-3": ("full", 3)}
ALLOWED = 1e-3  # of the largest weight, after three steps of AdamW


def pair_checks(settings: Settings) -> Checks:
    base = Path(settings.folder) / "pairs_policy"
    make_language_model(Architecture("mistral", "mistral"), base)
    return {f"gapo on DPO, {name}": lambda layout=layout: same_run(base, *layout) for name, layout in LAYOUTS.items()}


def same_run(base: Path, scope: str, stage: int) -> str:
    """Run the script, and the steps in plain torch; raises AssertionError where the weights differ."""
    changes = {"algorithm": "gapo", "gradient_scope": scope, "zero_stage": stage, "fresh": True, "max_length": 512}
    words = pair_flags(SimpleNamespace(base=base), base.parent / "pairs", scope, **changes)
    on_gpu = torch.cuda.is_available()
    result = run_command([sys.executable, STEP3_DPO, *words]) if on_gpu else run_script(STEP3_DPO, words)
    print(result.stdout, result.stderr, flush=True)
    assert result.code == 0, f"exit code {result.code}: {' '.join(result.stderr.split())[-200:]}"
    expected, _ = expected_run(base, scope, gapo)
    found = read_weights(base.parent / "pairs" / scope)
    largest = max(weight.abs().max().item() for weight in expected.values())
    off = max((found[name].cpu() - weight).abs().max().item() for name, weight in expected.items()) / largest
    assert off <= ALLOWED, f"the weights differ by {off:.1e} of the largest"
    return f"3 steps of {PAIRS_A_STEP} pairs: weights differ by {off:.1e} of the largest from plain torch on the CPU"
