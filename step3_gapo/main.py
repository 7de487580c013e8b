"""Step 3: align an SFT policy to several reward and cost models at once.

python step3_gapo/main.py --help                              one rank
deepspeed --num_accelerators 2 step3_gapo/main.py --help      several ranks
"""

import argparse
import sys
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from transformers import PreTrainedTokenizerBase

from step3_gapo.algorithms import Algorithm, compares_gradients
from step3_gapo.arguments import algorithm_of, check_batch_sizes, objectives_of, parse_args
from step3_gapo.critics import Critic
from step3_gapo.dry_run import print_gapo_dry_run
from step3_gapo.policy_forward import check_plain_head
from step3_gapo.rlhf_engine import RLHFEngine
from step3_gapo.rollout import Experience, Rollout, episode_scores, make_rollout
from step3_gapo.tracking import Tracker, mean_scalars, rollout_scalars
from step3_gapo.update import ActorUpdate, Scalars, optimizer_step
from utils.adapter_folder import is_adapter_folder
from utils.arguments import check_deepspeed_arguments
from utils.checkpoint import Checkpoints
from utils.data import load_prompts
from utils.data.encoding import Encoded, fit_lengths
from utils.distributed import (
    init_distributed,
    is_main,
    print_main,
    rank,
    seed_everything,
    shutdown_distributed,
    world_size,
)
from utils.dry_run import settle_ranks
from utils.errors import UserError, run_main
from utils.fingerprint import ids_fingerprint, model_facts
from utils.guards import SkippedSteps
from utils.lora import check_targets
from utils.models import check_causal_lm, check_positions, describe_model, load_tokenizer, sampling_config
from utils.objectives import Objective
from utils.output import check_output, write_json
from utils.rank_watch import beat, watch_ranks

SKIPPING_ADVICE = "lower --actor_learning_rate or --critic_learning_rate, or try another --algorithm"


def main() -> None:
    # Arguments, and everything that can be checked before a model is built.
    args = parse_args()
    settle_ranks(args)
    objectives = objectives_of(args)
    algorithm = algorithm_of(args, objectives)
    check_deepspeed_arguments(args)
    minibatches = check_batch_sizes(args)
    tokenizer, embedding_rows = check_policy(args)
    prompts = read_prompts(args, tokenizer, embedding_rows)
    try_functions(objectives, prompts[0])
    total_steps = count_rollouts(args, len(prompts))
    if args.dry_run:
        return print_gapo_dry_run(args, objectives, tokenizer, prompts, total_steps, minibatches, rollout_size(args))
    check_output(args.output_dir, args.fresh)

    # The checkpoint to go on from, if there is one; engines.
    init_distributed(args.rank_timeout)
    watch_ranks(args.output_dir, args.rank_timeout)
    seed_everything(args.seed)
    checkpoints = Checkpoints(args, "gapo", facts_of(args, objectives, prompts) if is_main() else {})
    generation = sampling_config(tokenizer, args.temperature, args.max_new_tokens)
    engine = RLHFEngine(args, objectives, tokenizer, generation, total_steps * args.ppo_epochs * minibatches)
    optimized = [objective for objective in objectives if objective.optimized]
    actor_update = ActorUpdate(engine.actor, algorithm, [objective.name for objective in optimized], args)
    skipped = SkippedSteps(args.max_skipped_steps, SKIPPING_ADVICE)
    done = restore(checkpoints, engine, actor_update, skipped)
    tracker = Tracker(args, objectives, total_steps, checkpoints) if is_main() else None

    # The loop: generate, score, update. Batches and random numbers of a step follow from its number alone.
    batches = islice(prompt_batches(prompts, args), done, total_steps)
    for step, batch in enumerate(batches, start=done + 1):
        beat("rollout", step)
        seed_everything(args.seed + 1000 * step + rank())
        rollout = make_rollout(engine, batch, args)
        start = time.monotonic()
        if algorithm.adaptive and not rollout.not_finite:
            algorithm.adaptive.observe(episode_scores(rollout.experience, optimized, args))
        updates: list[Scalars] = []
        for update, not_finite in optimizer_steps(rollout, actor_update, engine.critics, args):
            skipped.observe(step, not_finite, checkpoints)
            updates.append(update)
        scalars = rollout_scalars(rollout) | mean_scalars(updates)
        if algorithm.adaptive:
            scalars |= algorithm.adaptive.scalars()
        scalars |= {"time/update": time.monotonic() - start, "skipped_steps": skipped.total}
        if tracker:
            tracker.log(step, scalars, rollout)
            write_algorithm_state(algorithm, step, args)
        if checkpoints.due(step, total_steps, skipped.in_a_row > 0):
            save(checkpoints, step, engine, actor_update, skipped, tracker)

    # The aligned policy.
    beat("exporting the policy")
    engine.save_policy(args.output_dir)
    if tracker:
        tracker.close()
    checkpoints.finish()
    print_main(f"policy saved in {args.output_dir}")
    shutdown_distributed()


def check_policy(args: argparse.Namespace) -> tuple[PreTrainedTokenizerBase, int]:
    """The policy's tokenizer, and the rows of its embedding.

    Raises:
        UserError: the policy is no language model with room for prompt and response, and for adapters if it gets some.
    """
    skeleton = check_causal_lm(args.actor_model, "--actor_model")
    if args.gradient_scope == "last_layer" and compares_gradients(args):
        check_plain_head(skeleton.config)
    if args.lora_dim:
        check_targets(skeleton, args.lora_target_modules)
        if args.lora_export == "adapter" and is_adapter_folder(args.actor_model):
            raise UserError(f"--lora_export adapter: --actor_model {args.actor_model} consists of adapters itself")
    length = args.max_prompt_length + args.max_new_tokens
    check_positions(args.actor_model, "--actor_model", length, "--max_prompt_length + --max_new_tokens")
    return load_tokenizer(args.actor_model, "--actor_model"), skeleton.get_input_embeddings().weight.shape[0]


def read_prompts(
    args: argparse.Namespace, tokenizer: PreTrainedTokenizerBase, embedding_rows: int | None = None
) -> list[Encoded]:
    """The prompts that fit `--max_prompt_length` and the model, with what was read and dropped on the screen."""
    prompts, summary = load_prompts(args.data, args.seed)
    limits = {"max_prompt_length": args.max_prompt_length, "unfit": args.unfit, "embedding_rows": embedding_rows}
    encoded = fit_lengths(tokenizer, prompts, summary, args.overlong, **limits)
    print_main("\n".join(summary.lines()))
    return encoded


def try_functions(objectives: list[Objective], prompt: Encoded) -> None:
    """Call every objective that is a function once, so that one that fails does so before models are built."""
    messages = prompt.record.messages
    for objective in objectives:
        if objective.is_function:
            objective.load_function()([messages[-1]["content"]], ["Yes."], [messages], [prompt.record.source])


def write_algorithm_state(algorithm: Algorithm, step: int, args: argparse.Namespace) -> None:
    """Keep the state of an algorithm that has one where people can look at it."""
    if algorithm.adaptive:
        state = {"step": step, **algorithm.adaptive.state_dict()}
        write_json(Path(args.output_dir) / "algorithm_state.json", state)


def optimizer_steps(
    rollout: Rollout, actor_update: ActorUpdate, critics: list[Critic], args: argparse.Namespace
) -> Iterator[tuple[Scalars, str | None]]:
    """One optimizer step after another: its metrics; what was not finite, for which it was skipped, if anything."""
    for number, micro_batches in enumerate(optimizer_batches(rollout.experience, args)):
        beat(f"update {number + 1}")
        if rollout.not_finite:
            yield {}, rollout.not_finite
        else:
            yield optimizer_step(actor_update, critics, micro_batches, number == 0, args)


def facts_of(args: argparse.Namespace, objectives: list[Objective], prompts: list[Encoded]) -> dict[str, str]:
    """What a run's result depends on beside its flags: objectives' names, fingerprints of what it reads."""
    facts = {"objectives": " ".join(o.name if o.optimized else f"({o.name})" for o in objectives)}
    facts |= model_facts(args.actor_model, "--actor_model")
    if args.lora_dim:  # in no checkpoint, so that no run goes on with another one
        facts["base of the adapters (--actor_model)"] = facts["--actor_model"]
    for objective in objectives:
        facts |= objective.facts()
    return facts | {"--data": ids_fingerprint(prompt.prompt for prompt in prompts)}


def restore(checkpoints: Checkpoints, engine: RLHFEngine, actor_update: ActorUpdate, skipped: SkippedSteps) -> int:
    """Go on from the checkpoint that was found, if any; the rollouts that are done."""
    state = checkpoints.restore(engine.trained())
    if state is None:
        return 0
    actor_update.load_state_dict(state["algorithm"])
    skipped.load_state_dict(state["skipped"])
    return state["step"]


def save(
    checkpoints: Checkpoints,
    step: int,
    engine: RLHFEngine,
    actor_update: ActorUpdate,
    skipped: SkippedSteps,
    tracker: Tracker | None,
) -> None:
    """Make the checkpoint of a rollout that is done. The next one is made again from its number."""

    def write_more(folder: Path) -> None:
        tracker.logger.copy_to(folder)
        describe_model(engine.actor.engine.module, engine.tokenizer, folder / "model")

    state = {"algorithm": actor_update.state_dict(), "skipped": skipped.state_dict()}
    checkpoints.save(step, engine.trained(), state, write_more)


def rollout_size(args: argparse.Namespace) -> int:
    """Prompts a rollout uses, over all ranks."""
    return args.per_device_prompt_batch_size * args.generation_batches * world_size()


def count_rollouts(args: argparse.Namespace, prompts: int) -> int:
    """Rollouts of the whole run; an epoch drops the prompts that do not fill one."""
    per_epoch = prompts // rollout_size(args)
    if not per_epoch:
        raise UserError(f"--data: {prompts} prompts do not fill one rollout of {rollout_size(args)}")
    total = per_epoch * args.num_train_epochs
    return min(total, args.max_steps or total)


def prompt_batches(prompts: list[Encoded], args: argparse.Namespace) -> Iterator[list[Encoded]]:
    """This rank's prompts of one rollout after another, reshuffled every epoch."""
    size, ranks = rollout_size(args), world_size()
    for epoch in range(args.num_train_epochs):
        order = torch.randperm(len(prompts), generator=torch.Generator().manual_seed(args.seed + epoch)).tolist()
        for start in range(0, len(prompts) - size + 1, size):
            yield [prompts[i] for i in order[start + rank() : start + size : ranks]]


def optimizer_batches(experience: Experience, args: argparse.Namespace) -> Iterator[list[Experience]]:
    """The micro-batches of one optimizer step after another, `--ppo_epochs` times through the experience."""
    size = args.per_device_train_batch_size * args.gradient_accumulation_steps
    for _ in range(args.ppo_epochs):
        rows = torch.randperm(len(experience.mask)).to(experience.mask.device)
        for part in rows.split(size):
            yield experience.micro_batches(part, args)
            experience.hidden = None  # of the policy that sampled; it has moved


if __name__ == "__main__":
    run_main(main)
