"""Rollouts of two tasks, and CGPO's optimizer steps on them: the project's, and plain torch's on one process.

Three rollouts of six prompts: four of task "a" with two responses each, two of task "b" with three, and a reference
answer to each. Dealt to two ranks, the first has no prompt of "b". Rewards, verdicts and log-probabilities are given;
some responses have no reward, some fail, some prompts teach nothing. The reference goes prompt by prompt in plain
Python, has losses, combinations and optimizer of its own and shares no code with the project.
"""

import copy
import gc
import math
from dataclasses import astuple, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from transformers import GenerationConfig, MistralForCausalLM

from step3_gapo.arguments import algorithm_of, parse_args
from step3_gapo.constrained.mixture import TaskMixture
from step3_gapo.experience import Experience
from step3_gapo.main import optimizer_batches
from step3_gapo.needs import needs_of, policy_loss_of
from step3_gapo.update import ActorUpdate, Scalars, optimizer_step
from tests.critic_free import BETAS, EPS, LEARNING_RATE, Layout, min_norm, save_model, start_of
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
from utils.policy.actor import Actor
from utils.process.distributed import device, rank, world_size
from utils.scoring.objectives import Objective
from utils.scoring.tasks import Task
from utils.scoring.verdicts import ALL, Verdicts

STEPS, OF_PROMPTS = 3, ("a", "a", "a", "b", "a", "b")  # on two ranks: a, a, a and a, b, b
RHO, WEIGHTS, BETA, LAMBDA = {"a": 0.3, "b": 0.7}, {"x": 1.0, "y": 0.5}, 0.3, 0.4
TASKS = [
    Task("a", "unused", {"x": 1.0}, responses=2, kl_max=3.0, weight=3.0),
    Task("b", "unused", WEIGHTS, responses=3, kl_max=1.5, weight=7.0),
]
RESPONSES = {task.name: task.responses for task in TASKS}


@dataclass(frozen=True)
class Problem:
    """What is computed."""

    loss: str
    algorithm: str = "cgpo"
    scope: str = "last_layer"


@dataclass(frozen=True)
class Sampling:
    """A rollout before anything is chosen of it.

    Attributes:
        experience: all responses, prompt by prompt, each prompt's reference answer last.
        prompts: the number of its prompt, of every row.
        scores, judged: [rows, 2] of x and y.
        failed: [rows] bool.
    """

    experience: Experience
    prompts: torch.Tensor
    scores: torch.Tensor
    judged: torch.Tensor
    failed: torch.Tensor


# --- the rollouts


def make_rollouts(model: MistralForCausalLM) -> list[Sampling]:
    """Lengths that differ, ratios to the reference policy on both sides of the caps and of 1."""
    torch.manual_seed(3)
    return [make_rollout(model, number) for number in range(STEPS)]


def make_rollout(model: MistralForCausalLM, number: int) -> Sampling:
    prompts = torch.tensor([i for i, name in enumerate(OF_PROMPTS) for _ in range(RESPONSES[name] + 1)])
    count = len(prompts)
    lengths = torch.randint(1, TIME + 1, (count,))
    mask = (torch.arange(TIME) < lengths[:, None]).float()
    widths = torch.randint(1, PROMPT + 1, (len(OF_PROMPTS), 1))[prompts]
    attention_mask = torch.cat([torch.arange(PROMPT) >= PROMPT - widths, mask.bool()], dim=1).long()
    input_ids = torch.randint(3, VOCABULARY, (count, PROMPT + TIME)) * attention_mask
    batch = Experience(input_ids, attention_mask, mask, mask[:, 0], ref_log_probs=mask, scores={}, judged={})
    with torch.no_grad():
        log_probs = log_probs_of(response_logits(model, batch)[0], batch)
    batch.log_probs = (log_probs + 0.1 * torch.randn(count, TIME)) * mask
    batch.ref_log_probs = (batch.log_probs - 1.2 * torch.randn(count, 1) / lengths[:, None]) * mask
    scores, judged, failed = 2 * torch.randn(count, 2) - 1, torch.ones(count, 2) > 0, torch.rand(count) < 0.4
    of = lambda prompt: torch.nonzero(prompts == prompt).flatten()
    if number == 0:
        failed[of(0)], failed[of(5)] = True, False  # none passes, nor the reference; all pass
        scores[of(5)] = -1.0  # and are alike
        judged[of(3)[0], 1] = False
    if number == 1:
        failed[of(1)] = torch.tensor([True, True, False])  # none passes but the reference
        judged[of(2)[2]] = False  # it has no reward itself
        batch.ref_log_probs[of(4)] = batch.log_probs[of(4)] - mask[of(4)]  # far beyond the cap
    return Sampling(batch, prompts, scores * judged, judged, failed)


# --- the reference


@dataclass
class Reference:
    """The steps on whole rollouts, in plain torch."""

    problem: Problem
    model: MistralForCausalLM

    def __post_init__(self):
        self.optimizer = torch.optim.AdamW(self.model.parameters(), LEARNING_RATE, BETAS, EPS, weight_decay=0.0)

    def weights(self) -> Tensors:
        return {name: p.detach().clone() for name, p in self.model.named_parameters()}

    def step(self, sampling: Sampling) -> torch.Tensor:
        """One step; the coefficients of the tasks."""
        batch = sampling.experience
        logits, head = response_logits(self.model, batch)
        totals = (log_probs_of(logits, batch) * batch.mask).sum(dim=1)  # log π of every row
        losses = [self.loss(task, sampling, totals) for task in TASKS]
        parameters = list(self.model.parameters())
        compared = parameters if self.problem.scope == "full" else [head]
        if self.problem.algorithm == "cgpo":
            coefficients = torch.tensor([RHO[task.name] for task in TASKS], dtype=torch.float64)
        elif self.problem.algorithm == "gapo":
            coefficients = min_norm(losses, compared)
        else:
            parts = [torch.autograd.grad(loss, compared, retain_graph=True) for loss in losses]
            gradients = torch.stack([torch.cat([p.flatten() for p in part]) for part in parts]).double()
            coefficients = brute_force_min_norm(gradients @ gradients.T)
        self.optimizer.zero_grad()
        sum(c * loss for c, loss in zip(coefficients.tolist(), losses, strict=True)).backward()
        self.optimizer.step()
        return coefficients

    def loss(self, task: Task, sampling: Sampling, totals: torch.Tensor) -> torch.Tensor:
        """A task's mean."""
        before = (sampling.experience.log_probs - sampling.experience.ref_log_probs).sum(dim=1).tolist()
        of_reference = sampling.experience.ref_log_probs.sum(dim=1).tolist()
        lengths = sampling.experience.mask.sum(dim=1).tolist()
        columns = [list(WEIGHTS).index(name) for name in task.objectives]
        reward = [sum(w * s[c] for w, c in zip(task.objectives.values(), columns, strict=True))
                  for s in sampling.scores.tolist()]  # fmt: skip
        there = [all(j[c] for c in columns) for j in sampling.judged.tolist()]
        failed, parts = sampling.failed.tolist(), []
        for prompt, name in enumerate(OF_PROMPTS):
            if name != task.name:
                continue
            *own, last = torch.nonzero(sampling.prompts == prompt).flatten().tolist()
            calibrated = {i: 1 / (1 + math.exp(reward[last] - reward[i])) for i in own}
            compared = [i for i in own if there[i] and there[last]]
            if self.problem.loss == "crpg":
                for i in compared:
                    value = 0.0 if failed[i] else max(1 - before[i] / task.kl_max, 0) * calibrated[i]
                    parts.append((value, totals[i]))
            elif self.problem.loss == "crraft":
                kept = [i for i in compared if not failed[i] and before[i] <= task.kl_max]
                if kept:
                    best = max(kept, key=lambda i: reward[i])
                    parts.append((calibrated[best], totals[best]))
                elif there[last] and not failed[last]:
                    parts.append((0.5, totals[last]))
            else:
                known = [i for i in own if there[i]]
                good, bad = [i for i in known if not failed[i]], [i for i in known if failed[i]]
                if not good:
                    continue
                plus, minus = max(good, key=lambda i: reward[i]), min(bad or known, key=lambda i: reward[i])
                if plus != minus:
                    margin = BETA * (totals[plus] - of_reference[plus] - totals[minus] + of_reference[minus])
                    parts.append(torch.nn.functional.softplus(-margin) - LAMBDA * totals[plus] / lengths[plus])
        if self.problem.loss == "codpo":
            return sum(parts) / len(parts)
        mean = sum(value for value, _ in parts) / len(parts) if self.problem.loss == "crpg" else 0.0
        return -sum((value - mean) * total for value, total in parts) / len(parts)


@dataclass(frozen=True)
class Library:
    """A folder with the model, its rollouts, and the reference of every problem that was asked for."""

    folder: Path

    def rollouts(self) -> list[Sampling]:
        return torch.load(self.folder / "rollouts.pt", weights_only=False)

    def solve(self, problem: Problem) -> tuple[Tensors, Tensors, list[torch.Tensor]]:
        """Weights before and after, and the coefficients of every step; computed once."""
        path = self.folder / ("_".join(astuple(problem)) + ".pt")
        if not path.exists():
            reference = Reference(problem, MistralForCausalLM.from_pretrained(self.folder, dtype=torch.float32))
            start = reference.weights()
            coefficients = [reference.step(sampling) for sampling in self.rollouts()]
            torch.save((start, reference.weights(), coefficients), path)
        return torch.load(path, weights_only=False)


def make_library(folder: Path) -> Library:
    save_model(folder)
    torch.save(make_rollouts(MistralForCausalLM.from_pretrained(folder, dtype=torch.float32)), folder / "rollouts.pt")
    return Library(folder)


# --- the project


def build(library: Library, problem: Problem, layout: Layout) -> tuple[ActorUpdate, TaskMixture]:
    """The actor and its update, without the models that only rollouts need, and the tasks."""
    rows = {"crpg": 14, "crraft": 6, "codpo": 12}[problem.loss]
    most = rows if world_size() == 1 else {"crpg": 8, "crraft": 3, "codpo": 6}[problem.loss]
    size = math.ceil(most / layout.accumulation)
    args = parse_args(flags(
        actor_model=library.folder, algorithm=problem.algorithm, policy_loss=problem.loss, tasks="unused",
        gradient_scope=problem.scope if problem.scope == "full" else None, temperature=TEMPERATURE,
        codpo_beta=BETA if problem.loss == "codpo" else None, codpo_lambda=LAMBDA if problem.loss == "codpo" else None,
        zero_stage=layout.zero_stage, gradient_accumulation_steps=layout.accumulation,
        per_device_train_batch_size=size + size % 2, max_grad_norm=0, actor_learning_rate=LEARNING_RATE, adam_eps=EPS,
        adam_betas=BETAS, lr_scheduler_type="constant", num_warmup_steps=0, output_dir="unused",
    ))  # fmt: skip
    algorithm = algorithm_of(args, [Objective(name, "reward", "unused") for name in WEIGHTS], tasks=TASKS)
    model = copy.deepcopy(start_of(library))
    gc.freeze()  # ZeRO-3 collects garbage when it starts, and there is a lot to look through after all the imports
    update = ActorUpdate(Actor(model, GenerationConfig(), args, STEPS), algorithm, needs_of(args, algorithm), args)
    return update, TaskMixture(TASKS, policy_loss_of(args), list(WEIGHTS))


def rows_of_rank(sampling: Sampling, with_references: bool) -> torch.Tensor:
    """Rows of every world_size()-th prompt; [k] int64."""
    found = []
    for prompt in range(rank(), len(OF_PROMPTS), world_size()):
        rows = torch.nonzero(sampling.prompts == prompt).flatten()
        found.append(rows if with_references else rows[:-1])
    return torch.cat(found)


def on_device(value: Any) -> Any:
    """Tensors, and those in a dictionary, on this rank's device."""
    if isinstance(value, dict):
        return {name: on_device(part) for name, part in value.items()}
    return value.to(device()) if isinstance(value, torch.Tensor) else value


def moved(sampling: Sampling) -> Sampling:
    """A rollout on this rank's device."""
    fields = {name: on_device(value) for name, value in vars(sampling).items()}
    experience = Experience(**{name: on_device(value) for name, value in vars(sampling.experience).items()})
    return Sampling(**fields | {"experience": experience})


def step(update: ActorUpdate, mixture: TaskMixture, sampling: Sampling, number: int) -> Scalars:
    """What is chosen of this rank's prompts, and the one optimizer step on it."""
    sampling = moved(sampling)
    rows = rows_of_rank(sampling, mixture.loss.reads_references)
    tasks = [OF_PROMPTS[prompt] for prompt in sampling.prompts[rows].tolist()]
    prompts = [SimpleNamespace(record=SimpleNamespace(task=name)) for name in tasks]
    passed = (~sampling.failed[rows]).float()
    chosen = mixture.choose(
        sampling.experience.select(rows), SimpleNamespace(prompts=prompts), sampling.scores[rows],
        sampling.judged[rows], {ALL: Verdicts(passed, torch.ones_like(passed))},
    )  # fmt: skip
    torch.manual_seed(number)
    (batches,) = optimizer_batches(chosen.trained, update.args)
    scalars, not_finite = optimizer_step(update, [], batches, True, update.args)
    assert not_finite is None
    return scalars


def train(library: Library, problem: Problem, layout: Layout) -> tuple[Tensors, list[Scalars]]:
    """Weights after all rollouts, and what was logged of each."""
    update, mixture = build(library, problem, layout)
    logged = [step(update, mixture, sampling, number) for number, sampling in enumerate(library.rollouts())]
    return model_weights(update.actor), logged
