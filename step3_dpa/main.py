"""Step 3 by rejection sampling: one policy that is steered by directions over several attributes (DPA).

    python step3_dpa/main.py --help                              one rank
    deepspeed --num_accelerators 2 step3_dpa/main.py --help      several ranks

Directional preference alignment (arXiv 2402.18571): in every iteration each prompt gets a direction v in its system
turn, the policy answers N times, the reply with the largest vᵀr is kept, and the policy learns from what was kept. The
result answers to directions: see `--direction` of eval/generate.py and eval/chat.py.
"""

import argparse
import gc
import sys
from pathlib import Path

if __name__ == "__main__":
    gc.disable()  # imports leave no garbage: a fifth less to start; `run_main` enables it
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from step3_dpa.arguments import check_numbers, parse_args, scales_of, steering_from
from step3_dpa.dry_run import print_steered_dry_run
from step3_dpa.iterations import Iterations
from step3_dpa.kept import Answered
from step3_dpa.prompts import HELD_OUT, TRAIN, ask, fingerprint, read_prompts
from step3_dpa.sampling import sample, score
from step3_dpa.training import export_last, fine_tune
from utils.cli.arguments import check_deepspeed_arguments
from utils.data.encoding import encode_prompt
from utils.data.records import Prompt
from utils.memory.dry_run import settle_ranks
from utils.models.checking import check_causal_lm, check_dialogues, check_positions
from utils.models.configs import embedding_rows, load_tokenizer
from utils.models.fingerprint import model_facts
from utils.output.files import check_output, check_writable
from utils.process.distributed import init_distributed, is_main, print_main, shutdown_distributed
from utils.process.errors import Problems, UserError, run_main
from utils.process.rank_watch import watch_ranks
from utils.scoring.objectives import Objective, declared_objectives
from utils.steering.directions import Steering, at_angle


def main() -> None:
    # Arguments, data, and everything that can be checked before a model is loaded.
    args = parse_args()
    problems = Problems(collecting=args.dry_run)
    problems.take(settle_ranks, args)
    problems.take(check_deepspeed_arguments, args)
    objectives = declared_objectives(args, problems)
    for objective in objectives:
        problems.take(objective.check)
    check_numbers(args, objectives, problems)
    problems.report()
    steering = steering_from(args, objectives)
    tokenizer, policy = check_policy(args, steering, problems)
    sides = problems.take(read_prompts, args, steering, tokenizer, embedding_rows(policy)) if tokenizer else None
    problems.report()
    if args.dry_run:
        return print_steered_dry_run(args, policy, objectives, sides, steering, tokenizer)
    check_output(args.output_dir, args.fresh)

    # Iterations: sampling, scoring, keeping the best, fine-tuning on them.
    init_distributed(args.rank_timeout)
    watch_ranks(args.output_dir, args.rank_timeout)
    run = Iterations(args, facts_of(args, objectives, sides) if is_main() else {})
    stage = Stage(args, run, objectives, steering, tokenizer, sides)
    for number in range(run.done + 1, args.iterations + 1):
        train, held_out = stage.answered(TRAIN, number), stage.answered(HELD_OUT, number)
        figures = stage.figures(train, held_out)
        print_main(f"iteration {number}/{args.iterations} · {summary_of(figures)}")
        if is_main():
            run.text("kept", train.write(run.folder(number) / "kept.jsonl", tokenizer), number)
        sides_kept = train.kept(tokenizer), held_out.kept(tokenizer)
        figures |= fine_tune(run.args_of(number), sides_kept, steering, tokenizer)
        run.finish(number, figures)

    # The steerable policy: the last iteration's, measured on held-out prompts.
    last = stage.answered(HELD_OUT, args.iterations + 1)
    export_last(run, args, last.figures(tokenizer, (args.min_angle, args.max_angle)))
    shutdown_distributed()


class Stage:
    """What all iterations share."""

    def __init__(
        self,
        args: argparse.Namespace,
        run: Iterations,
        objectives: list[Objective],
        steering: Steering,
        tokenizer: PreTrainedTokenizerBase,
        sides: tuple[list[Prompt], list[Prompt]],
    ):
        self.args, self.run, self.objectives = args, run, objectives
        self.steering, self.tokenizer, self.sides = steering, tokenizer, sides

    def answered(self, part: str, number: int) -> Answered:
        """What the policy before iteration `number` answers to the prompts of a part, and what it is worth."""
        args, tokenizer = self.args, self.tokenizer
        prompts = self.sides[0] if part == TRAIN else self.sides[1]
        asked = ask(prompts, part, number, args, self.steering, tokenizer)
        folder = self.run.folder(number) / part
        if is_main():
            check_writable(folder)
        label = f"iteration {number}/{args.iterations}, {part}" if number <= args.iterations else f"result, {part}"
        replies = sample(folder, asked, self.run.policy(number - 1), label, tokenizer, args)
        values, judged = score(folder, asked, replies, self.objectives, label, tokenizer, args)
        return Answered.of(asked, replies, values, judged, scales_of(args, self.objectives))

    def figures(self, train: Answered, held_out: Answered) -> dict[str, float]:
        """Of both parts."""
        angles = self.args.min_angle, self.args.max_angle
        measured = held_out.figures(self.tokenizer, angles)
        return train.figures(self.tokenizer, angles) | {f"held_out/{tag}": value for tag, value in measured.items()}


def summary_of(figures: dict[str, float]) -> str:
    """The line of an iteration."""
    shown = {
        "rating": "rating/sampled",
        "of the kept": "rating/kept",
        "on held-out prompts": "held_out/rating/sampled",
    }
    return " · ".join(f"{name} {figures[tag]:.4g}" for name, tag in shown.items())


def check_policy(
    args: argparse.Namespace, steering: Steering, problems: Problems
) -> tuple[PreTrainedTokenizerBase | None, PreTrainedModel | None]:
    """The policy's tokenizer, and the policy without memory for its parameters; None for one with a problem.

    Problems: no language model, no room for prompt and reply, a chat template without system turns.
    """
    flag = "--actor_model"
    policy = problems.take(check_causal_lm, args.actor_model, flag)
    length = args.max_prompt_length + args.max_new_tokens
    lengths = f"--max_prompt_length {args.max_prompt_length} and --max_new_tokens {args.max_new_tokens}"
    problems.take(check_positions, args.actor_model, flag, length, lengths)
    tokenizer = problems.take(load_tokenizer, args.actor_model, flag)
    usable = problems.passes(check_dialogues, tokenizer, flag)
    usable = usable and problems.passes(check_system_turn, tokenizer, steering)
    return tokenizer if usable else None, policy


def check_system_turn(tokenizer: PreTrainedTokenizerBase, steering: Steering) -> None:
    """Raises: UserError: the chat template refuses a system turn, or leaves it out."""
    question = [{"role": "user", "content": "?"}]
    steered = steering.steered(question, at_angle(steering.attributes, 0.0, [0.0] * (len(steering.attributes) - 1)))
    told = encode_prompt(tokenizer, steered) != encode_prompt(tokenizer, question)
    if not told:
        raise UserError("--actor_model: the chat template leaves out the system turn, which says the direction")


def facts_of(
    args: argparse.Namespace, objectives: list[Objective], sides: tuple[list[Prompt], list[Prompt]]
) -> dict[str, str]:
    """What a run's result depends on beside its flags."""
    facts = {"objectives": " ".join(objective.name for objective in objectives)}
    facts |= model_facts(args.actor_model, "--actor_model")
    for objective in objectives:
        facts |= objective.facts()
    return facts | {"--data": fingerprint(sides)}


if __name__ == "__main__":
    run_main(main)
