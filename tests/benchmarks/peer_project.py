"""This project's side of section `peers`: whole steps of step 3, as they are asked for.

python -m tests.benchmarks.peer_project CASE   (see `peer_turns`)
"""

import argparse
import copy
import time
from collections import Counter
from functools import partial

import torch
from torch import nn

from step3_gapo.arguments import algorithm_of, objectives_of, parse_args
from step3_gapo.main import optimizer_steps, read_prompts
from step3_gapo.needs import needs_of
from step3_gapo.rlhf_engine import RLHFEngine
from step3_gapo.rollout import make_rollout
from tests.benchmarks.peer_turns import Case, Turns, case_of_command_line
from tests.benchmarks.synthetic import TOTAL_STEPS, make_update, objective_names
from tests.helpers import flags
from utils.models.configs import DTYPES, load_tokenizer, sampling_config
from utils.process.distributed import device, init_distributed, seed_everything

OBJECTIVES, RATE = 2, "rate"
GAPO = {"algorithm": "gapo", "gradient_scope": "last_layer"}
KEPT = {"keep_graphs": True}
ALGORITHMS = {"gapo": GAPO | KEPT, "morlhf": KEPT, "gapo_group": GAPO | {"advantage": "group"}}
SIDE, REPEATS = 1024, 4  # of the product that the machine's matrix rate is measured by


def arguments_of(case: Case) -> argparse.Namespace:
    """Step 3's own arguments; the policy, reference, two score models and two critics are of one size."""
    scores = {name: f"{case.folder}/score_{number}" for number, name in enumerate(objective_names(OBJECTIVES))}
    return parse_args(flags(
        actor_model=f"{case.folder}/policy", data=f"{case.folder}/prompts.jsonl", output_dir="unused",
        reward_model=tuple(f"{name}={score}" for name, score in scores.items()), algorithm="morlhf",
        dtype=case.dtype, kl_coeff=case.kl_coeff, max_new_tokens=case.response, actor_learning_rate=case.learning_rate,
        critic_learning_rate=case.learning_rate, per_device_prompt_batch_size=case.responses // case.generations,
        responses_per_prompt=case.generations, per_device_train_batch_size=case.responses,
    ))  # fmt: skip


class ProjectSteps:
    """Rollout and optimizer step on the same models under every algorithm, with critics or without."""

    def __init__(self, case: Case):
        self.args = arguments_of(case)
        objectives = objectives_of(self.args)
        tokenizer = load_tokenizer(self.args.actor_model, "--actor_model")
        self.prompts = read_prompts(self.args, tokenizer)
        generation = sampling_config(tokenizer, self.args.temperature, case.response)
        generation.suppress_tokens = case.never or None
        needs = needs_of(self.args, algorithm_of(self.args, objectives))
        self.engine = RLHFEngine(self.args, objectives, needs, tokenizer, generation, TOTAL_STEPS)
        self.updates = {
            name: make_update(self.engine.actor, self.args, OBJECTIVES, **changes)
            for name, changes in ALGORITHMS.items()
        }

    def take(self, algorithm: str) -> dict[str, float]:
        """Seconds of one whole step and of its phases, and the tokens of its responses."""
        update, engine = self.updates[algorithm], copy.copy(self.engine)
        engine.needs = update.needs
        engine.critics = [critic for critic in self.engine.critics if update.needs.critics]
        self.updating, start = False, time.perf_counter()
        rollout = make_rollout(engine, self.prompts, update.algorithm, update.args)
        self.updating = True
        for _, not_finite in optimizer_steps(rollout, update, engine.critics, update.args):
            assert not_finite is None, not_finite
        step = time.perf_counter() - start
        generation, scoring = rollout.generation_seconds, rollout.scoring_seconds
        seconds = {"step": step, "generation": generation, "scoring": scoring, "update": step - generation - scoring}
        return seconds | {"tokens": rollout.experience.mask.sum().item(), "threads": torch.get_num_threads()}

    def count_flops(self, algorithm: str) -> dict[str, float]:
        """Floating-point operations of the phases of one step: {"flops/generation": ..., ...}.

        Of linear maps alone, padding included: 2·n·tokens for a forward pass through n weights, and 4·n·tokens for its
        backward pass, which belongs to the update wherever the forward pass was made. Attention, softmax, and what a
        method does beside (the Gram matrix) do not count.
        """
        flops: Counter[str] = Counter()

        def count(module: nn.Linear, inputs: tuple[torch.Tensor], _: torch.Tensor, generates: bool) -> None:
            products = 2 * module.weight.numel() * (inputs[0].numel() // module.in_features)
            phase = "generation" if generates else "update" if self.updating else "scoring"
            flops[f"flops/{phase}"] += products
            flops["flops/update"] += 2 * products if torch.is_grad_enabled() else 0

        engine = self.engine
        trained = [engine.actor.engine, *(critic.engine for critic in engine.critics)]
        frozen = [engine.reference.engine, *(scorer.engine for scorer in engine.scorers)]
        handles = [
            module.register_forward_hook(partial(count, generates=tree is engine.actor.twin))
            for tree in (engine.actor.twin, *(wrapped.module for wrapped in trained + frozen))
            for module in tree.modules()
            if isinstance(module, nn.Linear)
        ]
        self.take(algorithm)
        for handle in handles:
            handle.remove()
        return flops | {"flops/step": sum(flops.values())}


@torch.no_grad()
def matrix_rate(dtype: torch.dtype) -> float:
    """Floating-point operations a second of a large square matrix product, the best of some."""
    left, right = torch.randn(2, SIDE, SIDE, device=device(), dtype=dtype)
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        (left @ right)[0, 0].item()  # waits for the device
        seconds.append(time.perf_counter() - start)
    return 2 * SIDE**3 / min(seconds)


def main() -> None:
    """The first turn of an algorithm warms up and counts, all others are timed."""
    turns, case = Turns(), case_of_command_line()
    init_distributed()
    seed_everything(0)
    steps, flops = ProjectSteps(case), {}
    while asked := turns.asked():
        if asked == RATE:
            turns.answer({RATE: matrix_rate(DTYPES[case.dtype])})
            continue
        if asked in flops:
            turns.answer(steps.take(asked) | flops[asked])
        else:
            flops[asked] = steps.count_flops(asked)
            turns.answer(flops[asked])


if __name__ == "__main__":
    main()
