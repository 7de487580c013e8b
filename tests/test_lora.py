"""LoRA: one base under policy, reference and critics, on every ZeRO stage; its exports and checkpoints."""

import argparse
import gc
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import pytest
import torch
from peft import AutoPeftModelForCausalLM, LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, PreTrainedModel

from step3_gapo import ppo
from step3_gapo.experience import Experience
from step3_gapo.rlhf_engine import RLHFEngine
from step3_gapo.rollout import make_rollout
from step3_gapo.update import StepBatches, optimizer_step
from tests.cases import cases
from tests.helpers import STEP3, Workshop, distance, read_weights, run_function, run_script
from tests.test_step3_engine import build, of_all_ranks
from utils.engines import engines
from utils.engines.engines import gathered_weights
from utils.models.adapter_folder import ADAPTER_CONFIG, ADAPTER_WEIGHTS, check_adapters
from utils.models.card import CARD
from utils.models.checking import check_causal_lm
from utils.models.configs import load_tokenizer, same_tokenizer
from utils.models.loading import load_causal_lm
from utils.models.lora import is_adapter, merged_weights, with_adapters
from utils.policy.forward import response_logits
from utils.policy.log_probs import log_probs_of
from utils.process.distributed import is_main, rank, seed_everything, shutdown_distributed, world_size
from utils.process.errors import UserError

pytestmark = pytest.mark.slow

DIM, ROWS, STEPS = 4, 4, 2
NAMES = ("helpfulness", "harmlessness")
LORA = {"lora_dim": DIM, "max_steps": STEPS}


# --- one base, frozen; adapters that learn what GAPO says


@contextmanager
def partitioned_like_large_models() -> Iterator[None]:
    """ZeRO-3 partitions every matrix and fetches each for itself; by default it keeps small ones whole."""

    def lowered(name: str) -> mock._patch:
        original = getattr(engines, name)
        thresholds = {"stage3_param_persistence_threshold": 30, "stage3_prefetch_bucket_size": 1000,
                      "stage3_max_reuse_distance": 0, "stage3_max_live_parameters": 2000}  # fmt: skip

        def config(*arguments: object) -> dict:
            result = original(*arguments)
            result["zero_optimization"] |= thresholds
            return result

        return mock.patch.object(engines, name, config)

    with lowered("training_config"), lowered("frozen_config"):
        yield


def check_steps(arguments: list[str]) -> None:
    """Two rollouts and their updates against plain torch with the same adapters, on every rank."""
    with partitioned_like_large_models():
        args, engine, update, prompts = build(arguments)
    check_one_base(engine, args)
    base = AutoModelForCausalLM.from_pretrained(args.actor_model).eval()
    for step in range(STEPS):
        adapted = plain_policy(base, engine, args)
        seed_everything(10 * step + rank())
        own = prompts[rank() :: world_size()][ROWS * step :][:ROWS]
        rollout = make_rollout(engine, own, update.algorithm, args)
        experience = rollout.experience
        near(experience.ref_log_probs, log_probs(base, experience) * experience.mask, 1e-6)
        near(experience.log_probs, log_probs(adapted, experience) * experience.mask, 2e-5)
        assert experience.log_probs.equal(experience.ref_log_probs) == (step == 0), (
            "the policy moves, its reference not"
        )
        scalars, not_finite = optimizer_step(update, engine.critics, StepBatches([experience]), True, args)
        assert not_finite is None
        check_gram(scalars, adapted, of_all_ranks(experience), args)
    check_what_is_trained(engine, args)
    shutdown_distributed()


def check_one_base(engine: RLHFEngine, args: argparse.Namespace) -> None:
    """Policy and critics hold the reference's very parameters; optimizers hold none of them."""
    base = {id(parameter) for parameter in engine.reference.engine.module.parameters()}
    trained = [engine.actor.engine, *(critic.engine for critic in engine.critics)]
    assert len(engine.critics) == (1 if args.critic == "shared" else 2)
    for part in trained:
        frozen = [p for p in part.module.parameters() if not p.requires_grad]
        assert frozen and {id(p) for p in frozen} <= base
        adapters = [p for name, p in part.module.named_parameters() if is_adapter(name)]
        assert len(adapters) == 2 * 2 * 7 and all(p.requires_grad for p in adapters)  # A, B; layers; matrices of each
        steps = sum(p.numel() for group in part.optimizer.param_groups for p in group["params"])
        sizes = sum(getattr(p, "ds_numel", p.numel()) for p in part.module.parameters() if p.requires_grad)
        assert steps <= sizes + 8 * world_size()  # with padding
    if args.zero_stage == 3:
        assert all(hasattr(p, "ds_id") for part in trained for p in part.module.parameters())


def plain_policy(base: PreTrainedModel, engine: RLHFEngine, args: argparse.Namespace) -> PreTrainedModel:
    """The policy as it is now, in one process."""
    found = [gathered_weights(engine.actor.engine.module, trained_only=True)]
    torch.distributed.broadcast_object_list(found, src=0)
    (adapters,) = found
    model = with_adapters(base, args)
    missing = model.load_state_dict(adapters, strict=False)
    assert not missing.unexpected_keys and not any(is_adapter(name) for name in missing.missing_keys)
    return model


def log_probs(model: PreTrainedModel, experience: Experience) -> torch.Tensor:
    logits = response_logits(model, experience.input_ids, experience.attention_mask, experience.mask.shape[1])
    return log_probs_of(logits, experience.actions, 1.0)


def check_gram(
    scalars: dict[str, float], model: PreTrainedModel, experiences: list[Experience], args: argparse.Namespace
) -> None:
    """Norms and cosine that a step reports, against autograd on the batch of all ranks."""
    if args.gradient_scope == "full":
        parameters = [p for p in model.parameters() if p.requires_grad]
    else:
        parameters = [model.lm_head.weight.requires_grad_()]
    actions, rows = sum(e.mask.sum() for e in experiences), []
    for name in NAMES:
        loss = sum(
            ppo.clipped_surrogate_loss(
                log_probs(model, e), e.log_probs, e.advantages[name], e.mask, args.clip_range_ratio, actions
            )
            for e in experiences
        )
        gradients = torch.autograd.grad(loss, parameters)
        rows.append(torch.cat([gradient.flatten() for gradient in gradients]).double())
    norms = torch.stack([row.norm() for row in rows])
    assert [scalars[f"gradient/norm/{name}"] for name in NAMES] == pytest.approx(norms.tolist(), rel=1e-5)
    cosine = (rows[0] @ rows[1] / norms.prod()).item()
    assert scalars["gradient/cosine/helpfulness_harmlessness"] == pytest.approx(cosine, abs=1e-5)
    model.lm_head.weight.requires_grad_(False)


def check_what_is_trained(engine: RLHFEngine, args: argparse.Namespace) -> None:
    """B is no longer zero anywhere, heads of critics have moved, the base is what lies on the disk, bit for bit."""
    parts = [engine.reference.engine, engine.actor.engine, *(critic.engine for critic in engine.critics)]
    reference, *others = [gathered_weights(part.module) for part in parts]
    if not is_main():
        return
    stored = read_weights(Path(args.actor_model))
    assert reference.keys() == stored.keys() and all(reference[name].equal(stored[name]) for name in stored)
    for weights in others:
        trained = [w for name, w in weights.items() if ".lora_B." in name or name == "head.weight"]
        assert all(weight.abs().max() > 0 for weight in trained)


def near(actual: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    torch.testing.assert_close(actual, expected.detach(), rtol=tolerance, atol=tolerance)


LAYOUTS = [
    (1, {"zero_stage": 0, "critic": "shared"}),
    (2, {"zero_stage": 2, "gradient_scope": "last_layer", "gradient_checkpointing": True}),
    (2, {"zero_stage": 3, "critic": "shared", "gradient_checkpointing": True}),
    (1, {"zero_stage": 3, "offload": True, "gradient_scope": "last_layer"}),
    (2, {"zero_stage": 1, "offload": True}),
]


@pytest.mark.parametrize(
    ("ranks", "changes"), cases(LAYOUTS, always=LAYOUTS[2:4]), ids=[str(layout) for layout in LAYOUTS]
)
def test_steps_are_those_of_plain_torch(workshop: Workshop, tmp_path: Path, ranks: int, changes: dict) -> None:
    settings = {"gradient_scope": "full", "per_device_prompt_batch_size": ROWS, "clip_range_value": 1000}
    arguments = workshop.step3_flags("unused", **LORA | settings | {"output_dir": tmp_path} | changes)
    result = run_function(check_steps, arguments, ranks=ranks)
    assert result.code == 0, result.stderr


# --- exports and checkpoints, by the command line


@pytest.fixture(scope="module")
def runs(workshop: Workshop) -> dict[str, Path]:
    """The same run twice, exported in either form; the first keeps its checkpoints."""
    kept = {"zero_stage": 2, "checkpoint_interval": 1, "keep_checkpoints": True, "checkpoints_kept": 9}
    return {
        form: workshop.step3(f"lora_{form}", **LORA, lora_export=form, **changes)
        for form, changes in (("merged", kept), ("adapter", {"zero_stage": 1}))
    }


@torch.no_grad()
def logits_of(model: PreTrainedModel) -> torch.Tensor:
    return model.eval()(torch.arange(40).view(2, 20)).logits


def test_merged_and_adapter_agree(workshop: Workshop, runs: dict[str, Path]) -> None:
    merged = logits_of(AutoModelForCausalLM.from_pretrained(runs["merged"]))
    base = AutoModelForCausalLM.from_pretrained(workshop.base)
    assert (merged - logits_of(base)).abs().max() > 1e-2
    assert json.loads((runs["adapter"] / ADAPTER_CONFIG).read_text())["base_model_name_or_path"] == str(workshop.base)
    with_adapter = {
        "peft": PeftModel.from_pretrained(base, runs["adapter"]),
        "peft, from the base that it names": AutoPeftModelForCausalLM.from_pretrained(runs["adapter"]),
        "this project": load_causal_lm(str(runs["adapter"]), "--policy"),
    }
    for reader, model in with_adapter.items():
        assert (logits_of(model) - merged).abs().max() < 1e-4, reader
    plain = {path.name for path in runs["merged"].iterdir()} - {"checkpoints", "model.safetensors"}
    assert {path.name for path in runs["adapter"].iterdir()} == plain | {ADAPTER_CONFIG, ADAPTER_WEIGHTS}


def test_what_peft_writes_is_a_policy(workshop: Workshop, runs: dict[str, Path], tmp_path: Path) -> None:
    """Its two files without configuration and tokenizer, which are the base's."""
    for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
        shutil.copy(runs["adapter"] / name, tmp_path)
    check_causal_lm(str(tmp_path), "--policy")
    model = load_causal_lm(str(tmp_path), "--policy")
    assert logits_of(model).equal(logits_of(load_causal_lm(str(runs["adapter"]), "--policy")))
    tokenizers = [load_tokenizer(str(path), "--policy") for path in (tmp_path, workshop.base)]
    assert same_tokenizer(*tokenizers)


def test_adapters_of_peft_fit_their_base_alone(tmp_path: Path) -> None:
    """Adapters on convolutions and a head of their own, as peft saves them; the same of a base of other sizes."""
    bases = [
        GPT2LMHeadModel(GPT2Config(vocab_size=60, n_positions=32, n_embd=width, n_layer=1, n_head=2))
        for width in (16, 24)
    ]
    config = LoraConfig(r=2, target_modules=["c_attn", "c_proj"], fan_in_fan_out=True, modules_to_save=["lm_head"])
    get_peft_model(bases[0], config).save_pretrained(tmp_path)
    own, other = (GPT2LMHeadModel(base.config) for base in bases)
    check_adapters(own, str(tmp_path), "--policy")
    with pytest.raises(UserError, match=r"--policy .* has shape \[.*16.*\], the base takes \[.*24.*\]"):
        check_adapters(other, str(tmp_path), "--policy")


def test_convolutions_of_gpt2_merge() -> None:
    """Its linear layers hold their matrices the other way round; its head is the embedding."""
    torch.manual_seed(0)
    base = GPT2LMHeadModel(GPT2Config(vocab_size=60, n_positions=32, n_embd=16, n_layer=2, n_head=2)).eval()
    args = argparse.Namespace(lora_dim=DIM, lora_alpha=3.0, lora_target_modules=["c_attn", "c_proj"])
    model = with_adapters(base, args)
    for name, parameter in model.named_parameters():
        if is_adapter(name):
            torch.nn.init.normal_(parameter, std=0.3)
    before, expected = logits_of(base), logits_of(model)
    base.load_state_dict(merged_weights(model, dict(model.named_parameters())), strict=False)
    assert (before - expected).abs().max() > 0.1
    near(logits_of(base), expected, 1e-5)


def test_goes_on_from_adapters_on_another_stage(workshop: Workshop, runs: dict[str, Path], tmp_path: Path) -> None:
    checkpoint = runs["merged"] / "checkpoints/step_00000001"
    files = list((checkpoint / "engines/actor").glob("*model_states.pt"))
    base = (workshop.base / "model.safetensors").stat().st_size
    assert files and sum(file.stat().st_size for file in files) < base / 2, "the base is not in a checkpoint"
    shutil.copytree(checkpoint, tmp_path / "checkpoints" / checkpoint.name)
    changes = LORA | {"zero_stage": 3, "output_dir": tmp_path, "lora_export": "merged"}
    result = run_script(STEP3, workshop.step3_flags("unused", **changes))
    assert result.code == 0 and "going on from" in result.stdout, result.stderr
    assert distance(tmp_path, runs["merged"]) < 1e-5


def test_goes_on_with_no_other_adapters(workshop: Workshop, runs: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(runs["merged"] / "checkpoints/step_00000001", tmp_path / "checkpoints/step_00000001")
    for changes, named in (
        ({"lora_dim": DIM + 1}, "--lora_dim 4 -> 5"),
        ({"actor_model": workshop.folder / "other"}, "base"),
    ):
        settings = LORA | {"zero_stage": 2, "output_dir": tmp_path, "allow_changed_flags": True} | changes
        result = run_script(STEP3, workshop.step3_flags("unused", **settings))
        assert result.code == 2 and named in result.stderr and "--fresh starts over" in result.stderr, result.stderr


def test_checkpoint_exports_what_the_run_does(workshop: Workshop, runs: dict[str, Path], tmp_path: Path) -> None:
    script, output = "utils/export_checkpoint.py", tmp_path / "policy"
    arguments = [str(runs["merged"]), "--output_dir", str(output)]
    result = run_script(script, [*arguments, "--actor_model", str(workshop.folder / "other")])
    assert result.code == 2 and "is another model" in result.stderr and not output.exists()
    result = run_script(script, arguments)
    assert result.code == 0, result.stderr
    for path in set(output.iterdir()) - {output / CARD}:
        assert path.read_bytes() == (runs["merged"] / path.name).read_bytes(), path.name


def test_adapters_are_a_policy(workshop: Workshop, runs: dict[str, Path]) -> None:
    """A run may start from them; where it exported a whole model before, only adapters are left."""
    changes = {"max_steps": 1, "actor_model": runs["adapter"], "monitor": "harmlessness", "algorithm": "ppo"}
    run = workshop.step3("from_adapters", **changes)
    assert 0 < distance(run, runs["merged"]) and (run / "model.safetensors").is_file()
    changes |= {"lora_dim": DIM, "actor_model": workshop.base, "lora_export": "adapter"}
    run = workshop.step3("from_adapters", **changes)
    assert (run / ADAPTER_WEIGHTS).is_file() and not (run / "model.safetensors").exists()
    result = run_script(
        "eval/soup.py", ["--expert", f"a={run}", "--expert", f"b={run}", "--output_dir", str(run / "x")]
    )
    assert result.code == 2


# --- memory


def live_bytes(arguments: list[str], output: Path) -> None:
    """Bytes of all tensors after an optimizer step: with the frozen score models, and without."""
    args, engine, update, prompts = build(arguments)
    experience = make_rollout(engine, prompts[:ROWS], update.algorithm, args).experience
    scalars, _ = optimizer_step(update, engine.critics, StepBatches([experience]), True, args)
    assert scalars
    del experience
    gc.collect()
    scored = {t.untyped_storage().data_ptr() for s in engine.scorers for t in s.engine.module.parameters()}
    tensors = [value for value in gc.get_objects() if isinstance(value, torch.Tensor) and value.device.type == "cpu"]
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    parked = sum(size for place, size in storages.items() if place not in scored)
    output.write_text(f"{sum(storages.values())} {parked}")
    shutdown_distributed()


def test_a_second_objective_costs_little(workshop: Workshop, tmp_path: Path) -> None:
    """Of policy, reference, critic, gradients and optimizers: what there is while the score models are parked.

    A score model that stays (no `--park_frozen_models`) adds its own size, which no adapter can lower; the bars hold
    with those, too.
    """
    found = {}
    for changes in ({}, {"cost_model": None}, {"lora_dim": 0, "lora_export": None}):
        settings = LORA | {"critic": "shared", "gradient_scope": "full", "output_dir": tmp_path} | changes
        if "cost_model" in changes:
            settings |= {"algorithm": "ppo", "gradient_scope": None}
        arguments = workshop.step3_flags("unused", **settings)
        result = run_function(live_bytes, arguments, tmp_path / "bytes")
        assert result.code == 0, result.stderr
        found[str(changes)] = [int(size) for size in (tmp_path / "bytes").read_text().split()]
    (two_resident, two), (one_resident, one), (without_resident, without) = found.values()
    assert two < 1.35 * one
    assert two < without / 2
    score_model = sum(weight.nbytes for weight in read_weights(workshop.cost).values())
    assert two_resident - one_resident == pytest.approx(two - one + score_model, rel=0.1)
    assert two_resident < 1.35 * one_resident
    assert two_resident < without_resident / 2
