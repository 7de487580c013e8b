"""What stages 1 and 2 share: data held out by prompt, batches of optimizer steps, training loop, export."""

import argparse
import dataclasses
import functools
import heapq
import itertools
import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from utils.checkpoints.checkpoints import BEST, Checkpoint, Checkpoints
from utils.checkpoints.skipped_steps import SkippedSteps
from utils.cli.arguments import note_warmup
from utils.data.batching import length_grouped_batches
from utils.data.encoding import Encoded, data_fingerprint, fit_lengths
from utils.data.records import Record, conversation_key
from utils.data.summaries import ReadingSummary
from utils.engines.engines import Engine, gathered_weights, restore_weights
from utils.gradients.zero import step_if_finite
from utils.memory.dry_run import Described, longest_of, optimizer_lines, print_dry_run, surroundings
from utils.models.export import describe_model, export_model
from utils.models.fingerprint import model_facts
from utils.models.loading import embedding_rows, load_config, positions_of
from utils.output.files import finished_files, mark_finished, write_json
from utils.output.metrics import Progress, format_duration, start_record
from utils.process.distributed import all_reduce_sum, device, is_main, print_main, rank, world_size
from utils.process.errors import AT_ONCE, Problems, UserError
from utils.process.rank_watch import beat

Read = tuple[list[Record], ReadingSummary]
Load = Callable[[str, int], Read]
SAMPLED = (
    1000  # examples that a dry run draws from more of them; besides, half as many with the longest prompts and texts
)


@dataclass
class Task:
    """What tells one supervised stage from another.

    Attributes:
        train: the training examples.
        units: how much an example weighs: its response tokens for a language model, 1 for a preference pair.
        sums: sums over the units of some examples on this rank; "loss" carries the graph, others are logged.
        validate: figures on the validation data, the same on every rank; "loss" chooses the best epoch.
        shown: those of the figures that progress lines show.
    """

    train: list[Encoded]
    units: Callable[[Encoded], int]
    sums: Callable[[list[Encoded]], dict[str, torch.Tensor]]
    validate: Callable[[], dict[str, float]]
    shown: tuple[str, ...]


@dataclass
class Outcome:
    """How a run went: validation figures before training (index 0) and after each epoch; what was kept."""

    validation: list[dict[str, float]]
    exported_epoch: int
    seconds: float


# --- data


class Examples(list[Encoded]):
    """Encoded examples; `total` counts them, and is an estimate where a dry run has encoded only some."""

    def __init__(self, examples: list[Encoded], total: int):
        super().__init__(examples)
        self.total = total


def read_examples(
    args: argparse.Namespace,
    tokenizer: PreTrainedTokenizerBase | None,
    load: Load,
    architecture: PreTrainedModel | None = None,
    problems: Problems = AT_ONCE,
) -> tuple[Examples | None, Examples | None]:
    """Training and validation examples that fit `--max_length` and the model; prints what was read.

    Args:
        tokenizer, architecture: None in a dry run that has found none; the data is read all the same.

    Returns:
        None for a side with a problem: unusable data, nothing to validate on, or examples longer than the model has
        positions for, or with ids beyond its embedding.
    """
    read, held_out = read_sides(args, load, problems)
    fit = functools.partial(encode, rows=embedding_rows(architecture))
    train, validation = (problems.take(fit, args, tokenizer, side) for side in (read, held_out))
    if train is not None and validation is not None:
        print_main("\n".join(read[1].lines() + [f"validation: {line}" for line in held_out[1].lines()]))
        print_main(f"{train.total} examples to train on, {validation.total} to validate on")
        problems.take(check_positions, args, max(example.length for example in train + validation))
    return train, validation


def read_sides(args: argparse.Namespace, load: Load, problems: Problems) -> tuple[Read | None, Read | None]:
    """What is to be trained on, and what is held out; None where there is a problem with it."""
    if not args.validation_data and args.validation_fraction == 0:
        problems.add("--validation_fraction 0: needs --validation_data")
    read = problems.take(load, args.data, args.seed)
    if args.validation_data:
        return read, problems.take(load, args.validation_data, args.seed)
    return problems.take(split_off, args, read) or (None, None)


def split_off(args: argparse.Namespace, read: Read) -> tuple[Read, Read]:
    """Both sides of the data, by `--validation_fraction`."""
    train, held_out = hold_out(read[0], args.validation_fraction, args.seed)
    return (train, read[1]), (held_out, ReadingSummary())


def encode(
    args: argparse.Namespace, tokenizer: PreTrainedTokenizerBase, read: Read, rows: int | None = None
) -> Examples:
    """The records that fit `--max_length` and the model; in a dry run of many records, those of a sample."""
    records, summary = read
    limits = {"max_length": args.max_length, "unfit": args.unfit, "embedding_rows": rows}
    if not args.dry_run or len(records) <= 2 * SAMPLED:
        fitted = fit_lengths(tokenizer, records, summary, args.overlong, **limits)
        return Examples(fitted, len(fitted))
    drawn = random.Random(args.seed).sample(records, SAMPLED)
    longest = (heapq.nlargest(SAMPLED // 2, records, key=length) for length in (prompt_characters, characters))
    chosen = {id(record): record for record in itertools.chain(drawn, *longest)}
    print_main(
        f"dry run: {len(chosen)} of {len(records)} examples are tokenized, the longest and {SAMPLED} at random; what is"
        " dropped or cut is counted among these, numbers of examples and steps are estimates"
    )
    fitted = fit_lengths(tokenizer, list(chosen.values()), summary, args.overlong, **limits)
    kept = {id(example.record) for example in fitted}
    share = sum(id(record) in kept for record in drawn) / SAMPLED
    return Examples(fitted, max(1, round(share * len(records))))


def prompt_characters(record: Record) -> int:
    return sum(len(message["content"]) for message in record.messages)


def characters(record: Record) -> int:
    """Of the prompt and the longest reply."""
    return prompt_characters(record) + max(map(len, record.replies))


def hold_out(records: Sequence[Record], fraction: float, seed: int) -> tuple[list[Record], list[Record]]:
    """(training, validation) records: all records of a prompt are on one side, at least one prompt on each.

    Raises:
        UserError: fewer than two distinct prompts.
    """
    prompts = list(dict.fromkeys(conversation_key(record.messages) for record in records))
    if len(prompts) < 2:
        raise UserError("--data: one prompt cannot be split in training and validation (use --validation_data)")
    count = min(max(1, round(fraction * len(prompts))), len(prompts) - 1)
    if count != round(fraction * len(prompts)):
        print_main(f"note: --validation_fraction {fraction:g}: holds out {count} of {len(prompts)} prompts, as it must")
    chosen = set(random.Random(seed).sample(prompts, count))
    sides: tuple[list[Record], list[Record]] = ([], [])
    for record in records:
        sides[conversation_key(record.messages) in chosen].append(record)
    return sides


def check_positions(args: argparse.Namespace, longest: int) -> None:
    """Raise UserError if the model has fewer positions than the longest example has tokens."""
    positions = positions_of(load_config(args.model_name_or_path, "--model_name_or_path"))
    if positions is not None and longest > positions:
        raise UserError(
            f"--max_length {args.max_length}: an example has {longest} tokens,"
            f" {args.model_name_or_path} has positions for {positions}"
        )


def print_supervised_dry_run(
    args: argparse.Namespace, use: str, model: PreTrainedModel, train: Examples, validation: Examples
) -> None:
    """Tables of model, batches and memory; `model`, whose `use` is as in the plan, has no memory for its parameters."""
    described = Described("model", args.model_name_or_path, model, (use,), "own")
    around = surroundings(args, longest_of(train), sequences=max(example.record.sequences for example in train))
    per_step = args.per_device_train_batch_size * args.gradient_accumulation_steps * world_size()
    batches = {
        train[0].record.PLURAL: f"{train.total} to train on, {validation.total} to validate on",
        "of these an optimizer step": per_step,
        "longest (tokens)": around.longest[0],
        "epochs": args.num_train_epochs,
        **optimizer_lines(args, steps_per_epoch(train.total, args) * args.num_train_epochs),
    }
    print_dry_run(args, [described], batches, around)


def note_steps(args: argparse.Namespace, examples: int) -> None:
    """Say where optimizer steps are not what was asked for: batches larger than the data, a warm-up without an end."""
    per_step = args.per_device_train_batch_size * args.gradient_accumulation_steps * world_size()
    if examples < per_step:
        print_main(f"note: --data: all {examples} examples are in every optimizer step, which could take {per_step}")
    note_warmup(args, steps_per_epoch(examples, args) * args.num_train_epochs)


# --- batches


def steps_per_epoch(examples: int, args: argparse.Namespace) -> int:
    """Optimizer steps of a pass over the training data."""
    per_step = args.per_device_train_batch_size * args.gradient_accumulation_steps * world_size()
    return math.ceil(examples / per_step)


def epoch_steps(examples: list[Encoded], args: argparse.Namespace, epoch: int) -> list[list[list[Encoded]]]:
    """This rank's micro-batches of one optimizer step after another.

    Batches are drawn for a whole step and then cut, so that accumulating micro-batches equals one batch.
    """
    micro_batches = args.gradient_accumulation_steps
    steps = length_grouped_batches(
        [example.length for example in examples],
        args.per_device_train_batch_size * micro_batches,
        args.seed,
        epoch,
        rank(),
        world_size(),
    )
    return [split_evenly([examples[i] for i in indices], micro_batches) for indices in steps]


def split_evenly(items: list[Any], parts: int) -> list[list[Any]]:
    """`items` in `parts` runs of nearly equal size; too few items start over, so that no part is empty."""
    if len(items) < parts:
        items = (items * parts)[:parts]
    return [items[i * len(items) // parts : (i + 1) * len(items) // parts] for i in range(parts)]


@torch.no_grad()
def per_example(
    engine: Engine,
    examples: list[Encoded],
    batch_size: int,
    measure: Callable[[list[Encoded]], torch.Tensor],
) -> torch.Tensor:
    """`measure` (b examples -> [b] or [b, k]) of every example, without gradients, shared out over the ranks.

    Returns:
        [n, k + 1] float64 on the CPU of every rank; the last column is 1.
    """
    engine.eval()
    lengths = [example.length for example in examples]
    batches = length_grouped_batches(lengths, batch_size, 0, 0, rank(), world_size())
    table = None
    for indices in batches:
        beat("evaluating")
        values = measure([examples[i] for i in indices]).double().reshape(len(indices), -1)
        if table is None:
            table = values.new_zeros(len(examples), values.shape[1] + 1)
        table[torch.tensor(indices, device=table.device)] = torch.nn.functional.pad(values, (0, 1), value=1.0)
    engine.train()
    # A rest smaller than the number of ranks is measured by several of them: the last column counts.
    table = all_reduce_sum(table).cpu()
    return table / table[:, -1:]


# --- training


def train(engine: Engine, model: PreTrainedModel, args: argparse.Namespace, task: Task, run: "Run") -> Outcome:
    """`--num_train_epochs` passes over the data; afterwards `model` holds the weights to export.

    The loss of an optimizer step is the sum over its units divided by a constant, the mean number of units in
    a step. A mean over the step's own tokens would weigh a token of a short response, which length grouping
    puts among other short ones, more than that of a long one. DeepSpeed averages over ranks and
    micro-batches, which the scale undoes.

    Raises:
        UserError: training has diverged.
    """
    per_epoch = steps_per_epoch(len(task.train), args)
    units_per_step = sum(map(task.units, task.train)) / per_epoch
    scale = world_size() * args.gradient_accumulation_steps / units_per_step
    outcome = run.start(engine, model, task, per_epoch * args.num_train_epochs)
    start = time.monotonic() - outcome.seconds
    for step in range(run.step + 1, run.total_steps + 1):
        epoch, number = divmod(step - 1, per_epoch)
        if number == 0 or step == run.step + 1:
            batches = epoch_steps(task.train, args, epoch + 1)
        beat("training", step)
        figures, not_finite = optimizer_step(engine, batches[number], task, scale)
        run.log_step(step, figures, not_finite)
        if number + 1 == per_epoch:
            outcome.validation.append(task.validate())
            run.log_validation(step, outcome)
            run.keep_best(model, outcome)
        outcome.seconds = time.monotonic() - start
        run.checkpoint(step, engine, model, outcome)
    if outcome.exported_epoch < args.num_train_epochs:
        restore_weights(model, run.best)
    return outcome


def optimizer_step(
    engine: Engine, micro_batches: list[list[Encoded]], task: Task, scale: float
) -> tuple[dict[str, float], str | None]:
    """One optimizer step on this rank's micro-batches, unless its gradient is not finite on some rank.

    Returns:
        Means over the units of all ranks; what was not finite, for which the step was skipped, if anything.
    """
    totals: dict[str, torch.Tensor] = {}
    learning_rate = engine.get_lr()[0]
    for number, examples in enumerate(micro_batches, start=1):
        sums = task.sums(examples)
        engine.set_gradient_accumulation_boundary(number == len(micro_batches))
        engine.backward(sums["loss"] * scale)
        sums["units"] = torch.tensor(sum(map(task.units, examples)), device=device())
        totals = {name: totals.get(name, 0.0) + value.detach() for name, value in sums.items()}
    *sums, units = all_reduce_sum(torch.stack([value.float() for value in totals.values()])).tolist()
    means = dict(zip(totals, (value / units for value in sums), strict=False))
    _, not_finite = step_if_finite({"the gradient": engine})
    return ({}, not_finite) if not_finite else (means | {"learning_rate": learning_rate}, None)


class Run:
    """How far a run has come, what it shows, and what it keeps against interruption.

    Attributes:
        step: optimizer steps that an earlier, interrupted run has done.
        best: weights of the epoch to be exported, on the main rank; empty while those are the present ones.

    Raises:
        UserError: a checkpoint is there, of a run with another result.
    """

    def __init__(
        self,
        args: argparse.Namespace,
        stage: str,
        data: tuple[list[Encoded], list[Encoded]],
        tokenizer: PreTrainedTokenizerBase,
    ):
        self.args, self.tokenizer = args, tokenizer
        facts: dict[str, Any] = {}
        if is_main():
            facts = model_facts(args.model_name_or_path, "--model_name_or_path")
            facts |= dict(zip(("--data", "--validation_data"), map(data_fingerprint, data), strict=True))
        self.checkpoints = Checkpoints(args, stage, facts)
        self.skipped = SkippedSteps(args.max_skipped_steps, "lower --learning_rate")
        self.step, self.total_steps, self.best = 0, 0, {}
        self.record: RunRecord | None = None

    def start(self, engine: Engine, model: PreTrainedModel, task: Task, total_steps: int) -> Outcome:
        """Go on from the newest checkpoint, if there is one, and open the record; the outcome so far."""
        self.total_steps = total_steps
        state, checkpoint = self.checkpoints.restore({"model": engine}), self.checkpoints.newest
        if state:
            self.step, outcome = state["step"], Outcome(**state["outcome"])
            self.skipped.load_state_dict(state["skipped"])
            if (checkpoint.folder / BEST).is_file():
                self.best = load_file(checkpoint.folder / BEST) if is_main() else {}
            elif self.args.export == "best" and 0 < outcome.exported_epoch < self.args.num_train_epochs:
                self.best = gathered_weights(model)  # the epoch was to be the last one; now more follow
        else:
            outcome = Outcome([task.validate()], 0, 0.0)
        if is_main():
            self.record = RunRecord(self.args, total_steps, task.shown, checkpoint)
        if not state:
            self.log_validation(0, outcome)
        return outcome

    def log_step(self, step: int, figures: dict[str, float], not_finite: str | None) -> None:
        """Record an optimizer step; UserError when too many were skipped in a row."""
        self.skipped.observe(step, not_finite, self.checkpoints)
        if self.record:
            self.record.step(step, figures | {"skipped_steps": self.skipped.total})

    def log_validation(self, step: int, outcome: Outcome) -> None:
        """Record the last validation; UserError when its loss is not finite."""
        figures, epoch = outcome.validation[-1], len(outcome.validation) - 1
        if not math.isfinite(figures["loss"]):
            raise UserError(
                f"--learning_rate {self.args.learning_rate:g}: the validation loss is not finite at step {step};"
                f" {self.checkpoints.give_up()}"
            )
        if self.record:
            self.record.validation(step, figures, epoch)

    def keep_best(self, model: PreTrainedModel, outcome: Outcome) -> None:
        """Note whether the epoch just validated is the one to export, and its weights if more epochs follow."""
        losses, epochs = [figures["loss"] for figures in outcome.validation[1:]], self.args.num_train_epochs
        if self.args.export == "last" or losses[-1] == min(losses):
            outcome.exported_epoch = len(losses)
            more_follow = self.args.export == "best" and len(losses) < epochs
            self.best = gathered_weights(model) if more_follow else {}

    def checkpoint(self, step: int, engine: Engine, model: PreTrainedModel, outcome: Outcome) -> None:
        """Make a checkpoint, if one is due."""
        if not self.checkpoints.due(step, self.total_steps, self.skipped.in_a_row > 0):
            return

        def write_more(folder: Path) -> None:
            self.record.logger.copy_to(folder)
            describe_model(model, self.tokenizer, folder / "model")
            if self.best:
                save_file(self.best, folder / BEST)

        state = {"outcome": dataclasses.asdict(outcome), "skipped": self.skipped.state_dict()}
        self.checkpoints.save(step, {"model": engine}, state, write_more)

    def finish(self) -> None:
        """The export is in place."""
        if self.record:
            self.record.close()
            mark_finished(self.args.output_dir)
        self.checkpoints.finish()


class RunRecord:
    """The main rank's record of a run: progress lines, TensorBoard, metrics.jsonl, args.json."""

    def __init__(
        self, args: argparse.Namespace, total_steps: int, shown: tuple[str, ...], checkpoint: Checkpoint | None
    ):
        self.shown, self.name = shown, Path(args.output_dir).name
        self.epochs = args.num_train_epochs
        done = checkpoint.step if checkpoint else 0
        self.progress = Progress(total_steps, self.name, args.print_interval, done)
        self.logger = start_record(args, world_size(), checkpoint)

    def step(self, step: int, figures: dict[str, float]) -> None:
        self.logger.log(step, figures)
        shown = {name: figures[name] for name in ("loss", *self.shown) if name in figures}
        self.progress.update(step, **shown)

    def validation(self, step: int, figures: dict[str, float], epoch: int) -> None:
        self.logger.log(step, {f"validation/{name}": value for name, value in figures.items()})
        parts = [f"{name} {figures[name]:.4g}" for name in self.shown if name in figures]
        when = f"after epoch {epoch}/{self.epochs}" if epoch else "before training"
        print(" · ".join([f"{self.name} {when}: validation", *parts]), flush=True)

    def close(self) -> None:
        self.logger.close()


def export(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    args: argparse.Namespace,
    evaluation: dict[str, Any],
    write_more: Callable[[Path], None] | None = None,
) -> None:
    """Write the model's Hugging Face files and `evaluation.json` into `--output_dir`; call on every rank.

    Args:
        write_more: adds files to the folder it is given.
    """
    beat("exporting the model")
    weights = gathered_weights(model)
    if is_main():
        with finished_files(args.output_dir) as folder:
            write_json(folder / "evaluation.json", evaluation)
            if write_more:
                write_more(folder)
            export_model(model, tokenizer, folder, weights)


def print_summary(args: argparse.Namespace, outcome: Outcome, examples: int, figure: str) -> None:
    """The lines a run ends with; `figure` is the validation figure to follow."""
    before, after = outcome.validation[0][figure], outcome.validation[outcome.exported_epoch][figure]
    print_main(
        f"{examples} examples × {args.num_train_epochs} epochs in {format_duration(outcome.seconds)}"
        f" · validation {figure} {before:.4g} -> {after:.4g}\n"
        f"model of epoch {outcome.exported_epoch} ({args.export}) saved in {args.output_dir}"
    )
