"""What `--gram_fraction` and `--gram_every` change: angles and coefficients along a run that takes the exact steps.

python -m tests.benchmarks.gram_approximations RUN   RUN: folder of a policy that was trained on one rank, without
                                                     critics, by a method that weighs gradients (its args.json counts)

At every optimizer step the Gram matrix of all responses is compared with those of shares of them, and with the ones of
earlier steps. The angle is that between the directions that the coefficients make of the very same gradients.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import json
import math
import sys
import tempfile
from itertools import islice
from pathlib import Path

import torch

from step3_gapo.arguments import algorithm_of, objectives_of, parse_args
from step3_gapo.experience import Experience
from step3_gapo.main import optimizer_batches, prompt_batches, read_prompts
from step3_gapo.needs import needs_of, step_sizes
from step3_gapo.rlhf_engine import RLHFEngine
from step3_gapo.rollout import make_rollout
from step3_gapo.update import ActorUpdate, StepBatches, count_units, optimizer_step
from utils.cli.arguments import Parser
from utils.combining.algorithm import GradientLevel
from utils.gradients.step import ObjectiveStep
from utils.memory.dry_run import aligned
from utils.models.configs import load_tokenizer, sampling_config
from utils.output.metrics import Progress
from utils.process.distributed import init_distributed, rank, seed_everything, world_size
from utils.process.errors import UserError, run_main

FRACTIONS, STEPS_KEPT = (0.5, 0.25, 0.125), (2, 4, 8)


def gram_of_share(update: ActorUpdate, batch: Experience, fraction: float) -> torch.Tensor:
    """[m, m] of the losses as means over the first responses of a step; leaves no gradient behind."""
    part = batch.select(torch.arange(math.ceil(fraction * len(batch.mask))))
    step = ObjectiveStep(update.actor, "full", len(update.names), update.args.temperature)
    update.look(step, part, count_units([part], update.names), again=False, on_policy=False)
    gram = step.gram()
    step.forget()
    return gram


def angle(gram: torch.Tensor, first: torch.Tensor, second: torch.Tensor) -> float:
    """Degrees between Σ a_i g_i and Σ b_i g_i: [m, m] and twice [m]."""
    lengths = ((first @ gram @ first) * (second @ gram @ second)).clamp(min=0).sqrt()
    return math.degrees(math.acos(((first @ gram @ second) / lengths).clamp(-1, 1)))


def shift(first: torch.Tensor, second: torch.Tensor) -> float:
    """Largest difference of coefficients [m], both scaled to sum 1."""
    return (first / first.sum() - second / second.sum()).abs().max().item()


def settings_of(run: Path) -> argparse.Namespace:
    """Flags of the run, with gradients of all parameters; raises UserError where it is not of the kind asked for."""
    file = run / "args.json"
    if not file.is_file():
        raise UserError(f"{run}: no folder of a policy that step 3 has trained (it holds args.json)")
    args = argparse.Namespace(**json.loads(file.read_text()))
    known = vars(parse_args(["--actor_model", "x", "--data", "x", "--output_dir", "x", "--algorithm", args.algorithm]))
    args = argparse.Namespace(**known | {name: value for name, value in vars(args).items() if name in known})
    if args.gradient_accumulation_steps > 1 or args.micro_batch_tokens:
        raise UserError(f"{run}: its steps accumulate micro-batches; one with steps of one micro-batch is asked for")
    return argparse.Namespace(**vars(args) | {"gradient_scope": "full", "gram_fraction": None, "gram_every": None})


def measure(args: argparse.Namespace) -> dict[str, list[tuple[float, float]]]:
    """(angle, shift) of every approximation at every optimizer step."""
    objectives = objectives_of(args)
    tokenizer, algorithm = load_tokenizer(args.actor_model, "--actor_model"), algorithm_of(args, objectives)
    needs = needs_of(args, algorithm)
    if not isinstance(algorithm, GradientLevel) or needs.critics:
        raise UserError(f"--algorithm {args.algorithm}: a method that weighs gradients, without critics, is asked for")
    prompts = read_prompts(args, tokenizer)
    generation = sampling_config(tokenizer, args.temperature, args.max_new_tokens)
    rollout_size, step_size = step_sizes(args)
    updates = args.max_steps * args.ppo_epochs * (rollout_size // step_size)
    engine = RLHFEngine(args, objectives, needs, tokenizer, generation, updates)
    update = ActorUpdate(engine.actor, algorithm, needs, args)
    found: dict[str, list[tuple[float, float]]] = {}
    seen: list[torch.Tensor] = []  # exact coefficients, step by step
    progress = Progress(args.max_steps, "rollout", every=4)
    for number, batch in enumerate(islice(prompt_batches(prompts, args), args.max_steps), start=1):
        seed_everything(args.seed + 1000 * number)
        rollout = make_rollout(engine, batch[rank() :: world_size()], algorithm, args)
        for order, step in enumerate(optimizer_batches(rollout.trained, args)):
            grams = {f"--gram_fraction {f}": gram_of_share(update, step.compared[0], f) for f in FRACTIONS}
            optimizer_step(update, [], StepBatches(step.compared), order == 0, args)
            gram = update.weigher.gram
            exact = algorithm.coefficients(gram, torch.zeros(len(update.names)).double())
            seen.append(exact)
            others = {name: algorithm.coefficients(gram, exact) for name, gram in grams.items()}
            others |= {f"--gram_every {k}": seen[(len(seen) - 1) // k * k] for k in STEPS_KEPT}
            for name, coefficients in others.items():
                found.setdefault(name, []).append((angle(gram, exact, coefficients), shift(exact, coefficients)))
        progress.update(number)
    return found


def main() -> None:
    parser = Parser(prog="python -m tests.benchmarks.gram_approximations", description=__doc__.partition("\n\n")[0])
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a policy without critics")
    args = settings_of(parser.parse_args().run)
    init_distributed()
    with tempfile.TemporaryDirectory() as folder:
        args.output_dir = folder
        found = measure(args)
    rows = [["", "angle: median", "95%", "largest", "coefficients of sum 1 differ by: median", "95%"]]
    for name, pairs in found.items():
        angles, shifts = (torch.tensor(column, dtype=torch.float64) for column in zip(*pairs, strict=True))
        cells = [angles.median(), angles.quantile(0.95), angles.max()]
        rows.append([name, *(f"{cell:.1f}°" for cell in cells), *(f"{shifts.quantile(q):.3f}" for q in (0.5, 0.95))])
    print("\n".join(aligned(rows)), file=sys.stdout)


if __name__ == "__main__":
    run_main(main)
