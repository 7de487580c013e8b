"""What stages share that train for epochs over examples: training loop, checkpoints, record, export."""

import argparse
import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from utils.checkpoints.checkpoints import Checkpoints
from utils.checkpoints.manifest import BEST, Checkpoint
from utils.checkpoints.same_run import Facts
from utils.checkpoints.skipped_steps import SkippedSteps
from utils.cli.arguments import note_warmup
from utils.data.encoding import Encoded, data_fingerprint
from utils.engines.engines import Engine, gathered_weights, restore_weights
from utils.memory.dry_run import Described, longest_of, optimizer_lines, print_dry_run, surroundings
from utils.models.card import figures_of, write_card
from utils.models.export import describe_model
from utils.models.fingerprint import model_facts
from utils.models.lora import export_trained
from utils.output.files import finished_files, mark_finished, write_json
from utils.output.metrics import Progress, format_duration, start_record
from utils.process.distributed import is_main, print_main, world_size
from utils.process.errors import UserError
from utils.process.rank_watch import beat
from utils.supervised.examples import Examples
from utils.supervised.steps import epoch_steps, optimizer_step, steps_per_epoch
from utils.supervised.task import Outcome, Stateful, Step, Task

# --- data


def print_supervised_dry_run(
    args: argparse.Namespace,
    use: str,
    model: PreTrainedModel,
    train: Examples,
    validation: Examples,
    others: Sequence[Encoded] = (),
) -> None:
    """Tables of model, batches and memory; `model`, whose `use` is as in the plan, has no memory for its parameters.

    Args:
        others: what it reads beside both.
    """
    described = Described("model", args.model_name_or_path, model, (use,), "own")
    around = surroundings(
        args, longest_of([*train, *others]), sequences=max(example.record.sequences for example in train)
    )
    per_step = args.per_device_train_batch_size * args.gradient_accumulation_steps * world_size()
    batches = {
        train[0].record.PLURAL: f"{train.total} to train on, {validation.total} to validate on",
        "of these an optimizer step": per_step,
        "longest (tokens)": around.longest[0],
        "epochs": args.num_train_epochs,
        **optimizer_lines(args, steps_per_epoch(train.total, args) * args.num_train_epochs),
    }
    print_dry_run(args, [described], batches, around)


def note_steps(args: argparse.Namespace, examples: int, flag: str = "--data") -> None:
    """Say where optimizer steps are not what was asked for: batches larger than the data, a warm-up without an end."""
    per_step = args.per_device_train_batch_size * args.gradient_accumulation_steps * world_size()
    if examples < per_step:
        print_main(f"note: {flag}: all {examples} examples are in every optimizer step, which could take {per_step}")
    note_warmup(args, steps_per_epoch(examples, args) * args.num_train_epochs)


# --- training


def train(engine: Engine, model: PreTrainedModel, args: argparse.Namespace, task: Task, run: "Run") -> Outcome:
    """`--num_train_epochs` passes over the data; afterwards `model` holds the weights to export.

    Raises:
        UserError: training has diverged.
    """
    per_epoch = steps_per_epoch(len(task.train), args)
    take_step = task.step or mean_over_units(engine, args, task, per_epoch)
    outcome = run.start(engine, model, task, per_epoch * args.num_train_epochs)
    start = time.monotonic() - outcome.seconds
    for step in range(run.step + 1, run.total_steps + 1):
        epoch, number = divmod(step - 1, per_epoch)
        if number == 0 or step == run.step + 1:
            batches = epoch_steps(task.train, args, epoch + 1, task.groups, task.again)
        beat("training", step)
        figures, not_finite = take_step(batches[number])
        run.log_step(step, figures, not_finite)
        if number + 1 == per_epoch:
            outcome.validation.append(task.validate())
            run.log_validation(step, outcome)
            run.keep_best(model, outcome)
        outcome.seconds = time.monotonic() - start
        run.checkpoint(step, engine, model, outcome)
    if outcome.exported_epoch < args.num_train_epochs:
        restore_weights(model, run.best, run.adapted)
    return outcome


def mean_over_units(engine: Engine, args: argparse.Namespace, task: Task, steps: int) -> Step:
    """Optimizer steps on the sum of a task's loss over units, divided by a constant, the mean number of them in one of
    the `steps` of an epoch.

    A mean over the step's own tokens would weigh a token of a short response, which length grouping puts among other
    short ones, more than that of a long one. DeepSpeed averages over ranks and micro-batches, which the scale undoes.
    """
    units_per_step = sum(map(task.units, task.train)) / steps
    scale = world_size() * args.gradient_accumulation_steps / units_per_step
    return lambda micro_batches: optimizer_step(engine, micro_batches, task, scale)


class Run:
    """How far a run has come, what it shows, and what it keeps against interruption.

    Attributes:
        step: optimizer steps that an earlier, interrupted run has done.
        best: weights of the epoch to be exported, on the main rank; empty while those are the present ones.

    Args:
        data: training and validation examples.
        describe: writes beside a checkpoint's weights what `utils/export_checkpoint.py` needs to know of their model.
        facts: what the result depends on beside flags and data (see `Checkpoints`), on the main rank; the model of
            `--model_name_or_path` unless given.
        names: the flags of training and validation data.

    Raises:
        UserError: a checkpoint is there, of a run with another result.
    """

    def __init__(
        self,
        args: argparse.Namespace,
        stage: str,
        data: tuple[list[Encoded], list[Encoded]],
        tokenizer: PreTrainedTokenizerBase,
        describe: Callable[[PreTrainedModel, PreTrainedTokenizerBase, Path], None] = describe_model,
        facts: Facts | None = None,
        names: tuple[str, str] = ("--data", "--validation_data"),
    ):
        self.args, self.tokenizer, self.describe = args, tokenizer, describe
        self.adapted = getattr(args, "lora_dim", 0) > 0  # what is frozen stays as it is
        if is_main():
            facts = facts or model_facts(args.model_name_or_path, "--model_name_or_path")
            facts |= dict(zip(names, map(data_fingerprint, data), strict=True))
        self.checkpoints = Checkpoints(args, stage, facts or {})
        self.skipped = SkippedSteps(args.max_skipped_steps, "lower --learning_rate")
        self.step, self.total_steps, self.best = 0, 0, {}
        self.record: RunRecord | None = None
        self.of_task: Stateful | None = None

    def start(self, engine: Engine, model: PreTrainedModel, task: Task, total_steps: int) -> Outcome:
        """Go on from the newest checkpoint, if there is one, and open the record; the outcome so far."""
        self.total_steps, self.of_task = total_steps, task.state
        state, checkpoint = self.checkpoints.restore({"model": engine}), self.checkpoints.newest
        if state:
            self.step, outcome = state["step"], Outcome(**state["outcome"])
            self.skipped.load_state_dict(state["skipped"])
            if self.of_task:
                self.of_task.load_state_dict(state["task"])
            if (checkpoint.folder / BEST).is_file():
                self.best = load_file(checkpoint.folder / BEST) if is_main() else {}
            elif self.args.export == "best" and 0 < outcome.exported_epoch < self.args.num_train_epochs:
                self.best = gathered_weights(model, self.adapted)  # the epoch was to be the last one; now more follow
        else:
            outcome = Outcome([task.validate()], 0, 0.0)
        if is_main():
            self.record = RunRecord(self.args, total_steps, task.shown, checkpoint)
        if not state:
            self.log_validation(0, outcome, task.before)
        return outcome

    def log_step(self, step: int, figures: dict[str, float], not_finite: str | None) -> None:
        """Record an optimizer step; UserError when too many were skipped in a row."""
        self.skipped.observe(step, not_finite, self.checkpoints)
        if self.record:
            self.record.step(step, figures | {"skipped_steps": self.skipped.total})

    def log_validation(self, step: int, outcome: Outcome, others: Mapping[str, float] | None = None) -> None:
        """Record the last validation, and other figures with it; UserError when its loss is not finite."""
        figures, epoch = outcome.validation[-1], len(outcome.validation) - 1
        if not math.isfinite(figures["loss"]):
            raise UserError(
                f"--learning_rate {self.args.learning_rate:g}: the validation loss is not finite at step {step};"
                f" {self.checkpoints.give_up()}"
            )
        if self.record:
            self.record.validation(step, figures, epoch, others or {})

    def keep_best(self, model: PreTrainedModel, outcome: Outcome) -> None:
        """Note whether the epoch just validated is the one to export, and its weights if more epochs follow."""
        losses, epochs = [figures["loss"] for figures in outcome.validation[1:]], self.args.num_train_epochs
        if self.args.export == "last" or losses[-1] == min(losses):
            outcome.exported_epoch = len(losses)
            more_follow = self.args.export == "best" and len(losses) < epochs
            self.best = gathered_weights(model, self.adapted) if more_follow else {}

    def checkpoint(self, step: int, engine: Engine, model: PreTrainedModel, outcome: Outcome) -> None:
        """Make a checkpoint, if one is due."""
        if not self.checkpoints.due(step, self.total_steps, self.skipped.in_a_row > 0):
            return

        def write_more(folder: Path) -> None:
            self.record.logger.copy_to(folder)
            self.describe(model, self.tokenizer, folder / "model")
            if self.best:
                save_file(self.best, folder / BEST)

        state = {"outcome": dataclasses.asdict(outcome), "skipped": self.skipped.state_dict()}
        if self.of_task:
            state["task"] = self.of_task.state_dict()
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

    def validation(self, step: int, figures: dict[str, float], epoch: int, others: Mapping[str, float]) -> None:
        self.logger.log(step, {f"validation/{name}": value for name, value in figures.items()} | others)
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
    adapters = getattr(args, "lora_export", None) == "adapter"
    weights = gathered_weights(model, trained_only=adapters)
    if is_main():
        with finished_files(args.output_dir) as folder:
            write_json(folder / "evaluation.json", evaluation)
            if write_more:
                write_more(folder)
            export_trained(model, tokenizer, folder, weights, args)
            write_card(folder, args.output_dir, vars(args), figures_of(evaluation))


def print_summary(args: argparse.Namespace, outcome: Outcome, examples: int, figure: str) -> None:
    """The lines a run ends with; `figure` is the validation figure to follow."""
    before, after = outcome.validation[0][figure], outcome.validation[outcome.exported_epoch][figure]
    print_main(
        f"{examples} examples × {args.num_train_epochs} epochs in {format_duration(outcome.seconds)}"
        f" · validation {figure} {before:.4g} -> {after:.4g}\n"
        f"model of epoch {outcome.exported_epoch} ({args.export}) saved in {args.output_dir}"
    )
