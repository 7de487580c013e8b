"""Going on under another number of ranks, another ZeRO stage or with offloading: same states, same next step."""

import argparse
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import deepspeed
import pytest
import torch
from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, MistralConfig, MistralModel

from tests.cases import cases
from tests.helpers import STEP3, Workshop, read_metrics, run_function, run_script
from utils.checkpoints.reshape import MOMENTS, load_engine
from utils.engines.engines import Engine, make_training_engine
from utils.models.configs import DTYPES
from utils.models.token_head import TokenHead
from utils.process.distributed import device, init_distributed, is_main, rank, shutdown_distributed, world_size

pytestmark = pytest.mark.slow

VOCABULARY, ROWS, TIME, STEPS = 101, 6, 12, 3
NEXT = 99  # number of the step that both sides take after loading
SUB_GROUP = 1000  # numbers: several of ZeRO-3's parts of an optimizer, which a large model has

States = dict[str, dict[str, torch.Tensor]]  # by engine and what it is of


@dataclass(frozen=True)
class Layout:
    """How engines lie on the ranks, and how many steps they have taken when they are saved."""

    stage: int
    dtype: str = "fp32"
    offload: bool = False
    sub_groups: bool = False
    steps: int = STEPS

    @property
    def name(self) -> str:
        return "_".join(map(str, (self.stage, self.dtype, self.offload, self.sub_groups, self.steps)))


FP32, BF16 = ([Layout(stage, dtype) for stage in range(4)] for dtype in DTYPES)
SUB_GROUPS, NOT_STARTED = Layout(3, sub_groups=True), [Layout(stage, steps=0) for stage in range(4)]
CHANGES = {  # by numbers of ranks before and after: pairs of layouts
    (3, 2): [
        *zip(FP32, FP32, strict=True), *zip(BF16, BF16, strict=True),
        *((FP32[a], FP32[b]) for a, b in ((0, 2), (2, 0), (1, 3), (3, 1), (1, 2))),
        *((BF16[a], BF16[b]) for a, b in ((0, 3), (3, 0))),
        *((FP32[2], Layout(stage, offload=True)) for stage in (2, 3)),
        (SUB_GROUPS, SUB_GROUPS), (SUB_GROUPS, FP32[2]),
        *((NOT_STARTED[a], NOT_STARTED[b]) for a, b in ((2, 2), (3, 3), (0, 3), (3, 0))),
    ],
    (2, 1): [*zip(FP32, FP32, strict=True), (BF16[3], BF16[3])],
    (1, 3): [(FP32[2], FP32[2]), (FP32[3], FP32[3])],
}  # fmt: skip
CASES = [(ranks, *change) for ranks, changes in CHANGES.items() for change in changes]
ALWAYS = [
    *(((3, 2), *pair) for pair in zip(FP32, FP32, strict=True)),
    *(((3, 2), *pair) for pair in ((FP32[0], FP32[2]), (FP32[1], FP32[3]), (FP32[3], FP32[1]), (BF16[0], BF16[3]),
                                   (BF16[2], BF16[2]), (FP32[2], Layout(3, offload=True)), (SUB_GROUPS, SUB_GROUPS),
                                   (NOT_STARTED[0], NOT_STARTED[3]))),
    *(((2, 1), *pair) for pair in ((FP32[2], FP32[2]), (BF16[3], BF16[3]))),
    ((1, 3), FP32[3], FP32[3]),
]  # fmt: skip


# --- two small engines


def build(layout: Layout) -> dict[str, Engine]:
    """A policy with tied embeddings and a critic, in sizes that divide by no number of ranks."""
    torch.manual_seed(0)
    args = argparse.Namespace(
        gradient_checkpointing=False, zero_stage=layout.stage, per_device_train_batch_size=1,
        gradient_accumulation_steps=1, adam_betas=(0.9, 0.95), adam_eps=1e-6, weight_decay=0.01,
        offload=layout.offload, lr_scheduler_type="cosine", num_warmup_steps=2, dtype=layout.dtype, max_grad_norm=1.0,
    )  # fmt: skip
    policy = GPT2LMHeadModel(GPT2Config(
        vocab_size=VOCABULARY, n_positions=33, n_embd=18, n_layer=1, n_head=2, bos_token_id=1, eos_token_id=2,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    ))  # fmt: skip
    trunk = MistralModel(MistralConfig(
        vocab_size=VOCABULARY, hidden_size=20, intermediate_size=37, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=10,
    ))  # fmt: skip
    further = {"zero_optimization": {"stage": 3, "sub_group_size": SUB_GROUP}} if layout.sub_groups else None
    models = {"actor": policy, "critic_0": TokenHead(trunk, nn.Linear(20, 3))}
    return {
        name: make_training_engine(model.to(DTYPES[layout.dtype]), args, 1e-2, 20, further)
        for name, model in models.items()
    }


def step(engines: dict[str, Engine], number: int) -> None:
    """An optimizer step of both on the same rows, however many ranks share them."""
    rows = torch.randint(0, VOCABULARY, (ROWS, TIME), generator=torch.Generator().manual_seed(number))
    ids = rows[rank() :: world_size()].to(device())
    actor, critic = engines.values()
    actor.backward(actor(input_ids=ids, labels=ids).loss)
    critic.backward((critic(ids, torch.ones_like(ids)) - 1).square().mean())
    for engine in engines.values():
        engine.step()


def states_of(engines: dict[str, Engine]) -> States:
    return {name: state_of(engine) for name, engine in engines.items()}


def state_of(engine: Engine) -> dict[str, torch.Tensor]:
    """Weights as the model computes with them, master weights, moments, schedule and counters, whole on every rank."""
    found = {}
    if engine.zero_optimization_stage() in (1, 2) and engine.optimizer.optimizer.state:
        engine.optimizer._lazy_init_hp_params_optimizer_state()  # it would at its next step
    for name, parameter in engine.module.named_parameters():
        with deepspeed.zero.GatheredParameters([parameter], enabled=hasattr(parameter, "ds_id")):
            found[f"{name} weight"] = parameter.detach().clone()
        if engine.zero_optimization_stage() == 0:
            master, moments = whole_state(engine, parameter)
        else:
            master = safe_get_full_fp32_param(parameter)
            moments = [safe_get_full_optimizer_state(parameter, key) for key in MOMENTS] if engine.global_steps else []
        found[f"{name} master"] = master.detach().clone()
        found |= {f"{name} {key}": value.clone() for key, value in zip(MOMENTS, moments, strict=False)}
    (group,) = engine.optimizer.param_groups
    found["learning rate"] = torch.tensor(group["lr"], dtype=torch.float64)
    found["schedule"] = torch.tensor(engine.lr_scheduler.state_dict()["last_epoch"])
    found["counters"] = torch.tensor([engine.global_steps, engine.skipped_steps])
    adam = getattr(engine.optimizer, "optimizer", engine.optimizer)
    steps = {float(state["step"]) for state in adam.state.values() if "step" in state}
    assert len(steps) <= 1
    found["adam step"] = torch.tensor(max(steps, default=0.0))
    return found


def whole_state(engine: Engine, parameter: nn.Parameter) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """ZeRO-0: (master weights, moments) of a parameter."""
    optimizer = engine.optimizer
    if hasattr(optimizer, "fp32_groups"):  # bf16
        (masters,), (parameters,) = optimizer.fp32_groups, optimizer.fp16_groups
        parameter = next(master for master, own in zip(masters, parameters, strict=True) if own is parameter)
        optimizer = optimizer.optimizer
    state = optimizer.state.get(parameter, {})
    return parameter, [state[key] for key in MOMENTS if key in state]


# --- in child processes


def save_all(folder: Path, layouts: list[Layout]) -> None:
    """For every layout: a checkpoint, the states in it, and those after one more step."""
    init_distributed()
    for layout in layouts:
        engines, place = build(layout), folder / layout.name
        for number in range(layout.steps):
            step(engines, number)
        for name, engine in engines.items():
            engine.save_checkpoint(str(place), tag=name, save_latest=False)
        saved = states_of(engines)
        step(engines, NEXT)
        if is_main():
            torch.save((saved, states_of(engines)), place / "states.pt")
        else:
            states_of(engines)
    shutdown_distributed()


def load_all(folder: Path, changes: list[tuple[Layout, Layout]], saved_ranks: int) -> None:
    """For every change: the largest deviations of what was loaded and of the step after it."""
    init_distributed()
    found = {}
    for old, new in changes:
        engines, place = build(replace(new, steps=0)), folder / old.name
        for name, engine in engines.items():
            load_engine(engine, place, name, saved_ranks, old.stage)
        loaded = states_of(engines)
        step(engines, NEXT)
        after = states_of(engines)
        expected = torch.load(place / "states.pt")
        found[old.name, new.name] = [deviation(*pair) for pair in zip((loaded, after), expected, strict=True)]
    if is_main():
        torch.save(found, folder / f"found_{world_size()}.pt")
    shutdown_distributed()


def deviation(found: States, expected: States) -> float:
    """Largest difference of any tensor, relative to the largest number in it."""
    worst = 0.0
    for engine, tensors in expected.items():
        assert found[engine].keys() == tensors.keys()
        for name, tensor in tensors.items():
            other = found[engine][name]
            assert other.shape == tensor.shape and other.dtype == tensor.dtype, name
            assert other.isfinite().all() and tensor.isfinite().all(), name
            difference = (other.double() - tensor.double()).abs().max() / tensor.double().abs().max().clamp(min=1e-30)
            worst = max(worst, difference.item())
    return worst


@pytest.fixture(scope="module")
def found(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[int, int], dict]:
    """{(ranks before, ranks after): {change: deviations}} of the cases that are run."""
    asked: dict[tuple[int, int], list[tuple[Layout, Layout]]] = {}
    for item in request.session.items:
        if getattr(item, "originalname", "") == test_states_are_the_same_numbers.__name__:
            case = item.callspec.params
            asked.setdefault(case["ranks"], []).append((case["old"], case["new"]))
    found = {}
    for (before, after), changes in asked.items():
        folder = tmp_path_factory.mktemp("ranks")
        layouts = list(dict.fromkeys(old for old, _ in changes))
        for function, arguments, ranks in (
            (save_all, (layouts,), before),
            (load_all, (changes, before), after),
        ):
            result = run_function(function, folder, *arguments, ranks=ranks)
            assert result.code == 0, result.stderr
        started = next(layout for layout in layouts if layout.steps)
        saved, after_step = torch.load(folder / started.name / "states.pt")
        assert all(state["adam step"] == STEPS and state["counters"][0] == STEPS for state in saved.values())
        assert deviation(saved, after_step) > 1e-3  # a step shows
        found[before, after] = torch.load(folder / f"found_{after}.pt")
    return found


@pytest.mark.parametrize(
    ("ranks", "old", "new"), cases(CASES, always=ALWAYS),
    ids=lambda case: case.name if isinstance(case, Layout) else "{}to{}".format(*case),
)  # fmt: skip
def test_states_are_the_same_numbers(
    found: dict[tuple[int, int], dict], ranks: tuple[int, int], old: Layout, new: Layout
) -> None:
    loaded, after_step = found[ranks][old.name, new.name]
    assert loaded == 0.0
    # Ranks sum the gradients of other rows, in bfloat16 where that is the models' precision.
    assert after_step < (2e-6 if new.dtype == "fp32" else 0.05)


# --- step 3's command line


def layout_flags(ranks: int, stage: int) -> dict:
    """The same rollout and optimizer step on any number of ranks, 1, 2 or 3."""
    return {
        "zero_stage": stage, "per_device_prompt_batch_size": 12 // ranks,
        "per_device_train_batch_size": 12 // ranks, "keep_checkpoints": True, "checkpoint_interval": 1,
        "checkpoints_kept": 9,
    }  # fmt: skip


@pytest.mark.parametrize("stage", cases([0, 1, 2, 3], always=[3]))
def test_policy_is_the_same_after_fewer_ranks_have_taken_over(workshop: Workshop, stage: int) -> None:
    """Nothing is left to do but to export: three ranks have ended before that; then two take over, or one."""
    name = f"taken_over_{stage}"
    output = workshop.step3(name, 3, max_steps=2, **layout_flags(3, stage))
    weights, metrics = output / "model.safetensors", read_metrics(output)
    expected = weights.read_bytes()
    for ranks, next_stage in ((2, stage), (1, 3 - stage)):
        weights.unlink()
        workshop.step3(name, ranks, max_steps=2, fresh=False, **layout_flags(ranks, next_stage))
        assert weights.read_bytes() == expected
    assert read_metrics(output) == metrics


def test_run_goes_on_with_other_ranks_and_another_stage(workshop: Workshop) -> None:
    output = workshop.step3("other_ranks", 3, max_steps=2, **layout_flags(3, 3))
    first, *_ = read_metrics(output)
    shutil.rmtree(output / "checkpoints/step_00000002")
    (output / "config.json").unlink()
    result = run_script(STEP3, workshop.step3_flags("other_ranks", max_steps=2, **layout_flags(2, 2)), 2)
    assert result.code == 0, result.stderr
    assert f"going on from {output}/checkpoints/step_00000001" in result.stdout
    assert "number of ranks 3 -> 2" in result.stdout
    metrics = read_metrics(output)
    assert [line["step"] for line in metrics] == [1, 2] and metrics[0] == first


def test_other_batches_are_refused(workshop: Workshop) -> None:
    """The whole batch must stay: half the ranks with the same share of it are another run."""
    workshop.step3("other_batches", 2, max_steps=1, **layout_flags(2, 2))
    result = run_script(STEP3, workshop.step3_flags("other_batches", max_steps=1, **layout_flags(2, 2)), 1)
    assert result.code == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ") and "per_device_train_batch_size" in line and "12 -> 6" in line
