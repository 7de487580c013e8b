"""One optimizer step in float32 from the same experience, on the CPU and on the GPU."""

from pathlib import Path
from typing import Any

import torch

from step3_gapo.experience import Experience
from step3_gapo.update import ActorUpdate, StepBatches, optimizer_step
from tests.benchmarks.step import SCOPES
from tests.benchmarks.synthetic import (
    Load,
    arguments_of,
    make_actor,
    make_critics,
    make_experience,
    make_update,
)
from tests.gpu_check.jobs import Checks, NotThere, Settings
from utils.process.distributed import device, init_distributed

OBJECTIVES, MICRO_BATCHES = 2, 2
RATE = 1e-3  # large enough for a step to be seen in the weights
ALLOWED = 1e-4  # relative to the largest number

Step = dict[str, Any]  # experience, gram, and the weights of each model after the step; on the CPU


def cpu_checks(settings: Settings) -> Checks:
    return {f"gapo, {scope}, on the CPU": lambda scope=scope: first_step(settings, scope) for scope in SCOPES}


def gpu_checks(settings: Settings) -> Checks:
    where = "on the GPU" if torch.cuda.is_available() else "again (no CUDA: CPU against CPU)"
    return {f"gapo, {scope}, {where}": lambda scope=scope: same_step(settings, scope) for scope in SCOPES}


def first_step(settings: Settings, scope: str) -> str:
    """Take the step, and leave it to the process that takes it on the GPU."""
    step = take_step(settings, scope, None)
    torch.save(step, Path(settings.folder) / f"{scope}.pt")
    norms = ", ".join(f"{square**0.5:.4g}" for square in step["gram"].diagonal().tolist())
    return f"gradient norms {norms}; device {device()}"


def same_step(settings: Settings, scope: str) -> str:
    """Take the step of `first_step`; raises AssertionError where it differs."""
    file = Path(settings.folder) / f"{scope}.pt"
    if not file.exists():
        raise NotThere("the step on the CPU, to compare with")
    expected = torch.load(file, weights_only=True)
    found = take_step(settings, scope, [moved(batch, device()) for batch in expected["experience"]])
    differences = {"Gram matrix": difference(expected["gram"], found["gram"])}
    for model, weights in expected["weights"].items():
        differences[f"weights of the {model}"] = difference(weights, found["weights"][model])
    said = ", ".join(f"{what} {value:.1e}" for what, value in differences.items())
    assert max(differences.values()) <= ALLOWED, f"relative differences beyond {ALLOWED}: {said}"
    return f"relative differences: {said}; allowed {ALLOWED}, a step moves weights by up to {RATE}; device {device()}"


def take_step(settings: Settings, scope: str, experience: list[Experience] | None) -> Step:
    """One step of fresh models, the same whenever it is called.

    Args:
        experience: of an earlier call; None to make it.
    """
    init_distributed()
    torch.set_float32_matmul_precision("highest")  # no TF32
    load = Load("tiny" if settings.small else "5m", "fp32", 8, 24, 24)
    rates = {"actor_learning_rate": RATE, "critic_learning_rate": RATE, "num_warmup_steps": 0}
    args = arguments_of(load, 1, 0, MICRO_BATCHES, **rates)
    actor, critics = make_actor(load, args), make_critics(load, args, OBJECTIVES)
    experience = experience or make_experience(actor, load, args, OBJECTIVES)
    plain = make_update(actor, args, OBJECTIVES, algorithm="gapo", gradient_scope=scope)
    update = ActorUpdate(actor, plain.algorithm, plain.needs, plain.args)
    _, not_finite = optimizer_step(update, critics, StepBatches(experience), False, args)
    assert not not_finite, f"{not_finite} is not finite"
    models = {"policy": actor.engine} | {f"critic of {critic.names[0]}": critic.engine for critic in critics}
    weights = {
        name: torch.cat([p.detach().cpu().flatten() for p in engine.module.parameters()])
        for name, engine in models.items()
    }
    return {
        "experience": [vars(moved(vars(batch), "cpu")) for batch in experience],
        "gram": update.weigher.gram.cpu(),
        "weights": weights,
    }


def moved(values: dict[str, Any], place: str | torch.device) -> Experience:
    """Experience from its attributes, on a device."""

    def move(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: tensor.to(place) for name, tensor in value.items()}
        return None if value is None else value.to(place)

    return Experience(**{name: move(value) for name, value in values.items()})


def difference(expected: torch.Tensor, found: torch.Tensor) -> float:
    """Largest difference, over the largest number."""
    return ((expected - found).abs().max() / expected.abs().max()).item()
