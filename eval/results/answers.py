"""Responses of a policy to test prompts, batch after batch into a file that a killed run goes on with."""

import argparse
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from eval.results.partial import PartialFile, model_identity
from eval.results.runs import read_json, read_json_lines
from eval.results.steered import SteeredPrompt, without_direction
from utils.cli.types import positive_int, seed, temperature
from utils.data import load_prompts
from utils.data.encoding import Encoded, fit_lengths
from utils.models.configs import DTYPES, load_config, positions_of, sampling_config
from utils.output.files import write_json, write_text
from utils.policy.forward import response_log_probs
from utils.policy.sampled import Sampled, sample_responses
from utils.policy.sampling import COMPACT_AT, decode
from utils.process.distributed import seed_everything
from utils.process.errors import UserError
from utils.process.random_states import States, random_states, restore_random_states
from utils.scoring.tasks import load_test_prompts_of, read_tasks


def add_sampling_arguments(parser: argparse.ArgumentParser) -> None:
    """How responses are sampled, and whether those that are there already are kept."""
    group = parser.add_argument_group("sampling")
    group.add_argument("--temperature", type=temperature, default=1.0, help="sampling temperature")
    group.add_argument("--max_prompt_length", type=positive_int, help="tokens; without it, what the model has room for")
    group.add_argument("--max_new_tokens", type=positive_int, default=256, help="tokens of a response")
    group.add_argument("--batch_size", type=positive_int, default=64, help="prompts at once")
    group.add_argument("--dtype", choices=sorted(DTYPES), default="fp32", help="precision of the models")
    group.add_argument("--seed", type=seed, default=42, help="every policy starts from this seed")
    group.add_argument("--overwrite", action="store_true", help="generate again what is already there")


def load_test_prompts(
    args: argparse.Namespace, tokenizer: PreTrainedTokenizerBase, model: str, flag: str, rows: int | None = None
) -> list[Encoded]:
    """The prompts as `model`, which `flag` named and whose embedding has `rows`, sees them; those that leave room for a
    response."""
    room = positions_of(load_config(model, flag))
    max_prompt_length = args.max_prompt_length
    if room is not None and max_prompt_length is None:
        max_prompt_length = room - args.max_new_tokens
    if room is not None and not 1 <= max_prompt_length <= room - args.max_new_tokens:
        flags = f"--max_prompt_length {args.max_prompt_length} and " if args.max_prompt_length else ""
        raise UserError(f"{flags}--max_new_tokens {args.max_new_tokens}: the model has room for {room} tokens in all")
    tasks = read_tasks(args.tasks, None, None) if getattr(args, "tasks", None) else []
    if tasks:
        prompts, summary = load_test_prompts_of(tasks, args.data, args.seed)
    else:
        prompts, summary = load_prompts(args.data, args.seed)
    limits = {"max_prompt_length": max_prompt_length, "unfit": args.unfit, "embedding_rows": rows}
    encoded = fit_lengths(tokenizer, prompts, summary, args.overlong, **limits)
    for line in summary.lines():
        print(line, flush=True)
    return encoded


def settings_of(args: argparse.Namespace, policy: str, flag: str, prompts: list[Encoded]) -> dict[str, Any]:
    """All that decides the responses of `policy`, which `flag` named; JSON, kept beside them."""
    names = ("temperature", "max_new_tokens", "batch_size", "dtype", "seed")
    reference = getattr(args, "reference_model", None)
    asked = json.dumps([[p.record.messages, p.record.source, list(p.prompt), *notes_of(p)] for p in prompts])
    return {
        "policy": model_identity(policy, flag),
        "reference_model": reference and model_identity(reference, "--reference_model"),
        "prompts": hashlib.sha256(asked.encode()).hexdigest(),
        **{name: getattr(args, name) for name in names},
    }


def notes_of(prompt: Encoded) -> list[Any]:
    """What else a prompt's row says, if it does."""
    return [prompt.record.annotations] if prompt.record.annotations else []


def is_current(path: Path, prompts: list[Encoded], settings: dict[str, Any]) -> bool:
    """Whether `path` holds responses to exactly these prompts, by the same models and sampled alike."""
    kept = path.with_suffix(".settings.json")
    if not path.is_file() or not kept.is_file() or read_json(kept) != settings:
        return False
    answered = [row.get("messages") for row in read_json_lines(path)]
    return answered == [prompt.record.messages for prompt in prompts]


def sample(
    model: PreTrainedModel, prompts: list[Encoded], tokenizer: PreTrainedTokenizerBase, args: argparse.Namespace
) -> Sampled:
    """Plain sampling at the temperature: no filter, so that the KL is of the distribution sampled from."""
    settings = model.generation_config = sampling_config(tokenizer, args.temperature, args.max_new_tokens)
    generate = lambda ids, attention, copies: decode(model, ids, attention, settings, COMPACT_AT, copies)
    return sample_responses(generate, prompts, tokenizer, len(prompts))


def describe(sampled: Sampled) -> Iterator[dict[str, Any]]:
    """The lines of the responses file, without the KL."""
    lengths, finished = sampled.lengths.tolist(), sampled.finished.tolist()
    for prompt, response, length, ended in zip(sampled.prompts, sampled.responses, lengths, finished, strict=True):
        yield {
            "prompt": prompt.record.messages[-1]["content"],
            "messages": prompt.record.messages,
            "source": prompt.record.source,
            "response": response,
            "length": length,
            "finished": bool(ended),
            **prompt.record.annotations,
        }


def answer_prompts(
    policy: PreTrainedModel,
    reference: PreTrainedModel | None,
    prompts: list[Encoded],
    tokenizer: PreTrainedTokenizerBase,
    args: argparse.Namespace,
    finished: int = 0,
) -> Iterator[dict[int, dict[str, Any]]]:
    """Batch after batch, {index of the prompt: its line}; prompts of like length go together.

    Without a reference the lines have no KL. After `finished` batches, the random generators are taken as they are.
    """
    if not finished:
        seed_everything(args.seed)
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index].prompt))
    for start in range(finished * args.batch_size, len(order), args.batch_size):
        indices = order[start : start + args.batch_size]
        batch = [prompts[index] for index in indices]
        sampled = sample(policy, batch, tokenizer, args)
        lines = dict(zip(indices, describe(sampled), strict=True))
        if reference is not None:
            for line, kl in zip(lines.values(), kls(policy, reference, sampled, tokenizer, args), strict=True):
                line["kl"] = kl
        yield lines


def kls(
    policy: PreTrainedModel,
    reference: PreTrainedModel,
    sampled: Sampled,
    tokenizer: PreTrainedTokenizerBase,
    args: argparse.Namespace,
) -> list[float]:
    """log π(response) − log π₀(response) of each; π₀ reads prompts without a direction."""
    read = lambda each: (each.input_ids, each.attention_mask, each.mask.shape[1], args.temperature)
    steered = isinstance(sampled.prompts[0], SteeredPrompt)
    plain = without_direction(sampled, tokenizer) if steered else sampled
    own, other = response_log_probs(policy, *read(sampled)), response_log_probs(reference, *read(plain))
    return ((own - other) * sampled.mask).sum(dim=-1).tolist()


class Answers:
    """The responses of one policy to all prompts, on their way into a file.

    Attributes:
        rows: {index of the prompt: its line} so far, those of an interrupted run included.
        batches: how many batches they come from.
        count: how many prompts there are.

    Raises:
        UserError: another process is writing the file.
    """

    def __init__(self, file: Path, settings: dict[str, Any], count: int):
        self.file, self.settings, self.count = file, settings, count
        # Generators are restored where there are as many of them.
        self.partial = PartialFile(file, settings | {"cuda_devices": torch.cuda.device_count()})
        self.batches = len(self.partial.parts)
        self.rows = {index: line for part in self.partial.parts for index, line in part["lines"]}

    def generate(
        self,
        policy: PreTrainedModel,
        reference: PreTrainedModel | None,
        prompts: list[Encoded],
        tokenizer: PreTrainedTokenizerBase,
        args: argparse.Namespace,
    ) -> Iterator[None]:
        """`answer_prompts` from where it was interrupted; yields after every batch."""
        if self.batches:
            print(f"{self.file}: going on after {len(self.rows)} of {self.count} responses", flush=True)
            restore_random_states(from_json(self.partial.parts[-1]["random_states"]))
        for lines in answer_prompts(policy, reference, prompts, tokenizer, args, self.batches):
            self.partial.append({"lines": list(lines.items()), "random_states": to_json(random_states())})
            self.rows |= lines
            self.batches += 1
            yield

    def write(self) -> list[dict[str, Any]]:
        """Write the file, and the settings beside it; its lines in the order of the prompts.

        Raises:
            RuntimeError: not every prompt has a response.
        """
        if missing := [index for index in range(self.count) if index not in self.rows]:
            raise RuntimeError(f"{self.file}: {len(missing)} of {self.count} prompts have no response")
        ordered = [self.rows[index] for index in range(self.count)]
        settings_file = self.file.with_suffix(".settings.json")
        settings_file.unlink(missing_ok=True)  # those of older responses
        write_text(self.file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ordered))
        write_json(settings_file, self.settings)
        self.partial.remove()
        return ordered


def to_json(states: States) -> States:
    """States of the random generators with lists in place of tensors."""
    return {**states, "torch": states["torch"].tolist(), "cuda": [state.tolist() for state in states.get("cuda", [])]}


def from_json(states: States) -> States:
    as_tensor = lambda numbers: torch.tensor(numbers, dtype=torch.uint8)
    return {**states, "torch": as_tensor(states["torch"]), "cuda": [as_tensor(state) for state in states["cuda"]]}
