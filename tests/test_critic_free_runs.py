"""Runs of step 3 without critics: what they leave behind, what they compute once, what they refuse."""

import json
from pathlib import Path

import pytest
import torch

from step3_gapo.arguments import algorithm_of, objectives_of, parse_args
from step3_gapo.experience import Experience
from step3_gapo.health import Health
from step3_gapo.needs import update_tells_log_probs
from step3_gapo.rollout import actor_log_probs, make_rollout
from tests.helpers import STEP3, Workshop, read_metrics, run_function, run_script, untimed
from tests.test_step3_cli import same_weights
from tests.test_step3_engine import build
from tests.updates import policy_step
from utils.data.batching import left_pad
from utils.policy.sampled import Sampled, micro_batch_rows
from utils.process.distributed import shutdown_distributed
from utils.process.errors import UserError

pytestmark = pytest.mark.slow

KL = 0.3
# 8 responses a rank and rollout.
GROUPS = {"advantage": "group", "responses_per_prompt": 4, "per_device_prompt_batch_size": 2}


# --- what a run leaves behind


def test_coefficients_that_serve_for_several_steps_go_on_from_a_checkpoint(workshop: Workshop) -> None:
    """Two steps a rollout, coefficients for three: the checkpoint falls between."""
    common = GROUPS | {"ranks": 2, "gram_every": 3, "zero_stage": 2, "lr_scheduler_type": "constant"}
    whole = workshop.step3("kept_whole", **common)
    keeping = {"keep_checkpoints": True, "checkpoint_interval": 1}
    halfway = workshop.step3("kept_halfway", **common, **keeping, max_steps=1)
    state = json.loads((halfway / "checkpoints/step_00000001/state.json").read_text())
    assert state["algorithm"]["kept"]["age"] == 2
    workshop.step3("kept_halfway", **common, **keeping, fresh=False, allow_changed_flags=True)
    assert same_weights(whole, halfway) and untimed(read_metrics(whole)) == untimed(read_metrics(halfway))
    first, second = read_metrics(whole)
    kept = state["algorithm"]["kept"]["coefficients"]
    assert kept == [first[f"coefficient/{name}"] for name in ("helpfulness", "harmlessness")]
    assert second["coefficient/helpfulness"] != kept[0]  # the mean of these and of newer ones
    # Without critics there is one engine, whose state is kept, and no loss of another.
    for step in (1, 2):
        engines = halfway / f"checkpoints/step_0000000{step}/engines"
        assert [path.name for path in engines.iterdir() if path.is_dir()] == ["actor"]
    assert not [tag for tag in first if tag.startswith("loss/critic")]


@pytest.mark.parametrize("changes", [
    {"advantage": "gae", "kl_in": "loss", "max_steps": 1},
    {**GROUPS, "advantage": "rloo", "kl_in": "reward", "algorithm": "gdpo", "max_steps": 1},
], ids=["gae", "rloo"])  # fmt: skip
def test_the_penalty_goes_where_it_is_sent(workshop: Workshop, changes: dict) -> None:
    (step,) = read_metrics(workshop.step3(f"kl_{changes['advantage']}", **changes))
    assert ("loss/critic/helpfulness" in step) == (changes["advantage"] == "gae") and step["skipped_steps"] == 0


RULES = """
def third(prompts, responses):
    return [None if i % 3 == 2 else float(len(r)) for i, r in enumerate(responses)]

def never(prompts, responses):
    return [None] * len(responses)

def broken(prompts, responses):
    return [float('nan') if i == 7 else 1.0 for i, r in enumerate(responses)]
"""


def with_rules(workshop: Workshop, folder: Path, *names: str, **changes: object) -> list[str]:
    """A run whose objectives are these functions and the reward model."""
    (folder / "rules.py").write_text(RULES)
    rules = tuple(f"{name}={folder / 'rules.py'}:{name}" for name in names)
    return workshop.step3_flags(
        "ruled", **GROUPS, reward_function=rules, cost_model=None, reward_retries=0, per_device_train_batch_size=8,
        output_dir=folder / "run", **changes,
    )  # fmt: skip


def test_responses_without_a_judgement_leave_their_objective(workshop: Workshop, tmp_path: Path) -> None:
    """And a run that goes on has said already which objective has no gradient."""
    said = ""
    for steps in (1, 2):
        settings = {"max_steps": steps, "fresh": steps == 1, "keep_checkpoints": True, "allow_changed_flags": True}
        arguments = with_rules(workshop, tmp_path, "third", "never", **settings, checkpoint_interval=1)
        result = run_script(STEP3, arguments, ranks=2, pictures=False)
        assert (result.code, result.stderr) == (0, ""), result.stderr
        said += result.stdout
    assert said.count("the gradient of never is zero") == 1
    first, second = read_metrics(tmp_path / "run")
    for step in (first, second):
        assert step["judged/third"] == 0.75 and step["judged/never"] == 0 and "judged/helpfulness" not in step
        assert step["coefficient/never"] == 0 and step["coefficient/third"] > 0 and step["skipped_steps"] == 0


def test_an_objective_without_judgements_silences_no_warning() -> None:
    """Of a KL that is beyond all bounds, while another objective has no figure."""
    scalars = {"kl": 500.0, "response_length": 10.0, "reward/a": 1.0, "reward_std/a": 1.0}
    (warning,) = Health(["a"]).observe(1, scalars)
    assert Health(["a", "never"]).observe(1, scalars | {"judged/never": 0.0}) == [warning]
    fallen = scalars | {"kl": 1.0, "reward/a": -1.0, "judged/never": 0.0}
    health, start = Health(["a", "never"]), scalars | {"kl": 1.0, "judged/never": 0.0}
    said = [text for step in range(1, 7) for text in health.observe(step, start if step < 4 else fallen)]
    assert len(said) == 1 and "(a 1 -> 0.333)" in said[0]
    assert Health(["never"]).observe(1, {"kl": 1.0, "response_length": 10.0}) == []


def test_a_value_that_is_no_number_is_no_missing_judgement(workshop: Workshop, tmp_path: Path) -> None:
    result = run_script(STEP3, with_rules(workshop, tmp_path, "broken"))
    assert (result.code, result.stderr.count("\n")) == (2, 1), result.stderr
    for part in ("--reward_function broken=", "the value of the response to ", "is nan, no finite float32"):
        assert part in result.stderr


# --- what is computed once


def sampled_of(experience: Experience) -> Sampled:
    return Sampled([], [], experience.input_ids, experience.attention_mask, experience.mask, experience.finished)


def check_forward_passes(common: list[str]) -> None:
    """Forward passes of the policy in a rollout and in the update on it, and the log-probabilities of the latter."""
    for more, told, expected in (
        ([], True, (0, 1)),
        (["--kl_in", "reward"], False, (1, 1)),
        (["--ppo_epochs", "2"], False, (1, 1)),  # of the first of two
        (["--per_device_train_batch_size", "4", "--gradient_accumulation_steps", "2"], False, (2, 2)),
        (["--algorithm", "gdpo", "--per_device_train_batch_size", "4", "--gradient_accumulation_steps", "2"], True,
         (0, 2)),
    ):  # fmt: skip
        args, engine, update, prompts = build([*common, *more])
        assert update_tells_log_probs(args, engine.needs) == told and not engine.critics
        passes = []
        engine.actor.engine.module.register_forward_pre_hook(lambda *_, p=passes: p.append(1))
        experience = make_rollout(engine, prompts[:2], update.algorithm, args).experience
        in_rollout = len(passes)
        batches = experience.micro_batches(torch.arange(8), args)
        before, _ = actor_log_probs(engine.actor, sampled_of(experience), engine.needs, args)
        passes.clear()
        assert policy_step(update, batches, on_policy=True)["ratio_error"] < 1e-6
        assert (in_rollout, len(passes)) == expected, more
        assert (experience.log_probs is None) == told
        for batch, rows in zip(
            batches, micro_batch_rows(experience.attention_mask, experience.mask, args), strict=True
        ):
            expected = before[rows, : batch.mask.shape[1]]
            torch.testing.assert_close(batch.log_probs, expected, rtol=1e-6, atol=1e-6)
    shutdown_distributed()


def test_the_update_tells_what_was_sampled_with(workshop: Workshop) -> None:
    settings = GROUPS | {"per_device_train_batch_size": 8}
    result = run_function(check_forward_passes, workshop.step3_flags("unused", **settings))
    assert result.code == 0, result.stderr


def check_prompts_are_read_once(arguments: list[str]) -> None:
    _, engine, _, prompts = build(arguments)
    ids, mask = left_pad([prompt.prompt for prompt in prompts[:3]], engine.tokenizer.pad_token_id)
    shapes, actor = [], engine.actor
    hook = actor.twin.model.register_forward_pre_hook(
        lambda _, __, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    results = []
    with actor.gathered():
        for compact_at, copies in ((0.25, 4), (0.25, 1), (0.0, 4)):
            shapes.clear()
            actor.compact_at = compact_at
            torch.manual_seed(5)
            times = 4 // copies
            batch = (ids.repeat_interleave(times, dim=0), mask.repeat_interleave(times, dim=0))
            results.append(actor.generate(*batch, copies))
            once = copies == 4 and compact_at > 0
            assert shapes[0] == (3 if once else 12, ids.shape[1]) and shapes[1] == (12, 1)
            assert (min(rows for rows, _ in shapes[1:]) < 12) == (compact_at > 0), "some responses end early"
    hook.remove()
    assert results[0].shape[0] == 12 and all(torch.equal(results[0], other) for other in results[1:])
    assert len({tuple(row) for row in results[0][:4].tolist()}) > 1, "the responses to a prompt differ"
    shutdown_distributed()


@pytest.mark.parametrize("zero_stage", [0, 3])
def test_a_prompt_is_read_once_for_all_its_responses(workshop: Workshop, zero_stage: int) -> None:
    """And with the same random numbers they are those of the prompt repeated."""
    result = run_function(check_prompts_are_read_once, workshop.step3_flags("unused", **GROUPS, zero_stage=zero_stage))
    assert result.code == 0, result.stderr


# --- the penalty


def expected_advantages(experience: Experience, score: torch.Tensor, kl_in: str, advantage: str, name: str) -> list:
    """Of every response without padding, with its KL taken token by token; γ = λ = 1."""
    rows = []
    for i, n in enumerate(experience.mask.sum(dim=1).int().tolist()):
        kl = (experience.log_probs - experience.ref_log_probs)[i, :n] * (KL if kl_in == "reward" else 0.0)
        if advantage == "gae":
            to_go = score[i] - kl.flip(0).cumsum(0).flip(0)
            rows.append(to_go - experience.values[name][i, :n])
        else:
            rows.append((score[i] - kl.sum()).expand(n))
    if advantage == "gae":
        return rows
    totals = torch.stack([row[0] for row in rows]).view(-1, 4)
    if advantage == "group":
        found = (totals - totals.mean(1, keepdim=True)) / (totals.std(1, keepdim=True) + 1e-4)
    else:
        found = totals - (totals.sum(1, keepdim=True) - totals) / 3
    return [value.expand(len(row)) for value, row in zip(found.flatten(), rows, strict=True)]


def check_penalties(common: list[str]) -> None:
    """For every estimator and place: the advantages, and a loss that is the penalty where these have mean 0."""
    for advantage, kl_in in ((a, place) for a in ("gae", "group", "rloo") for place in ("reward", "loss")):
        args, engine, update, prompts = build([*common, "--advantage", advantage, "--kl_in", kl_in])
        torch.manual_seed(3)
        for parameter in engine.actor.engine.module.parameters():  # away from the reference
            parameter.data += 0.02 * torch.randn_like(parameter)
        experience = make_rollout(engine, prompts[:2], update.algorithm, args).experience
        if experience.log_probs is None:
            experience.log_probs, _ = actor_log_probs(engine.actor, sampled_of(experience), engine.needs, args)
        log_ratio = (experience.log_probs - experience.ref_log_probs) * experience.mask
        assert log_ratio.abs().max() > 1e-3
        for name, score in experience.scores.items():
            expected = expected_advantages(experience, score, kl_in, advantage, name)
            for found, row in zip(experience.advantages[name], expected, strict=True):
                torch.testing.assert_close(found[: len(row)], row, rtol=1e-4, atol=1e-4)
                assert not found[len(row) :].any()
        loss = policy_step(update, [experience], on_policy=True)["loss/actor"]
        mean = sum((a * experience.mask).sum() for a in experience.advantages.values()) / 2 / experience.mask.sum()
        k3 = (((-log_ratio).exp() - 1 + log_ratio) * experience.mask).sum() / experience.mask.sum()
        assert k3 > 1e-4
        assert loss == pytest.approx((KL * k3 * (kl_in == "loss") - mean).item(), rel=1e-4, abs=1e-6)
    shutdown_distributed()


def test_the_penalty_is_in_the_reward_or_in_the_loss(workshop: Workshop) -> None:
    settings = GROUPS | {"algorithm": "morlhf", "kl_coeff": KL, "gamma": 1, "gae_lambda": 1,
                         "per_device_train_batch_size": 8, "advantage": None}  # fmt: skip
    result = run_function(check_penalties, workshop.step3_flags("unused", **settings))
    assert result.code == 0, result.stderr


# --- what is refused

GROUP = {"advantage": "group", "responses_per_prompt": 4}
REFUSED = {
    "one response": (
        {"advantage": "group"}, "--advantage group compares the responses to a prompt: --responses_per_prompt must be"),
    "one response, said": ({"advantage": "rloo", "responses_per_prompt": 1}, "--advantage rloo compares the responses"),
    "one response, by default": ({"algorithm": "gdpo"}, "--advantage group compares the responses"),
    "part of the last layer": (GROUP | {"gram_fraction": 0.5}, "--gram_fraction: serves --gradient_scope full"),
    "no part": (GROUP | {"gradient_scope": "full", "gram_fraction": 0}, "--gram_fraction: 0 is not above 0"),
    "coefficients of a micro-batch": (
        GROUP | {"gram_every": 2, "gram_per": "micro_batch"}, "--gram_every: keeps the coefficients of a step"),
    "no coefficients": (
        GROUP | {"algorithm": "grpo", "gram_every": 2}, "--gram_every: --algorithm grpo weighs no gradients"),
    "no deviation": (GROUP | {"advantage": "rloo", "group_without_std": True}, "--group_without_std: --advantage rloo"),
    "no deviation of values": ({"group_without_std": True}, "--group_without_std: --advantage gae"),
    "no critic to share": (GROUP | {"critic": "shared"}, "--critic shared: --advantage group has no critics"),
    "an unknown condition": (
        {"conditioned": "helpfulness=truth:1"}, "--conditioned helpfulness=truth:1: no such objective as truth"),
    "an unknown objective": ({"conditioned": "truth=helpfulness:1"}, "no such objective as truth (there are"),
    "a condition on itself": (
        {"conditioned": "helpfulness=helpfulness:1"}, "an objective is no condition of itself"),
    "a condition without a number": ({"conditioned": "helpfulness=harmlessness"}, "is not NAME=OTHER:NUMBER"),
    "a condition of what is not trained": (
        {"conditioned": "helpfulness=harmlessness:1", "monitor": "helpfulness"}, "helpfulness is not optimized"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_flags_that_do_not_fit_are_refused_in_one_line(
    workshop: Workshop, what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    changes, reason = REFUSED[what]
    with pytest.raises((UserError, SystemExit)) as refusal:
        args = parse_args(workshop.step3_flags("refused", **changes))
        algorithm_of(args, objectives_of(args))
    said = str(refusal.value) if refusal.type is UserError else capsys.readouterr().err.rstrip("\n")
    assert reason in said and "\n" not in said


def test_a_dry_run_names_all_of_them(workshop: Workshop) -> None:
    changes = {"advantage": "group", "critic": "shared", "gram_fraction": 0.5, "conditioned": "helpfulness=truth:1"}
    result = run_script(STEP3, workshop.step3_flags("dry_run_refused", **changes, dry_run=True))
    assert result.code == 2 and not (workshop.folder / "dry_run_refused").exists()
    for flag in ("--advantage group compares", "--critic shared:", "--gram_fraction:", "--conditioned helpfulness="):
        assert flag in result.stderr, result.stderr
