"""Gram matrices, coefficients and steps under every ZeRO stage, on 1 to 3 ranks, against plain torch on one process.

One batch of 24 responses is dealt to ranks and micro-batches in every way. The reference sees it whole, in one
process, with one `torch.autograd.grad` an objective, a min-norm point found by trying every support, and torch's own
clipping and AdamW. With the project it shares the clipped surrogate of `ppo.py` and nothing else.

In bf16 the reference is mixed-precision training as it is commonly defined: the model and its gradients in bf16; Gram
matrix, clipping and AdamW in float32 or better, on float32 master weights from which the model is rounded after every
step. Numbers then differ by the order of bf16 roundings only.

Adam's eps is far above every entry of a gradient: its step is nearly linear in the gradient, so that no normalization
by entries hides a wrong scale or blows up the rounding of small ones.
"""

import gc
import itertools
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import astuple, dataclass, fields, replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from deepspeed.utils import safe_get_full_fp32_param
from transformers import AutoModelForCausalLM, GenerationConfig, MistralConfig, MistralForCausalLM

from step3_gapo.arguments import algorithm_of, parse_args
from step3_gapo.experience import Experience
from step3_gapo.needs import needs_of
from step3_gapo.ppo import clipped_surrogate_loss
from step3_gapo.update import ActorUpdate, Scalars
from tests.cases import cases
from tests.helpers import flags, run_function
from tests.updates import policy_step
from utils.engines import engines
from utils.models.configs import DTYPES
from utils.models.loading import load_causal_lm
from utils.policy.actor import Actor
from utils.process.distributed import init_distributed, rank, shutdown_distributed, world_size
from utils.scoring.objectives import Objective

pytestmark = pytest.mark.slow

NAMES = ("a", "b", "c", "d")
ROWS, PROMPT, TIME, VOCABULARY = 24, 7, 6, 53
STEPS, SCHEDULED_STEPS = 3, 10
TEMPERATURE, CLIP, LEARNING_RATE, EPS, BETAS = 0.8, 0.35, 0.007, 0.5, (0.9, 0.95)
PREFERENCE = {2: (0.3, 0.7), 3: (0.2, 0.5, 0.3), 4: (0.1, 0.2, 0.3, 0.4)}
TOLERANCE = {"fp32": 1e-5, "bf16": 2e-2}
TENSOR_TOLERANCE = {"fp32": 1e-3, "bf16": 5e-2}  # of the way of one tensor: weights near 1 move by 1e-3 only
SCOPES, STAGES, DTYPE_NAMES = ("last_layer", "full"), (0, 1, 2, 3), ("fp32", "bf16")
Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Problem:
    """What is computed. One reference serves every layout of it."""

    scope: str
    dtype: str = "fp32"
    algorithm: str = "gapo"
    objectives: int = 3
    tied: bool = False
    max_grad_norm: float = 0.0
    micro_batches: int = 0  # that have a Gram matrix of their own; 0: one for all


@dataclass(frozen=True)
class Layout:
    """How it is computed. `as_large` lowers the thresholds under which DeepSpeed treats tiny models as one piece."""

    zero_stage: int
    accumulation: int = 1
    offload: bool = False
    checkpointing: bool = False
    as_large: bool = False


def label(*parts: Problem | Layout) -> str:
    """Only what is not the default, for messages."""
    changed = [f for part in parts for f in fields(part) if getattr(part, f.name) != f.default]
    values = {f.name: getattr(part, f.name) for part in parts for f in fields(part)}
    return ", ".join([f"{world_size()} ranks"] + [f"{f.name}={values[f.name]}" for f in changed])


# --- the batch


def save_model(folder: Path, tied: bool) -> None:
    """A tiny decoder, none of whose matrices divides evenly among 3 ranks, and few among 2."""
    torch.manual_seed(7)
    config = MistralConfig(
        vocab_size=VOCABULARY, hidden_size=25, intermediate_size=37, num_hidden_layers=2, num_attention_heads=3,
        num_key_value_heads=1, head_dim=8, initializer_range=0.05, max_position_embeddings=64,
        tie_word_embeddings=tied, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    MistralForCausalLM(config).save_pretrained(folder)


def make_experience(model: MistralForCausalLM) -> Experience:
    """24 random responses; objectives that conflict and differ in scale; ratios on both sides of the clip range.

    Later rows are longer, so that ranks and micro-batches have different numbers of actions.
    """
    torch.manual_seed(0)
    lengths = (torch.arange(ROWS) * TIME // ROWS + torch.randint(0, 3, (ROWS,))).clamp(1, TIME)
    prompts = torch.randint(1, PROMPT + 1, (ROWS, 1))
    mask = (torch.arange(TIME) < lengths[:, None]).float()
    attention_mask = torch.cat([torch.arange(PROMPT) >= PROMPT - prompts, mask.bool()], dim=1).long()
    input_ids = torch.randint(3, VOCABULARY, (ROWS, PROMPT + TIME)) * attention_mask
    first, second, third, fourth = torch.randn(4, ROWS, TIME) + torch.randn(4, ROWS, 1)
    advantages = {"a": first, "b": 0.3 * second - 0.2 * first, "c": 5 * third - 2 * second, "d": fourth - first}
    # About a third of the ratios lie outside of the clip range.
    size = torch.where(torch.rand(ROWS, TIME) < 0.3, 0.7, 0.02) * (1 + torch.rand(ROWS, TIME))
    batch = Experience(
        input_ids, attention_mask, mask, finished=mask[:, 0], log_probs=mask, ref_log_probs=mask, scores={}, judged={},
        advantages=advantages, counted=dict.fromkeys(advantages, torch.ones(ROWS)),
    )  # fmt: skip
    with torch.no_grad():
        logits, _ = response_logits(model, batch)
        batch.log_probs = (log_probs_of(logits, batch) - size * torch.randn(ROWS, TIME).sign()) * mask
    return batch


# --- the reference


def response_logits(model: MistralForCausalLM, batch: Experience) -> tuple[torch.Tensor, torch.Tensor]:
    """[batch, time, vocabulary] logits of the actions, and the head's weight [vocabulary, features].

    The weight is a node of its own in the graph: what reaches it came through the head, even where the embedding
    shares the parameter.
    """
    positions = (batch.attention_mask.cumsum(dim=1) - 1).clamp(min=0)
    hidden = model.model(batch.input_ids, batch.attention_mask, positions, use_cache=False).last_hidden_state
    head = model.lm_head.weight.view_as(model.lm_head.weight)
    return hidden[:, PROMPT - 1 : -1] @ head.T, head


def log_probs_of(logits: torch.Tensor, batch: Experience) -> torch.Tensor:
    """[batch, time] float32."""
    scaled, actions = logits.float().flatten(0, 1) / TEMPERATURE, batch.input_ids[:, PROMPT:].flatten()
    return -torch.nn.functional.cross_entropy(scaled, actions, reduction="none").view(batch.mask.shape)


def check_clipping(log_probs: torch.Tensor, batch: Experience) -> None:
    """Some ratios clip, some do not, and none is so close to the edge that rounding decides."""
    edges = torch.tensor([1 - CLIP, 1 + CLIP]).log()
    log_ratios = (log_probs.detach() - batch.log_probs)[batch.mask > 0]
    assert (log_ratios[:, None] - edges).abs().min() > 0.03
    clipped = (log_ratios < edges[0]) | (log_ratios > edges[1])
    assert 0.05 < clipped.float().mean() < 0.6


def brute_force_min_norm(gram: torch.Tensor) -> torch.Tensor:
    """Of every set of objectives, the point with equal ⟨g_i, Δ⟩; of those with weights >= 0, the shortest; [m]."""
    best, shortest = None, float("inf")
    for size in range(1, len(gram) + 1):
        for support in map(list, itertools.combinations(range(len(gram)), size)):
            weights = torch.linalg.solve(gram[support][:, support], gram.new_ones(size))
            alpha = gram.new_zeros(len(gram))
            alpha[support] = weights / weights.sum()
            if alpha.min() >= 0 and alpha @ gram @ alpha < shortest:
                best, shortest = alpha, alpha @ gram @ alpha
    return best


def reference_coefficients(algorithm: str, gram: torch.Tensor) -> torch.Tensor:
    norms = gram.diagonal().sqrt()
    if algorithm == "mgda":
        return brute_force_min_norm(gram)
    if algorithm == "gapo":
        return brute_force_min_norm(gram / norms.outer(norms)) / norms
    return gram.new_tensor(PREFERENCE[len(gram)]) / norms  # P-GAPO


def flat_gradients(losses: list[torch.Tensor], inputs: list[torch.Tensor]) -> torch.Tensor:
    """[m, n] float32."""
    gradients = [torch.autograd.grad(loss, inputs, retain_graph=True) for loss in losses]
    return torch.stack([torch.cat([part.flatten() for part in parts]).float() for parts in gradients])


class Reference:
    """The steps on the whole batch, in plain torch."""

    def __init__(self, problem: Problem, model: MistralForCausalLM, batch: Experience):
        self.problem, self.model, self.batch = problem, model, batch
        self.names = NAMES[: problem.objectives]
        self.masters = [p.detach().float().clone().requires_grad_() for p in model.parameters()]
        self.optimizer = torch.optim.AdamW(self.masters, LEARNING_RATE, BETAS, EPS, weight_decay=0.0)

    def weights(self) -> Tensors:
        names = [name for name, _ in self.model.named_parameters()]
        return {name: master.detach().clone() for name, master in zip(names, self.masters, strict=True)}

    def gradients(self, batch: Experience) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Of every objective: mean loss [m], its gradient [m, n], and the part of it that is compared [m, k]."""
        logits, head = response_logits(self.model, batch)
        new = log_probs_of(logits, batch)
        check_clipping(new, batch)
        losses = [
            clipped_surrogate_loss(new, batch.log_probs, batch.advantages[name], batch.mask, CLIP)
            for name in self.names
        ]
        full = flat_gradients(losses, list(self.model.parameters()))
        compared = full if self.problem.scope == "full" else flat_gradients(losses, [head])
        return torch.stack(losses).detach().double(), full, compared.double()

    def step(self, number: int) -> Tensors:
        """One optimizer step; what it was made of, as a mean where every micro-batch has coefficients of its own."""
        parts = [self.batch.select(rows) for rows in torch.arange(ROWS).chunk(self.problem.micro_batches or 1)]
        figures, gradient = [], 0.0
        for part in parts:
            losses, full, compared = self.gradients(part)
            share = (part.mask.sum() / self.batch.mask.sum()).item()
            figures.append(self.figures(compared, losses * share))
            gradient = gradient + share * figures[-1]["coefficient"].float() @ full
        self.descend(gradient, number)
        means = {name: sum(f[name] for f in figures) / len(parts) for name in figures[0]}
        return means | {"losses": sum(f["losses"] for f in figures)}

    def figures(self, compared: torch.Tensor, losses: torch.Tensor) -> Tensors:
        """What the gradients say, in float64; [m] but for the Gram matrix and the length of the direction."""
        gram = compared @ compared.T
        norms, coefficients = gram.diagonal().sqrt(), reference_coefficients(self.problem.algorithm, gram)
        alpha = coefficients * (1.0 if self.problem.algorithm == "mgda" else norms)
        return {
            "norm": norms, "cosine": gram / norms.outer(norms), "coefficient": coefficients,
            "alpha": alpha / alpha.sum(), "progress": gram @ coefficients,
            "direction_norm": (coefficients @ gram @ coefficients).sqrt(), "losses": coefficients * losses,
        }  # fmt: skip

    def descend(self, gradient: torch.Tensor, number: int) -> None:
        """Clipping and AdamW; the learning rate falls linearly."""
        for master, part in zip(self.masters, gradient.split([m.numel() for m in self.masters]), strict=True):
            master.grad = part.view_as(master).clone()
        if self.problem.max_grad_norm:
            norm = torch.nn.utils.clip_grad_norm_(self.masters, self.problem.max_grad_norm)
            assert norm > 2 * self.problem.max_grad_norm, "the test needs clipping that bites"
        self.optimizer.param_groups[0]["lr"] = LEARNING_RATE * (1 - number / SCHEDULED_STEPS)
        self.optimizer.step()
        with torch.no_grad():
            for parameter, master in zip(self.model.parameters(), self.masters, strict=True):
                parameter.copy_(master)


@dataclass
class Trajectory:
    """Master weights before and after, and what every step was made of."""

    start: Tensors
    steps: list[Tensors]
    end: Tensors


@dataclass(frozen=True)
class Library:
    """A folder of models, their batches, and the reference of every problem that was asked for."""

    folder: Path

    def model(self, problem: Problem) -> Path:
        return self.folder / ("tied" if problem.tied else "untied")

    def experience(self, problem: Problem) -> Experience:
        return torch.load(self.model(problem) / "experience.pt", weights_only=False)

    def path(self, problem: Problem) -> Path:
        return self.folder / ("_".join(map(str, astuple(problem))) + ".pt")

    def solve(self, problem: Problem) -> Trajectory:
        """The reference, computed once."""
        if not self.path(problem).exists():
            model = AutoModelForCausalLM.from_pretrained(self.model(problem), dtype=DTYPES[problem.dtype])
            reference = Reference(problem, model, self.experience(problem))
            start, steps = reference.weights(), [reference.step(number) for number in range(STEPS)]
            torch.save(Trajectory(start, steps, reference.weights()), self.path(problem))
        return torch.load(self.path(problem), weights_only=False)


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Library:
    folder = tmp_path_factory.mktemp("parity")
    for name in ("tied", "untied"):
        save_model(folder / name, name == "tied")
        batch = make_experience(AutoModelForCausalLM.from_pretrained(folder / name))
        torch.save(batch, folder / name / "experience.pt")
    return Library(folder)


# --- the project


@contextmanager
def process_group() -> Iterator[None]:
    init_distributed()
    yield
    shutdown_distributed()


def deal(batch: Experience, accumulation: int) -> list[Experience]:
    """This rank's micro-batches. A micro-batch has the same rows over all ranks, however many ranks there are."""
    return [batch.select(rows.chunk(world_size())[rank()]) for rows in torch.arange(ROWS).chunk(accumulation)]


def build(library: Library, problem: Problem, layout: Layout) -> ActorUpdate:
    """The actor and its update, without the models that only rollouts need."""
    names = NAMES[: problem.objectives]
    preference = [f"{n}={w}" for n, w in zip(names, PREFERENCE.get(len(names), ()), strict=False)]
    args = parse_args(flags(
        actor_model=library.model(problem), algorithm=problem.algorithm, gradient_scope=problem.scope,
        gram_per="micro_batch" if problem.micro_batches else None,
        preference=tuple(preference) if problem.algorithm == "p_gapo" else None, dtype=problem.dtype,
        max_grad_norm=problem.max_grad_norm, zero_stage=layout.zero_stage, offload=layout.offload,
        gradient_checkpointing=layout.checkpointing, gradient_accumulation_steps=layout.accumulation,
        per_device_train_batch_size=ROWS // (layout.accumulation * world_size()), temperature=TEMPERATURE,
        clip_range_ratio=CLIP, actor_learning_rate=LEARNING_RATE, adam_eps=EPS, adam_betas=BETAS,
        lr_scheduler_type="linear", num_warmup_steps=0, data="unused", output_dir="unused",
    ))  # fmt: skip
    algorithm = algorithm_of(args, [Objective(name, "reward", "unused") for name in names])
    model = load_causal_lm(args.actor_model, "--actor_model", DTYPES[args.dtype])
    gc.freeze()  # ZeRO-3 collects garbage when it starts, and there is a lot to look through after all the imports
    with small_thresholds() if layout.as_large else nullcontext():
        return ActorUpdate(
            Actor(model, GenerationConfig(), args, SCHEDULED_STEPS), algorithm, needs_of(args, algorithm), args
        )


@contextmanager
def small_thresholds() -> Iterator[None]:
    """Many buckets, and ZeRO-3 partitions every matrix: what large models meet under the default thresholds."""
    thresholds = {"reduce_bucket_size": 1000, "stage3_param_persistence_threshold": 30, "stage3_max_reuse_distance": 0,
                  "stage3_prefetch_bucket_size": 1000, "stage3_max_live_parameters": 2000}  # fmt: skip

    def lowered(*arguments: Any) -> dict[str, Any]:
        config = original(*arguments)
        config["zero_optimization"] |= thresholds
        return config

    original = engines.training_config
    with mock.patch.object(engines, "training_config", lowered):
        yield


def model_weights(actor: Actor) -> Tensors:
    """Whole parameters, on every rank."""
    with actor.gathered():
        return {name: p.detach().clone() for name, p in actor.engine.module.named_parameters()}


def master_weights(actor: Actor, dtype: str) -> Tensors:
    """What the optimizer steps on, in float32, on every rank."""
    if dtype == "fp32":
        return model_weights(actor)
    named, engine = dict(actor.engine.module.named_parameters()), actor.engine
    if engine.zero_optimization_stage() == 0:
        return dict(zip(named, (master.detach().clone() for master in engine.optimizer.fp32_groups[0]), strict=True))
    return {name: safe_get_full_fp32_param(parameter).clone() for name, parameter in named.items()}


def step_errors(problem: Problem, scalars: Scalars, expected: Tensors) -> dict[str, float]:
    """Relative errors of everything a step reports of its gradients."""
    names, norms = NAMES[: problem.objectives], expected["norm"]

    def reported(tag: str) -> torch.Tensor:
        return norms.new_tensor([scalars[f"{tag}/{name}"] for name in names])

    cosines = torch.eye(len(names), dtype=norms.dtype)
    for (i, first), (j, second) in itertools.combinations(enumerate(names), 2):
        cosines[i, j] = cosines[j, i] = scalars[f"gradient/cosine/{first}_{second}"]
    gram = cosines * reported("gradient/norm").outer(reported("gradient/norm"))
    length, coefficients = expected["direction_norm"], expected["coefficient"]
    errors = {
        "gram": gram / norms.outer(norms) - expected["cosine"],
        "coefficients": (reported("coefficient") - coefficients)
        / torch.where(coefficients > 0, coefficients, coefficients.max()),
        "alpha": reported("alpha") - expected["alpha"],
        "progress": (reported("gradient/progress") - expected["progress"]) / (norms * length),
        "direction_norm": scalars["gradient/direction_norm"] / length - 1,
        "loss": (scalars["loss/actor"] - expected["losses"].sum()) / expected["losses"].abs().sum(),
    }
    return {name: error.abs().max().item() for name, error in errors.items()}


def weight_errors(actor: Actor, problem: Problem, expected: Trajectory) -> dict[str, float]:
    """Errors of the weights relative to them, and relative to the way they have gone."""
    weights, masters = model_weights(actor), master_weights(actor, problem.dtype)
    assert weights.keys() == masters.keys() == expected.end.keys()
    rounded = {name: weight.to(DTYPES[problem.dtype]) for name, weight in expected.end.items()}
    lags = {name: (masters[name] - end).norm().square() for name, end in expected.end.items()}
    ways = {name: (end - expected.start[name]).norm().square() for name, end in expected.end.items()}
    return {
        "weights": max(((weights[n] - r).float().norm() / r.float().norm()).item() for n, r in rounded.items()),
        "movement": (sum(lags.values()) / sum(ways.values())).sqrt().item(),
        "movement of a tensor": max((lags[name] / ways[name]).sqrt().item() for name in ways),
        "rounding of the masters": max((weights[n] - m.to(weights[n])).abs().max().item() for n, m in masters.items()),
    }


def limit(name: str, dtype: str) -> float:
    if name == "rounding of the masters":
        return 0.0
    return (TENSOR_TOLERANCE if name == "movement of a tensor" else TOLERANCE)[dtype]


def errors_of_run(library: Library, problem: Problem, layout: Layout, expected: Trajectory) -> dict[str, float]:
    """Relative errors of every number of the steps, and of the weights after them."""
    update, batches = build(library, problem, layout), deal(library.experience(problem), layout.accumulation)
    errors = {}
    for number, step in enumerate(expected.steps, start=1):
        named = step_errors(problem, policy_step(update, batches), step)
        errors |= {f"{name} of step {number}": error for name, error in named.items()}
    return errors | weight_errors(update.actor, problem, expected)


def check_layouts(library: Library, jobs: list[tuple[Problem, Layout]]) -> None:
    """On every rank: each problem in its layout takes the reference's steps. All deviations are named."""
    deviations = []
    with process_group():
        for problem, layout in jobs:
            errors = errors_of_run(library, problem, layout, library.solve(problem))
            print(f"rank {rank()}, {label(problem, layout)}: {errors}")
            deviations += [
                f"rank {rank()}, {label(problem, layout)}: {name} is off by {error:.1e}"
                for name, error in errors.items()
                if not error <= limit(name, problem.dtype)
            ]
    assert not deviations, "\n".join(deviations)


def run_layouts(library: Library, jobs: list[tuple[Problem, Layout]], ranks: int) -> None:
    for problem, _ in jobs:
        library.solve(problem)
    result = run_function(check_layouts, library, jobs, ranks=ranks)
    assert result.code == 0, result.stderr


@pytest.mark.parametrize(("stage", "ranks", "dtype"), cases(
    itertools.product(STAGES, (1, 2, 3), DTYPE_NAMES),
    always=[(0, 2, "fp32"), (1, 1, "fp32"), (2, 3, "bf16"), (3, 2, "fp32")],
))  # fmt: skip
def test_scopes_and_accumulation(library: Library, stage: int, ranks: int, dtype: str) -> None:
    layouts = [Layout(stage, 1), Layout(stage, 2, as_large=True), Layout(stage, 4)]
    run_layouts(library, [(Problem(scope, dtype), layout) for scope in SCOPES for layout in layouts], ranks)


@pytest.mark.parametrize(("stage", "ranks", "dtype"), cases(
    [(stage, *further) for stage in STAGES for further in ((3, "fp32"), (2, "bf16"))],
    always=[(3, 2, "bf16")],
))  # fmt: skip
def test_objectives_and_flags(library: Library, stage: int, ranks: int, dtype: str) -> None:
    """Any number of objectives, tied embeddings, coefficients a micro-batch, clipping, checkpointing, offload."""
    jobs = [
        (Problem("last_layer", dtype, tied=True), Layout(stage, 2)),
        (Problem("last_layer", dtype, micro_batches=4), Layout(stage, 4)),
        (Problem("full", dtype, tied=True), Layout(stage, 2, as_large=True)),
        (Problem("full", dtype, max_grad_norm=0.15), Layout(stage, 2, checkpointing=True, as_large=True)),
    ]
    if stage:
        offloaded = Layout(stage, 2, offload=True)
        jobs += [(Problem(scope, dtype, tied=True, max_grad_norm=0.15), offloaded) for scope in SCOPES]
    if dtype == "fp32":
        jobs += [
            (Problem("last_layer", dtype, "mgda", 4), Layout(stage)),
            (Problem("full", dtype, "mgda", 4), Layout(stage)),
            (Problem("full", dtype, "p_gapo", 2), Layout(stage)),
            (Problem("full", dtype, "gapo", 1), Layout(stage)),
        ]
    run_layouts(library, jobs, ranks)


# --- what the comparison is worth


DIFFERENCES = [  # a problem, another that differs from it in one thing, and where that must show at the latest
    (Problem("full"), Problem("last_layer"), ("gram of step 1", "coefficients of step 1", "movement")),
    (Problem("last_layer"), Problem("last_layer", algorithm="p_gapo"), ("coefficients of step 1", "movement")),
    (Problem("full", max_grad_norm=0.15), Problem("full", max_grad_norm=0.2), ("movement",)),
]


def check_that_differences_show(library: Library) -> None:
    """The project's steps on one problem are not the reference's on another, by far."""
    with process_group():
        for problem, other, names in DIFFERENCES:
            errors = errors_of_run(library, problem, Layout(0), library.solve(other))
            for name in names:
                assert errors[name] > 5 * limit(name, "bf16"), (label(problem), label(other), name, errors[name])


def test_another_scope_algorithm_or_clipping_would_show(library: Library) -> None:
    for _, other, _ in DIFFERENCES:
        library.solve(other)
    result = run_function(check_that_differences_show, library)
    assert result.code == 0, result.stderr


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("parts", [2, 3, 4])
def test_wrong_means_over_ranks_or_micro_batches_would_show(library: Library, scope: str, parts: int) -> None:
    """A mean of Gram matrices, and a mean of means over parts with different numbers of actions."""
    problem = Problem(scope)
    batch = library.experience(problem)
    reference = Reference(problem, AutoModelForCausalLM.from_pretrained(library.model(problem)), batch)
    step = library.solve(problem).steps[0]
    gradients = torch.stack([reference.gradients(batch.select(rows))[2] for rows in torch.arange(ROWS).chunk(parts)])
    mean_of_means = gradients.mean(dim=0)
    for wrong in ((gradients @ gradients.mT).mean(dim=0), mean_of_means @ mean_of_means.T):
        error = wrong / step["norm"].outer(step["norm"]) - step["cosine"]
        assert error.abs().max() > 2 * TOLERANCE["bf16"]


# --- one objective


def check_one_objective(library: Library, stage: int) -> None:
    """The min-norm point of one gradient is that gradient: the steps are PPO's."""
    with process_group():
        start, moves = model_weights(build(library, Problem("full"), Layout(0)).actor), []
        for scope, algorithm in [("last_layer", "ppo"), *itertools.product(SCOPES, ("mgda",))]:
            problem = Problem(scope, algorithm=algorithm, objectives=1)
            update, batches = build(library, problem, Layout(stage, 2)), deal(library.experience(problem), 2)
            assert [policy_step(update, batches)["coefficient/a"] for _ in range(STEPS)] == pytest.approx([1.0] * STEPS)
            moves.append(torch.cat([(w - start[n]).flatten() for n, w in model_weights(update.actor).items()]))
        ppo, *others = moves
        assert all((move - ppo).norm() <= 1e-5 * ppo.norm() for move in others)


@pytest.mark.parametrize("stage", STAGES)
def test_one_objective_is_ppo(library: Library, stage: int) -> None:
    result = run_function(check_one_objective, library, stage)
    assert result.code == 0, result.stderr


# --- a NaN on one rank


@contextmanager
def spoiled(actor: Actor, call: int) -> Iterator[None]:
    """One NaN in the gradient of an inner parameter, on the last rank, in backward pass number `call` from now."""
    calls = itertools.count()

    def sow(gradient: torch.Tensor) -> torch.Tensor | None:
        if rank() < world_size() - 1 or next(calls) != call:
            return None
        gradient = gradient.clone()
        gradient.view(-1)[gradient.numel() // 2] = torch.nan
        return gradient

    hook = actor.engine.module.model.layers[0].mlp.down_proj.weight.register_hook(sow)
    yield
    hook.remove()
    assert rank() < world_size() - 1 or next(calls) > call, "the NaN was never sown"


def same_on_all_ranks(weights: Tensors) -> bool:
    flat = torch.cat([weight.float().flatten() for weight in weights.values()])
    theirs = flat.clone()
    torch.distributed.broadcast(theirs, src=0)
    return torch.equal(flat, theirs)


def equal(first: Tensors, second: Tensors) -> bool:
    return all(torch.equal(first[name], second[name]) for name in second)


def with_spoiled_loss(batches: list[Experience]) -> list[Experience]:
    """One NaN in an advantage of the last micro-batch, on the last rank."""
    if rank() < world_size() - 1:
        return batches
    advantages = dict(batches[-1].advantages)
    advantages["a"] = advantages["a"].index_fill(0, torch.tensor([0]), torch.nan)
    return [*batches[:-1], replace(batches[-1], advantages=advantages)]


def spoil(update: ActorUpdate, batches: list[Experience], where: int | str) -> Scalars | None:
    """A step with a NaN in a backward pass (its number), or in a loss."""
    if where == "loss":
        return policy_step(update, with_spoiled_loss(batches))
    with spoiled(update.actor, where):
        return policy_step(update, batches)


def flaws_of_skips(library: Library, problem: Problem, layout: Layout) -> Iterator[str]:
    """What goes wrong when NaNs come between a first step and two more, against a run without them."""
    batches = deal(library.experience(problem), layout.accumulation)
    update, undisturbed = build(library, problem, layout), build(library, problem, layout)
    outcomes = [policy_step(update, batches)]
    before = model_weights(update.actor), master_weights(update.actor, problem.dtype)
    for where in (*range(layout.accumulation), "loss"):
        place = "a loss" if where == "loss" else f"backward pass {where}"
        if spoil(update, batches, where) is not None:
            yield f"a NaN in {place}: the step was not skipped"
        after = model_weights(update.actor), master_weights(update.actor, problem.dtype)
        if not all(map(equal, before, after)):
            yield f"a NaN in {place}: the weights have moved"
    outcomes += [policy_step(update, batches), policy_step(update, batches)]
    if outcomes != [policy_step(undisturbed, batches) for _ in range(3)]:
        yield "the steps around the skipped ones are others than without these"
    weights = model_weights(update.actor)
    if not all(weight.isfinite().all() for weight in weights.values()):
        yield "the weights are not finite"
    if not same_on_all_ranks(weights):
        yield "the weights differ between ranks"
    if not equal(weights, model_weights(undisturbed.actor)):
        yield "the weights are others than without the skipped steps"


def check_skips(library: Library, jobs: list[tuple[Problem, Layout]]) -> None:
    with process_group():
        flaws = [
            f"rank {rank()}, {label(problem, layout)}: {flaw}"
            for problem, layout in jobs
            for flaw in flaws_of_skips(library, problem, layout)
        ]
    assert not flaws, "\n".join(flaws)


@pytest.mark.parametrize(("stage", "dtype"), cases(
    itertools.product(STAGES, DTYPE_NAMES), always=[(3, "bf16")]
))  # fmt: skip
def test_a_nan_on_one_rank_skips_the_step_on_all(library: Library, stage: int, dtype: str) -> None:
    jobs = [
        (Problem("last_layer", dtype, "morlhf", 2), Layout(stage, 2)),
        *((Problem(scope, dtype, "gapo", 2), Layout(stage, 2)) for scope in SCOPES),
    ]
    if stage:
        jobs.append((Problem("last_layer", dtype, "gapo", 2), Layout(stage, 2, offload=True)))
    if dtype == "fp32":
        jobs.append((Problem("last_layer", dtype, "gapo", 2), Layout(stage)))
        jobs.append((Problem("last_layer", dtype, "gapo", 2, micro_batches=2), Layout(stage, 2)))
    result = run_function(check_skips, library, jobs, ranks=2)
    assert result.code == 0, result.stderr
