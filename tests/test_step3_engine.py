"""Rollouts and updates of step 3, number by number, against plain torch on one unpadded response at a time.

The reference below knows nothing of padding, chunks, engines or partitions. It reads the same model folders
and the sampled ids, and works in the simplest way there is.
"""

import argparse
import copy
import itertools
import sys
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
)

from step3_gapo.arguments import algorithm_of, objectives_of, parse_args
from step3_gapo.experience import Experience
from step3_gapo.main import read_prompts
from step3_gapo.needs import needs_of
from step3_gapo.rlhf_engine import RLHFEngine
from step3_gapo.rollout import Rollout, make_rollout
from step3_gapo.tracking import rollout_scalars
from step3_gapo.update import ActorUpdate, count_units
from tests.cases import beyond, cases
from tests.helpers import Workshop, read_weights, run_command, run_function
from tests.updates import critic_step, policy_step
from utils.data.batching import left_pad
from utils.data.encoding import encode_prompt, encode_response
from utils.engines.engines import gathered_weights
from utils.gradients.multi_objective import gapo_coefficients
from utils.gradients.step import ObjectiveStep
from utils.models.configs import load_tokenizer, sampling_config
from utils.models.loading import position_ids_from_mask
from utils.models.token_head import TokenHead
from utils.policy.forward import response_logits
from utils.process.distributed import (
    init_distributed,
    is_main,
    rank,
    seed_everything,
    shutdown_distributed,
    world_size,
)

pytestmark = pytest.mark.slow

EOS = 2
ROWS, TEMPERATURE, KL, GAMMA, LAMBDA, CLIP, PENALTY, LEARNING_RATE = 8, 0.7, 0.3, 0.98, 0.9, 0.1, 0.25, 1e-3
SCALE = {"helpfulness": 1.0, "harmlessness": 3.0, "foreign": 1.0}
SIGN = {"helpfulness": 1.0, "harmlessness": -1.0, "foreign": 1.0}


class Plain:
    """The same step of the same models in plain torch."""

    def __init__(self, args: argparse.Namespace):
        self.max_grad_norm = args.max_grad_norm
        self.policy = AutoModelForCausalLM.from_pretrained(args.actor_model)
        self.reference = copy.deepcopy(self.policy)
        paths = dict(args.reward_model + args.cost_model)
        self.models = {n: AutoModelForSequenceClassification.from_pretrained(path) for n, path in paths.items()}
        self.tokenizers = {name: AutoTokenizer.from_pretrained(path) for name, path in paths.items()}
        self.critics = {name: copy.deepcopy(self.models[name]) for name in ("helpfulness", "harmlessness")}
        self.optimizers = {
            name: torch.optim.AdamW(model.parameters(), LEARNING_RATE, (0.9, 0.95), args.adam_eps, weight_decay=0.0)
            for name, model in {"policy": self.policy, **self.critics}.items()
        }
        # The head of a critic has a bias, where the mean of the rewards goes.
        self.biases = {
            name: torch.nn.Parameter(torch.tensor(-SCALE[name] * self.models[name].config.score_mean))
            for name in self.critics
        }
        for name, critic in self.critics.items():
            critic.score.weight.data *= SIGN[name] * SCALE[name]
            self.optimizers[name].add_param_group({"params": [self.biases[name]]})

    def row(self, experience: Experience, i: int) -> tuple[torch.Tensor, int]:
        """[1, tokens] ids of a row without padding, and how many of them are actions."""
        return experience.input_ids[i][experience.attention_mask[i] == 1][None], int(experience.mask[i].sum())

    def log_probs(self, model: PreTrainedModel, ids: torch.Tensor, actions: int) -> torch.Tensor:
        logits = model(ids, use_cache=False).logits[0, -actions - 1 : -1] / TEMPERATURE
        return logits.log_softmax(-1)[torch.arange(actions), ids[0, -actions:]]

    def score(self, name: str, ids: torch.Tensor) -> float:
        model = self.models[name]
        score = model.score(model.model(ids).last_hidden_state[0, -1]).item()
        return SIGN[name] * (score - model.config.score_mean)

    def foreign_ids(self, rollout: Rollout, i: int) -> torch.Tensor:
        """The text of a dialogue as the foreign model reads it."""
        tokenizer, messages = self.tokenizers["foreign"], rollout.prompts[i].record.messages
        ids = encode_prompt(tokenizer, messages) + encode_response(tokenizer, messages, rollout.responses[i])
        return torch.tensor([ids if rollout.experience.finished[i] else ids[:-1]])

    def values(self, name: str, ids: torch.Tensor, actions: int) -> torch.Tensor:
        critic = self.critics[name]
        hidden = critic.model(ids).last_hidden_state[0, -actions - 1 : -1]
        return critic.score(hidden)[:, 0] + self.biases[name]

    def check(self, rollout: Rollout) -> None:
        """Every number of a rollout; times are counted from the first action, row by row."""
        experience = rollout.experience
        for i in range(ROWS):
            ids, n = self.row(experience, i)
            assert experience.finished[i] == (ids[0, -1] == EOS)
            assert experience.mask[i].tolist() == [1.0] * n + [0.0] * (experience.mask.shape[1] - n)
            with torch.no_grad():
                new, ref = self.log_probs(self.policy, ids, n), self.log_probs(self.reference, ids, n)
            near(experience.log_probs[i, :n], new)
            near(experience.ref_log_probs[i, :n], ref)
            for name in SCALE:
                score = self.score(name, self.foreign_ids(rollout, i) if name == "foreign" else ids)
                near(experience.scores[name][i], torch.tensor(score))
            for name in self.critics:
                rewards = -KL * (new - ref)
                penalty = 0.0 if experience.finished[i] else PENALTY
                rewards[-1] += SCALE[name] * (experience.scores[name][i].item() - penalty)
                values = self.values(name, ids, n).detach()
                near(experience.values[name][i, :n], values)
                advantages = brute_force_advantages(rewards.tolist(), values.tolist())
                near(experience.advantages[name][i, :n], advantages)
                near(experience.returns[name][i, :n], advantages + values)
            padded = [experience.log_probs, *experience.values.values(), *experience.advantages.values()]
            assert all(tensor[i, n:].eq(0).all() for tensor in padded)

    def update(self, experiences: list[Experience], power: float) -> dict[str, float]:
        """One step of the policy and of every critic on the rollouts of all ranks; what is logged of it."""
        total = sum(experience.mask.sum() for experience in experiences)
        losses = {name: torch.zeros(()) for name in self.critics}
        for experience, i in itertools.product(experiences, range(ROWS)):
            ids, n = self.row(experience, i)
            ratio = (self.log_probs(self.policy, ids, n) - experience.log_probs[i, :n]).exp()
            for name in losses:
                advantages = experience.advantages[name][i, :n]
                surrogate = torch.minimum(ratio * advantages, ratio.clamp(1 - CLIP, 1 + CLIP) * advantages)
                losses[name] = losses[name] - surrogate.sum() / total
        head = self.policy.lm_head.weight
        gradients = torch.stack([torch.autograd.grad(x, head, retain_graph=True)[0].flatten() for x in losses.values()])
        coefficients = gapo_coefficients(gradients @ gradients.T, power)
        coefficients = dict(zip(losses, coefficients.tolist(), strict=True))
        loss = sum(coefficients[name] * losses[name] for name in losses)
        self.descend("policy", loss)
        figures = {f"coefficient/{name}": c for name, c in coefficients.items()} | {"loss/actor": loss.item()}
        for name in self.critics:
            parts = []
            for experience, i in itertools.product(experiences, range(ROWS)):
                ids, n = self.row(experience, i)
                parts.append((self.values(name, ids, n) - experience.returns[name][i, :n]).square().sum())
            loss = 0.5 * sum(parts) / total
            self.descend(name, loss)
            figures[f"loss/critic/{name}"] = loss.item()
        return figures

    def descend(self, name: str, loss: torch.Tensor) -> None:
        optimizer = self.optimizers[name]
        loss.backward()
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        torch.nn.utils.clip_grad_norm_(parameters, self.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()


def brute_force_advantages(rewards: list[float], values: list[float]) -> torch.Tensor:
    n, following = len(rewards), [*values[1:], 0.0]
    deltas = [r + GAMMA * after - v for r, v, after in zip(rewards, values, following, strict=True)]
    return torch.tensor([sum((GAMMA * LAMBDA) ** (k - t) * deltas[k] for k in range(t, n)) for t in range(n)])


def near(actual: torch.Tensor, expected: torch.Tensor, tolerance: float = 2e-5) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def build(arguments: list[str]) -> tuple[argparse.Namespace, RLHFEngine, ActorUpdate, list]:
    """What `main` builds before its loop."""
    args = parse_args(arguments)
    objectives = objectives_of(args)
    tokenizer = load_tokenizer(args.actor_model, "--actor_model")
    prompts = read_prompts(args, tokenizer)
    init_distributed()
    seed_everything(args.seed)
    generation = sampling_config(tokenizer, args.temperature, args.max_new_tokens)
    algorithm = algorithm_of(args, objectives)
    engine = RLHFEngine(args, objectives, needs_of(args, algorithm), tokenizer, generation, total_steps=1000)
    return args, engine, ActorUpdate(engine.actor, algorithm, engine.needs, args), prompts


def check_against_plain_torch(arguments: list[str], output: Path) -> None:
    args, engine, actor_update, prompts = build(arguments)
    plain = Plain(args)
    for part in (engine.actor, *engine.critics):
        assert part.engine.zero_optimization_stage() == args.zero_stage
        partitioned = [hasattr(parameter, "ds_id") for parameter in part.engine.module.parameters()]
        assert partitioned == [args.zero_stage == 3] * len(partitioned)
    for step in (1, 2):
        seed_everything(10 * step + rank())
        rollout = make_rollout(
            engine, prompts[rank() :: world_size()][ROWS * (step - 1) :][:ROWS], actor_update.algorithm, args
        )
        lengths = rollout.experience.mask.sum(dim=-1)
        assert lengths.min() < lengths.max(), "the test needs responses of several lengths"
        plain.check(rollout)
        if step == 2:
            assert (rollout.experience.log_probs - rollout.experience.ref_log_probs).abs().max() > 1e-3
        rows = torch.arange(ROWS).split(args.per_device_train_batch_size)
        micro_batches = [rollout.experience.select(part) for part in rows]
        scalars = rollout_scalars(rollout) | policy_step(actor_update, micro_batches)
        for critic in engine.critics:
            scalars |= critic_step(critic, micro_batches, args)
        experiences = of_all_ranks(rollout.experience)
        figures = rollout_figures(experiences) | plain.update(experiences, args.rescale_power)
        assert {name: scalars[name] for name in figures} == pytest.approx(figures, rel=1e-4, abs=1e-5)
        check_weights(engine, plain, output)
    shutdown_distributed()


def rollout_figures(experiences: list[Experience]) -> dict[str, float]:
    """Means over the responses of all ranks."""
    rows = {"response_length": [e.mask.sum(dim=1) for e in experiences]}
    rows["eos_rate"] = [e.finished for e in experiences]
    rows["kl"] = [((e.log_probs - e.ref_log_probs) * e.mask).sum(dim=1) for e in experiences]
    rows |= {f"reward/{name}": [e.scores[name] for e in experiences] for name in SCALE}
    return {name: torch.cat(values).mean().item() for name, values in rows.items()}


def of_all_ranks(experience: Experience) -> list[Experience]:
    gathered = [experience] * world_size()
    torch.distributed.all_gather_object(gathered, experience)
    return gathered


def check_weights(engine: RLHFEngine, plain: Plain, output: Path) -> None:
    """Steps have lengths of the order of the learning rate; they agree to a hundredth of it."""
    engine.save_policy(output)
    weights = [gathered_weights(critic.engine.module) for critic in engine.critics]
    if not is_main():
        return
    exported = read_weights(output)
    for name, parameter in plain.policy.named_parameters():
        near(exported[name], parameter.detach(), LEARNING_RATE / 100)
    for critic, (name, expected) in zip(weights, plain.critics.items(), strict=True):
        near(critic.pop("head.bias"), plain.biases[name].detach()[None], LEARNING_RATE / 100)
        near(critic.pop("head.weight"), expected.score.weight.detach(), LEARNING_RATE / 100)
        for parameter, value in expected.model.named_parameters():
            near(critic.pop(f"trunk.{parameter}"), value.detach(), LEARNING_RATE / 100)
        assert not critic


def engine_flags(workshop: Workshop, output: Path, **changes: object) -> list[str]:
    """Every knob away from its default, and a third model that only scores.

    Adam's steps do not depend on the scale of the gradient unless its eps is large.
    """
    knobs = {
        "score_scale": "harmlessness=3", "rescale_power": 2, "temperature": TEMPERATURE, "kl_coeff": KL,
        "gamma": GAMMA, "gae_lambda": LAMBDA, "clip_range_ratio": CLIP, "missing_eos_penalty": PENALTY,
        "per_device_train_batch_size": ROWS, "clip_range_value": 1000, "lr_scheduler_type": "constant",
        "monitor": "foreign", "adam_eps": 1e-3,
    }  # fmt: skip
    arguments = workshop.step3_flags(output.name, **knobs | changes)
    return [*arguments, "--reward_model", f"foreign={workshop.foreign}"]


@pytest.mark.parametrize("changes", [
    {"zero_stage": 0}, beyond({"zero_stage": 2}), beyond({"zero_stage": 3}),
    {"zero_stage": 3, "gradient_checkpointing": True},
], ids=str)  # fmt: skip
def test_two_steps_are_those_of_plain_torch(workshop: Workshop, tmp_path: Path, changes: dict) -> None:
    result = run_function(check_against_plain_torch, engine_flags(workshop, tmp_path, **changes), tmp_path)
    assert result.code == 0, result.stderr


def count_layer_passes(arguments: list[str], expected: int) -> None:
    """How often the first layer runs forward in an update of one micro-batch."""
    args, engine, actor_update, prompts = build(arguments)
    rollout = make_rollout(engine, prompts[:ROWS], actor_update.algorithm, args)
    passes = []
    layers = [
        engine.actor.engine.module.model.layers[0],
        *(c.engine.module.trunk.layers[0] for c in engine.critics),
    ]
    for layer in layers:
        layer.mlp.register_forward_pre_hook(lambda *_: passes.append(1))
    policy_step(actor_update, [rollout.experience])
    for critic in engine.critics:
        critic_step(critic, [rollout.experience], args)
    assert len(passes) == expected * len(layers), len(passes)
    shutdown_distributed()


@pytest.mark.parametrize(("checkpointing", "passes"), [(False, 1), (True, 2)])
def test_checkpointing_recomputes_the_activations(
    workshop: Workshop, tmp_path: Path, checkpointing: bool, passes: int
) -> None:
    arguments = engine_flags(workshop, tmp_path, gradient_checkpointing=checkpointing)
    result = run_function(count_layer_passes, arguments, passes)
    assert result.code == 0, result.stderr


def check_greedy_generation(arguments: list[str]) -> None:
    """Without sampling, a left-padded batch is answered as every prompt is alone."""
    args, engine, _, prompts = build(arguments)
    plain = AutoModelForCausalLM.from_pretrained(args.actor_model)
    engine.actor.twin.generation_config.update(do_sample=False, temperature=1.0, top_k=50)
    ids, mask = left_pad([prompt.prompt for prompt in prompts[:ROWS]], engine.tokenizer.pad_token_id)
    with engine.actor.gathered():
        answers = engine.actor.generate(ids, mask)[:, ids.shape[1] :]
    for prompt, answer in zip(prompts[:ROWS], answers.tolist(), strict=True):
        alone = plain.generate(torch.tensor([prompt.prompt]), max_new_tokens=args.max_new_tokens, do_sample=False)
        alone = alone[0, len(prompt.prompt) :].tolist()
        assert answer[: len(alone)] == alone
    shutdown_distributed()


@pytest.mark.parametrize("zero_stage", [0, 3])
def test_padding_does_not_change_the_answers(workshop: Workshop, tmp_path: Path, zero_stage: int) -> None:
    result = run_function(check_greedy_generation, engine_flags(workshop, tmp_path, zero_stage=zero_stage))
    assert result.code == 0, result.stderr


# --- the rollout's own forward pass


def head_gram(update: ActorUpdate, batches: list[Experience], on_policy: bool) -> torch.Tensor:
    """Gram matrix of the last-layer gradients over these micro-batches."""
    step = ObjectiveStep(update.actor, "last_layer", len(update.names), update.args.temperature)
    for batch in batches:
        update.look(step, batch, count_units(batches, update.names), len(batches) > 1, on_policy)
    return step.gram()


def check_rollout_serves(arguments: list[str]) -> None:
    """While the policy has not moved, its gradients need no other forward pass; afterwards they do."""
    args, engine, actor_update, prompts = build(arguments)
    experience = make_rollout(engine, prompts[rank() :: world_size()][:ROWS], actor_update.algorithm, args).experience
    micro_batches = [experience.select(part) for part in torch.randperm(ROWS).split(args.per_device_train_batch_size)]
    passes = []
    engine.actor.engine.module.model.layers[0].register_forward_pre_hook(lambda *_: passes.append(1))
    served = head_gram(actor_update, micro_batches, on_policy=True)
    assert not passes
    computed = head_gram(actor_update, micro_batches, on_policy=False)
    assert len(passes) == len(micro_batches)
    torch.testing.assert_close(served, computed, rtol=1e-5, atol=0)
    policy_step(actor_update, micro_batches, on_policy=True)
    moved = head_gram(actor_update, micro_batches, on_policy=False)
    assert (moved - served).abs().max() > 1e-3 * served.abs().max()
    shutdown_distributed()


@pytest.mark.parametrize("zero_stage", cases([2, 3], always=[2]))
def test_the_rollout_serves_the_first_gram_matrix(workshop: Workshop, tmp_path: Path, zero_stage: int) -> None:
    accumulated = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
    arguments = engine_flags(workshop, tmp_path, zero_stage=zero_stage, **accumulated)
    result = run_function(check_rollout_serves, arguments, ranks=2)
    assert result.code == 0, result.stderr


# --- export


def train_and_keep_logits(arguments: list[str], output: Path) -> None:
    """One update; the policy, and beside it what it says to a prompt while it still sits in its engine."""
    args, engine, actor_update, prompts = build(arguments)
    rollout = make_rollout(engine, prompts[:ROWS], actor_update.algorithm, args)
    policy_step(actor_update, [rollout.experience])
    engine.save_policy(output)
    ids = torch.tensor([prompts[0].prompt])
    with torch.no_grad():
        logits = engine.actor.engine(input_ids=ids, use_cache=False).logits
    torch.save({"text": engine.tokenizer.decode(ids[0]), "ids": ids, "logits": logits}, output / "said.pt")
    shutdown_distributed()


RELOAD = """
import sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
said = torch.load("said.pt")
model, tokenizer = AutoModelForCausalLM.from_pretrained("."), AutoTokenizer.from_pretrained(".")
assert not {name.partition(".")[0] for name in sys.modules} & {"step3_gapo", "utils", "deepspeed"}
assert tokenizer(said["text"], add_special_tokens=False)["input_ids"] == said["ids"][0].tolist()
assert tokenizer.chat_template and model.generation_config.eos_token_id == tokenizer.eos_token_id
with torch.no_grad():
    logits = model(said["ids"], use_cache=False).logits
assert torch.equal(logits, said["logits"]), (logits - said["logits"]).abs().max()
"""


@pytest.mark.parametrize("zero_stage", cases([0, 3], always=[3]))
def test_the_exported_policy_says_the_same_without_this_project(
    workshop: Workshop, tmp_path: Path, zero_stage: int
) -> None:
    arguments = engine_flags(workshop, tmp_path, zero_stage=zero_stage)
    result = run_function(train_and_keep_logits, arguments, tmp_path)
    assert result.code == 0, result.stderr
    result = run_command([sys.executable, "-c", RELOAD], cwd=tmp_path)
    assert result.code == 0, result.stderr


# --- learned positions


def padded_and_alone(left: int, right: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A row between padding, its mask, and the row alone; the response is its last 4 tokens."""
    ids = torch.randint(4, 50, (1, 10), generator=torch.Generator().manual_seed(left))
    padded = torch.nn.functional.pad(ids, (left, right))
    return padded, torch.nn.functional.pad(torch.ones_like(ids), (left, right)), ids


@pytest.mark.parametrize(("left", "right"), [(0, 0), (3, 0), (7, 2), (0, 2)])
def test_left_padded_rows_agree_with_unpadded_ones_under_learned_positions(left: int, right: int) -> None:
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=32, n_layer=2, n_head=2, n_positions=32)).eval()
    model.transformer.wpe.weight.data *= 20  # positions that cannot be mistaken
    ids, mask, alone = padded_and_alone(left, right)
    with torch.no_grad():
        logits = response_logits(model, ids, mask, 4 + right)[:, :4]
        expected = model(alone).logits[:, -5:-1]
        near(logits, expected, 1e-4)
        if left:
            unaware = model(ids, attention_mask=mask).logits[:, -5 - right : -1 - right]
            assert (unaware - expected).abs().max() > 0.1
        critic = TokenHead(model.transformer, torch.nn.Linear(32, 1))
        near(critic(ids, mask)[:, left : left + 10], critic(alone, torch.ones_like(alone)), 1e-4)
    assert position_ids_from_mask(mask)[0, left : left + 10].tolist() == list(range(10))
