"""Bad input of every kind for every command: what a user would get wrong, and what the one line must name.

    python -m tests.bad_inputs       runs the table with real processes: what each said, and how long it took

A case changes one thing about a run that would work. The command must end with exit code 2 and one line on stderr,
and leave every file as it was: the user's data and models, and the older result in the output folder.
"""

import gzip
import json
import os
import re
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from eval.reporting.sections.judge import JUDGEMENT
from tests.evaluations import make_run, write_runs
from tests.helpers import ROOT, Result, Workshop, flags, run_command
from utils.cli.arguments import Parser
from utils.process.plain_text import printable

SECONDS = 10  # in which a command must have found the mistake
WEIGHTS = "model.safetensors"
REPLY = {"role": "assistant", "content": "Wait a while."}


@dataclass(frozen=True)
class Bench:
    """What a case works on: the workshop, things made from it once, and a folder of the case's own.

    Attributes:
        shared: responses/{base,other}.jsonl, runs/ (a preset's folder with evaluations), experts/{a,b}.
        folder: everything that this case spoils, and out/ with an older result.
    """

    workshop: Workshop
    shared: Path
    folder: Path

    def file(self, name: str, content: str | bytes) -> Path:
        """A file of the user's."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def rows(self, *rows: Any, name: str = "rows.jsonl") -> Path:
        return self.file(name, "".join(json.dumps(row) + "\n" for row in rows))

    def model(self, source: Path, spoil: Callable[[Path], None] | None = None, /, **config: Any) -> Path:
        """A copy of a model folder with other values in config.json, or changed by `spoil`."""
        target = Path(shutil.copytree(source, self.folder / f"{source.name}_copy"))
        edit_json(target / "config.json", config)
        if spoil:
            spoil(target)
        return target

    @property
    def experts(self) -> Path:
        return self.shared / "experts"

    @property
    def older_result(self) -> Path:
        """An output folder that holds a policy and its records."""
        folder = self.folder / "out"
        for name in ("config.json", WEIGHTS, "metrics.jsonl", "args.json"):
            self.file(f"out/{name}", f"{{}} {name}")
        return folder


def edit_json(path: Path, changes: dict[str, Any]) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# --- what can be wrong with a model folder


def without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def replaced(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(content) and None


def edited(name: str, **changes: Any) -> Callable[[Path], None]:
    return lambda folder: edit_json(folder / name, changes)


def truncated(folder: Path) -> None:
    os.truncate(folder / WEIGHTS, (folder / WEIGHTS).stat().st_size // 2)


def pickled(folder: Path) -> None:
    """The weights as torch.save writes them; loading them would leave a file behind."""
    torch.save(load_file(folder / WEIGHTS), folder / "pytorch_model.bin")
    (folder / WEIGHTS).unlink()


def lacking(name: str) -> Callable[[Path], None]:
    """The weights without one tensor, which transformers would fill in at random."""

    def spoil(folder: Path) -> None:
        weights = load_file(folder / WEIGHTS)
        del weights[name]
        save_file(weights, folder / WEIGHTS, {"format": "pt"})

    return spoil


def renamed(name: str, other: str) -> Callable[[Path], None]:
    """The weights with a tensor under another name."""

    def spoil(folder: Path) -> None:
        weights = load_file(folder / WEIGHTS)
        weights[other] = weights.pop(name)
        save_file(weights, folder / WEIGHTS, {"format": "pt"})

    return spoil


def without_systems(folder: Path) -> None:
    """A chat template that takes no system turn, as those of some models."""
    file = folder / "chat_template.jinja"
    refusal = "{% if messages[0].role == 'system' %}{{ raise_exception('no system turn') }}{% endif %}"
    file.write_text(refusal + file.read_text())


def with_code(folder: Path) -> None:
    """A model type of its own, whose code leaves a file behind when it is run."""
    (folder / "evil.py").write_text(f"open({str(folder / 'it_ran')!r}, 'w')\n")
    auto_map = {"AutoConfig": "evil.EvilConfig", "AutoModelForCausalLM": "evil.EvilModel"}
    edit_json(folder / "config.json", {"model_type": "evil", "auto_map": auto_map})


def with_a_token_more(folder: Path) -> None:
    """A tokenizer with an id that has no embedding."""
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    token = {"id": 5000, "content": "<extra>", "single_word": False, "lstrip": False, "rstrip": False,
             "normalized": False, "special": True}  # fmt: skip
    for number in range(len(tokenizer["model"]["vocab"]), 5000):  # ids of added tokens must follow one another
        tokenizer["added_tokens"].append(token | {"id": number, "content": f"<extra{number}>"})
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))


def with_a_template_more(folder: Path) -> None:
    """The same, and a chat template that writes it."""
    with_a_token_more(folder)
    (folder / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ '<extra700>' + m['content'] + eos_token }}{% endfor %}"
    )


def sharded_index(folder: Path) -> None:
    """An index that names a shard which is not there."""
    index = {
        "metadata": {},
        "weight_map": dict.fromkeys(load_file(folder / WEIGHTS), "model-00001-of-00002.safetensors"),
    }
    indexed(json.dumps(index).encode())(folder)


def indexed(content: bytes) -> Callable[[Path], None]:
    """An index in place of the file of all weights."""

    def spoil(folder: Path) -> None:
        (folder / "model.safetensors.index.json").write_bytes(content)
        (folder / WEIGHTS).unlink()

    return spoil


# --- the commands, each a run that would work


def step1(b: Bench) -> dict[str, Any]:
    return {"model_name_or_path": b.workshop.base, "data": b.workshop.folder / "data/sft_train.jsonl",
            "max_length": 128, "output_dir": b.older_result}  # fmt: skip


def step2(b: Bench) -> dict[str, Any]:
    return {"objective": "helpfulness", "kind": "reward", "model_name_or_path": b.workshop.base,
            "data": b.workshop.folder / "data/preferences_train.jsonl", "max_length": 128,
            "output_dir": b.older_result}  # fmt: skip


def step3(b: Bench) -> dict[str, Any]:
    return {"actor_model": b.workshop.base, "reward_model": f"helpfulness={b.workshop.reward}",
            "cost_model": f"harmlessness={b.workshop.cost}", "algorithm": "gapo", "data": b.workshop.prompts,
            "max_prompt_length": 64, "max_new_tokens": 12, "output_dir": b.older_result}  # fmt: skip


def step3_pairs(b: Bench) -> dict[str, Any]:
    data = b.workshop.folder / "data/preferences_train.jsonl"
    return {"actor_model": b.workshop.base, "objective": (f"helpfulness={data}", f"harmlessness={data}:safer"),
            "algorithm": "gapo", "validation_fraction": 0.3, "max_length": 128,
            "output_dir": b.older_result}  # fmt: skip


def generate(b: Bench) -> dict[str, Any]:
    return {"policy": f"base={b.workshop.base}", "reference_model": b.workshop.base, "data": b.workshop.prompts,
            "max_new_tokens": 12, "output_dir": b.older_result}  # fmt: skip


def score(b: Bench) -> dict[str, Any]:
    return {"responses": b.shared / "responses/base.jsonl", "reward_model": f"helpfulness={b.workshop.reward}",
            "cost_model": f"harmlessness={b.workshop.cost}", "output_dir": b.older_result}  # fmt: skip


def evaluate(b: Bench) -> dict[str, Any]:
    return {"reward_model": f"helpfulness={b.workshop.reward}", "data": b.rows(PKU),
            "output_dir": b.file("evaluated/evaluation.json", "{}").parent}  # fmt: skip


def soup(b: Bench) -> dict[str, Any]:
    return {"expert": (f"a={b.experts / 'a'}", f"b={b.experts / 'b'}"), "weight": ("a=0.5", "b=0.5"),
            "output_dir": b.older_result}  # fmt: skip


def judge(b: Bench) -> dict[str, Any]:
    return {"policy": f"other={b.shared / 'responses/other.jsonl'}",
            "baseline": f"base={b.shared / 'responses/base.jsonl'}", "objective": "helpfulness",
            "gold": "utils.safe_rlhf_mini:gold_scores", "output_dir": b.older_result}  # fmt: skip


def chat(b: Bench) -> dict[str, Any]:
    return {"policy": f"base={b.workshop.base}", "max_new_tokens": 12}


def report(b: Bench) -> dict[str, Any]:
    return {"input_dir": b.shared / "runs", "output_dir": b.file("out/report.html", "<p>older</p>").parent}


def make_base(b: Bench) -> dict[str, Any]:
    return {"sft_data": b.workshop.folder / "data/sft_train.jsonl", "tokenizer_dir": b.folder / "tokenizer",
            "model_dir": b.folder / "new"}  # fmt: skip


def split_data(b: Bench) -> dict[str, Any]:
    return {"input": f"sft={b.workshop.folder / 'data/sft_train.jsonl'}", "output_dir": b.older_result}


def inspect_data(b: Bench) -> dict[str, Any]:
    return {"": b.workshop.prompts}


def prompt_pairs(b: Bench) -> dict[str, Any]:
    return {"data": b.workshop.folder / "data/preferences_train.jsonl", "output_dir": b.older_result}


def corpus(b: Bench) -> dict[str, Any]:
    return {"output_dir": b.older_result}


def run_all(b: Bench) -> dict[str, Any]:
    """Of a shell's command, words NAME=VALUE are variables that are set for it."""
    return {"": "smoke"}


def policy_script(b: Bench) -> dict[str, Any]:
    return {"": "gapo_p1"}


SCRIPTS: dict[Callable[[Bench], dict[str, Any]], str] = {
    step1: "step1_sft/main.py", step2: "step2_reward/main.py", step3: "step3_gapo/main.py",
    step3_pairs: "step3_dpo/main.py",
    generate: "eval/generate.py", score: "eval/score.py", soup: "eval/soup.py", judge: "eval/judge.py",
    chat: "eval/chat.py", report: "eval/report.py", make_base: "utils/make_base.py",
    split_data: "utils/split_data.py", inspect_data: "utils/inspect_data.py",
    evaluate: "step2_reward/evaluate.py", corpus: "utils/safe_rlhf_mini/__main__.py", run_all: "run_all.sh",
    policy_script: "step3_gapo/training_scripts/smoke_policy.sh", prompt_pairs: "utils/make_prompt_pairs.py",
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """`change` gives the flags that differ from the command's, after it has spoiled what it must; `names` must be in
    the line, or the lines of a dry run that finds several `mistakes`."""

    command: Callable[[Bench], dict[str, Any]]
    change: Callable[[Bench], dict[str, Any]]
    names: tuple[str, ...]
    mistakes: int = 1

    @property
    def script(self) -> str:
        return SCRIPTS[self.command]

    @property
    def is_shell(self) -> bool:
        return self.script.endswith(".sh")

    def arguments(self, bench: Bench) -> list[str]:
        settings = self.command(bench) | self.change(bench)
        words = settings.pop("", ())
        return [*map(str, words if isinstance(words, tuple) else (words,)), *flags(**settings)]


PROMPT = {"prompt": "How do I fix my bike?"}
DIALOGUE = PROMPT | {"response": "Turn the bolts."}
PKU = PROMPT | {"response_0": "Turn the bolts.", "response_1": "No.", "is_response_0_safe": True,
                "is_response_1_safe": True, "better_response_id": 0, "safer_response_id": 0}  # fmt: skip
LONG = {"prompt": "How do I fix my bike? " * 40}
CHATS = [{"messages": [{"role": role, "content": "Hi"} for role in roles] + [{"role": "user", "content": text}, REPLY]}
         for roles, text in (((), "A?"), ((), "B?"), (("system",), "C?"))]  # fmt: skip


def cases() -> dict[str, Case]:
    """{what is wrong: the case}."""
    groups = (data_files, data_rows, data_as_a_whole, policies, files_of_policies, score_models,
              score_models_of_others, models_with_a_gate, heads, held_out_pairs, reward_functions,
              calls_of_reward_functions, adapters, pairs_of_objectives, tasks_of_prompts, entries_of_tasks,
              policy_losses, tasks_of_responses, foreign_code, names, variables, config_files, numbers, plans,
              many_mistakes, hub_names, responses, evaluations, judgements, outputs)  # fmt: skip
    return {name: Case(*case) for group in groups for name, case in group().items()}


HOWTO = {"prompts": {"risky": False}, "objectives": "helpfulness"}
RISKY = {"prompts": {"risky": True}, "objectives": {"harmlessness": 2}}


# What does not go with other numbers of rows on several ranks.
UNEVEN = {"micro_batch_tokens": 900, "gram_fraction": 0.5, "per_device_train_batch_size": 2}


PLAIN = {"policy_loss": "crpg", "algorithm": "cgpo"}


def with_tasks(tasks: Any, **more: Any) -> Callable[[Bench], dict[str, Any]]:
    """Flags with a file of tasks: its text, or what it holds."""
    text = tasks if isinstance(tasks, str) else json.dumps(tasks)
    return lambda b: PLAIN | {"tasks": b.file("tasks.json", text)} | more


def howto(**changes: Any) -> Callable[[Bench], dict[str, Any]]:
    """Two tasks, of which the first has other entries."""
    return with_tasks({"howto": HOWTO | changes, "risky": RISKY})


def with_rule(code: str) -> Callable[[Bench], dict[str, Any]]:
    """Flags with a judge that does this."""
    return lambda b: (
        PLAIN | {"judge": f"mine={b.file('rules.py', f'def rule(prompts, responses):{chr(10)}    {code}')}:rule"}
    )


def tasks_of_prompts() -> dict[str, tuple]:
    """Which prompts the tasks of step 3 have."""
    return {
        "tasks: no such file": (step3, lambda b: PLAIN | {"tasks": b.folder / "x"}, ("--tasks", "cannot be read")),
        "tasks: no JSON": (step3, with_tasks("{"), ("--tasks", "cannot be read")),
        "tasks: a list": (step3, with_tasks([]), ("--tasks", "must be an object")),
        "tasks: one without prompts": (step3, with_tasks({"a": {"objectives": "helpfulness"}}), ("a: has no prompts",)),
        "tasks: no prompt of a task": (
            step3, with_tasks({"howto": HOWTO, "risky": RISKY, "odd": RISKY | {"prompts": {"risky": "no"}}}),
            ("--tasks: odd: there are no prompts for it",)),
        "tasks: a prompt of no task": (
            step3, with_tasks({"howto": HOWTO}), ("prompts.jsonl:", "of no task", "'risky' is true")),
        "tasks: prompts in two files": (
            step3, lambda b: with_tasks(
                {name: HOWTO | {"prompts": str(b.workshop.prompts)} for name in "ab"}, data=None)(b),
            ("have a prompt in common",)),
        "tasks: no file of a task": (step3, with_tasks({"a": HOWTO | {"prompts": "nowhere.jsonl"}}, data=None),
            ("--tasks: a: nowhere.jsonl: no such file",)),
        "tasks: prompts of data that is not given": (
            step3, with_tasks({"howto": HOWTO}, data=None), ("--data: needed",)),
        "tasks: one name twice": (
            step3, with_tasks(f'{{"a": {json.dumps(HOWTO)}, "a": {json.dumps(RISKY)}}}'), ("'a' is there twice",)),
        "tasks: prompts twice": (
            step3, with_tasks({"a": HOWTO, "b": HOWTO}), ("several tasks have the prompts whose field 'risky'",)),
        **{f"tasks: --{flag} on ranks with other numbers of rows": (
            step3, with_tasks({"howto": HOWTO | {"responses": 2}, "risky": RISKY}, algorithm="gapo", dry_run=True,
                              gradient_scope="full", plan_ranks=2, **{flag: value}), (f"--{flag}",))
           for flag, value in UNEVEN.items()},
    }  # fmt: skip


def entries_of_tasks() -> dict[str, tuple]:
    """What else a file of tasks says."""
    return {
        "tasks: two fields": (
            step3, howto(prompts={"category": "x"}),
            ("one field of the rows", "category in one task, risky in another")),
        "tasks: an unknown entry": (step3, howto(reward="x"), ("howto: no such entry as reward",)),
        "tasks: an unknown objective": (step3, howto(objectives="wit"), ("howto: no such objective as wit",)),
        "tasks: an unknown judge": (step3, howto(judges=["kind"]), ("howto: no such judge as kind",)),
        "tasks: a weight of no objective": (
            step3, howto(objectives={"helpfulness": 0}), ("howto: objectives must be",)),
        "tasks: no cap": (step3, howto(kl_max=0), ("howto: kl_max must be a positive number, found 0",)),
        "tasks: half a response": (step3, howto(responses=0.5), ("howto: responses must be",)),
        "tasks: a weight below 0": (step3, howto(weight=-1), ("howto: weight must be",)),
        "tasks: shares": (step3, with_tasks({"a": HOWTO | {"share": 0.5}, "b": RISKY | {"share": 0.2}}),
                          ("the shares sum to 0.7",)),
        "tasks: a share of some": (step3, howto(share=0.5), ("risky has no share",)),
        "tasks: a share of nothing": (
            step3, with_tasks({"a": HOWTO | {"share": 0.99}, "b": RISKY | {"share": 0.01}}),
            ("b: its share leaves it no prompt",)),
        "tasks: none for what weighs them": (
            step3, lambda b: {"algorithm": "cgpo"}, ("--algorithm cgpo: weighs losses of tasks",)),
        "tasks: another policy loss": (
            step3, with_tasks({"howto": HOWTO, "risky": RISKY}, policy_loss=None, algorithm="gapo"),
            ("--tasks: --policy_loss clipped_surrogate knows none",)),
    }  # fmt: skip


def policy_losses() -> dict[str, tuple]:
    """CGPO's losses, and judges, in step 3."""
    return {
        "policy loss: nothing to combine": (
            step3, lambda b: PLAIN | {"algorithm": "gapo"}, ("--algorithm gapo: has nothing to combine",)),
        "policy loss: one response": (
            step3, with_tasks({"howto": HOWTO, "risky": RISKY | {"responses": 1}}, policy_loss="codpo"),
            ("--tasks: risky: --policy_loss codpo", "2 or more are needed")),
        "policy loss: one response to all": (
            step3, lambda b: PLAIN | {"policy_loss": "codpo", "responses_per_prompt": 1},
            ("--responses_per_prompt: --policy_loss codpo",)),
        "policy loss: what mixes scores": (
            step3, lambda b: PLAIN | {"algorithm": "grpo"}, ("--policy_loss crpg", "--algorithm grpo")),
        "policy loss: what mixes advantages": (
            step3, lambda b: PLAIN | {"algorithm": "morlhf"}, ("--policy_loss crpg", "--algorithm morlhf")),
        "policy loss: an advantage": (
            step3, lambda b: PLAIN | {"advantage": "group"}, ("--advantage: --policy_loss crpg",)),
        "policy loss: a second pass": (step3, lambda b: PLAIN | {"ppo_epochs": 2}, ("--ppo_epochs:",)),
        "policy loss: kept graphs": (step3, lambda b: PLAIN | {"keep_graphs": True}, ("--keep_graphs:",)),
        "policy loss: a cap of PPO": (
            step3, lambda b: {"kl_max": 3}, ("--kl_max: --policy_loss clipped_surrogate has none",)),
        "policy loss: a cap of 0": (step3, lambda b: PLAIN | {"kl_max": 0}, ("--kl_max",)),
        "policy loss: an option of another": (
            step3, lambda b: PLAIN | {"codpo_beta": 1}, ("--codpo_beta: --policy_loss crpg has none",)),
        "policy loss: half a pair": (
            step3, lambda b: PLAIN | {"policy_loss": "codpo", "per_device_train_batch_size": 3},
            ("--per_device_train_batch_size 3", "pairs of rows")),
        "policy loss: no reference answers": (
            step3, lambda b: PLAIN | {"reference_answers": "answer"}, ("no reference answer in the field 'answer'",)),
        "judge: another value": (step3, with_rule("return [1] * len(responses)"), ("--judge mine", "no truth values")),
        "judge: too few values": (step3, with_rule("return []"), ("--judge mine", "0 values for 2 responses")),
        "judge: a function that fails": (step3, with_rule("raise ValueError('no')"), ("--judge mine", "fails")),
        "data: none for step 3": (step3, lambda b: {"data": None}, ("--data: needed",)),
    }  # fmt: skip


def tasks_of_responses() -> dict[str, tuple]:
    """The evaluation."""
    tasks = lambda b, **changes: b.file("tasks.json", json.dumps({"howto": HOWTO | changes, "risky": RISKY}))
    return {
        "evaluated tasks: responses without": (
            score, lambda b: {"tasks": tasks(b)}, ("--responses base", "is of no task: eval/generate.py --tasks")),
        "evaluated tasks: an unknown judge": (
            score, lambda b: {"tasks": tasks(b, judges=["kind"])}, ("howto: no such judge as kind",)),
        "evaluated tasks: a prompt of none": (
            generate, lambda b: {"tasks": b.file("tasks.json", json.dumps({"howto": HOWTO}))}, ("of no task",)),
        "evaluated judges: an unknown objective": (
            score, lambda b: {"judge": "kind=wit:0"}, ("--judge kind=wit:0: no such objective",)),
        "evaluated judges: no such model": (
            score, lambda b: {"judge_model": "kind=/nowhere", "judge_question": "kind=Is it?"}, ("/nowhere",)),
    }  # fmt: skip


def pairs_of_objectives() -> dict[str, tuple]:
    """step3_dpo."""
    data = lambda b: b.workshop.folder / "data/preferences_train.jsonl"
    alone = {"monitor": "harmlessness", "algorithm": "modpo"}
    changes = {
        "pairs: an unknown label": (
            lambda b: {"objective": f"helpfulness={data(b)}:wittier"}, ("'wittier' is no label",)),
        "pairs: an objective twice": (
            lambda b: {"objective": (f"a={data(b)}", f"a={data(b)}:safer")}, ("--objective a: is given twice",)),
        "pairs: none of an objective": (
            lambda b: {"objective": (f"a={data(b)}", f"b={b.rows(DIALOGUE)}")},
            ("rows.jsonl:1", "hold no pairs of replies")),
        "pairs: all replies identical": (
            lambda b: {"objective": f"a={b.rows(PROMPT | {'chosen': 'Yes.', 'rejected': 'Yes.'})}"},
            ("none of the 1 rows can be used (1 identical replies)",)),
        "pairs: none to validate on": (
            lambda b: {"validation_objective": (f"helpfulness={data(b)}",)},
            ("--validation_objective: names helpfulness", "--objective helpfulness, harmlessness")),
        "pairs: nothing held out": (lambda b: {"validation_fraction": 0}, ("--validation_fraction 0: needs",)),
        "pairs: beta of 0": (lambda b: {"beta": 0}, ("--beta: 0 is not a positive number",)),
        "pairs: beta of nothing": (lambda b: {"beta": ("0.1", "wit=0.2")}, ("--beta wit: no such objective",)),
        "pairs: two betas": (lambda b: {"beta": ("0.1", "0.2")}, ("--beta: is given twice",)),
        "pairs: a scale of 0": (
            lambda b: {"loss_scale": "helpfulness=0"}, ("--loss_scale helpfulness=0: must be positive",)),
        "pairs: an unknown objective is monitored": (
            lambda b: {"monitor": "wit"}, ("--monitor wit: no such objective",)),
        "pairs: nothing is optimized": (
            lambda b: {"monitor": ("helpfulness", "harmlessness")}, ("no objective is left to optimize",)),
        "pairs: dpo on two objectives": (lambda b: {"algorithm": "dpo"}, ("dpo optimizes one objective",)),
        "pairs: a method of scores": (lambda b: {"algorithm": "grpo"}, ("--algorithm: invalid choice: 'grpo'",)),
        "pairs: an own method of scores": (
            lambda b: {"algorithm": f"{ROOT}/examples/softmin_score.py:SoftMin"}, ("is no class made from",)),
        "pairs: margins without modpo": (
            lambda b: {"margin_model": f"wit={b.workshop.base}"}, ("--margin_model wit", "gapo reads no margins")),
        "pairs: a margin of what is trained": (
            lambda b: alone | {"margin_model": f"helpfulness={b.workshop.base}"},
            ("--margin_model helpfulness: helpfulness has a margin, and pairs",)),
        "pairs: a margin twice": (
            lambda b: alone | {"margin_model": f"wit={b.workshop.base}", "margin_reward": f"wit={b.workshop.reward}"},
            ("--margin_model wit: the objective has another margin",)),
        "pairs: a margin model with another vocabulary": (
            lambda b: alone | {"margin_model": f"wit={b.workshop.folder / 'other'}"},
            ("--margin_model wit", "its tokenizer is another one")),
        "pairs: a margin that is no policy": (
            lambda b: alone | {"margin_model": f"wit={b.workshop.reward}"},
            ("--margin_model wit", "not a language model")),
        "pairs: no weight of what is trained": (
            lambda b: alone | {"margin_model": f"wit={b.workshop.base}", "preference": ("helpfulness=0", "wit=1")},
            ("--preference helpfulness=0: the objective with pairs",)),
        "pairs: a scope for fixed weights": (
            lambda b: {"algorithm": "dpo_lw", "gradient_scope": "full"},
            ("--gradient_scope full: --algorithm dpo_lw",)),
        "pairs: too long for the model": (lambda b: {"max_length": 5}, ("too long to leave room for a reply",)),
    }  # fmt: skip
    return {name: (step3_pairs, change, names) for name, (change, names) in changes.items()}


def data_files() -> dict[str, tuple]:
    lines = "".join(json.dumps(DIALOGUE) + "\n" for _ in range(9)).encode()
    spoiled = {  # what is wrong: (file, content, what the line must name)
        "invalid UTF-8": ("rows.jsonl", lines + b'{"prompt": "caf\xe9"}\n', "rows.jsonl:10: the text is not UTF-8"),
        "UTF-16": ("rows.jsonl", lines.decode().encode("utf-16"), "rows.jsonl:1: the text is not UTF-8 but UTF-16"),
        "zero bytes": ("rows.jsonl", lines + b'{"prompt": "\0"}\n', "rows.jsonl:10: holds zero bytes"),
        "truncated gzip": ("rows.jsonl.gz", gzip.compress(lines)[:-9], "rows.jsonl.gz: the gzip file is truncated"),
        "gzip in name only": ("rows.jsonl.gz", lines, "rows.jsonl.gz: the gzip file is truncated or damaged"),
        "gzip without the name": ("rows.jsonl", gzip.compress(lines), "rows.jsonl:1: the text is not UTF-8 but gzip"),
        "a torn last line": ("rows.jsonl", lines[:-20], "rows.jsonl:9: malformed JSON"),
        "an empty file": ("rows.jsonl", b"", "rows.jsonl: holds no rows"),
        "a damaged parquet file": ("rows.parquet", lines, "rows.parquet: cannot be read as parquet"),
        "a ragged table": ("rows.csv", b"prompt,response\nHi,Ho\nHi\n", "rows.csv:3: 1 cells"),
        "an unknown kind of file": ("rows.txt", lines, "rows.txt: not a kind of file"),
        "too many digits": (
            "rows.jsonl", lines + b'{"prompt": ' + b"7" * 5000 + b"}\n", "rows.jsonl:10: unusable JSON"),
    }  # fmt: skip
    table: dict[str, tuple] = {}
    for number, (what, (name, content, expected)) in enumerate(spoiled.items()):
        command = (step1, step3, generate, inspect_data)[number % 4]
        flag = "" if command is inspect_data else "data"
        table[f"data: {what}"] = (
            command, lambda b, flag=flag, name=name, content=content: {flag: b.file(name, content)}, (expected,)
        )  # fmt: skip
    return table | {
        "data: no such file": (step3, lambda b: {"data": b.folder / "none.jsonl"}, ("none.jsonl: no such file",)),
        "data: nothing on the hub": (step1, lambda b: {"data": "nobody/nothing"}, ("nobody/nothing: no file",)),
        "data: a folder without data": (
            step2, lambda b: {"data": b.file("notes/read.me", "x").parent}, ("notes: holds no data file",)),
        "data: the home of nobody": (
            step1, lambda b: {"data": "~nobody_at_all/x.jsonl"}, ("~nobody_at_all/x.jsonl: cannot be a file",)),
        "data: a very long name": (inspect_data, lambda b: {"": "a" * 300 + ".jsonl"}, ("aaa: cannot be a file",)),
        "data: a name that is no text": (step3, lambda b: {"data": "caf\udce9.jsonl"}, ("the name is not UTF-8",)),
        "output: a folder in place of a file": (
            step1, lambda b: {"output_dir": b.file("blocked/args.json/x", "").parents[1]}, ("args.json there is a",)),
        "output: a file in place of the checkpoints": (
            step3, lambda b: {"output_dir": b.file("blocked/checkpoints", "").parent}, ("checkpoints there is not",)),
        "output: a finished result": (step3, lambda b: {}, ("/out: a finished result is there; --fresh replaces it",)),
        "data: a fraction of 0": (step1, lambda b: {"data": f"{b.workshop.prompts}:0"}, ("the fraction must be",)),
        "data: a pipe": (inspect_data, lambda b: {"": made_pipe(b)}, ("pipe.jsonl: not a regular file",)),
        "validation data: malformed": (
            step2, lambda b: {"validation_data": b.file("v.jsonl", '{"prompt"\n')}, ("v.jsonl:1: malformed JSON",)),
        "split_data: no such file": (split_data, lambda b: {"input": "a=none.jsonl"}, ("none.jsonl: no such file",)),
        "make_base: malformed": (
            make_base, lambda b: {"sft_data": b.file("s.jsonl", "[1]\n")}, ("s.jsonl:1: expected an object",)),
    }  # fmt: skip


def made_pipe(b: Bench) -> Path:
    os.mkfifo(b.folder / "pipe.jsonl")
    return b.folder / "pipe.jsonl"


def data_rows() -> dict[str, tuple]:
    return {
        "row: unknown fields": (
            step1, lambda b: {"data": b.rows({"question": "Hi"})}, ("rows.jsonl:1: no known format",)),
        "row: a field with a line break": (
            inspect_data, lambda b: {"": b.rows({"que\nstion": "Hi"})}, ("rows.jsonl:1: no known format",)),
        "row: a field with half a character": (
            inspect_data, lambda b: {"": b.rows({"que\ud800stion": "Hi"})}, ("rows.jsonl:1: no known format",)),
        "row: a role that commands the terminal": (
            step1, lambda b: {"data": b.rows({"messages": [{"role": "\x1b[31mevil", "content": "Hi"}]})},
            ("turn by '\ufffd[31mevil'",)),
        "row: a field is missing": (
            step1, lambda b: {"data": b.rows(DIALOGUE, PROMPT)},
            ("rows.jsonl:2: rows of the format 'prompts' hold no replies", "found: prompt")),
        "row: a number for text": (
            step3, lambda b: {"data": b.rows(PROMPT, {"prompt": 3})}, ("rows.jsonl:2: the field 'prompt'",)),
        "row: better_response_id 2": (
            step2, lambda b: {"data": b.rows(PKU, PKU | {"better_response_id": 2})},
            ("rows.jsonl:2: the field 'better_response_id' must be 0 or 1, found 2",)),
        "row: better_response_id true": (
            step2, lambda b: {"data": b.rows(PKU, PKU | {"better_response_id": True})},
            ("rows.jsonl:2: the field 'better_response_id'",)),
        "row: is_safe 0": (
            step2, lambda b: {"kind": "cost", "data": b.rows(PKU, PKU | {"is_response_1_safe": 0})},
            ("rows.jsonl:2: the field 'is_response_1_safe' must be true or false",)),
        "row: safer of three": (
            step2, lambda b: {"kind": "cost", "data": b.rows(PROMPT | {"responses": ["a", "b", "c"], "safer": 2})},
            ("rows.jsonl:1: the field 'responses' must be a list of 2",)),
        "row: a chat without content": (
            step1, lambda b: {"data": b.rows({"messages": [{"role": "user"}]})},
            ("rows.jsonl:1: the field 'messages'",)),
        "row: texts in place of turns": (
            step2, lambda b: {"data": b.rows({"chosen": CHATS[0]["messages"], "rejected": ["No."]})},
            ("rows.jsonl:1: the field 'rejected' must be a list of turns",)),
        "row: text in place of turns": (
            step2, lambda b: {"data": b.rows({"chosen": CHATS[0]["messages"], "rejected": "No."})},
            ("rows.jsonl:1: the field 'rejected' must be a list of turns",)),
        "row: a prompt of numbers": (
            step3, lambda b: {"data": b.rows({"prompt": [1]})}, ("rows.jsonl:1: the field 'prompt' must be a list",)),
        "row: turns that the template refuses": (
            step1, lambda b: {"data": b.rows(*CHATS), "model_name_or_path": b.model(b.workshop.base, without_systems)},
            ("rows.jsonl:3: ", "(no system turn)", "--unfit drop")),
        "row: prompts that the template refuses": (
            step3, lambda b: {"data": b.rows(*CHATS), "actor_model": b.model(b.workshop.base, without_systems)},
            ("rows.jsonl:3: ", "(no system turn)", "--unfit drop")),
        "row: replies asked of prompts": (
            step1, lambda b: {"data": b.workshop.prompts}, ("prompts.jsonl:1: rows of the format 'prompts' hold no",)),
        "row: pairs asked of dialogues": (
            step2, lambda b: {"data": b.rows(DIALOGUE)}, ("rows.jsonl:1: rows of the format 'prompt_response'",)),
        "row: the prompt is too long": (
            step3, lambda b: {"data": b.rows(PROMPT, LONG)},
            ("rows.jsonl:2: prompt of", "--max_prompt_length 64", "--overlong drop")),
        "row: the prompt leaves no room": (
            step1, lambda b: {"data": b.rows(DIALOGUE, DIALOGUE | LONG)}, ("rows.jsonl:2: prompt of", "--max_length")),
        "row: the prompt is too long for a policy": (
            generate, lambda b: {"data": b.rows(PROMPT, LONG), "max_prompt_length": 40},
            ("rows.jsonl:2: prompt of", "--max_prompt_length 40")),
    }  # fmt: skip


def data_as_a_whole() -> dict[str, tuple]:
    return {
        "split: all rows are filtered": (
            step3, lambda b: {"data": b.rows({"prompt": " "}, {"prompt": ""})}, ("rows.jsonl: none of the 2 rows",)),
        "split: all prompts are too long": (
            step3, lambda b: {"data": b.rows(LONG), "overlong": "drop"},
            ("nothing is left of 1", "--max_prompt_length")),
        "split: the template refuses everything": (
            step3, lambda b: {"data": b.rows(CHATS[2]), "unfit": "drop",
                              "actor_model": b.model(b.workshop.base, without_systems)},
            ("nothing is left of 1", "the chat template refuses the turns", "no system turn")),
        "split: all validation rows are filtered": (
            step1, lambda b: {"validation_data": b.rows(DIALOGUE | {"response": ""})}, ("rows.jsonl: none of the 1",)),
        "split: one prompt for two splits": (step1, lambda b: {"data": b.rows(DIALOGUE, DIALOGUE)}, ("--data: one",)),
        "split: nothing to validate on": (step2, lambda b: {"validation_fraction": 0}, ("--validation_fraction 0",)),
        "split: ties alone": (
            step2, lambda b: {"data": b.rows(PKU | {"better_response_id": None})}, ("none of the 1 rows", "1 tie")),
        "split: fewer prompts than a rollout": (
            step3, lambda b: {"data": b.rows(PROMPT)}, ("--data: 1 prompts do not fill one rollout of 16",)),
        "split: no row for the test": (
            split_data, lambda b: {"input": f"a={b.rows(DIALOGUE)}"}, ("--input a=", "split would be empty")),
        "split: two formats in one input": (
            split_data, lambda b: {"input": f"a={b.rows(DIALOGUE)},{b.workshop.prompts}"},
            ("--input a=", "one format")),
        "split: fractions that leave nothing": (
            split_data, lambda b: {"test_fraction": 0.9, "validation_fraction": 0.2}, ("--test_fraction",)),
        "split: a vocabulary larger than the text": (
            make_base, lambda b: {"sft_data": b.rows(DIALOGUE), "vocab_size": 5000}, ("--vocab_size 5000",)),
        "instructions: data without pairs": (
            prompt_pairs, lambda b: {"data": b.rows(DIALOGUE)}, ("rows.jsonl:1: rows of the format", "no pairs of")),
        "instructions: a preference that nobody has named": (
            prompt_pairs, lambda b: {"preference_label": "nicer"}, ("--preference_label", "'nicer'")),
        "instructions: kinds that no response can meet": (
            prompt_pairs, lambda b: {"kinds": ("valid_json", "upper_case")},
            ("--data", "gives no prompt pairs (16 breaks every instruction drawn)")),
        "instructions: kinds that do not go together": (
            prompt_pairs, lambda b: {"kinds": ("at_least_words", "at_most_words")},
            ("--data", "gives no instruction pairs", "fewer than 2 instructions drawn go together")),
        "split: too many prompts held out": (corpus, lambda b: {"num_test_prompts": 10**9}, ("--num_test_prompts",)),
    }  # fmt: skip


def actor(spoil: Callable[[Path], None] | None = None, **config: Any) -> Callable[[Bench], dict[str, Any]]:
    return lambda b: {"actor_model": b.model(b.workshop.base, spoil, **config)}


def base(spoil: Callable[[Path], None] | None = None, **config: Any) -> Callable[[Bench], dict[str, Any]]:
    return lambda b: {"model_name_or_path": b.model(b.workshop.base, spoil, **config)}


def start_of_stage_2(spoil: Callable[[Path], None] | None = None, **config: Any) -> Callable[[Bench], dict[str, Any]]:
    return lambda b: {"model_name_or_path": b.model(b.workshop.reward, spoil, **config)}


def policy(spoil: Callable[[Path], None]) -> Callable[[Bench], dict[str, Any]]:
    return lambda b: {"policy": f"base={b.model(b.workshop.base, spoil)}"}


def policies() -> dict[str, tuple]:
    return {
        "policy: no such folder": (step1, lambda b: {"model_name_or_path": b.folder / "no"}, ("--model_name_or_path",)),
        "policy: not on the hub": (generate, lambda b: {"policy": "a=nobody/nothing"}, ("--policy a nobody/nothing",)),
        "policy: a reward model": (
            step3, lambda b: {"actor_model": b.workshop.reward}, ("--actor_model", "not a lang")),
        "policy: a reward model to chat with": (chat, lambda b: {"policy": f"a={b.workshop.cost}"}, ("--policy a",)),
        "policy: damaged configuration": (step1, base(replaced("config.json", b"{")), ("--model_name_or_path",)),
        "policy: a configuration in UTF-16": (
            step2, base(replaced("config.json", b"\xff\xfe{\0}\0")), ("--model_name_or_path", "config")),
        "policy: a size that is no number": (step3, actor(hidden_size="wide"), ("--actor_model", "hidden_size")),
        "policy: sizes that contradict": (step3, actor(hidden_size=48), ("--actor_model", "has shape [600, 32]")),
        "policy: an architecture without a name": (step3, actor(architectures=[1]), ("--actor_model", "architectures")),
        "policy: architectures without a list": (step1, base(architectures=5), ("--model_name", "architectures")),
        "policy: more layers than described": (
            generate, lambda b: {"policy": f"a={b.model(b.workshop.base, num_hidden_layers=1)}"},
            ("--policy a", "the weights hold model.layers.1.", "describes 1 layers")),
        "policy: fewer positions than the reference": (
            generate, lambda b: {"policy": f"a={b.model(b.workshop.base, max_position_embeddings=16)}"},
            ("--policy a", "has positions for 16")),
        "policy: a pad token that is no number": (step1, base(pad_token_id="x"), ("--model_name", "pad_token_id")),
        "policy: settings of generation that are none": (
            generate, policy(replaced("generation_config.json", b"[]")), ("--policy base", "generation_config.json")),
        "policy: an index that is a list": (
            step3, actor(indexed(b"[]")), ("--actor_model", "weights")),
        "policy: an index of numbers": (
            chat, policy(indexed(b'{"weight_map": {"a": 3}}')),
            ("--policy base", "weights")),
        "policy: unknown architecture": (step2, base(model_type="unheard_of"), ("--model_name_or_path", "unheard_of")),
        "policy: pad outside the vocabulary": (step3, actor(pad_token_id=9999), ("--actor_model", "pad_token_id 9999")),
    }  # fmt: skip


def files_of_policies() -> dict[str, tuple]:
    return {
        "policy: no weights": (step3, actor(without(WEIGHTS)), ("--actor_model", WEIGHTS)),
        "policy: truncated weights": (step1, base(truncated), ("--model_name_or_path", "cannot read the weights")),
        "policy: junk for weights": (generate, policy(replaced(WEIGHTS, b"junk")), ("--policy base", "cannot read")),
        "policy: a shard is missing": (chat, policy(sharded_index), ("--policy base", "00001-of-00002")),
        "policy: a tensor is missing": (
            step3, actor(lacking("model.layers.1.mlp.up_proj.weight")),
            ("--actor_model", "lack model.layers.1.mlp.up")),
        "policy: no tokenizer": (step2, base(without("tokenizer.json")), ("--model_name_or_path", "tokenizer")),
        "policy: junk for a tokenizer": (
            step3, actor(replaced("tokenizer.json", b"{}")), ("--actor_model", "tokenizer")),
        "policy: no EOS": (step3, actor(edited("tokenizer_config.json", eos_token=None)), ("--actor_model", "no EOS")),
        "policy: no chat template": (step3, actor(without("chat_template.jinja")), ("--actor_model", "chat template")),
        "policy: no chat template to learn": (
            step1, base(without("chat_template.jinja")), ("--model_name", "template")),
        "policy: no chat template to answer": (generate, policy(without("chat_template.jinja")), ("--policy base",)),
        "policy: a chat template that fails": (
            chat, policy(replaced("chat_template.jinja", b"{{ 1 / 0 }}")), ("--policy base", "chat template")),
        "policy: a chat template that commands the terminal": (
            chat, policy(replaced("chat_template.jinja", b"{{ raise_exception('\x1b]0;pwned\x07') }}")),
            ("--policy base", "\ufffd]0;pwned\ufffd")),
        "policy: data with an id beyond the embeddings": (
            step3, lambda b: actor(with_a_token_more)(b) | {
                "data": b.rows({"prompt": "How?"}, {"prompt": "An <extra700>?"})},
            ("rows.jsonl:2", "<extra700>", "600 rows")),
        "policy: a template with an id beyond the embeddings": (
            step3, actor(with_a_template_more), ("--actor_model", "<extra700>", "600 rows")),
        "policy: another tokenizer than the reference": (
            generate, lambda b: {"policy": f"o={b.workshop.folder / 'other'}"}, ("--policy o", "--reference_model")),
        "policy: a reference without weights": (
            generate, lambda b: {"reference_model": b.model(b.workshop.base, without(WEIGHTS))},
            ("--reference_model",)),
        "policy: a judged model without prompts": (
            judge, lambda b: {"policy": f"other={b.workshop.base}"}, ("--data: needed", "--policy other")),
        "policy: a judged model is truncated": (
            judge, lambda b: {"policy": f"o={b.model(b.workshop.base, truncated)}", "data": b.workshop.prompts},
            ("--policy o", "cannot read the weights")),
        "policy: an expert of another size": (
            soup, lambda b: {"expert": (f"a={b.experts / 'a'}", f"b={b.workshop.folder / 'other'}")},
            ("--expert b", "vocab_size")),
        "policy: a truncated expert": (
            soup, lambda b: {"expert": (f"a={b.model(b.experts / 'a', truncated)}", f"b={b.experts / 'b'}")},
            ("--expert a", "cannot read the weights")),
        "policy: settings of an expert that are a list": (
            soup, lambda b: {"expert": (f"a={b.model(b.experts / 'a', replaced('args.json', b'[]'))}",
                                        f"b={b.experts / 'b'}")}, ("a_copy/args.json", "not an object")),
        "policy: an expert of a base that is a number": (
            soup, lambda b: {"expert": (f"a={b.model(b.experts / 'a', edited('args.json', actor_model=3))}",
                                        f"b={b.experts / 'b'}")}, ("a_copy/args.json", "'actor_model' is not text")),
    }  # fmt: skip


def score_models() -> dict[str, tuple]:
    def reward(spoil: Callable[[Path], None] | None = None, **config: Any) -> Callable[[Bench], dict[str, Any]]:
        return lambda b: {"reward_model": f"helpfulness={b.model(b.workshop.reward, spoil, **config)}"}

    def cost(spoil: Callable[[Path], None] | None = None, **config: Any) -> Callable[[Bench], dict[str, Any]]:
        return lambda b: {"cost_model": f"harmlessness={b.model(b.workshop.cost, spoil, **config)}"}

    def foreign(spoil: Callable[[Path], None]) -> Callable[[Bench], dict[str, Any]]:
        return lambda b: {"reward_model": f"helpfulness={b.model(b.workshop.foreign, spoil)}"}

    return {
        "score model: a language model": (
            step3, lambda b: {"reward_model": f"helpfulness={b.workshop.base}"},
            ("--reward_model helpfulness", "Mistral")),
        "score model: no such folder": (score, lambda b: {"cost_model": "harm=./none"}, ("--cost_model harm ./none",)),
        "score model: none at all": (score, lambda b: {"reward_model": None, "cost_model": None}, ("--reward_model",)),
        "score model: three labels": (
            step3, cost(id2label={"0": "a", "1": "b", "2": "c"}, label2id={"a": 0, "b": 1, "c": 2}),
            ("--cost_model harmlessness", "3 labels")),
        "score model: truncated weights": (
            step3, cost(truncated), ("--cost_model harmlessness", "cannot read the wei")),
        "score model: junk for weights": (score, reward(replaced(WEIGHTS, b"junk")), ("--reward_model helpfulness",)),
        "score model: no head": (
            step3, reward(lacking("score.weight")), ("--reward_model helpfulness", "lack score.weight")),
        "score model: a layer is missing": (
            score, cost(lacking("model.norm.weight")), ("--cost_model harmlessness", "lack model.norm.weight")),
        "score model: no layer of that size": (
            step3, reward(intermediate_size=48), ("--reward_model helpfulness", "shape [32, 64]")),
        "score model: no tokenizer": (
            step3, cost(without("tokenizer.json")), ("--cost_model harmlessness", "tokenizer")),
        "score model: no chat template": (
            step3, foreign(without("chat_template.jinja")),
            ("--reward_model helpfulness", "chat template", "--score_template helpfulness=FILE")),
        "score model: no EOS": (
            score, cost(edited("tokenizer_config.json", eos_token=None)), ("--cost_model harmlessness", "no EOS")),
        "score model: a chat template that fails": (
            chat, foreign(replaced("chat_template.jinja", b"{{ messages | first.x }}")),
            ("--reward_model helpfulness",)),
        "score model: a template with an id beyond the embeddings": (
            step3, foreign(with_a_template_more), ("--reward_model helpfulness", "<extra700>", "520 rows")),
        "score model: an architecture without a name": (
            score, reward(architectures=[1]), ("--reward_model helpfulness", "architectures")),
        "score model: no layers at all": (
            score, reward(num_hidden_layers=-1), ("--reward_model helpfulness", "the weights hold model.layers.0.")),
        "score model: a mean that is no number": (
            step3, reward(score_mean="abc"), ("--reward_model helpfulness", "score_mean", "'abc'")),
        "score model: a mean that is infinite": (
            score, reward(score_mean=float("inf")), ("--reward_model helpfulness", "score_mean")),
        "score model: too few positions": (
            step3, cost(max_position_embeddings=32), ("--cost_model harmlessness", "has positions for 32")),
        "score model: one objective twice": (
            score, lambda b: {"cost_model": f"helpfulness={b.workshop.cost}"}, ("the objective helpfulness", "twice")),
    }  # fmt: skip


def models_with_a_gate() -> dict[str, tuple]:
    def useful(model: Callable[[Bench], Path], **more: Any) -> Callable[[Bench], dict[str, Any]]:
        return lambda b: {"reward_model": f"useful={model(b)}"} | more

    def bare(b: Bench) -> dict[str, Any]:
        template = b.file("bare.jinja", "{% for m in messages %}{{ m.content }}{% endfor %}")
        return useful(gated(), score_template=f"useful={template}")(b)

    flag = "--reward_model useful"
    return {
        "gate: no ratings": (
            step3, useful(gated("regression_layer.weight")), (flag, "the weights lack regression_layer.weight")),
        "gate: no gate": (
            score, useful(gated("gating.layers.1.bias")), (flag, "the weights lack gating.layers.1.bias")),
        "gate: no scale": (step3, useful(gated("gating.logit_scale")), (flag, "lack gating.logit_scale")),
        "gate: no transform": (
            score, useful(gated("reward_transform_matrix")), (flag, "lack reward_transform_matrix")),
        "gate: a layer more than config.json says": (
            step3, useful(gated(gating_n_hidden=2)), (flag, "gating.layers.1.bias has shape [2]")),
        "gate: another width": (
            step3, useful(gated(gating_hidden_dim=5)), (flag, "has shape [4", "config.json describes [5")),
        "gate: no number of attributes": (
            score, useful(gated(num_objectives=None)), (flag, "num_objectives", "None")),
        "gate: a temperature of 0": (step3, useful(gated(gating_temperature=0)), (flag, "gating_temperature", "0")),
        "gate: a pattern that is text": (
            score, useful(gated(gating_token_pattern="assistant")), (flag, "gating_token_pattern", "no list of ids")),
        "gate: a pattern that the template never writes": (
            step3, useful(gated(gating_token_pattern=[7, 7, 7])), (flag, "the dialogue lacks", "[7, 7, 7]")),
        "gate: a template with nothing to look for": (score, bare, (flag, "nothing of its own between a user's turn")),
        "gate: an unknown attribute": (
            score, useful(gated(), score_label="useful=honesty"), ("--score_label useful=honesty", "wit, rhyme")),
        "gate: a number of an attribute too high": (
            step3, useful(gated(), score_label="useful=2"), ("--score_label useful=2", "wit, rhyme")),
        "gate: on an unknown trunk": (
            score, useful(gated(model_type="cohere")), (flag, "no score model with a gate is known on cohere")),
        "gate: a policy": (
            step3, lambda b: {"actor_model": gated()(b)}, ("--actor_model", "MistralForRewardModelWithGating")),
        "gate: to start stage 2": (
            step2, lambda b: {"model_name_or_path": gated()(b)}, ("--model_name_or_path", "2 labels")),
    }  # fmt: skip


def heads() -> dict[str, tuple]:
    return {
        "score model: a head of another name": (
            step3, lambda b: {"reward_model": "helpfulness=" + str(
                b.model(b.workshop.reward, renamed("score.weight", "value_head.weight")))},
            ("--reward_model helpfulness", "the weights lack score.weight", "value_head.weight")),
        "score model: a head of another name, to start stage 2": (
            step2, start_of_stage_2(renamed("score.weight", "value_head.weight")),
            ("--model_name_or_path", "the weights lack score.weight", "value_head.weight")),
        "score model: an unknown head on a trunk, to start stage 2": (
            step2, start_of_stage_2(renamed("score.weight", "value_head.weight"), architectures=["MistralModel"]),
            ("--model_name_or_path", "holds value_head.weight", "new head")),
        "score model: two labels, to start stage 2": (
            step2, start_of_stage_2(id2label={"0": "a", "1": "b"}, label2id={"a": 0, "b": 1}),
            ("--model_name_or_path", "2 labels", "stage 2 trains one")),
        "score model: one of Safe RLHF, to start stage 2": (
            step2, start_of_stage_2(
                renamed("score.weight", "score_head.weight"), architectures=["MistralForScore"], score_dim=1),
            ("--model_name_or_path", "the weights lack score.weight", "score_head.weight")),
    }  # fmt: skip


def gated(lacks: str = "", **config: Any) -> Callable[[Bench], Path]:
    """A copy of a score model in ArmoRM's format with two attributes, without one of its tensors."""
    form = {"architectures": ["MistralForRewardModelWithGating"], "num_objectives": 2,
            "gating_hidden_dim": 4, "gating_n_hidden": 1, "id2label": {"0": "wit", "1": "rhyme"},
            "label2id": {"wit": 0, "rhyme": 1}}  # fmt: skip

    def spoil(folder: Path) -> None:
        weights = load_file(folder / WEIGHTS)
        hidden = weights.pop("score.weight").shape[1]
        shapes = {"regression_layer.weight": (2, hidden), "reward_transform_matrix": (2, 2), "gating.logit_scale": (1,),
                  "gating.layers.0.weight": (4, hidden), "gating.layers.0.bias": (4,), "gating.layers.1.weight": (2, 4),
                  "gating.layers.1.bias": (2,)}  # fmt: skip
        weights |= {name: torch.ones(shape) for name, shape in shapes.items() if name != lacks}
        save_file(weights, folder / WEIGHTS, {"format": "pt"})

    return lambda b: b.model(b.workshop.foreign, spoil, **form | config)


def score_models_of_others() -> dict[str, tuple]:
    def safe_rlhf(
        flag: str, spoil: Callable[[Path], None] | None = None, **config: Any
    ) -> Callable[[Bench], dict[str, Any]]:
        form = {"architectures": ["MistralForScore"], "score_dim": 1, "score_bias": False, "score_type": "reward"}
        return lambda b: {flag: f"useful={b.model(b.workshop.foreign, spoil, **form | config)}"}

    def labels(*chosen: str) -> Callable[[Bench], dict[str, Any]]:
        def change(b: Bench) -> dict[str, Any]:
            names = {"id2label": {"0": "rude", "1": "kind"}, "label2id": {"rude": 0, "kind": 1}}
            return {"cost_model": f"harm={b.model(b.workshop.cost, **names)}", "score_label": chosen or None}

        return change

    return {
        "Safe RLHF: a cost model as a reward": (
            step3, safe_rlhf("reward_model", score_type="cost"),
            ("--reward_model useful", "score_type", "'cost'", "--cost_model")),
        "Safe RLHF: a reward model as a cost": (
            score, safe_rlhf("cost_model"), ("--cost_model useful", "score_type", "'reward'", "--reward_model")),
        "Safe RLHF: a critic": (score, safe_rlhf("reward_model", score_type="critic"), ("score_type", "'critic'")),
        "Safe RLHF: two scores": (
            step3, safe_rlhf("reward_model", score_dim=2), ("--reward_model useful", "2 labels", "score_dim")),
        "Safe RLHF: no head": (
            score, safe_rlhf("reward_model"), ("--reward_model useful", "the weights lack score_head.weight")),
        "Safe RLHF: no statistics to normalize by": (
            step3, safe_rlhf("reward_model", renamed("score.weight", "score_head.weight"), do_normalize=True),
            ("--reward_model useful", "the weights lack normalizer.mean")),
        "Safe RLHF: a policy": (
            step3, lambda b: {"actor_model": b.model(b.workshop.base, architectures=["MistralForScore"])},
            ("--actor_model", "MistralForScore")),
        "label: none of two": (
            step3, labels(), ("--cost_model harm", "2 labels", "--score_label harm=LABEL", "rude, kind")),
        "label: unknown": (score, labels("harm=cruel"), ("--score_label harm=cruel", "rude, kind")),
        "label: a number too high": (step3, labels("harm=2"), ("--score_label harm=2", "rude, kind")),
        "label: twice": (score, labels("harm=0", "harm=1"), ("--score_label harm", "twice")),
        "label: of an unknown objective": (score, labels("ham=0"), ("--score_label ham=0", "helpfulness, harm")),
        "template: no file": (
            score, lambda b: {"score_template": "helpfulness=./none.jinja"},
            ("--score_template helpfulness=./none.jinja", "No such file")),
        "template: no Jinja": (
            step3, lambda b: {"score_template": f"helpfulness={b.file('turns.jinja', '{% for')}"},
            ("--score_template helpfulness=", "turns.jinja", "the chat template refuses the turns")),
        "template: of an unknown objective": (
            score, lambda b: {"score_template": "ham=./none.jinja"}, ("--score_template ham", "no objective")),
        "template: of nothing": (
            chat, lambda b: {"score_template": "ham=./none.jinja"}, ("--reward_model", "at least one objective")),
        "label: of a function": (
            step3, lambda b: {"reward_function": "short=examples.reward_functions:conciseness",
                              "score_label": "short=0"}, ("--score_label short=0", "helpfulness, harmlessness")),
    }  # fmt: skip


def held_out_pairs() -> dict[str, tuple]:
    def rule(text: str) -> Callable[[Bench], dict[str, Any]]:
        return lambda b: code_of(f"def rule(prompts, responses): {text}")(b) | {"reward_model": None}

    return {
        "held-out pairs: nothing to evaluate": (
            evaluate, lambda b: {"reward_model": None}, ("--reward_model/--cost_model: at least one objective",)),
        "held-out pairs: a model with two labels": (
            evaluate, lambda b: {"cost_model": "harm=" + str(b.model(
                b.workshop.cost, id2label={"0": "rude", "1": "kind"}, label2id={"rude": 0, "kind": 1}))},
            ("--cost_model harm", "2 labels", "--score_label harm=LABEL", "rude, kind")),
        "held-out pairs: dialogues": (
            evaluate, lambda b: {"data": b.rows(PKU, DIALOGUE)}, ("rows.jsonl:2", "hold no pairs of replies")),
        "held-out pairs: ordered by another label": (
            evaluate, lambda b: {"data": b.rows(PROMPT | {"responses": ["a", "b"], "safer": 0})},
            ("rows.jsonl:1", "do not say which reply is better, only which is safer")),
        "held-out pairs: a subset that is a list": (
            evaluate, lambda b: {"data": b.rows(PKU | {"subset": ["x"]})},
            ("rows.jsonl:1: the field 'subset' must be text or a number",)),
        "held-out pairs: no such field": (
            evaluate, lambda b: {"subset_field": "topic"}, ("--subset_field topic: no pair of --data",)),
        "held-out pairs: none of them": (evaluate, lambda b: {"max_pairs": 0}, ("--max_pairs",)),
        "held-out pairs: a function that raises": (
            evaluate, rule("raise KeyError('x')"), ("--reward_function rule", "fails 4 times", "rows.jsonl:1")),
        "held-out pairs: a function that judges nothing": (
            evaluate, rule("return [None] * len(responses)"), ("--data: no objective judges both responses",)),
        "output: an evaluation over a model": (
            evaluate, lambda b: {"output_dir": b.older_result}, ("--output_dir", "out: a model is there")),
        "output: a folder for a picture": (
            evaluate, lambda b: {"output_dir": b.file("x/accuracy.png/y", "").parents[1]}, ("accuracy.png: a folder",)),
    }  # fmt: skip


def function_of(spec: str) -> Callable[[Bench], dict[str, Any]]:
    return lambda b: {"reward_function": f"rule={spec}"}


def code_of(text: str) -> Callable[[Bench], dict[str, Any]]:
    return lambda b: {"reward_function": f"rule={b.file('rules.py', text)}:rule", "reward_retry_wait": 0}


def reward_functions() -> dict[str, tuple]:
    flag = "--reward_function rule"
    return {
        "function: no module": (
            step3, function_of("no.such.rules:rule"),
            (f"{flag}=no.such.rules:rule: no such module (No module named 'no')",)),
        "function: none of that name": (
            score, function_of("examples.reward_functions:length"),
            (flag, "examples.reward_functions has no function 'length' (there are conciseness, format, text_form, ")),
        "function: none of that name in a file": (
            step3, code_of("def _own(): pass"), (flag, "rules.py has no function 'rule' (it defines none)")),
        "function: a file that imports what is not there": (
            step3, code_of("import no_such_library"),
            (flag, "rules.py fails to be imported (ModuleNotFoundError: No module named 'no_such_library')")),
        "function: a relative module": (
            score, function_of("./rules:rule"), (flag, "MODULE:FUNCTION or FILE.py:FUNCTION")),
        "function: no name": (step3, function_of("examples.reward_functions"), (flag, "MODULE:FUNCTION")),
        "function: a file without a name": (
            step3, function_of("examples/reward_functions.py"), (flag, "needs MODULE:FUNCTION or FILE.py:FUNCTION")),
        "function: a file that ends the program": (
            step3, code_of("raise SystemExit(3)"), (flag, "rules.py fails to be imported (SystemExit: 3)")),
        "function: a number": (step3, function_of("math:pi"), (flag, "float is no function")),
        "function: no file": (chat, function_of("./none.py:rule"), (flag, "no such file (./none.py)")),
        "function: a file that fails": (step3, code_of("1 / 0"), (flag, "division by zero")),
        "function: a file that is no program": (
            score, code_of("def rule(:"),
            (flag, "rules.py fails to be imported (SyntaxError: invalid syntax", "line 1)")),
        "function: an objective twice": (
            step3, lambda b: {"reward_function": "helpfulness=examples.reward_functions:conciseness"},
            ("the objective helpfulness", "twice")),
        "function: a number of retries below 0": (score, lambda b: {"reward_retries": -1}, ("--reward_retries",)),
        "function: a wait that is no time": (score, lambda b: {"reward_retry_wait": "nan"}, ("--reward_retry_wait",)),
        "function: a constraint of Safe RLHF": (
            step3, lambda b: {"cost_model": None, "algorithm": "ppo_lagrangian",
                              "reward_function": "rule=examples.reward_functions:conciseness"}, ("--cost_model",)),
    }  # fmt: skip


def calls_of_reward_functions() -> dict[str, tuple]:
    flag = "--reward_function rule"
    return {
        "function: of responses alone": (
            step3, code_of("def rule(responses): return [0.0]"), (flag, "(prompts, responses)", "too many")),
        "function: of more": (
            chat, code_of("def rule(prompts, responses, answers): return []"), (flag, "missing", "'answers'")),
        "function: text of digits": (
            score, code_of("def rule(prompts, responses): return '1'"),
            (flag, "no numbers for", "prompts.jsonl:1", "'1' is text")),
        "function: beyond float32": (
            score, code_of("def rule(prompts, responses): return [1e39]"), (flag, "prompts.jsonl:1", "1e+39")),
        "function: ends the program": (
            score, code_of("def rule(prompts, responses): raise SystemExit(3)"),
            (flag, "fails 4 times in a row", "SystemExit: 3")),
        "function: raises": (
            score, code_of("def rule(prompts, responses): raise KeyError('x')"),
            (flag, "fails 4 times in a row, at last on", "prompts.jsonl:1", "KeyError")),
        "function: nothing": (
            score, code_of("def rule(prompts, responses): pass"), (flag, "no numbers for", "NoneType")),
        "function: too few values": (
            score, code_of("def rule(prompts, responses): return []"), (flag, "0 values for 1 responses")),
        "function: not a number": (
            score, code_of("def rule(prompts, responses): return [float('nan')]"), (flag, "prompts.jsonl:1", "nan")),
        "function: text for numbers": (
            score, code_of("def rule(prompts, responses): return responses"), (flag, "prompts.jsonl:1", "Wait.")),
    }  # fmt: skip


def bare(path: Path) -> Path:
    """Without configuration and tokenizer, as peft writes them."""
    for file in path.iterdir():
        if not file.name.startswith("adapter_"):
            file.unlink()
    return path


def adapters() -> dict[str, tuple]:
    def lora(**changes: Any) -> Callable[[Bench], dict[str, Any]]:
        return lambda b: changes

    def folder(b: Bench, base: Any, layer: str = "model.layers.0.self_attn.q_proj", width: int = 32) -> Path:
        """A policy that consists of adapters on a layer of `base`, which has so many inputs."""
        copy = b.model(b.workshop.base, lambda path: (path / WEIGHTS).unlink())
        config = {"base_model_name_or_path": base, "peft_type": "LORA", "r": 1}
        (copy / "adapter_config.json").write_text(json.dumps(config))
        save_file({f"base_model.model.{layer}.lora_A.weight": torch.ones(1, width)}, copy / "adapter_model.safetensors")
        return copy

    def without_weights(b: Bench) -> Path:
        path = folder(b, str(b.workshop.base))
        (path / "adapter_model.safetensors").unlink()
        return path

    there = "there are down_proj, gate_proj, k_proj"
    return {
        "LoRA: no such layer": (
            step3, lora(lora_dim=4, lora_target_modules=("q_proj", "query")), ("--lora_target_modules query", there)),
        "LoRA: the head": (
            step3, lora(lora_dim=4, lora_target_modules="lm_head"), ("--lora_target_modules lm_head", there)),
        "LoRA: not a number": (step3, lora(lora_dim=-1), ("--lora_dim",)),
        "LoRA: hybrid engine": (
            step3, lora(lora_dim=4, enable_hybrid_engine=True), ("--enable_hybrid_engine", "--lora_dim")),
        "LoRA: alpha without it": (step3, lora(lora_alpha=8), ("--lora_alpha", "--lora_dim")),
        "LoRA: layers without it": (
            step3, lora(lora_target_modules="q_proj"), ("--lora_target_modules", "--lora_dim")),
        "LoRA: export without it": (step3, lora(lora_export="adapter"), ("--lora_export", "--lora_dim")),
        "LoRA: adapters of adapters": (
            step3, lambda b: {"actor_model": folder(b, str(b.workshop.base)), "lora_dim": 4, "lora_export": "adapter"},
            ("--lora_export adapter", "--actor_model")),
        "adapters: of no such base": (
            step3, lambda b: {"actor_model": folder(b, "./none")}, ("--actor_model", "its base", "./none")),
        "adapters: of no named base": (
            generate, lambda b: {"policy": f"a={folder(b, None)}"}, ("--policy a", "adapter_config.json", "None")),
        "adapters: of another base": (
            chat, lambda b: {"policy": f"a={folder(b, str(b.workshop.base), 'model.layers.7.mlp')}"},
            ("--policy a", "model.layers.7.mlp")),
        "adapters: of another width": (
            step3, lambda b: {"actor_model": folder(b, str(b.workshop.base), width=64)},
            ("--actor_model", "q_proj.lora_A.weight", "[1, 64]", "[1, 32]")),
        "adapters: alone, without their base": (
            generate, lambda b: {"policy": f"a={bare(folder(b, './none'))}"}, ("--policy a", "its base", "./none")),
        "adapters: the start of stage 2": (
            step2, lambda b: {"model_name_or_path": bare(folder(b, str(b.workshop.base)))},
            ("--model_name_or_path", "adapters alone")),
        "adapters: without weights": (
            step3, lambda b: {"actor_model": without_weights(b)}, ("--actor_model", "adapter_model.safetensors")),
        "adapters: soup": (
            soup, lambda b: {"expert": (f"a={folder(b, str(b.workshop.base))}", f"b={b.experts / 'b'}")},
            ("--expert a", "LoRA adapter")),
    }  # fmt: skip


def foreign_code() -> dict[str, tuple]:
    def copy(b: Bench, spoil: Callable[[Path], None]) -> Path:
        return b.model(b.workshop.base, spoil)

    code, pickle = ("--trust_remote_code",), ("--allow_pickle",)
    return {
        "own code: stage 1": (
            step1, lambda b: {"model_name_or_path": copy(b, with_code)}, ("--model_name_or_path", *code)),
        "own code: stage 3": (step3, lambda b: {"actor_model": copy(b, with_code)}, ("--actor_model", *code)),
        "own code: generate": (generate, lambda b: {"policy": f"a={copy(b, with_code)}"}, ("--policy a", *code)),
        "own code: chat": (chat, lambda b: {"policy": f"a={copy(b, with_code)}"}, ("--policy a", *code)),
        "own code: score": (
            score, lambda b: {"reward_model": f"help={b.model(b.workshop.reward, with_code)}"},
            ("--reward_model", *code)),
        "pickle: stage 2": (
            step2, lambda b: {"model_name_or_path": copy(b, pickled)}, ("--model_name_or_path", *pickle)),
        "pickle: stage 3": (
            step3, lambda b: {"cost_model": f"harm={b.model(b.workshop.cost, pickled)}"},
            ("--cost_model harm", *pickle)),
        "pickle: generate": (generate, lambda b: {"policy": f"a={copy(b, pickled)}"}, ("--policy a", *pickle)),
        "pickle: judge": (
            judge, lambda b: {"policy": f"a={copy(b, pickled)}", "data": b.workshop.prompts}, ("--policy a", *pickle)),
        "pickle: soup": (
            soup, lambda b: {"expert": (f"a={b.model(b.experts / 'a', pickled)}", f"b={b.experts / 'b'}")},
            ("--expert a", WEIGHTS)),
    }  # fmt: skip


def names() -> dict[str, tuple]:
    return {
        "name: a policy with ..": (generate, lambda b: {"policy": f"../up={b.workshop.base}"}, ("--policy", "../up")),
        "name: an absolute policy": (
            generate, lambda b: {"policy": f"/tmp/x={b.workshop.base}"}, ("--policy", "/tmp/x")),
        "name: an empty policy": (
            generate, lambda b: {"policy": f"={b.workshop.base}"}, ("--policy", "cannot be a name")),
        "name: a hidden policy": (judge, lambda b: {"policy": f".x={b.workshop.base}"}, ("--policy", "'.x'")),
        "name: a policy with control characters": (
            chat, lambda b: {"policy": f"a\x1b[2J={b.workshop.base}"}, ("--policy", "invisible characters")),
        "name: an objective with /": (step2, lambda b: {"objective": "a/b"}, ("--objective", "'a/b'")),
        "name: an objective with ..": (
            step3, lambda b: {"reward_model": f"../up={b.workshop.reward}"}, ("--reward_model", "'../up'")),
        "name: an objective with a line break": (
            score, lambda b: {"cost_model": f"a\nb={b.workshop.cost}"}, ("--cost_model", "invisible characters")),
        "name: a judged objective with /": (judge, lambda b: {"objective": "../x"}, ("--objective", "'../x'")),
        "name: a very long policy": (
            generate, lambda b: {"policy": f"{'a' * 300}={b.workshop.base}"}, ("--policy", "at most 100 bytes")),
        "name: an input with ..": (
            split_data, lambda b: {"input": f"../up={b.workshop.prompts}"}, ("--input", "'../up'")),
        "name: an unknown kind of instruction": (
            prompt_pairs, lambda b: {"kinds": ("no_commas", "no_coma")}, ("--kinds", "'no_coma' is none of exactly")),
        "name: an expert without one": (
            soup, lambda b: {"expert": str(b.workshop.base)}, ("--expert", "not NAME=VALUE")),
        "name: an unknown preset": (run_all, lambda b: {"": "smoky"}, ("smoky: neither a preset",)),
        "name: an unknown run": (
            policy_script, lambda b: {"": "gapa_p1"}, ('no method is known for the run "gapa_p1"',)),
        "name: a run with ..": (policy_script, lambda b: {"": "../../up"}, ("no method is known",)),
        "name: an unknown condition": (policy_script, lambda b: {"": "gapo_p1@worse"}, ('known as "worse"',)),
        "name: a seed that leads elsewhere": (
            policy_script, lambda b: {"": "gapo_p1#/../../../up"}, ('"/../../../up" is not a whole number',)),
        "name: a weight that leads elsewhere": (
            policy_script, lambda b: {"": "morlhf_/../../../up"}, ('"/../../../up" is not a number from 0 to 1',)),
    }  # fmt: skip


def variables() -> dict[str, tuple]:
    def set_to(setting: str, *names: str) -> tuple:
        return run_all, lambda b: {"": (setting, "smoke")}, names

    return {
        "variable: no pieces at once": set_to("JOBS=0", "JOBS=0"),
        "variable: pieces in words": set_to("JOBS=abc", "JOBS=abc"),
        "variable: octal pieces": set_to("JOBS=08", "JOBS=08"),
        "variable: a seed in words": set_to("SEED=abc", "SEED=abc"),
        "variable: a seed of 20 digits": set_to("SEED=99999999999999999999", "SEED=9999"),
        "variable: no seeds": set_to("SEEDS=0", "SEEDS=0"),
        "variable: a command for a number of seeds": set_to("SEEDS=a[$(touch up)]", "SEEDS="),
        "variable: no ranks": set_to("RANKS=0", "RANKS=0"),
        "variable: half a thread": set_to("THREADS=0.5", "THREADS=0.5"),
        "variable: a start that is no run": set_to("WARM_START=dpo", "WARM_START=dpo", "no run of"),
        "variable: a start with a seed": set_to("WARM_START=gapo_p1#3", "WARM_START", "without a seed"),
        "variable: a start that starts from itself": set_to("WARM_START=cgpo_crpg", "WARM_START", "starts from it"),
        "variable: a start that is not made": set_to("WARM_START=mgda", "WARM_START", "not among RUNS"),
        "variable: an unknown run": set_to("RUNS=gapo_p1 dpo", '"dpo"'),
        "variable: a run that leads elsewhere": set_to("RUNS=rewarded_soup_0.5#../up", '"../up"'),
        "variable: no interpreter": set_to("PYTHON=/no/python", "PYTHON=/no/python"),
        "variable: output over a file": (
            run_all, lambda b: {"": (f"OUTPUT={b.file('thesis.tex', 'x')}", "smoke")}, ("OUTPUT=", "thesis.tex")),
        "variable: output below a file": (
            run_all, lambda b: {"": (f"OUTPUT={b.workshop.prompts}/out", "smoke")}, ("OUTPUT=", "/out")),
        "variable: no data": (run_all, lambda b: {"": (f"DATA_DIR={b.folder}/none", "hh")}, ("DATA_DIR=", "none")),
        "variable: ranks of one policy": (
            policy_script, lambda b: {"": ("RANKS=two", "gapo_p1")}, ("RANKS=two: not a whole number",)),
    }  # fmt: skip


def with_rows(rows: int) -> Callable[[Path], None]:
    """A model with so many embeddings, more than its tokenizer has ids."""

    def spoil(folder: Path) -> None:
        weights = load_file(folder / WEIGHTS)
        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            weights[name] = weights[name].new_zeros(rows, weights[name].shape[1])
        save_file(weights, folder / WEIGHTS, {"format": "pt"})
        edit_json(folder / "config.json", {"vocab_size": rows})

    return spoil


def dry(command: Callable, change: Callable[[Bench], dict[str, Any]], *names: str, mistakes: int = 1) -> tuple:
    return command, lambda b: change(b) | {"dry_run": True}, names, mistakes


def told(**changes: Any) -> Callable[[Bench], dict[str, Any]]:
    return lambda b: changes


def plans() -> dict[str, tuple]:
    """What a dry run refuses, in the words of the run."""

    def wider(b: Bench) -> dict[str, Any]:
        return {"actor_model": b.model(b.workshop.base, with_rows(640))}

    labels = {"id2label": {"0": "a", "1": "b"}, "label2id": {"a": 0, "b": 1}}
    vocabulary = ("--reward_model helpfulness", "its vocabulary of 600", "640")
    return {
        "dry run: two labels": dry(
            step3, lambda b: {"cost_model": f"harm={b.model(b.workshop.cost, **labels)}"}, "--cost_model harm", "2 "),
        "dry run: an unknown objective": dry(step3, told(monitor="wit"), "--monitor wit", "no such objective"),
        "dry run: a preference for an unknown objective": dry(
            step3, told(algorithm="morlhf", preference=("wit=1",)), "--preference", "wit"),
        "dry run: a larger vocabulary than the score model's": dry(
            step3, wider, *vocabulary, "--cost_model harmlessness", mistakes=2),
        "vocabulary: larger than the score model's": (step3, lambda b: wider(b) | {"fresh": True}, vocabulary),
        "dry run: fewer positions than tokens": dry(
            step3, told(max_prompt_length=500, max_new_tokens=20), "520 tokens", "positions for 512",
            *("--actor_model", "--reward_model helpfulness", "--cost_model harmlessness"), mistakes=3),
        "dry run: fewer positions, stage 1": dry(
            step1, lambda b: {"model_name_or_path": b.model(b.workshop.base, max_position_embeddings=16)},
            "--max_length 128", "positions for 16"),
        "dry run: batches that do not divide": dry(
            step3, told(per_device_train_batch_size=7), "--per_device_train_batch_size", "= 7"),
        "dry run: too few prompts for so many ranks": dry(
            step3, told(plan_ranks=5), "64 prompts do not fill one rollout of 80"),
        "dry run: more ranks than devices": dry(
            step3, told(zero_stage=3, plan_ranks=9, plan_devices=8), "--plan_ranks: 9 ranks", "8 devices"),
        "dry run: more ranks than devices, stage 2": dry(
            step2, told(plan_ranks=3, plan_devices=2), "--plan_ranks: 3 ranks", "2 devices"),
        "dry run: truncated weights": dry(
            step1, lambda b: {"model_name_or_path": b.model(b.workshop.base, truncated)}, "cannot read the weights"),
        "dry run: more machines than ranks": dry(step1, told(plan_machines=2), "--plan_machines", "2 machines"),
        "dry run: no host memory": dry(step1, told(plan_host_memory=0), "--plan_host_memory", "not a positive number"),
        "offload that nothing would heed": (step2, told(offload=True), ("--offload: needs --zero_stage",)),
        "a host's memory of a real run": (step2, told(plan_host_memory=64), ("--plan_host_memory", "--dry_run")),
        "a plan of a real run": (step1, lambda b: {"plan_memory": 80}, ("--plan_memory", "--dry_run")),
    }  # fmt: skip


def many_mistakes() -> dict[str, tuple]:
    """A dry run lists them all, a line each."""
    return {
        "dry run: all that is wrong": dry(
            step3, lambda b: {"reward_model": (f"helpfulness={b.folder}/none",
                                               f"wit={b.model(b.workshop.reward, truncated)}"),
                              "per_device_train_batch_size": 7, "monitor": "truth", "max_prompt_length": 2,
                              "offload": True, "lora_alpha": 2, "rescale_power": 1, "algorithm": "morlhf",
                              "preference": ("wit=0.5", "helpfulness=0.2", "harmlessness=0.2")},
            "--reward_model helpfulness", "none: no such model", "--reward_model wit", "cannot read the weights",
            "= 7", "--monitor truth: no such objective", "longer than --max_prompt_length 2", "--offload: needs",
            "--lora_alpha: has no effect", "--rescale_power: --algorithm morlhf has none", "the weights sum to 0.9",
            mistakes=9),
        "dry run: a policy and data that are not there": dry(
            step3, lambda b: {"actor_model": b.folder / "none", "data": b.folder / "none.jsonl",
                              "cost_model": f"harmlessness={b.folder}/no", "plan_ranks": 2, "plan_machines": 3},
            "--actor_model", "none.jsonl: no such file", "--cost_model harmlessness", "--plan_machines: 3", mistakes=4),
        "dry run: all that is wrong, stage 1": dry(
            step1, lambda b: {"model_name_or_path": b.folder / "none", "tokenizer": b.folder / "no", "offload": True,
                              "data": b.folder / "none.jsonl", "validation_data": b.rows({"prompt": 1}),
                              "plan_ranks": 3, "plan_devices": 2},
            "--model_name_or_path", "--tokenizer", "--offload", "none.jsonl", "rows.jsonl:1", "--plan_ranks: 3 ranks",
            mistakes=6),
        "dry run: all that is wrong, stage 2": dry(
            step2, lambda b: {"model_name_or_path": b.model(b.workshop.base, truncated), "offload": True,
                              "data": b.rows(PKU, PKU | LONG), "validation_data": b.folder / "none.jsonl"},
            "cannot read the weights", "--offload", "rows.jsonl:2: prompt of", "none.jsonl", mistakes=4),
        "dry run: both sides of the data": dry(
            step1, lambda b: {"data": b.rows(DIALOGUE, DIALOGUE | LONG, name="a.jsonl"),
                              "validation_data": b.rows(DIALOGUE | LONG, name="b.jsonl")},
            "a.jsonl:2: prompt of", "b.jsonl:1: prompt of", mistakes=2),
    }  # fmt: skip


def hub_names() -> dict[str, tuple]:
    """What is nowhere; the tests do not ask the hub."""
    commit = "0123456789" * 4
    return {
        "hub: no such base": (
            step1, lambda b: {"model_name_or_path": f"nobody/base@{commit}"},
            ("--model_name_or_path nobody/base@0123456789", "HF_HUB_OFFLINE"),
        ),
        "hub: no such policy": (
            step2, lambda b: {"model_name_or_path": "nobody/policy"}, ("--model_name_or_path nobody/policy: HF_HUB",)
        ),
        "hub: no such cost model": (
            step3, lambda b: {"cost_model": "harm=nobody/cost@v1"}, ("--cost_model harm", "nobody/cost@v1: HF")
        ),
        "hub: no such revision of data": (
            step3, lambda b: {"data": f"nobody/rows@train@{commit}"}, (f"nobody/rows@train@{commit}: no file", "HF_HUB")
        ),
        "tokenizer: none there": (step1, lambda b: {"tokenizer": b.folder}, ("--tokenizer", "no such model")),
        "tokenizer: data with an id beyond the model's": (
            step1, lambda b: {"tokenizer": b.model(b.workshop.base, with_a_token_more), "data": b.rows(
                *({"prompt": f"{number}?", "response": "Yes."} for number in range(8)),
                {"prompt": "And?", "response": "An <extra700>."})},
            ("rows.jsonl:9", "<extra700>", "600 rows")),
    }  # fmt: skip


def config_files() -> dict[str, tuple]:
    def given(command: Callable, content: str, *names: str, name: str = "run.yaml") -> tuple:
        return command, lambda b: {"config": b.file(name, content)}, names

    return {
        "config: no such flag": given(
            step3, "kl_coef: 0.1\n", "run.yaml: kl_coef: main.py has no such flag", "did you mean kl_coeff?"),
        "config: settings of another stage": given(
            step1, '{"actor_model": "x"}', "args.json: actor_model: main.py has no such flag", name="args.json"),
        "config: a value that the flag refuses": given(
            generate, "temperature: -1\n", "run.yaml: temperature: -1 is not a positive number"),
        "config: two values for one": given(soup, "base: [a, b]\n", "run.yaml: base: takes one value, not 2"),
        "config: a switch for a value": given(make_base, "seed: true\n", "run.yaml: seed: takes a value, not true"),
        "config: no YAML": given(chat, "seed: 1\n\tseed: 2\n", "run.yaml: line 2: not valid YAML"),
        "config: no JSON": given(report, '{"samples": }', "run.json: line 1: not valid JSON", name="run.json"),
        "config: no such file": (score, lambda b: {"config": b.folder / "none.yaml"}, ("none.yaml: cannot be read",)),
    }  # fmt: skip


def numbers() -> dict[str, tuple]:
    return {
        "flag: unknown": (step3, lambda b: {"bogus": 1}, ("--bogus",)),
        "flag: abbreviated": (generate, lambda b: {"max_new": 1}, ("--max_new",)),
        "flag: a rate below 0": (step1, lambda b: {"learning_rate": -1}, ("--learning_rate",)),
        "flag: a temperature of nan": (generate, lambda b: {"temperature": "nan"}, ("--temperature",)),
        "flag: a temperature next to 0": (generate, lambda b: {"temperature": 1e-44}, ("--temperature", "below 0.0")),
        "flag: a seed of many digits": (generate, lambda b: {"seed": 10**23}, ("--seed", "4294967295")),
        "flag: a seed of many digits, stage 3": (step3, lambda b: {"seed": 10**23}, ("--seed", "4294967295")),
        "flag: a seed of many digits, base model": (make_base, lambda b: {"seed": 2**32}, ("--seed", "4294967295")),
        "flag: a seed below 0": (chat, lambda b: {"seed": -1}, ("--seed", "4294967295")),
        "flag: a time beyond all clocks": (step1, lambda b: {"rank_timeout": 1e18}, ("--rank_timeout", "a year")),
        "flag: an endless time": (judge, lambda b: {"timeout": "inf"}, ("--timeout",)),
        "flag: more steps than can be counted": (step3, lambda b: {"max_steps": 10**30}, ("--max_steps", "2147483647")),
        "flag: more tokens than can be counted": (
            generate, lambda b: {"max_new_tokens": 10**30}, ("--max_new_tokens", "2147483647")),
        "flag: more pieces than can be counted": (
            make_base, lambda b: {"vocab_size": 2**31}, ("--vocab_size", "2147483647")),
        "flag: a vocabulary beyond the text": (make_base, lambda b: {"vocab_size": 2**31 - 1}, ("--vocab_size",)),
        "flag: a model beyond the memory": (make_base, lambda b: {"hidden_size": 2**30}, ("--hidden_size",)),
        "flag: a rate beyond the numbers": (step2, lambda b: {"learning_rate": 1e999}, ("--learning_rate",)),
        "flag: a rate next to nothing": (step2, lambda b: {"learning_rate": 1e-999}, ("--learning_rate",)),
        "flag: half a token": (chat, lambda b: {"max_new_tokens": 1.5}, ("--max_new_tokens",)),
        "flag: more tokens than positions": (step3, lambda b: {"max_new_tokens": 600}, ("--max_new_tokens", "512")),
        "flag: no room for a prompt": (
            chat, lambda b: {"max_new_tokens": 512}, ("--max_new_tokens 512", "--policy base")),
        "flag: weights that sum to 1.5": (soup, lambda b: {"weight": ("a=1", "b=0.5")}, ("--weight", "sum to 1.5")),
        "flag: a preference that sums to 0.9": (
            step3, lambda b: {"algorithm": "p_gapo", "preference": ("helpfulness=0.5", "harmlessness=0.4")},
            ("--preference", "0.9")),
        "flag: batches that do not divide": (
            step3, lambda b: {"per_device_train_batch_size": 3}, ("--per_device_train_batch_size",)),
        "flag: heads that do not divide": (make_base, lambda b: {"num_heads": 5}, ("--num_heads 5",)),
        "flag: an unknown objective": (step3, lambda b: {"score_scale": "truth=2"}, ("--score_scale truth",)),
        "flag: nothing to make": (
            prompt_pairs, lambda b: {"prompt_pairs_per_response": 0, "instruction_pairs_per_pair": 0},
            ("--prompt_pairs_per_response and --instruction_pairs_per_pair",)),
        "flag: one instruction a pair": (prompt_pairs, lambda b: {"max_instructions": 1}, ("--max_instructions 1:",)),
        "flag: a share of 2": (prompt_pairs, lambda b: {"all_met_share": 2}, ("--all_met_share", "between 0 and 1")),
        "flag: no samples": (report, lambda b: {"samples": 0}, ("--samples",)),
        "flag: nothing to explain": (score, lambda b: {"explain": 0}, ("--explain: 0 is not between 1",)),
        "flag: half a reason": (chat, lambda b: {"explain": 1.5}, ("--explain",)),
    }  # fmt: skip


def evaluation(content: Any) -> Callable[[Bench], dict[str, Any]]:
    """Flags of the report with another evaluation of the SFT policy."""
    text = content if isinstance(content, str) else json.dumps(content)
    return lambda b: {"input_dir": b.file("runs/eval/sft.json", text).parents[1]}


def responses() -> dict[str, tuple]:
    row = {"prompt": "Hi", "messages": [{"role": "user", "content": "Hi"}], "source": "p:1", "response": "Ho",
           "length": 1, "finished": True, "kl": 0.0}  # fmt: skip

    def given(*rows: Any) -> Callable[[Bench], dict[str, Any]]:
        return lambda b: {"responses": b.rows(*rows)}

    return {
        "responses: no such file": (score, lambda b: {"responses": "none.jsonl"}, ("--responses none.jsonl",)),
        "responses: malformed": (
            score, lambda b: {"responses": b.file("r.jsonl", json.dumps(row) + "\n{\n")},
            ("r.jsonl:2: not valid JSON",)),
        "responses: not UTF-8": (
            score, lambda b: {"responses": b.file("r.jsonl", b'{"prompt": "\xe9"}\n')}, ("r.jsonl:1:", "UTF-8")),
        "responses: a field is missing": (
            score, given(row, {"prompt": "Hi"}), ("rows.jsonl:2: the field 'finished' is missing",)),
        "responses: a number for the response": (
            score, given(row | {"response": 7}), ("rows.jsonl:1: the field 'response' must be",)),
        "responses: turns without content": (
            judge, lambda b: {"policy": f"o={b.rows(row | {'messages': [{'role': 'user'}]})}"},
            ("rows.jsonl:1: the field 'messages' must be",)),
        "responses: other prompts": (
            judge, lambda b: {"policy": f"o={b.rows(row)}"}, ("--policy o: no response to",)),
        "responses: half a character": (
            score, given(row, row | {"response": "\ud800"}), ("rows.jsonl:2: the field 'response' must be text",)),
        "responses: half a character in a turn": (
            judge, lambda b: {"policy": f"o={b.rows(row | {'messages': [{'role': 'user', 'content': chr(0xDC00)}]})}"},
            ("rows.jsonl:1: the field 'messages.content' must be text",)),
    }  # fmt: skip


def evaluations() -> dict[str, tuple]:
    whole = make_run("sft", [[0.5, 0.2]]).evaluation
    return {
        "evaluation: a folder": (report, lambda b: {"input_dir": runs(b, "eval/x.json/y")}, ("x.json: cannot be",)),
        "evaluation: a row without scores": (
            report, evaluation(whole | {"rows": [*whole["rows"], whole["rows"][0] | {"scores": {}}]}),
            ("sft.json: not an evaluation ('rows' 2 'scores' has no 'harmlessness')",)),
        "evaluation: a mean that is text": (
            report, evaluation(whole | {"objectives": {"help": {"mean": "a", "ci95": 0}}}),
            ("sft.json: not an evaluation ('objectives' 'help' 'mean' is not a number)",)),
        "evaluation: an explanation that is a number": (
            report, evaluation(whole | {"explanations": {"helpfulness": {"wit": 0.5}}}),
            ("sft.json: not an evaluation ('explanations' 'helpfulness' 'wit' is not an object)",)),
        "evaluation: settings that are a list": (
            report, lambda b: {"input_dir": runs(b, "policies/gapo_p1/args.json", [1])},
            ("gapo_p1/args.json", "not an object")),
        "evaluation: a step that is text": (
            report, lambda b: {"input_dir": runs(b, "policies/gapo_p1/metrics.jsonl", {"step": "one", "kl": 1})},
            ("metrics.jsonl: 'step' is not a whole number: 'one'",)),
        "judgement: other types": (
            report, lambda b: {"input_dir": runs(b, "eval/judge/x.json", dict.fromkeys(JUDGEMENT, [1]))},
            ("judge/x.json: not a judgement ('policy' is not text)",)),
        "judgement: a share that is text": (
            report, lambda b: {"input_dir": runs(b, "eval/judge/x.json", {
                "policy": "gapo_p1", "baseline": "sft", "judge": "gold", "prompts": 2,
                "objectives": {"helpfulness": {"win": {"percent": "all", "low": 0, "high": 1}}}})},
            ("judge/x.json: not a judgement ('objectives' 'helpfulness' 'win' 'percent' is not a number)",)),
        "labels: a prompt that is a list": (
            report, lambda b: {"labels": b.rows({"prompt": ["x"]})}, ("rows.jsonl: 'prompt' is not text",)),
        "evaluation: none": (report, lambda b: {"input_dir": b.folder}, ("--input_dir",)),
        "evaluation: malformed": (report, evaluation('{\n"run"'), ("sft.json:2: not valid JSON",)),
        "evaluation: not one": (report, evaluation({"run": "sft"}), ("sft.json: not an evaluation",)),
        "evaluation: of a run elsewhere": (
            report, evaluation(whole | {"run": "../../up"}), ("sft.json: holds the run '../../up'",)),
        "evaluation: without rows": (report, evaluation(whole | {"rows": []}), ("sft.json: not an evaluation", "rows")),
        "evaluation: without means": (report, evaluation(whole | {"objectives": {"help": 1}}), ("sft.json", "'help'")),
        "labels: no such file": (report, lambda b: {"labels": "none.jsonl"}, ("--labels none.jsonl",)),
    }  # fmt: skip


def judgements() -> dict[str, tuple]:
    return {
        "judge: no address": (judge, lambda b: {"gold": None, "base_url": "here", "model": "m"}, ("--base_url",)),
        "judge: no such function": (judge, lambda b: {"gold": "utils.nothing:at_all"}, ("--gold utils.nothing",)),
        "gold: no module": (judge, lambda b: {"gold": ".gold:scores"}, ("--gold .gold:scores",)),
        "gold: no file": (score, lambda b: {"gold": "none.py:scores"}, ("--gold none.py:scores: no such file",)),
        "gold: a file that imports what is not there": (
            score, lambda b: {"gold": f"{b.file('gold.py', 'import no_such_library')}:scores"},
            ("--gold", "gold.py fails to be imported (ModuleNotFoundError: No module named 'no_such_library')")),
        "gold: not a function": (score, lambda b: {"gold": "string:digits"}, ("--gold string:digits: str is no func",)),
        "gold: a function of one argument": (
            score, lambda b: {"gold": "json:loads"}, ("--gold json:loads", "TypeError")),
        "gold: a function of one argument, judge": (
            judge, lambda b: {"gold": "json:loads"}, ("--gold json:loads", "TypeError")),
        "gold: a function of one argument, chat": (
            chat, lambda b: {"gold": "json:loads"}, ("--gold json:loads", "TypeError")),
        "gold: a function that gives no objectives": (
            score, lambda b: {"gold": "operator:add"}, ("--gold operator:add", "'list' object has no attribute")),
        "judge: prompts that are not there, for models": (
            judge, lambda b: {"policy": f"a={b.workshop.base}", "baseline": f"b={b.workshop.base}",
                              "data": b.workshop.prompts, "max_new_tokens": 12, "prompts": "helpfulness=typo.jsonl"},
            ("typo.jsonl: no such file",)),
        "judge: prompts too long for the second model": (
            judge, lambda b: {"policy": f"a={b.workshop.base}", "data": b.workshop.prompts, "max_new_tokens": 40,
                              "baseline": f"b={b.model(b.workshop.base, max_position_embeddings=41)}"},
            ("prompt of", "longer than --max_prompt_length 1")),
        "judge: no criteria": (
            judge, lambda b: {"gold": None, "base_url": "http://127.0.0.1:9", "model": "m", "objective": "wit"},
            ("--objective wit",)),
        "judge: criteria without a scale": (
            judge, lambda b: {"gold": None, "base_url": "http://127.0.0.1:9", "model": "m",
                              "criteria": f"helpfulness={b.file('c.txt', 'be brief')}"}, ("--criteria helpfulness",)),
    }  # fmt: skip


def outputs() -> dict[str, tuple]:
    return {
        "output: below a file": (step3, lambda b: {"output_dir": b.workshop.prompts / "out"}, ("--output_dir",)),
        "output: below a file, stage 1": (step1, lambda b: {"output_dir": b.workshop.prompts / "x"}, ("--output_dir",)),
        "output: over an expert": (soup, lambda b: {"output_dir": b.experts}, ("--output_dir", "delete")),
        "output: over somebody's folder": (
            make_base, lambda b: {"model_dir": b.file("thesis/text.tex", "x").parent}, ("--model_dir", "thesis")),
        "output: a soup over a policy": (
            soup, lambda b: {"output_dir": trained(b)}, ("--output_dir", "would be deleted")),
        "output: a soup over somebody's folder": (
            soup, lambda b: {"output_dir": b.file("mine/config.json", "{}").parent}, ("--output_dir", "mine")),
        "output: a base model over a policy": (
            make_base, lambda b: {"model_dir": trained(b)}, ("--model_dir", "trained")),
        "output: a tokenizer over a policy": (
            make_base, lambda b: {"tokenizer_dir": trained(b)}, ("--tokenizer_dir", "trained")),
        "output: a base model over another of its kind": (
            make_base, lambda b: {"model_dir": b.model(b.workshop.base, replaced("chat_template.jinja", b"x"))},
            ("--model_dir", "base_copy")),
        "output: a file for the folder of responses": (
            generate, lambda b: {"output_dir": b.file("out/responses", "x").parent}, ("--output_dir", "responses")),
        "output: a folder for the responses": (
            generate, lambda b: {"output_dir": b.file("out/responses/base.jsonl/x", "").parents[2]},
            ("--output_dir", "base.jsonl: a folder")),
        "output: a folder for the scores": (
            score, lambda b: {"output_dir": b.file("out/base.json/x", "").parents[1]}, ("base.json: a folder",)),
        "output: a folder for a judgement": (
            judge, lambda b: {"output_dir": b.file("out/other_vs_base.json/x", "").parents[1]},
            ("other_vs_base.json: a folder",)),
        "output: a folder for the judge's answers": (
            judge, lambda b: {"output_dir": b.file("out/answers.jsonl/x", "").parents[1]}, ("answers.jsonl: a fold",)),
        "output: a file for the folder of a split": (
            split_data, lambda b: {"output_dir": b.file("out/train", "x").parent}, ("--output_dir", "train")),
        "output: a folder for a split": (
            split_data, lambda b: {"output_dir": b.file("out/test/sft.jsonl/x", "").parents[2]},
            ("sft.jsonl: a folder",)),
        "output: a folder for prompt pairs": (
            prompt_pairs, lambda b: {"output_dir": b.file("out/prompt_pairs.jsonl/x", "").parents[1]},
            ("--output_dir", "prompt_pairs.jsonl: a folder")),
        "output: a folder for the findings": (inspect_data, lambda b: {"json": b.folder}, ("--json", "a folder")),
        "output: a report over a file": (
            report, lambda b: {"output_dir": b.file("thesis.tex", "x")}, ("--output_dir", "thesis.tex")),
        "output: a report over somebody's folder": (
            report, lambda b: {"output_dir": b.file("thesis/text.tex", "x").parent}, ("--output_dir", "thesis")),
    }  # fmt: skip


def runs(b: Bench, name: str, content: Any = None) -> Path:
    """The folder of a preset with one file spoiled."""
    folder = Path(shutil.copytree(b.shared / "runs", b.folder / "runs"))
    b.file(f"runs/{name}", json.dumps(content))
    return folder


def trained(b: Bench) -> Path:
    """The folder of a trained policy: a model with its records."""
    shutil.copytree(b.experts / "a", b.folder / "trained")
    return b.file("trained/metrics.jsonl", "{}").parent


# --- running a case


def make_shared(workshop: Workshop) -> Path:
    """What the cases need beside the workshop; see `Bench`."""
    shared = workshop.folder / "bench"
    prompts = [json.loads(line)["prompt"] for line in workshop.prompts.read_text().splitlines()[:8]]
    for name, response in (("base", "Wait."), ("other", "Ask a friend.")):
        (shared / "responses").mkdir(parents=True, exist_ok=True)
        rows = [
            {"prompt": prompt, "messages": [{"role": "user", "content": prompt}], "source": f"prompts.jsonl:{number}",
             "response": response, "length": 3, "finished": True, "kl": 0.0}
            for number, prompt in enumerate(prompts, start=1)
        ]  # fmt: skip
        (shared / f"responses/{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_runs(
        shared / "runs", [make_run("sft", [[0.5, 0.2], [0.1, 0.3]]), make_run("gapo_p1", [[0.6, 0.4], [0.2, 0.5]])]
    )
    for name in "ab":
        shutil.copytree(workshop.base, shared / "experts" / name)
        (shared / "experts" / name / "args.json").write_text(json.dumps({"actor_model": str(workshop.base)}))
    return shared


def snapshot(bench: Bench) -> dict[Path, Any]:
    """Everything there is in and beside the case's folder (contents) and the workshop (sizes and times)."""
    own = {path: path.read_bytes() if path.is_file() else None for path in bench.folder.parent.rglob("*")}
    stats = {path: path.stat() for path in bench.workshop.folder.rglob("*") if not path.is_dir()}
    return own | {path: (stat.st_size, stat.st_mtime_ns) for path, stat in stats.items()}


def problems(case: Case, result: Result, before: dict[Path, Any], after: dict[Path, Any]) -> str:
    """What is not as it must be, in words; nothing if all is."""
    found = [] if result.code == 2 else [f"exit code {result.code}"]
    lines = result.stderr.splitlines()
    if printable(result.stdout + result.stderr) != result.stdout + result.stderr:
        found.append("it commands the terminal")
    if (
        len(lines) != case.mistakes
        or not all(line.startswith("error: ") for line in lines)
        or "Traceback" in result.stdout
    ):
        found.append(f"not a line for each mistake on stderr: {result.stderr[-2000:]}")
    found += [f"{name!r} is not named: {result.stderr}" for name in case.names if name not in result.stderr]
    paths = before.keys() | after.keys()
    changed = sorted(str(path) for path in paths if before.get(path, path) != after.get(path, path))
    return "; ".join(found + ([f"changed: {', '.join(changed)}"] if changed else []))


def run_for_real(case: Case, arguments: list[str], bench: Bench) -> tuple[Result, float, float]:
    """By a process of its own, as a user would; how it ended, after how many seconds, and of these on a processor."""
    set_before = [word for word in arguments if case.is_shell and re.match("[A-Z_]+=", word)]
    arguments = [word for word in arguments if word not in set_before]
    variables = os.environ | {"PYTHON": sys.executable, "OUTPUT": str(bench.folder / "output")}
    variables |= dict(word.split("=", 1) for word in set_before)
    program = ["bash", case.script] if case.is_shell else [sys.executable, case.script]
    if case.command is corpus:
        program = [sys.executable, "-m", "utils.safe_rlhf_mini"]
    started, used = time.monotonic(), processor_seconds()
    result = run_command([*program, *arguments], env=variables, cwd=ROOT)
    return result, time.monotonic() - started, processor_seconds() - used


def processor_seconds() -> float:
    """Of all processes that this one has started and that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    parser = Parser(prog="python -m tests.bad_inputs", description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", metavar="TEXT", help="cases whose name holds this")
    args = parser.parse_args()
    from tests.conftest import make_workshop  # sets what must be set before torch starts
    from utils.models import loading  # noqa: F401  (keeps transformers quiet)

    failed = slow = 0
    with tempfile.TemporaryDirectory() as folder:
        workshop = make_workshop(Path(folder) / "workshop")
        shared = make_shared(workshop)
        chosen = {name: case for name, case in cases().items() if args.only in name}
        for number, (name, case) in enumerate(chosen.items()):
            bench = Bench(workshop, shared, Path(folder) / str(number) / "case")
            bench.folder.mkdir(parents=True)
            arguments = case.arguments(bench)
            before = snapshot(bench)
            result, seconds, used = run_for_real(case, arguments, bench)
            wrong = problems(case, result, before, snapshot(bench))
            failed, slow = failed + bool(wrong), slow + (seconds > SECONDS)
            said = result.stderr.strip().replace(folder, "")
            print(
                f"{seconds:5.1f} s, {used:4.1f} s of processor time  {case.script:28} {name:45} {wrong or said}",
                flush=True,
            )
    print(f"{len(chosen)} cases: {failed} wrong, {slow} above {SECONDS} s")
    sys.exit(bool(failed or slow))


if __name__ == "__main__":
    main()
