"""--dry_run through the command line, the planner's arithmetic against live engines, and the advice it gives."""

import dataclasses
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import MistralConfig, MistralForCausalLM

from tests.benchmarks import plan
from tests.benchmarks.synthetic import Load, arguments_of, make_decoder
from tests.helpers import STEP3, Workshop, flags, run_function, run_script
from utils.engines.engines import Engine, make_training_engine
from utils.gradients.zero import gradient_shards, step_if_finite
from utils.memory.advice import as_flags, cheapest_fit, excess, remedies
from utils.memory.dry_run import ITEMS
from utils.memory.plan import flattened, phases_of, policy_moments
from utils.memory.sizes import DEVICE, GIB, HOST, Memory, PlannedModel, Shape, Surroundings, shape_of
from utils.process.distributed import init_distributed

pytestmark = pytest.mark.slow

MISTRAL = {
    "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128,
    "intermediate_size": 14336, "vocab_size": 32000, "max_position_embeddings": 32768,
}  # fmt: skip
SEVEN_B = Shape(7_241_732_096, 131_072_000, 32 * 81920, 32000, 4096, 32, 14336, 32, 8, 128, gated=True)


def described(source: Path, target: Path, **config: Any) -> Path:
    """A model folder without weights, with other values in its configuration."""
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("*.safetensors"))
    path = target / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    return target


def files_of(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


# --- through the command line


def test_step3_counts_batches_and_writes_nothing(workshop: Workshop, tmp_path: Path) -> None:
    before = files_of(workshop.folder)
    changes = {"output_dir": tmp_path / "new/run", "ppo_epochs": 3, "max_steps": None, "generation_batches": 2}
    words = workshop.step3_flags("none", **changes)
    result = run_script(STEP3, [*words, *flags(dry_run=True, plan_ranks=2, num_train_epochs=2, warmup_ratio=0.1)])
    assert (result.code, result.stderr) == (0, "")
    counts = dict(re.findall(r"^(\w[\w ,()]*?)  +(\d+)$", result.stdout, re.MULTILINE))
    # 64 prompts, 8 × 2 a rank and rollout; 4 sequences a rank and step.
    assert counts | {
        "prompts": "64", "prompts a rollout": "32", "rollouts": "4", "sequences an optimizer step": "8", "ranks": "2",
        "optimizer steps": "48",
    } == counts  # fmt: skip
    assert "every phase fits" in result.stdout
    assert files_of(workshop.folder) == before and not (tmp_path / "new").exists()


def test_configurations_alone_are_enough_for_a_dry_run_only(workshop: Workshop, tmp_path: Path) -> None:
    base, reward = (described(source, tmp_path / source.name) for source in (workshop.base, workshop.reward))
    words = workshop.step3_flags(
        "none", actor_model=base, reward_model=f"helpfulness={reward}", output_dir=tmp_path / "out"
    )
    result = run_script(STEP3, [*words, "--dry_run"])
    assert (result.code, result.stderr) == (0, "")
    assert f"no weights there yet: {base}" in result.stdout and f"no weights there yet: {reward}" in result.stdout
    assert str(workshop.cost) not in result.stdout.partition("no weights there yet")[2]
    result = run_script(STEP3, words)
    assert result.code == 2 and "no model.safetensors there" in result.stderr


def test_critics_start_where_the_table_says(workshop: Workshop, tmp_path: Path) -> None:
    words = workshop.step3_flags("none", reward_model=f"helpfulness={workshop.foreign}", output_dir=tmp_path / "out")
    result = run_script(STEP3, [*words, "--dry_run"])
    assert result.code == 0, result.stderr
    lines = {line.split("  ")[0]: line for line in result.stdout.splitlines()}
    assert "own: re-tokenized" in lines["reward of helpfulness"]
    assert "from the policy" in lines["critic of helpfulness"]
    assert "start of its critic" in lines["cost of harmlessness"]


@pytest.mark.parametrize(
    ("script", "changes", "count"),
    [
        ("step1_sft/main.py", {"data": "sft_train.jsonl"}, ("optimizer steps", "12")),
        ("step2_reward/main.py", {"data": "preferences_train.jsonl", "objective": "wit", "kind": "reward"},
         ("optimizer steps", "1")),
    ],
)  # fmt: skip
def test_other_stages(script: str, changes: dict, count: tuple, workshop: Workshop, tmp_path: Path) -> None:
    base = described(workshop.base, tmp_path / "base")
    data = workshop.folder / "data" / changes["data"]
    common = {"model_name_or_path": base, "max_length": 128, "output_dir": tmp_path / "out", "dry_run": True}
    result = run_script(script, flags(**changes | common | {"data": data}))
    assert (result.code, result.stderr) == (0, "")
    assert re.search(rf"^{count[0]} +{count[1]}$", result.stdout, re.MULTILINE)
    assert f"no weights there yet: {base}" in result.stdout
    assert not (tmp_path / "out").exists()


def test_of_many_examples_a_dry_run_tokenizes_some(workshop: Workshop, tmp_path: Path) -> None:
    rows = (workshop.folder / "data/sft_train.jsonl").read_text()
    count = rows.count("\n") * 11
    (tmp_path / "many.jsonl").write_text(rows * 11)
    changes = {"data": tmp_path / "many.jsonl", "validation_data": workshop.folder / "data/sft_train.jsonl"}
    common = {"model_name_or_path": workshop.base, "max_length": 128, "output_dir": tmp_path / "out", "dry_run": True}
    result = run_script("step1_sft/main.py", flags(**changes | common))
    assert (result.code, result.stderr) == (0, "")
    (tokenized,) = re.findall(rf"dry run: (\d+) of {count} examples are tokenized", result.stdout)
    assert 1000 <= int(tokenized) < count
    assert f"{count} examples to train on, {count // 11} to validate on" in result.stdout
    assert re.search(rf"^optimizer steps +{-(-count // 16)}$", result.stdout, re.MULTILINE)


def test_the_advice_for_a_large_model_works(workshop: Workshop, tmp_path: Path) -> None:
    """A 7B policy with two 7B score models on 8 GPUs of 80 GB, from configurations alone."""
    folders = (workshop.base, workshop.reward, workshop.cost)
    base, reward, cost = (described(source, tmp_path / source.name, **MISTRAL) for source in folders)
    words = workshop.step3_flags(
        "none", actor_model=base, reward_model=f"helpfulness={reward}", cost_model=f"harmlessness={cost}",
        output_dir=tmp_path / "out", dtype="bf16",
    )  # fmt: skip
    words += flags(dry_run=True, plan_ranks=8, plan_memory=79.5, plan_host_memory=1000, enable_hybrid_engine=True)
    result = run_script(STEP3, words)
    assert (result.code, result.stderr.count("\n")) == (1, 1), result.stderr
    assert re.match(r"error: out: the plan does not fit in memory \(.*generation, .*; see above\)$", result.stderr)
    assert "7.24B" in result.stdout and "does not fit: generation needs" in result.stdout
    assert "DeepSpeed has no inference policy for MistralForCausalLM" in result.stdout
    last = result.stdout.splitlines()[-1]
    assert last.startswith("largest phase (out): ") and " of 1000.0 GiB of a machine's own memory (export)" in last
    (advice,) = re.findall(r"makes it fit: (.*)$", result.stdout, re.MULTILINE)
    result = run_script(STEP3, [*words, *advice.split()])
    assert result.code == 0 and "every phase fits" in result.stdout, (advice, result.stdout)


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize(
    ("script", "changes"),
    [
        ("step1_sft/main.py", {"data": "sft_train.jsonl"}),
        ("step2_reward/main.py", {"data": "preferences_train.jsonl", "objective": "wit", "kind": "reward"}),
    ],
)
def test_what_does_not_fit_ends_otherwise(
    script: str, changes: dict, ranks: int, workshop: Workshop, tmp_path: Path
) -> None:
    """On the device, or in the memory of the machine; with several ranks, said once."""
    common = {"model_name_or_path": workshop.base, "max_length": 128, "output_dir": tmp_path / "out", "dry_run": True}
    words = flags(**changes | common | {"data": workshop.folder / "data" / changes["data"], "plan_memory": 80})
    assert run_script(script, words, ranks).code == 0
    for small, phases in ({"plan_memory": 1}, "loading, training, "), ({"plan_host_memory": 1}, "loading, "):
        result = run_script(script, [*words, *flags(**small)], ranks)
        assert result.code == 1 and "does not fit: loading needs" in result.stdout
        assert result.stderr.startswith(f"error: out: the plan does not fit in memory ({phases}"), result.stderr
        assert result.stderr.count("\n") == 1


def test_ranks_list_mistakes_once(workshop: Workshop, tmp_path: Path) -> None:
    changes = {"reward_model": f"helpfulness={tmp_path}/none", "max_prompt_length": 2, "monitor": "wit"}
    words = workshop.step3_flags("none", **changes, dry_run=True)
    result = run_script(STEP3, words, ranks=2)
    assert result.code == 2 and "dry run: nothing" not in result.stdout
    named = ("--reward_model helpfulness", "--monitor wit", "prompt of")
    lines = result.stderr.splitlines()
    assert len(lines) == 3 and all(text in line for text, line in zip(named, lines, strict=True)), result.stderr
    real = run_script(STEP3, [word for word in words if word != "--dry_run"])
    assert (real.code, real.stderr) == (2, lines[0] + "\n")


def notes(words: list[str], script: str = STEP3) -> list[str]:
    """What a dry run says is not as asked."""
    result = run_script(script, [*words, "--dry_run"])
    assert (result.code, result.stderr) == (0, "")
    return [line for line in result.stdout.splitlines() if line.startswith("note: ")]


def test_what_is_not_done_as_asked_is_said(workshop: Workshop, tmp_path: Path) -> None:
    def of_step3(**changes: Any) -> list[str]:
        return notes(workshop.step3_flags("none", output_dir=tmp_path / "out", **changes))

    assert of_step3(max_steps=8) == []
    (note,) = of_step3(max_steps=9)
    assert note == "note: --max_steps 9: the prompts of 1 epoch fill 8 rollouts; raise --num_train_epochs for more"
    assert "the prompts of 2 epochs fill 16 rollouts" in of_step3(max_steps=17, num_train_epochs=2)[0]
    (note,) = of_step3(generation_batches=3, max_steps=None)
    assert "every epoch leaves out 16 of 64 prompts" in note and "a rollout of 24" in note
    assert of_step3(generation_batches=3, max_steps=1) == []
    assert "--num_warmup_steps 40: 40 steps of warm-up, but 4 " in of_step3(max_steps=2, num_warmup_steps=40)[0]
    assert "constant has no warm-up" in of_step3(num_warmup_steps=1, lr_scheduler_type="constant")[0]

    data = {"model_name_or_path": workshop.base, "data": workshop.folder / "data/sft_train.jsonl", "max_length": 128}
    words = flags(**data, output_dir=tmp_path / "out")
    assert notes(words, "step1_sft/main.py") == []
    (note,) = notes([*words, *flags(validation_fraction=1e-6)], "step1_sft/main.py")
    assert "holds out 1 of" in note
    (note,) = notes(
        [*words, *flags(per_device_train_batch_size=500, warmup_ratio=0, num_train_epochs=2)], "step1_sft/main.py"
    )
    assert "examples are in every optimizer step, which could take 500" in note


def test_a_real_run_takes_what_is_planned(workshop: Workshop, tmp_path: Path) -> None:
    """As section plan of the benchmarks, on a model that takes about as much as the libraries."""
    expected, measured = plan.compare(tmp_path, workshop, "5m", STEP3, 1, {"zero_stage": 2})
    assert expected == pytest.approx(measured, rel=plan.BAR)


# --- arithmetic


def around(ranks: int = 1, on_gpu: bool = False, memory: int = 80 * GIB, **changes: Any) -> Surroundings:
    return Surroundings(ranks, on_gpu, memory, 10**12, 0, 0, longest=(16, 16), **changes)


def planned(stage: int, dtype: str, ranks: int = 1) -> tuple[Memory, Any]:
    load = Load("tiny", dtype, 2 * ranks, 16, 16)
    model = make_decoder(load)
    memory = Memory([PlannedModel("policy", shape_of(model))], arguments_of(load, ranks, stage), around(ranks))
    return memory, model


def state_bytes(engine: Engine) -> int:
    """Of Adam's moments and, where DeepSpeed keeps them, of the float32 master weights."""
    optimizer = getattr(engine.optimizer, "optimizer", engine.optimizer)
    tensors = [value for state in optimizer.state.values() for value in state.values() if torch.is_tensor(value)]
    total = sum(tensor.nbytes for tensor in tensors if tensor.numel() > 1)
    stage, wrapper = engine.zero_optimization_stage(), engine.optimizer
    if stage == 3:
        masters = wrapper.fp32_partitioned_groups_flat
    elif stage:
        masters = wrapper.single_partition_of_fp32_groups
    else:
        masters = [master for group in getattr(wrapper, "fp32_groups", []) for master in group]
    return total + sum(master.nbytes for master in masters)


def compare_with_engine(stage: int, dtype: str) -> None:
    """Weights, gradients and optimizer of a live engine are those of the plan, but for padding."""
    init_distributed()
    memory, model = planned(stage, dtype)
    engine = make_training_engine(model, memory.args, 1e-3, 10)
    for _ in range(2):
        engine.backward(engine(input_ids=torch.randint(5, 60, (2, 16)), use_cache=False).logits.float().sum())
        gradients = list(gradient_shards(engine))
        numbers = sum(gradient.numel() for gradient in gradients)
        kept = numbers * memory.width if stage == 3 else sum(gradient.nbytes for gradient in gradients)
        step_if_finite({"it": engine})
    weights = sum((p.ds_tensor if stage == 3 else p).nbytes for p in engine.module.parameters())
    buckets = memory.optimizers()[DEVICE, "reduction buckets"]
    policy = memory.models[0]
    assert weights == memory.weights()[DEVICE, "trained weights"]
    assert state_bytes(engine) == pytest.approx(memory.optimizers()[DEVICE, "optimizer"], rel=1e-3)
    there = memory.optimizers()[DEVICE, "gradients"] + memory.gradient(policy)
    assert kept == pytest.approx(there, rel=1e-3) and (buckets > 0) == (stage == 3)


def compare_all() -> None:
    for stage in (0, 1, 2, 3):
        for dtype in ("fp32", "bf16"):
            compare_with_engine(stage, dtype)


def test_live_engines_hold_what_is_planned() -> None:
    result = run_function(compare_all)
    assert result.code == 0, result.stderr


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_activations_are_those_that_autograd_keeps(dtype: str) -> None:
    memory, model = planned(0, dtype)
    kept: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    ids = torch.randint(5, 60, (4, 32))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model.train()(input_ids=ids, attention_mask=(ids > 8).long(), use_cache=False, logits_to_keep=1)
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    bytes_kept = sum(t.untyped_storage().nbytes() for place, t in kept.items() if place not in weights)
    assert memory.activations(memory.models[0], 4) == pytest.approx(bytes_kept, rel=0.1)


def test_shapes_come_from_the_architecture() -> None:
    with torch.device("meta"):
        model = MistralForCausalLM(MistralConfig(**MISTRAL))
    assert shape_of(model) == SEVEN_B


# --- advice


def seven_b(**changes: Any) -> tuple[list[PlannedModel], Any]:
    """A policy, its reference, two score models with a critic each, all of 7B parameters in bf16."""
    args = arguments_of(Load("7b", "bf16", 4, 512, 512), 1, 0)
    vars(args).update({"algorithm": "gapo"} | changes)
    uses = ("policy", "reference", "score", "critic", "score", "critic")
    return [PlannedModel(use, SEVEN_B) for use in uses], args


def test_advice_is_the_first_change_that_fits() -> None:
    models, args = seven_b()
    place = around(8, on_gpu=True, objectives=2, compares=True)
    changes, phases = cheapest_fit(models, args, place)
    assert changes == {"zero_stage": 3} and not excess(phases, place)
    assert set(excess(phases_of(models, args, place), place)) == {
        "loading", "generation", "scoring", "policy update", "critic update", "optimizer step", "export",
    }  # fmt: skip


def test_nothing_fits_on_a_small_device() -> None:
    models, args = seven_b()
    changes, phases = cheapest_fit(models, args, around(1, on_gpu=True, memory=4 * GIB))
    assert changes is None and max(phase.total(DEVICE) for phase in phases) > 4 * GIB


def test_a_single_device_can_put_the_rest_on_the_host() -> None:
    models, args = seven_b(gradient_checkpointing=True)
    place = around(1, on_gpu=True, memory=40 * GIB, objectives=2, compares=True)
    changes, phases = cheapest_fit(models, args, place)
    assert changes == {"offload": True, "zero_stage": 3} and not excess(phases, place)


def test_a_single_device_has_no_use_for_zero() -> None:
    models, args = seven_b(zero_stage=3, lora_dim=16, gradient_checkpointing=True, logits_chunk_size=512)
    place = around(1, on_gpu=True, memory=48 * GIB, objectives=2, compares=True)
    assert cheapest_fit(models, args, place)[0] == {"zero_stage": 0}


def test_advice_without_the_host() -> None:
    models, args = seven_b(zero_stage=3, gradient_checkpointing=True)
    place = around(1, on_gpu=True, objectives=2, compares=True)
    assert "offload" in cheapest_fit(models, args, place)[0]
    changes, phases = cheapest_fit(models, args, place, on_host=False)
    assert changes.keys() & {"lora_dim"} and not changes.keys() & {"offload", "park_frozen_models"}
    assert not excess(phases, place)


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_models_are_read_one_parameter_at_a_time(stage: int) -> None:
    """The host of a GPU holds one, as it is stored and as the run wants it, whatever the size of the model."""
    models, args = seven_b(zero_stage=stage)
    place = around(8, on_gpu=True, memory=1000 * GIB, objectives=2, compares=True)
    (loading,) = (phase for phase in phases_of(models, args, place) if phase.name == "loading")
    assert loading.ledger[HOST, "parameter being read"] == loading.total(HOST) == (4 + 2) * SEVEN_B.largest
    weights = 2 * SEVEN_B.parameters * len(models) // (8 if stage == 3 else 1)
    assert loading.total(DEVICE) >= weights
    vars(args).update(lora_dim=16)
    (loading,) = (phase for phase in phases_of(models, args, place) if phase.name == "loading")
    assert loading.ledger[HOST, "parameter being read"] == (4 + 2) * SEVEN_B.largest


def test_seventy_billion_parameters_load_on_eight_gpus(workshop: Workshop, tmp_path: Path) -> None:
    """With two score models of 8B and 512 GiB of the machine's own memory, through the command line."""
    llama = {"model_type": "llama", "vocab_size": 128256, "head_dim": 128, "tie_word_embeddings": False}
    policy, score = (
        dict(hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=hidden // 128, num_key_value_heads=8,
             intermediate_size=intermediate)
        for hidden, layers, intermediate in ((8192, 80, 28672), (4096, 32, 14336))
    )  # fmt: skip
    sources = {"base": policy, "reward": score, "cost": score}
    base, reward, cost = (
        described(getattr(workshop, name), tmp_path / name, **llama | sizes) for name, sizes in sources.items()
    )
    words = workshop.step3_flags(
        "none", actor_model=base, reward_model=f"helpfulness={reward}", cost_model=f"harmlessness={cost}",
        output_dir=tmp_path / "out", dtype="bf16", zero_stage=3, lora_dim=16, gradient_checkpointing=True,
        dry_run=True, plan_ranks=8, plan_host_memory=512,
    )  # fmt: skip
    result = run_script(STEP3, [*words, *flags(plan_memory=80)])
    assert "70.55B" in result.stdout and "7.50B" in result.stdout, result.stdout + result.stderr
    assert "does not fit: generation needs" in result.stdout  # for which it is whole on every GPU
    assert "does not fit: loading needs" not in result.stdout
    larger = run_script(STEP3, [*words, *flags(plan_memory=180)])
    assert larger.code == 0 and "every phase fits" in larger.stdout, larger.stdout


def test_machines_do_not_share_their_memory() -> None:
    place = around(16, machines=2)
    assert place.ranks_here == 8 and dataclasses.replace(place, machines=3).ranks_here == 6


@pytest.mark.parametrize("stage", [1, 2])
def test_what_is_trained_is_flattened_where_there_is_room(stage: int) -> None:
    models, args = seven_b(zero_stage=stage)
    whole = 2 * SEVEN_B.parameters
    roomy, tight = (around(8, on_gpu=True, memory=memory * GIB) for memory in (1000, 16))
    for place, where, size in ((roomy, DEVICE, whole), (tight, HOST, 2 * whole)):
        memory = Memory(models, args, place)
        assert flattened(memory, models[0], memory.with_only(models[:1]).weights()) == {(where, "flattening"): size}
        assert not flattened(memory, models[1], memory.with_only(models[:1]).weights())


def totals(args: Any, models: list[PlannedModel], ranks: int = 8) -> Iterator[int]:
    place = around(ranks, on_gpu=True, objectives=2, compares=True)
    return (phase.total(DEVICE) for phase in phases_of(models, args, place))


@pytest.mark.parametrize(
    "change",
    [
        {"zero_stage": 1}, {"zero_stage": 3}, {"zero_stage": 2, "offload": True}, {"critic": "shared"},
        {"park_frozen_models": True}, {"lora_dim": 16},
    ],
)  # fmt: skip
def test_flags_that_save_memory_lower_the_plan_of_every_phase(change: dict[str, Any]) -> None:
    models, args = seven_b()
    before = list(totals(args, models))
    vars(args).update(change)
    assert all(after < total for after, total in zip(totals(args, models), before, strict=True))


def test_kept_graphs_are_there_until_their_backward_passes() -> None:
    """Of the policy and two critics; what others keep in memory meanwhile does not change."""
    models, args = seven_b()
    before = list(phases_of(models, args, around(1, on_gpu=True)))
    args.keep_graphs, rows = True, args.per_device_train_batch_size
    memory = Memory(models, args, around(1, on_gpu=True))
    critic = memory.activations(models[1], rows)
    policy = critic + memory.logits(models[0], rows * memory.around.longest[1], 1)
    after = {phase.name: phase.ledger[DEVICE, "kept graphs"] for phase in phases_of(models, args, memory.around)}
    assert after["scoring"] == policy + 2 * critic and after["policy update"] == 2 * critic
    assert after["critic update"] in (0, critic) and after["generation"] == after["optimizer step"] == 0
    assert all(phase.ledger[DEVICE, "kept graphs"] == 0 for phase in before)
    shown = {item for phase in phases_of(models, args, memory.around) for _, item in phase.ledger}
    assert shown <= set(ITEMS), shown - set(ITEMS)


def test_advice_beside_kept_graphs_is_not_refused() -> None:
    models, args = seven_b(keep_graphs=True)
    changes = remedies(args, around(8, on_gpu=True))
    assert changes[0] == {"keep_graphs": False} and as_flags(changes[0]) == "no --keep_graphs"
    assert all(c.get("keep_graphs") is False for c in changes if "per_device_train_batch_size" in c)
    assert any(c.get("zero_stage") == 3 for c in changes)
    assert all(c.get("keep_graphs") is False for c in changes if c.get("zero_stage") == 3)


def test_a_flag_under_which_prompts_are_not_shared_is_planned_so() -> None:
    models, args = seven_b(responses_per_prompt=4, per_device_prompt_batch_size=1)
    memory = Memory(models, args, around(1, shares_prompts=True))
    rows, (prompt, response) = args.per_device_train_batch_size, memory.around.longest
    assert memory.tokens_read(rows) == prompt + rows * response
    args.gradient_checkpointing = True
    assert memory.tokens_read(rows) == rows * (prompt + response)


def test_parked_models_move_to_the_host() -> None:
    models, args = seven_b(park_frozen_models=True)
    phases = phases_of(models, args, around(1, on_gpu=True))
    frozen = 2 * SEVEN_B.parameters
    assert {phase.name: phase.ledger[DEVICE, "frozen weights"] for phase in phases} == {
        "loading": 0, "generation": 0, "scoring": frozen, "policy update": 0, "critic update": 0, "optimizer step": 0,
        "export": 0,
    }  # fmt: skip
    assert all(phase.ledger[HOST, "frozen weights"] == 3 * frozen for phase in phases)


def test_objectives_gradients_of_the_full_scope_are_shared_out() -> None:
    models, args = seven_b(gradient_scope="full")
    (update,) = (p for p in phases_of(models, args, around(8, on_gpu=True, objectives=2)) if p.name == "policy update")
    assert update.ledger[DEVICE, "objectives' gradients"] == 2 * 4 * (SEVEN_B.parameters // 8)


def test_of_a_share_of_the_responses_graphs_are_kept() -> None:
    """Where several objectives' gradients are compared; the other responses have one backward pass."""
    models, args = seven_b(gradient_scope="full", gram_fraction=0.25, gradient_accumulation_steps=1)
    memory, rows = Memory(models, args, around(1, objectives=2, compares=True)), args.per_device_train_batch_size
    assert (memory.compared_rows(), memory.other_rows()) == (rows // 4, rows - rows // 4)
    moments = list(policy_moments(memory))
    parts = (rows // 4, rows // 4, rows // 4, 0, rows - rows // 4, 0)
    assert [m[DEVICE, "activations"] for m in moments] == [memory.activations(models[0], part) for part in parts]
    copies = 3 * 4 * SEVEN_B.parameters
    assert [m[DEVICE, "objectives' gradients"] for m in moments] == [0, *[copies] * 5]
    vars(args).update(gradient_accumulation_steps=8)
    assert (memory.compared_rows(), memory.other_rows()) == (rows, rows)
