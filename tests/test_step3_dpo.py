"""step3_dpo: its command line on 1 and 2 ranks, every ZeRO stage and scope, against plain torch; its methods."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import pair_training
from tests.cases import beyond
from tests.helpers import Workshop, distance, read_metrics, read_weights, run_script
from tests.pair_training import NAMES, PAIRS_A_STEP, STEP3_DPO, expected_run, pair_flags

pytestmark = pytest.mark.slow

PREFERENCE = {"preference": ("helpfulness=0.7", "harmlessness=0.3")}


def run(workshop: Workshop, folder: Path, name: str, ranks: int = 1, **changes: Any) -> Path:
    """From its beginning to a good end; its output folder."""
    result = run_script(STEP3_DPO, pair_flags(workshop, folder, name, **{"fresh": True} | changes), ranks, False)
    assert result.code == 0, result.stderr
    return folder / name


def steps_of(folder: Path) -> list[dict[str, float]]:
    """The logged optimizer steps."""
    return [line for line in read_metrics(folder) if line["step"] and "loss/combined" in line]


def layout(ranks: int, accumulation: int, stage: int) -> dict[str, int]:
    return {
        "per_device_train_batch_size": PAIRS_A_STEP // ranks // accumulation,
        "gradient_accumulation_steps": accumulation, "zero_stage": stage,
    }  # fmt: skip


ALGORITHMS = {"gapo": {}, "p_gapo": PREFERENCE, "mgda": {}, "raco": PREFERENCE, "dpo_lw": PREFERENCE}
ALWAYS = {
    ("gapo", "last_layer", 2, 2, 2), ("gapo", "full", 3, 2, 2), ("p_gapo", "last_layer", 3, 1, 2),
    ("raco", "full", 0, 1, 1), ("mgda", "full", 2, 2, 1), ("dpo_lw", "last_layer", 0, 2, 2),
}  # fmt: skip
GRID = [
    (algorithm, scope, stage, ranks, accumulation)
    for algorithm in ALGORITHMS
    for scope in ("last_layer", "full")
    for stage in (0, 2, 3)
    for ranks in (1, 2)
    for accumulation in (1, 2)
    if not (algorithm == "dpo_lw" and scope == "full")
]


@pytest.mark.parametrize(
    ("algorithm", "scope", "stage", "ranks", "accumulation"),
    [case if case in ALWAYS else beyond(case) for case in GRID],
)
def test_three_steps_are_those_of_plain_torch(
    workshop: Workshop, tmp_path: Path, algorithm: str, scope: str, stage: int, ranks: int, accumulation: int
) -> None:
    changes = ALGORITHMS[algorithm] | layout(ranks, accumulation, stage) | {"gradient_scope": scope}
    output = run(workshop, tmp_path, "run", ranks, algorithm=algorithm, **changes)
    coefficients = getattr(pair_training, {"dpo_lw": "fixed"}.get(algorithm, algorithm))
    weights, expected = expected_run(workshop.base, scope, coefficients)
    for step, logged in zip(expected, steps_of(output), strict=True):
        for i, name in enumerate(NAMES):
            assert logged[f"loss/{name}"] == pytest.approx(step["losses"][i], abs=1e-5)
            assert logged[f"coefficient/{name}"] == pytest.approx(step["coefficients"][i], rel=1e-4)
    found = read_weights(output)
    assert found.keys() == weights.keys()
    assert max((found[name] - weights[name]).abs().max().item() for name in weights) <= 1e-5
    assert distance(output, workshop.base) > 1e-3


def test_modpo_with_all_the_weight_and_no_margin_is_dpo_bit_for_bit(workshop: Workshop, tmp_path: Path) -> None:
    alone = {"monitor": "harmlessness"}
    plain = run(workshop, tmp_path, "dpo", algorithm="dpo", **alone)
    modpo = run(workshop, tmp_path, "modpo", algorithm="modpo", **alone, preference="helpfulness=1")
    assert (plain / "model.safetensors").read_bytes() == (modpo / "model.safetensors").read_bytes()
    # Gradient-level methods take the same direction, at another length.
    for algorithm in ("gapo", "mgda", "raco"):
        output = run(workshop, tmp_path, algorithm, algorithm=algorithm, **alone, gradient_scope="full")
        step, dpo_step = steps_of(output)[0], steps_of(plain)[0]
        assert step["gradient/norm/helpfulness"] == pytest.approx(dpo_step["gradient/step_norm"], rel=1e-5)
        length = step["coefficient/helpfulness"] * step["gradient/norm/helpfulness"]
        assert step["gradient/step_norm"] == pytest.approx(length, rel=1e-5)
    same = run(workshop, tmp_path, "same", algorithm="gapo", **alone, normalize_coefficients=True)
    assert distance(plain, same) <= 1e-7


def test_modpo_against_plain_torch(workshop: Workshop, tmp_path: Path) -> None:
    """Margins of an aligned policy and of a function, with weights; three steps on two ranks."""
    aligned = run(workshop, tmp_path, "aligned", algorithm="dpo", monitor="helpfulness")
    (tmp_path / "length.py").write_text(
        "def short(prompts, responses):\n    return [-0.1 * len(r) for r in responses]\n"
    )
    weights = {"helpfulness": 0.5, "harmlessness": 0.3, "short": 0.2}
    output = run(
        workshop, tmp_path, "modpo", 2, algorithm="modpo", monitor="harmlessness", zero_stage=2,
        per_device_train_batch_size=PAIRS_A_STEP // 2, margin_model=f"harmlessness={aligned}",
        margin_function=f"short={tmp_path}/length.py:short", beta=(str(pair_training.BETA), "harmlessness=0.5"),
        preference=tuple(f"{name}={w}" for name, w in weights.items()),
    )  # fmt: skip
    expected, losses = pair_training.expected_modpo(workshop.base, aligned, weights, beta_of_margin=0.5)
    assert [step["loss/helpfulness"] for step in steps_of(output)] == pytest.approx(losses, abs=1e-5)
    found = read_weights(output)
    assert max((found[name] - expected[name]).abs().max().item() for name in expected) <= 1e-5


def test_what_scaling_a_loss_does(workshop: Workshop, tmp_path: Path) -> None:
    """Coefficients times gradients of GAPO and P-GAPO stay where a loss is multiplied, fixed weights' do not."""
    for algorithm, changes in (("gapo", {}), ("p_gapo", PREFERENCE), ("dpo_lw", {**PREFERENCE, "log_gradients": True})):
        plain = steps_of(run(workshop, tmp_path, "plain", algorithm=algorithm, **changes))[0]
        scaled = steps_of(
            run(workshop, tmp_path, "scaled", algorithm=algorithm, **changes, loss_scale="harmlessness=7")
        )[0]
        parts = [
            [step[f"coefficient/{name}"] * step[f"gradient/norm/{name}"] for name in NAMES] for step in (plain, scaled)
        ]
        if algorithm == "dpo_lw":
            assert parts[1][1] == pytest.approx(7 * parts[0][1], rel=1e-5)
        else:
            assert parts[1] == pytest.approx(parts[0], rel=1e-5)
        assert scaled["loss/harmlessness"] == plain["loss/harmlessness"]  # logs are not scaled


@pytest.mark.parametrize(("ranks", "changes"), [
    (1, {"zero_stage": 2, "offload": True}),
    beyond((2, {"zero_stage": 3, "offload": True})),
    (2, {"zero_stage": 3, "reference_log_probs": "per_batch"}),
    (1, {"gradient_checkpointing": True, "logits_chunk_size": 7, "reference_log_probs": "per_batch"}),
    (1, {"logits_chunk_size": 0}),
])  # fmt: skip
def test_layouts_that_change_nothing(workshop: Workshop, tmp_path: Path, ranks: int, changes: dict[str, Any]) -> None:
    changes = layout(ranks, 1, 0) | changes
    output = run(workshop, tmp_path, "run", ranks, algorithm="gapo", gradient_scope="full", **changes)
    weights, _ = expected_run(workshop.base, "full", pair_training.gapo)
    found = read_weights(output)
    assert max((found[name] - weights[name]).abs().max().item() for name in weights) <= 1e-5
    assert not (output / "frozen").exists()


@pytest.mark.parametrize(("ranks", "changes"), [
    (2, {"zero_stage": 3}), (1, {"lora_export": "adapter", "reference_log_probs": "per_batch"}),
    (1, {"dtype": "bf16", "lora_dim": 0}),
])  # fmt: skip
def test_lora_and_bf16(workshop: Workshop, tmp_path: Path, ranks: int, changes: dict[str, Any]) -> None:
    changes = layout(ranks, 1, 0) | {"lora_dim": 4} | changes
    output = run(workshop, tmp_path, "run", ranks, algorithm="p_gapo", **changes)
    steps = steps_of(output)
    assert len(steps) == 3 and all(torch.tensor(list(step.values())).isfinite().all() for step in steps)
    assert steps[0]["margin/helpfulness"] == pytest.approx(0, abs=0.1)  # the reference is the base without adapters
    if changes.get("lora_export"):
        assert (output / "adapter_model.safetensors").is_file()
    else:
        assert read_weights(output).keys() == read_weights(workshop.base).keys()
    evaluation = json.loads((output / "evaluation.json").read_text())
    assert evaluation["helpfulness"]["accuracy"]["count"] == 6
