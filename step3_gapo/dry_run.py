"""`--dry_run` of step 3: its models, batches and memory."""

import argparse

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from step3_gapo.critics import critic_groups
from step3_gapo.needs import Needs, policy_loss_of
from utils.data.encoding import Encoded
from utils.memory.dry_run import Described, optimizer_lines, print_dry_run, surroundings
from utils.models.checking import check_causal_lm
from utils.models.configs import load_config, skeleton
from utils.models.shared_prompts import shares_prompts
from utils.policy.actor import hybrid_engine_obstacle, missing_inference_policy
from utils.policy.sampling import compaction_obstacle
from utils.scoring.model_judges import ModelJudge
from utils.scoring.objectives import Objective, by_source
from utils.scoring.score_models import is_ours, loader_of
from utils.scoring.tasks import Task
from utils.scoring.verdicts import Judge


def print_gapo_dry_run(
    args: argparse.Namespace,
    objectives: list[Objective],
    judges: list[Judge],
    tasks: list[Task],
    needs: Needs,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[Encoded],
    rollouts: int,
    steps_a_rollout: int,
    prompts_a_rollout: int,
) -> None:
    """Tables of everything the run would hold and do.

    Args:
        rollouts: of the whole run.
        steps_a_rollout: optimizer steps of one pass over a rollout.
    """
    models = [policy_of(args, needs), *score_models_of(args, objectives, needs, tokenizer), *judge_models(judges)]
    longest = max(len(prompt.prompt) for prompt in prompts), args.max_new_tokens
    trained = [described.model for described in models if {"policy", "critic"} & set(described.uses)]
    shares = all(shares_prompts(args, model, args.responses_per_prompt) for model in trained)
    around = surroundings(args, longest, len(needs.losses), needs.gram, shares_prompts=shares)
    steps, responses = rollouts * steps_a_rollout * args.ppo_epochs, args.responses_per_prompt or 1
    batches = {
        "prompts": len(prompts),
        "prompts a rollout": prompts_a_rollout,
        "responses a prompt": responses,
        "rollouts": rollouts,
        "sequences an optimizer step": prompts_a_rollout * policy_loss_of(args).rows(responses) // steps_a_rollout,
        "longest prompt, response (tokens)": f"{longest[0]}, {longest[1]}",
        "objectives": ", ".join(o.name + ("" if o.optimized else " (monitored)") for o in objectives),
        **optimizer_lines(args, steps),
    }
    if judges:
        batches["judges"] = ", ".join(judge.name for judge in judges)
    for task in tasks:
        batches[f"task {task.name}"] = task_outlook(task, prompts)
    if shares:
        batches["a prompt"] = "is read once for all of its responses in a micro-batch"
    if args.enable_hybrid_engine:
        batches["hybrid engine"] = hybrid_engine_outlook(models[0].model)
    elif args.compact_at and (obstacle := compaction_obstacle(models[0].model)):
        batches["ended responses"] = f"stay in the batch: {obstacle}"
    print_dry_run(args, models, batches, around)


def task_outlook(task: Task, prompts: list[Encoded]) -> str:
    """What a task is, in a line."""
    own = sum(prompt.record.task == task.name for prompt in prompts)
    worth = " + ".join(f"{weight:g} {name}" for name, weight in task.objectives.items())
    judged = f"judged by {', '.join(task.judges)}" if task.judges else "without judges"
    return f"{own} prompts, {task.responses} responses each, {worth}, {judged}"


def hybrid_engine_outlook(policy: PreTrainedModel) -> str:
    """What is known of `--enable_hybrid_engine` here: on a machine without GPU, what the architecture says alone."""
    known = hybrid_engine_obstacle if torch.cuda.is_available() else missing_inference_policy
    if obstacle := known(policy):
        return f"not used: {obstacle}; generates natively"
    here = "can be used" if torch.cuda.is_available() else "knows the architecture; needs CUDA and kernels built there"
    return f"{here}; what its kernels take is not planned"


def policy_of(args: argparse.Namespace, needs: Needs) -> Described:
    """The policy, its reference, and the critics that start from it."""
    model = check_causal_lm(args.actor_model, "--actor_model")
    uses, note = ("policy", "reference"), "own; start of the reference"
    groups = [] if needs.starts else critic_groups(args, needs.critics)
    if groups:
        uses += ("critic",) * len(groups)
        note += f" and of {len(groups)} critic" + "s" * (len(groups) > 1)
    return Described("policy", args.actor_model, model, uses, note)


def score_models_of(
    args: argparse.Namespace, objectives: list[Objective], needs: Needs, tokenizer: PreTrainedTokenizerBase
) -> list[Described]:
    """Score models, and what each objective's own critic starts from."""
    described = []
    for group in by_source(objectives):
        if group[0].is_function:
            described += described_function(args, group[0], needs)
        else:
            described += described_models(args, group, needs, tokenizer)
    return described


def judge_models(judges: list[Judge]) -> list[Described]:
    """The language models among the judges."""
    return [
        Described(f"judge {judge.name}", judge.path, check_causal_lm(judge.path, judge.flag), ("score",), "own: asked")
        for judge in judges
        if isinstance(judge, ModelJudge)
    ]


def described_function(args: argparse.Namespace, objective: Objective, needs: Needs) -> list[Described]:
    """The critic of an objective that is a function, if it has one of its own."""
    if objective.name not in needs.starts:
        return []
    return [critic_of(args, objective, "a function; from the policy")]


def described_models(
    args: argparse.Namespace, objectives: list[Objective], needs: Needs, tokenizer: PreTrainedTokenizerBase
) -> list[Described]:
    """A score model, with the critics that start from it, and those of its objectives that start from the policy."""
    first = objectives[0]
    config = load_config(first.path, first.flag)
    model = skeleton(loader_of(config), config, first.path, first.flag)
    shared = first.shares_tokens_of(tokenizer)
    note = "the policy's" if shared and is_ours(config) else "own: re-tokenized"
    role = ", ".join(f"{objective.kind} of {objective.name}" for objective in objectives)
    critics = [objective for objective in objectives if objective.name in needs.starts]
    if critics and shared:
        whose = "its critic" if len(objectives) == 1 else f"the critics of {', '.join(o.name for o in critics)}"
        uses = ("score",) + ("critic",) * len(critics)
        return [Described(role, first.path, model, uses, f"{note}; start of {whose}")]
    others = [critic_of(args, objective, "the policy's; from the policy") for objective in critics]
    return [Described(role, first.path, model, ("score",), note), *others]


def critic_of(args: argparse.Namespace, objective: Objective, note: str) -> Described:
    """A critic that starts from the policy."""
    policy = check_causal_lm(args.actor_model, "--actor_model")
    return Described(f"critic of {objective.name}", args.actor_model, policy, ("critic",), note)
