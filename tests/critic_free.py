"""Rollouts of several responses a prompt, and optimizer steps on them: the project's, and plain torch's on one process.

Three rollouts of 4 prompts with 4 responses each. Their scores are given, and the second objective has not judged all
of them, so that every loss is a mean over other actions. The reference sees a rollout whole; it has advantages,
whitening, combinations, losses, KL and optimizer of its own and shares no code with the project. As in
tests/test_gradient_parity.py, Adam's eps is far above the entries of a gradient.
"""

import copy
import functools
import gc
import itertools
import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass, field
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, GenerationConfig, MistralConfig, MistralForCausalLM

from step3_gapo.arguments import algorithm_of, parse_args
from step3_gapo.experience import Experience
from step3_gapo.main import optimizer_batches
from step3_gapo.needs import needs_of, update_tells_log_probs
from step3_gapo.rollout import add_advantages
from step3_gapo.update import ActorUpdate, Scalars, optimizer_step
from tests.helpers import flags
from tests.test_gradient_parity import (
    PROMPT,
    TEMPERATURE,
    TIME,
    VOCABULARY,
    Tensors,
    brute_force_min_norm,
    log_probs_of,
    model_weights,
    response_logits,
)
from utils.models.loading import load_causal_lm
from utils.policy.actor import Actor
from utils.process.distributed import rank, world_size
from utils.scoring.objectives import Objective

NAMES, PREFERENCE = ("a", "b", "c", "d"), {2: (0.3, 0.7), 3: (0.2, 0.5, 0.3), 4: (0.1, 0.2, 0.3, 0.4)}
PROMPTS, RESPONSES, STEPS = 4, 4, 3
ROWS = PROMPTS * RESPONSES
CLIP, PAMA_CLIP, KL, LEARNING_RATE, EPS, BETAS = 0.35, 0.2, 0.3, 0.02, 0.5, (0.9, 0.95)


@dataclass(frozen=True)
class Problem:
    """What is computed. `options` are flags of the method's own, `scales` those of scores."""

    advantage: str
    algorithm: str
    scope: str = "last_layer"
    fraction: float | None = None
    every: int | None = None
    without_std: bool = False
    whiten: bool = False
    objectives: int = 3
    kl_coeff: float = KL
    options: tuple[tuple[str, str], ...] = ()
    scales: tuple[float, ...] = (1.0,) * len(NAMES)

    @property
    def names(self) -> tuple[str, ...]:
        return NAMES[: self.objectives]


@dataclass(frozen=True)
class Layout:
    """How it is computed."""

    zero_stage: int = 0
    accumulation: int = 1


# --- the model and its rollouts


def save_model(folder: Path) -> None:
    """A tiny decoder, few of whose matrices divide evenly between 2 ranks."""
    torch.manual_seed(7)
    config = MistralConfig(
        vocab_size=VOCABULARY, hidden_size=25, intermediate_size=37, num_hidden_layers=1, num_attention_heads=3,
        num_key_value_heads=1, head_dim=8, initializer_range=0.05, max_position_embeddings=64, bos_token_id=1,
        eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    MistralForCausalLM(config).save_pretrained(folder)


def make_rollouts(model: MistralForCausalLM) -> list[Experience]:
    """Scores that differ in scale; ratios on both sides of the clip range; lengths that differ between ranks.

    The last one is of a policy that has not moved: what it was sampled with is told by the update's own pass.
    """
    torch.manual_seed(0)
    rollouts = []
    for _ in range(STEPS):
        lengths = (torch.arange(ROWS) * TIME // ROWS + torch.randint(0, 3, (ROWS,))).clamp(1, TIME)
        mask = (torch.arange(TIME) < lengths[:, None]).float()
        prompts = torch.randint(1, PROMPT + 1, (PROMPTS, 1)).repeat_interleave(RESPONSES, dim=0)
        attention_mask = torch.cat([torch.arange(PROMPT) >= PROMPT - prompts, mask.bool()], dim=1).long()
        input_ids = torch.randint(3, VOCABULARY, (ROWS, PROMPT + TIME)) * attention_mask
        first, second, third, fourth = torch.randn(4, ROWS)
        scores = {"a": first, "b": 3 * second - first, "c": 0.2 * third + 5, "d": fourth}
        scores["c"][:RESPONSES] = 0.7  # a group that shows nothing
        judged = {name: torch.ones(ROWS) for name in NAMES}
        judged["b"][torch.tensor([1, 4, 5, 6, 8, 9, 10, 11])] = 0  # some, all but one, all of a prompt's
        for name in NAMES:
            judged[name][13] = 0  # by nobody
            scores[name] = scores[name] * judged[name]
        batch = Experience(
            input_ids, attention_mask, mask, finished=mask[:, 0], ref_log_probs=mask, scores=scores, judged=judged
        )
        with torch.no_grad():
            log_probs = log_probs_of(response_logits(model, batch)[0], batch)
        size = torch.where(torch.rand(ROWS, TIME) < 0.3, 0.7, 0.03) * (1 + torch.rand(ROWS, TIME))
        batch.log_probs = (log_probs - size * torch.randn(ROWS, TIME).sign()) * mask
        batch.ref_log_probs = (log_probs + 0.3 * torch.randn(ROWS, TIME)) * mask
        rollouts.append(batch)
    rollouts[-1].log_probs = None
    return rollouts


# --- the reference


@dataclass
class Reference:
    """The steps on whole rollouts, in plain torch."""

    problem: Problem
    model: MistralForCausalLM
    ranks: int
    coefficients: list[Tensors] = field(default_factory=list)  # of every step

    def __post_init__(self):
        self.optimizer = torch.optim.AdamW(self.model.parameters(), LEARNING_RATE, BETAS, EPS, weight_decay=0.0)

    def weights(self) -> Tensors:
        return {name: p.detach().clone() for name, p in self.model.named_parameters()}

    def advantages(self, batch: Experience, name: str) -> torch.Tensor:
        """[rows], prompt by prompt."""
        found = torch.zeros(ROWS)
        for start in range(0, ROWS, RESPONSES):
            group = [i for i in range(start, start + RESPONSES) if batch.judged[name][i]]
            scale = self.problem.scales[NAMES.index(name)]
            scores = {i: scale * batch.scores[name][i].item() for i in group}
            if len(set(scores.values())) < 2:
                continue
            mean = sum(scores.values()) / len(group)
            deviation = math.sqrt(sum((s - mean) ** 2 for s in scores.values()) / (len(group) - 1)) + 1e-4
            for i, score in scores.items():
                if self.problem.advantage == "rloo":
                    found[i] = score - sum(s for j, s in scores.items() if j != i) / (len(group) - 1)
                else:
                    found[i] = (score - mean) / (1.0 if self.problem.without_std else deviation)
        return found

    def step(self, batch: Experience, number: int) -> None:
        logits, head = response_logits(self.model, batch)
        new = log_probs_of(logits, batch)
        old = new.detach() if batch.log_probs is None else batch.log_probs
        check_ratios(new, old, batch)
        judged = torch.stack([batch.judged[name] for name in self.problem.names])
        advantages = torch.stack([self.advantages(batch, name) for name in self.problem.names])
        if self.problem.whiten:
            lengths = judged * batch.mask.sum(dim=1)
            weights = lengths / lengths.sum(dim=1, keepdim=True)
            advantages = advantages - (weights * advantages).sum(dim=1, keepdim=True)
            advantages = advantages / (weights * advantages.square()).sum(dim=1, keepdim=True).sqrt()
        parameters = list(self.model.parameters())
        if self.problem.algorithm != "gapo":
            units = batch.mask * (judged.sum(dim=0) > 0).unsqueeze(-1)
            loss = self.loss(new, old, batch, self.mixed(advantages, judged, new.detach() - old, batch.mask), units)
        else:
            losses = lambda rows: [
                self.loss(new, old, batch, a.unsqueeze(-1), batch.mask * (there * rows).unsqueeze(-1))
                for a, there in zip(advantages, judged, strict=True)
            ]
            if number % (self.problem.every or 1) == 0:
                compared = parameters if self.problem.scope == "full" else [head]
                self.coefficients.append(min_norm(losses(self.compared_rows(number)), compared))
            else:
                self.coefficients.append(self.coefficients[-1])
            loss = sum(c * part for c, part in zip(self.coefficients[-1].tolist(), losses(1.0), strict=True))
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def loss(
        self, new: torch.Tensor, old: torch.Tensor, batch: Experience, advantage: torch.Tensor, units: torch.Tensor
    ) -> torch.Tensor:
        """Mean over `units` of PPO's surrogate and of the penalty."""
        ratio, advantage = (new - old).exp(), advantage.expand_as(new)
        bounded = torch.where(advantage >= 0, ratio.clamp(max=1 + CLIP), ratio.clamp(min=1 - CLIP))
        back = batch.ref_log_probs - new
        return ((self.problem.kl_coeff * (back.exp() - back - 1) - bounded * advantage) * units).sum() / units.sum()

    def mixed(
        self, advantages: torch.Tensor, judged: torch.Tensor, log_ratio: torch.Tensor, mask: torch.Tensor
    ) -> torch.Tensor:
        """One advantage an action: [rows, time], or [rows, 1]."""
        if self.problem.algorithm in ("morlhf", "gdpo"):
            total = sum(w * a for w, a in zip(PREFERENCE[self.problem.objectives], advantages, strict=True))
            if self.problem.algorithm == "gdpo":
                there = total[judged.sum(dim=0) > 0]
                total = (total - there.mean()) / (there.std() + 1e-4)
            return total.unsqueeze(-1)
        options = dict(self.problem.options)
        result = torch.zeros_like(mask)
        kept = (log_ratio.exp() <= 1 + PAMA_CLIP).float()
        clipped = (advantages.clamp(min=0) if options["pama_noon"] == "on" else advantages)[:, :, None] * kept
        if options.get("pama_level") == "batch":
            units = judged[:, :, None] * mask
            return result + shortest(((clipped * units).sum(dim=(1, 2)) / units.sum(dim=(1, 2))).tolist())
        for row, time in itertools.product(range(ROWS), range(TIME)):
            result[row, time] = shortest([c[row, time].item() for c, j in zip(clipped, judged, strict=True) if j[row]])
        return result

    def compared_rows(self, number: int) -> torch.Tensor:
        """[rows] 1 on the responses whose gradients are compared: the first ones that every rank takes up."""
        compared = torch.zeros(ROWS)
        for own in torch.arange(ROWS).chunk(self.ranks):
            torch.manual_seed(number)
            compared[own[torch.randperm(len(own))][: math.ceil(len(own) * (self.problem.fraction or 1.0))]] = 1
        return compared


def min_norm(losses: list[torch.Tensor], inputs: list[torch.Tensor]) -> torch.Tensor:
    """GAPO's coefficients: those of the shortest combination of unit gradients; [m] float64."""
    parts = [torch.autograd.grad(loss, inputs, retain_graph=True) for loss in losses]
    gradients = torch.stack([torch.cat([p.flatten() for p in part]) for part in parts]).double()
    norms = gradients.norm(dim=1)
    units = gradients / norms[:, None]
    return brute_force_min_norm(units @ units.T) / norms


def shortest(values: list[float]) -> float:
    """Of all numbers between the least and the greatest the one nearest to 0."""
    if not values or min(values) <= 0 <= max(values):
        return 0.0
    return min(values, key=abs)


def check_ratios(new: torch.Tensor, old: torch.Tensor, batch: Experience) -> None:
    """None is so close to an edge that rounding decides, and some are beyond each."""
    edges = torch.tensor([1 - CLIP, 1 + CLIP, 1 + PAMA_CLIP]).log()
    log_ratios = (new.detach() - old)[batch.mask > 0]
    assert (log_ratios[:, None] - edges).abs().min() > 1e-4
    if batch.log_probs is not None:
        assert (log_ratios < edges[0]).any() and (log_ratios > edges[1]).any()


@dataclass(frozen=True)
class Library:
    """A folder with the model, its rollouts, and the reference of every problem that was asked for."""

    folder: Path

    def rollouts(self) -> list[Experience]:
        return torch.load(self.folder / "rollouts.pt", weights_only=False)

    def model(self) -> MistralForCausalLM:
        return AutoModelForCausalLM.from_pretrained(self.folder, dtype=torch.float32)

    def solve(self, problem: Problem, ranks: int = 1) -> tuple[Tensors, Tensors, list[torch.Tensor]]:
        """Weights before and after, and the coefficients of every step; computed once."""
        parts = (*astuple(problem), ranks if problem.fraction else 1)
        path = self.folder / ("_".join(map(str, parts)) + ".pt")
        if not path.exists():
            reference = Reference(problem, self.model(), ranks)
            start = reference.weights()
            for number, batch in enumerate(self.rollouts()):
                reference.step(batch, number)
            torch.save((start, reference.weights(), reference.coefficients), path)
        return torch.load(path, weights_only=False)


def make_library(folder: Path) -> Library:
    library = Library(folder)
    save_model(folder)
    torch.save(make_rollouts(library.model()), folder / "rollouts.pt")
    return library


# --- the project


def build(library: Library, problem: Problem, layout: Layout) -> ActorUpdate:
    """The actor and its update, without the models that only rollouts need."""
    weighs = problem.algorithm in ("morlhf", "gdpo")
    weights = zip(problem.names, PREFERENCE[problem.objectives], strict=True)
    args = parse_args(flags(
        actor_model=library.folder, algorithm=problem.algorithm, advantage=problem.advantage,
        responses_per_prompt=RESPONSES, group_without_std=problem.without_std, whiten_advantages=problem.whiten,
        gradient_scope=problem.scope if problem.scope == "full" else None, gram_fraction=problem.fraction,
        gram_every=problem.every, preference=tuple(f"{n}={w}" for n, w in weights) if weighs else None,
        kl_coeff=problem.kl_coeff, clip_range_ratio=CLIP, temperature=TEMPERATURE, zero_stage=layout.zero_stage,
        gradient_accumulation_steps=layout.accumulation,
        per_device_train_batch_size=ROWS // (layout.accumulation * world_size()), max_grad_norm=0,
        per_device_prompt_batch_size=PROMPTS // world_size(),
        actor_learning_rate=LEARNING_RATE, adam_eps=EPS, adam_betas=BETAS, lr_scheduler_type="constant",
        num_warmup_steps=0, data="unused", output_dir="unused", **dict(problem.options),
    ))  # fmt: skip
    objectives = objectives_of(problem)
    algorithm = algorithm_of(args, objectives)
    model = copy.deepcopy(start_of(library))
    gc.freeze()  # ZeRO-3 collects garbage when it starts, and there is a lot to look through after all the imports
    return ActorUpdate(Actor(model, GenerationConfig(), args, STEPS), algorithm, needs_of(args, algorithm), args)


@functools.cache
def start_of(library: Library) -> MistralForCausalLM:
    """The model before training, read once a process."""
    return load_causal_lm(str(library.folder), "--actor_model")


def objectives_of(problem: Problem) -> list[Objective]:
    scales = problem.scales[: problem.objectives]
    return [Objective(n, "reward", "unused", scale=scale) for n, scale in zip(problem.names, scales, strict=True)]


def rollout_step(update: ActorUpdate, problem: Problem, whole: Experience, number: int) -> Scalars:
    """Advantages of this rank's prompts, and the one optimizer step on them."""
    experience, on_policy = whole.select(torch.arange(ROWS).chunk(world_size())[rank()]), whole.log_probs is None
    if on_policy and not update_tells_log_probs(update.args, update.needs):
        with torch.no_grad():
            output = update.actor.forward(experience.input_ids, experience.attention_mask, TIME)
        experience.log_probs = output.log_probs * experience.mask
    add_advantages(experience, objectives_of(problem), update.algorithm, update.needs, update.args)
    torch.manual_seed(number)
    (batches,) = optimizer_batches(experience, update.args)
    scalars, not_finite = optimizer_step(update, [], batches, on_policy, update.args)
    assert not_finite is None
    return scalars


def train(library: Library, problem: Problem, layout: Layout) -> tuple[Tensors, list[Scalars]]:
    """Weights after all rollouts, and what was logged of each."""
    update = build(library, problem, layout)
    logged = [rollout_step(update, problem, batch, number) for number, batch in enumerate(library.rollouts())]
    return model_weights(update.actor), logged


def movement_error(weights: Tensors, start: Tensors, end: Tensors) -> float:
    """Distance from where the weights should be, over the way there."""
    lag = sum((weights[name] - expected).norm().square() for name, expected in end.items())
    return (lag / sum((end[name] - start[name]).norm().square() for name in end)).sqrt().item()


def deviations(
    case: str,
    reference: tuple[Tensors, Tensors, list[torch.Tensor]],
    found: tuple[Tensors, list[Scalars]],
    names: Sequence[str],
    tolerance: float,
) -> list[str]:
    """Where steps end elsewhere than the reference, and took other coefficients, in words.

    Args:
        reference: weights before and after, and the coefficients of every step.
        found: weights after, and what was logged of every step.
        names: of the losses.
    """
    (start, end, coefficients), (weights, logged) = reference, found
    error = movement_error(weights, start, end)
    print(f"{case}: {error:.1e}")
    wrong = [] if error <= tolerance else [f"{case}: the weights are off by {error:.1e}"]
    for number, expected in enumerate(coefficients):
        own = torch.tensor([logged[number][f"coefficient/{name}"] for name in names], dtype=torch.float64)
        if not torch.allclose(own, expected, rtol=1e-4):
            wrong.append(f"{case}, step {number}: coefficients {own}, not {expected}")
    return wrong
