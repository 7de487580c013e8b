"""step3_dpo: its command line on 1 and 2 ranks, every ZeRO stage and scope, against plain torch; its methods."""

import argparse
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM

from step3_dpo.arguments import algorithm_of, parse_args
from step3_dpo.batches import collate, differences, measured
from step3_dpo.frozen import with_values
from step3_dpo.main import losses_of
from step3_dpo.objectives import declared, load_all, named_data, objectives_of, read_pairs, split_off
from step3_dpo.policy import PairPolicy
from step3_dpo.update import PairUpdate
from tests import pair_training
from tests.cases import beyond
from tests.helpers import Workshop, distance, read_metrics, read_weights, run_function, run_killed, run_script
from tests.pair_training import (
    NAMES,
    PAIRS_A_STEP,
    STEP3_DPO,
    Labelled,
    expected_run,
    make_pairs,
    pair_flags,
    write_pairs,
)
from tests.test_resume import assert_same_run, metrics_lines
from utils.engines.arrival import arriving
from utils.engines.engines import engine_config, make_frozen_engine, release
from utils.models.configs import load_tokenizer
from utils.models.loading import load_causal_lm
from utils.process.distributed import init_distributed, shutdown_distributed
from utils.process.errors import AT_ONCE

pytestmark = pytest.mark.slow

PREFERENCE = {"preference": ("helpfulness=0.7", "harmlessness=0.3")}


def run(workshop: Workshop, folder: Path, name: str, ranks: int = 1, **changes: Any) -> Path:
    """From its beginning to a good end; its output folder."""
    result = run_script(STEP3_DPO, pair_flags(workshop, folder, name, **{"fresh": True} | changes), ranks, False)
    assert result.code == 0, result.stderr
    return folder / name


def steps_of(folder: Path) -> list[dict[str, float]]:
    """The logged optimizer steps."""
    return [line for line in read_metrics(folder) if line["step"] and "combined_loss" in line]


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
    if changes.get("lora_export"):
        assert (output / "adapter_model.safetensors").is_file()
    else:
        assert read_weights(output).keys() == read_weights(workshop.base).keys()
    evaluation = json.loads((output / "evaluation.json").read_text())
    assert evaluation["objectives"]["helpfulness"]["accuracy"]["count"] == 6


# --- what the other stages promise


def shape(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(("ranks", "changes"), [
    (2, {"algorithm": "gapo", "zero_stage": 3, "lora_dim": 4, "per_device_train_batch_size": 4}),
    (1, {"algorithm": "modpo", "monitor": "harmlessness", "gradient_checkpointing": True}),
])  # fmt: skip
def test_a_killed_run_goes_on(workshop: Workshop, tmp_path: Path, ranks: int, changes: dict[str, Any]) -> None:
    """Inside what frozen models say, before a checkpoint and after one: the same bytes as without interruption."""
    if changes["algorithm"] == "modpo":
        changes = changes | {"margin_reward": f"wit={workshop.reward}", "preference": ("helpfulness=0.9", "wit=0.1")}
    more = {"num_train_epochs": 2, "checkpoint_interval": 2, "export": "best"} | changes
    whole = run(workshop, tmp_path, "whole", ranks, **more)
    killed, arguments = tmp_path / "killed", pair_flags(workshop, tmp_path, "killed", **more)
    pieces = lambda: list((killed / "frozen").rglob("*.safetensors"))
    run_killed(STEP3_DPO, arguments, ranks, lambda: len(pieces()) >= 1, pictures=False)
    for lines in (2, 4):
        run_killed(STEP3_DPO, arguments, ranks, lambda lines=lines: metrics_lines(killed) >= lines, pictures=False)
    result = run_script(STEP3_DPO, arguments, ranks, pictures=False)
    assert result.code == 0 and "going on from" in result.stdout, result.stderr
    assert_same_run(whole, killed)
    assert (whole / "evaluation.json").read_bytes() == (killed / "evaluation.json").read_bytes()
    assert shape(whole) == shape(killed) and not (killed / "frozen").exists()


def test_a_run_that_diverges_ends_in_one_line(workshop: Workshop, tmp_path: Path) -> None:
    """Steps whose gradients are not finite are skipped, on both ranks; so many in a row end the run."""
    arguments = pair_flags(
        workshop, tmp_path, "run", algorithm="gapo", learning_rate=1e30, num_train_epochs=3, max_skipped_steps=2,
        per_device_train_batch_size=4, zero_stage=2,
    )  # fmt: skip
    result = run_script(STEP3_DPO, arguments, 2, pictures=False)
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert result.code == 2 and len(errors) == 1 and "lower --learning_rate" in errors[0], result.stderr
    assert read_metrics(tmp_path / "run")[-1].get("skipped_steps", 2) >= 1


def test_a_checkpoint_becomes_a_model(workshop: Workshop, tmp_path: Path) -> None:
    output = run(workshop, tmp_path, "run", algorithm="gapo", keep_checkpoints=True, checkpoint_interval=3)
    result = run_script("utils/export_checkpoint.py", [str(output), "--output_dir", str(tmp_path / "exported")])
    assert result.code == 0, result.stderr
    assert distance(output, tmp_path / "exported") == 0


def test_a_dry_run_plans_and_writes_nothing(workshop: Workshop, tmp_path: Path) -> None:
    arguments = pair_flags(
        workshop, tmp_path, "run", algorithm="modpo", monitor="harmlessness", dry_run=True,
        margin_model=f"harmlessness={workshop.base}", reference_log_probs="per_batch",
    )  # fmt: skip
    result = run_script(STEP3_DPO, arguments)
    assert result.code == 0 and "every phase fits" in result.stdout, result.stderr
    for line in (
        "margin of harmlessness",
        "policy update",
        "is read once for both replies",
        "harmlessness (monitored)",
    ):
        assert line in result.stdout
    assert not (tmp_path / "run").exists()
    result = run_script(STEP3_DPO, [*arguments, "--plan_memory", "0.01"])
    assert result.code == 1 and "does not fit" in result.stdout


def test_pairs_of_several_kinds_are_digested_and_conflicts_told(workshop: Workshop, tmp_path: Path) -> None:
    """One file with two labels, prompt pairs as an objective of their own, ratings; what is identical is counted."""
    tmp_path.mkdir(exist_ok=True)
    pairs = [
        {"prompt": f"How is {i}?", "response_0": f"Fine {i}.", "response_1": f"Bad {i}." if i else "Fine 0.",
         "better_response_id": 0, "safer_response_id": i % 2, "is_response_0_safe": True, "is_response_1_safe": True}
        for i in range(12)
    ]  # fmt: skip
    prompt_pairs = [
        {"chosen_prompt": f"Say {i} in capitals.", "rejected_prompt": f"Say {i} softly.", "response": f"YES {i}."}
        for i in range(8)
    ]
    ratings = [
        {"prompt": f"Rate {i}", "response": f"Text {j} of {i}.", "ratings": {"clarity": j}}
        for i in range(6)
        for j in range(2)
    ]
    for name, rows in (("pairs", pairs), ("prompts", prompt_pairs), ("ratings", ratings)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    objective = (
        f"better={tmp_path}/pairs.jsonl", f"safer={tmp_path}/pairs.jsonl:safer",
        f"obeys={tmp_path}/prompts.jsonl:prompt_pairs", f"clarity={tmp_path}/ratings.jsonl:rating/clarity",
        f"murk={tmp_path}/ratings.jsonl:rating/-clarity",
    )  # fmt: skip
    arguments = pair_flags(
        workshop, tmp_path, "run", algorithm="gapo", objective=objective, validation_objective=None,
        validation_fraction=0.4,
    )  # fmt: skip
    result = run_script(STEP3_DPO, arguments)
    assert result.code == 0, result.stderr
    assert "dropped 1 (1 identical replies)" in result.stdout
    assert re.search(r"better, safer: \d+ pairs labelled by both, \d+ in opposite order \(\d+%\)", result.stdout)
    steps = steps_of(tmp_path / "run")
    assert re.search(r"clarity, murk: (\d+) pairs labelled by both, \1 in opposite order", result.stdout)
    for name in ("better", "safer", "obeys", "clarity"):
        assert any(f"accuracy/{name}" in step for step in steps)
    evaluation = json.loads((tmp_path / "run/evaluation.json").read_text())
    assert evaluation["conflicts"]["better, safer"]["pairs"] >= evaluation["conflicts"]["better, safer"]["opposite"] > 0


def test_settings_repeat_a_run(workshop: Workshop, tmp_path: Path) -> None:
    """`--config args.json`, β of one objective and all."""
    first = run(workshop, tmp_path, "first", algorithm="gapo", beta=("0.2", "harmlessness=0.5"))
    result = run_script(STEP3_DPO, ["--config", str(first / "args.json"), "--output_dir", str(tmp_path / "again")])
    assert result.code == 0, result.stderr
    assert (first / "model.safetensors").read_bytes() == (tmp_path / "again/model.safetensors").read_bytes()


@pytest.mark.parametrize(("ranks", "accumulation"), [(2, 2), beyond((3, 1)), beyond((3, 2))])
def test_a_rest_smaller_than_the_ranks_counts_once(
    workshop: Workshop, tmp_path: Path, ranks: int, accumulation: int
) -> None:
    """Steps of 12 of 18 + 6 pairs, the last with fewer than ranks and micro-batches have room for."""
    pair_flags(workshop, tmp_path, "unused")  # writes the data
    rows = (tmp_path / f"train_{NAMES[0]}.jsonl").read_text().splitlines(keepends=True)
    for count in (13, 15):  # 1 and 3 in the last step
        (tmp_path / "few.jsonl").write_text("".join(rows[:count]))
        settings = {"algorithm": "dpo", "objective": f"{NAMES[0]}={tmp_path}/few.jsonl",
                    "validation_objective": f"{NAMES[0]}={tmp_path}/held_out_{NAMES[0]}.jsonl"}  # fmt: skip
        alone = run(workshop, tmp_path, "alone", per_device_train_batch_size=12, **settings)
        sizes = {
            "per_device_train_batch_size": 12 // ranks // accumulation,
            "gradient_accumulation_steps": accumulation,
        }
        several = run(workshop, tmp_path, "several", ranks, **sizes, **settings)
        assert distance(alone, several) <= 1e-4  # 4e-2 where a pair counts twice


def test_coefficients_that_lack_an_objective_do_not_serve_again(workshop: Workshop, tmp_path: Path) -> None:
    """One pair of the second objective among many: its coefficient is 0 in steps without it, and never kept so."""
    folder = tmp_path / "data"
    folder.mkdir()
    pairs = make_pairs(12)
    for i, pair in enumerate(pairs):
        pairs[i] = Labelled(pair.prompt, pair.first, pair.second, (1, 1 if i == 3 else 0))
    specs = tuple(write_pairs(folder, "few", pairs))
    output = run(
        workshop, tmp_path, "run", algorithm="gapo", gram_every=6, objective=specs, per_device_train_batch_size=4
    )
    steps = steps_of(output)
    assert len(steps) == 3
    having = [f"loss/{NAMES[1]}" in step for step in steps]
    assert sum(having) == 1
    assert steps[having.index(True)][f"coefficient/{NAMES[1]}"] > 0


def test_a_method_of_ones_own(workshop: Workshop, tmp_path: Path) -> None:
    """Weights that are known before the losses; of another shape, they end in one line."""
    source = """
import torch
from utils.combining.algorithm import LossLevel

class Halves(LossLevel):
    name, summary = "halves", "every loss by a half"

    @property
    def weights(self):
        return torch.full((len(self.losses),), 0.5, dtype=torch.float64)

class Short(Halves):
    name, summary = "short", "one weight"

    @property
    def weights(self):
        return torch.ones(1)
"""
    (tmp_path / "own.py").write_text(source)
    own = run(workshop, tmp_path, "own", algorithm=f"{tmp_path}/own.py:Halves")
    assert distance(own, run(workshop, tmp_path, "dpo_lw", algorithm="dpo_lw")) == 0
    result = run_script(STEP3_DPO, pair_flags(workshop, tmp_path, "short", algorithm=f"{tmp_path}/own.py:Short"))
    assert result.code == 2 and "weights returns [1], not [2]" in result.stderr
    output = run(
        workshop, tmp_path, "dwa", algorithm="examples/dynamic_weights.py:DynamicWeights", dwa_temperature=0.01
    )
    state = json.loads((output / "algorithm_state.json").read_text())
    assert state["step"] == 3 and all(late > 0 for late in state["late"])
    weights = [[step[f"coefficient/{name}"] for name in NAMES] for step in steps_of(output)]
    assert weights[0] == [0.5, 0.5] != weights[2] and sum(weights[2]) == pytest.approx(1)


def test_what_is_held_out_does_not_depend_on_the_other_objectives(workshop: Workshop, tmp_path: Path) -> None:
    """A prompt is on the same side with one objective and two; every objective has something to validate on."""
    pair_flags(workshop, tmp_path, "unused")
    both = tuple(f"{name}={tmp_path}/train_{name}.jsonl" for name in NAMES)
    held_out = []
    for specs in (both, both[:1], both[1:]):
        given = argparse.Namespace(validation_fraction=0.3, seed=7)
        records = load_all(declared([named_data(spec) for spec in specs], []), 7)
        _, (kept, _) = split_off(given, records)
        assert all(any(record.labels[i] for record in kept) for i in range(len(specs)))
        held_out.append({record.messages[0]["content"] for record in kept})
    assert held_out[1] <= held_out[0] and held_out[2] <= held_out[0] == held_out[1] | held_out[2]
    rare = tmp_path / "rare.jsonl"
    rare.write_text("".join((tmp_path / f"train_{NAMES[1]}.jsonl").read_text().splitlines(keepends=True)[:2]))
    records = load_all(declared([named_data(both[0]), named_data(f"b={rare}")], []), 7)
    _, (kept, _) = split_off(argparse.Namespace(validation_fraction=1e-6, seed=7), records)
    assert sum(record.labels[1] != 0 for record in kept) >= 1 <= sum(record.labels[0] != 0 for record in kept)


def test_the_reference_of_lora_has_no_adapters(workshop: Workshop, tmp_path: Path) -> None:
    """Computed before training and batch by batch, after the adapters have moved: the same weights."""
    settings = {"algorithm": "gapo", "lora_dim": 4, "learning_rate": 3e-2}
    kept = run(workshop, tmp_path, "kept", **settings)
    per_batch = run(workshop, tmp_path, "per_batch", reference_log_probs="per_batch", **settings)
    assert distance(kept, per_batch) <= 1e-4 < 1e-2 < distance(kept, workshop.base)


def test_margin_policies_give_their_memory_back(workshop: Workshop, tmp_path: Path) -> None:
    for stage in (2, 3):
        result = run_function(check_release, str(workshop.base), stage)
        assert result.code == 0, result.stderr


def check_release(base: str, stage: int) -> None:
    """In a process of its own: no weight of a released engine has memory, whoever holds the engine."""
    init_distributed(600)
    args = argparse.Namespace(zero_stage=stage, offload=False, dtype="fp32", max_grad_norm=1.0)
    with arriving(engine_config(args, frozen=True)):
        model = load_causal_lm(base, "--margin_model")
    engine = make_frozen_engine(model, args)
    parameters = list(engine.module.parameters())
    whole = lambda: sum(p.numel() + (p.ds_tensor.numel() if hasattr(p, "ds_tensor") else 0) for p in parameters)
    assert whole() > 1000
    release(engine)
    assert whole() == 0
    shutdown_distributed()


# --- a peer


def test_the_first_step_is_that_of_trl(workshop: Workshop, tmp_path: Path) -> None:
    """Loss and gradient of DPOTrainer on the same batch, where TRL is installed."""
    pytest.importorskip("trl")
    arguments = pair_flags(workshop, tmp_path, "run", algorithm="dpo", monitor="harmlessness")
    result = run_function(check_against_trl, arguments, tmp_path, ranks=1)
    assert result.code == 0, result.stderr


def check_against_trl(arguments: list[str], folder: Path) -> None:
    """In a process of its own: the gradient that a step leaves in the engine, and that of TRL's loss."""
    from trl import DPOConfig, DPOTrainer

    args = parse_args(arguments)
    objectives = objectives_of(args, AT_ONCE)
    tokenizer = load_tokenizer(args.actor_model, "--actor_model")
    examples, _ = read_pairs(args, objectives, tokenizer, None, AT_ONCE)
    init_distributed(600)
    policy = PairPolicy(args, tokenizer, 3)
    part = examples[:PAIRS_A_STEP]
    known = [differences(policy.forward, collate([example], policy.pad_id)) for example in part]
    pairs = with_values(part, torch.cat(known), {}, {}, {})
    algorithm = algorithm_of(args, objectives, [], AT_ONCE)
    update = PairUpdate(policy, algorithm, losses_of(args, objectives, algorithm), False, args)
    scalars = update.accumulate([measured(collate(pairs, policy.pad_id), None)])

    model, reference = (AutoModelForCausalLM.from_pretrained(args.actor_model) for _ in range(2))
    turns = lambda role, text: [{"role": role, "content": text}]
    rows = [
        {"prompt": example.record.messages, "chosen": turns("assistant", example.record.first),
         "rejected": turns("assistant", example.record.second)}
        for example in part
    ]  # fmt: skip
    settings = DPOConfig(
        output_dir=str(folder / "trl"), beta=pair_training.BETA, per_device_train_batch_size=PAIRS_A_STEP, use_cpu=True,
        report_to=[], bf16=False, gradient_checkpointing=False, max_length=96,
    )  # fmt: skip
    trainer = DPOTrainer(model, reference, settings, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)
    batch = next(iter(trainer.get_train_dataloader()))
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    assert scalars["loss/helpfulness"] == pytest.approx(loss.item(), abs=1e-5)
    largest = 0.0
    for (name, ours), (other, theirs) in zip(
        policy.engine.module.named_parameters(), trainer.model.named_parameters(), strict=True
    ):
        assert name == other
        largest = max(largest, theirs.grad.abs().max().item())
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-5)
    assert largest > 0.01
    shutdown_distributed()
