"""Golden runs: what two steps of every algorithm end in, for a change of the code that must not change it.

python -m tests.golden_runs FILE             before the change: run everything, write FILE and FILE.weights/
python -m tests.golden_runs FILE --compare   after it: run everything again and say what has become different

FILE holds, for every run, the SHA-256 of its weights and of its metrics; FILE.weights/ the weights and metrics, from
which `--compare` tells by how much they differ. Runs go through the command lines alone, and nothing of the
project but the tests' helpers is imported, so that this file can be copied into a tree whose modules lie elsewhere.
The algorithms are those in braces in step 3's `--help`. Sums are done in another order by another machine or version
of torch: compare on the machine that wrote FILE.
"""

import os

# Before torch is imported: one thread a rank, no network, no GPU, as in the tests.
os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}

import argparse
import hashlib
import json
import math
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatch
from itertools import product
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
from transformers.utils.logging import disable_progress_bar

from tests.architectures import Architecture, random_model, tokenizer
from tests.helpers import STEP3, flags, read_metrics, run_script

STEP1, STEP2, PAIRS = "step1_sft/main.py", "step2_reward/main.py", "step3_dpo/main.py"
SCOPES, RANKS, STAGES = ("last_layer", "full"), (1, 2), (0, 2, 3)
UNTIMED = re.compile(r"^time/|^cost/|memory")  # tags that differ from run to run, and counts, which older trees lack
METRICS = "metrics.jsonl"
# Flags without which an algorithm refuses two objectives.
NEEDED = {"ppo": {"monitor": "harmlessness"}, "cgpo": {"policy_loss": "crpg", "per_device_train_batch_size": 32}}
FUNCTIONS = tuple(f"{name}=examples.reward_functions:{name}" for name in ("conciseness", "format"))
ADAPTERS = {"lora_dim": 4, "gradient_scope": "full"}
ACCUMULATED = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
UNEQUAL = ("helpfulness=0.7", "harmlessness=0.3")
SUPERVISED = {"num_train_epochs": 1, "per_device_train_batch_size": 4, "learning_rate": 1e-2, "num_warmup_steps": 0}


@dataclass(frozen=True)
class Run:
    """Attributes: first: the run after which this one is left out if that one is refused."""

    script: str
    ranks: int = 1
    changes: dict[str, Any] = field(default_factory=dict)
    first: str | None = None


Outcome = dict[str, str]  # file -> SHA-256, or "error" -> what the run said
FURTHER_RUNS = {
    "shared_critic": Run(STEP3, 2, {"critic": "shared", "zero_stage": 2}),
    "lora_merged": Run(STEP3, 2, ADAPTERS | {"zero_stage": 2}),
    "lora_adapter": Run(STEP3, 1, ADAPTERS | {"lora_export": "adapter", "critic": "shared"}),
    "accumulated": Run(STEP3, 2, ACCUMULATED | {"zero_stage": 2}),
    "accumulated_full": Run(STEP3, 1, ACCUMULATED | {"gradient_scope": "full"}),
    "gram_per_micro_batch": Run(STEP3, 1, ACCUMULATED | {"gram_per": "micro_batch"}),
    "micro_batch_tokens": Run(STEP3, 2, ACCUMULATED | {"micro_batch_tokens": 100}),
    "offload": Run(STEP3, 2, {"zero_stage": 2, "offload": True}),
    "offload_zero_3": Run(STEP3, 2, {"zero_stage": 3, "offload": True}),
    "bf16": Run(STEP3, 2, {"zero_stage": 2, "dtype": "bf16"}),
    "checkpointing": Run(STEP3, 1, {"gradient_checkpointing": True, "logits_chunk_size": 5, "gradient_scope": "full"}),
    "epochs_whitened": Run(STEP3, 1, {"ppo_epochs": 2, "generation_batches": 2, "whiten_advantages": True}),
    "functions": Run(STEP3, 1, {"reward_function": FUNCTIONS}),
    "functions_alone": Run(STEP3, 2, {"reward_model": None, "cost_model": None, "reward_function": FUNCTIONS}),
    "monitored": Run(STEP3, 1, {"reward_function": FUNCTIONS, "monitor": "format", "log_gradients": True}),
    "logged": Run(STEP3, 1, {"algorithm": "morlhf", "log_gradients": True, "preference": UNEQUAL}),
    "preference": Run(STEP3, 1, {"algorithm": "p_gapo", "preference": UNEQUAL, "normalize_coefficients": True}),
    "rescale_power": Run(STEP3, 1, {"rescale_power": 0.5, "score_scale": "helpfulness=3", "missing_eos_penalty": 1.0}),
    "options": Run(STEP3, 1, {"algorithm": "cagrad", "weighting_options": "c=0.2", "temperature": 0.7}),
    "thresholds": Run(STEP3, 1, {"algorithm": "ppo_lagrangian", "cost_threshold": "harmlessness=-1"}),
    "parked": Run(STEP3, 1, {"park_frozen_models": True, "compact_at": 0}),
    **{f"step1-{ranks}_ranks-zero_{stage}": Run(STEP1, ranks, {"zero_stage": stage})
       for ranks, stage in product(RANKS, STAGES)},
    **{f"step2-{kind}-{ranks}_ranks-zero_{stage}": Run(STEP2, ranks, {"kind": kind, "zero_stage": stage})
       for kind, (ranks, stage) in product(("reward", "cost"), ((1, 0), (2, 2), (2, 3)))},
    **{f"pairs-{algorithm}-{ranks}_ranks-zero_{stage}": Run(PAIRS, ranks, {"algorithm": algorithm, "zero_stage": stage})
       for algorithm, (ranks, stage) in product(("dpo_lw", "gapo", "raco"), ((1, 0), (2, 2), (2, 3)))},
    "pairs-modpo": Run(PAIRS, 1, {"algorithm": "modpo", "monitor": "two", "gradient_checkpointing": True}),
    "pairs-lora": Run(PAIRS, 2, ADAPTERS | {"zero_stage": 3, "reference_log_probs": "per_batch"}),
}  # fmt: skip


def main() -> None:
    args = parse_args()
    disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        inputs = make_inputs(Path(folder) / "inputs")
        runs = {name: run for name, run in all_runs().items() if fnmatch(name, args.only)}
        sys.exit(compare(args, runs, inputs) if args.compare else write(args, runs, inputs))


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.golden_runs", description=__doc__.partition("\n\n")[0])
    parser.add_argument("file", type=Path, metavar="FILE", help="what the runs ended in (JSON)")
    parser.add_argument("--compare", action="store_true", help="compare with FILE; exit code 1 if a run differs")
    tolerated = "differences up to D times a tensor's largest weight, or 1 + a metric, do not count (0)"
    parser.add_argument("--tolerance", type=float, default=0.0, metavar="D", help=tolerated)
    parser.add_argument("--only", default="*", metavar="PATTERN", help="these runs, such as 'gapo-*-zero_3'")
    args = parser.parse_args()
    if args.compare and not args.file.is_file():
        parser.error(f"{args.file}: does not exist")
    return args


def all_runs() -> dict[str, Run]:
    """By name: the grid of algorithms, scopes, ranks and ZeRO stages, then single features and the first stages."""
    said = run_script(STEP3, ["--help"]).stdout
    algorithms = re.search(r"--algorithm\s+\{([^}]*)\}", said)[1].split(",")
    algorithms = [name for name in algorithms if ":" not in name]  # the last one stands for a file of one's own
    grid = {}
    for algorithm, scope, ranks, stage in product(algorithms, SCOPES, RANKS, STAGES):
        changes = {"algorithm": algorithm, "gradient_scope": scope, "zero_stage": stage} | NEEDED.get(algorithm, {})
        first = f"{algorithm}-{scope}-{RANKS[0]}_ranks-zero_{STAGES[0]}"
        grid[f"{algorithm}-{scope}-{ranks}_ranks-zero_{stage}"] = Run(STEP3, ranks, changes, first)
    return grid | FURTHER_RUNS


def make_inputs(folder: Path) -> Path:
    """A policy that ends some responses early, two score models on its tokenizer, prompts, dialogues and pairs."""
    config = Architecture("mistral", "mistral").config()
    policy = random_model(AutoModelForCausalLM, config)
    policy.lm_head.weight.data[config.eos_token_id] *= 12
    config.num_labels = 1
    models = {"policy": policy} | {
        name: random_model(AutoModelForSequenceClassification, config, seed)
        for seed, name in enumerate(("reward", "cost"), start=1)
    }
    for name, model in models.items():
        model.save_pretrained(folder / name)
        tokenizer().save_pretrained(folder / name)
    rows = {"prompts": [], "dialogues": [], "pairs": []}
    for number in range(32):
        prompt, short, long = f"What is {number} + {number * 7}?", str(number * 8), f"It is {number * 8}, I think."
        first, second, better = (short, long, number % 2) if number % 3 else (long, short, 0)
        rows["prompts"].append({"prompt": prompt})
        rows["dialogues"].append({"prompt": prompt, "response": first})
        rows["pairs"].append({
            "prompt": prompt, "response_0": first, "response_1": second, "better_response_id": better,
            "safer_response_id": 1 - better, "is_response_0_safe": better == 1, "is_response_1_safe": number % 5 > 0,
        })  # fmt: skip
    for name, part in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    return folder


def flags_of(run: Run, inputs: Path, output: Path) -> list[str]:
    supervised = {"model_name_or_path": inputs / "policy", "max_length": 64} | SUPERVISED
    pairs = {"data": f"{inputs}/pairs.jsonl:0.5", "validation_data": inputs / "pairs.jsonl", "objective": "one"}
    step3 = {
        "actor_model": inputs / "policy", "reward_model": f"helpfulness={inputs}/reward",
        "cost_model": f"harmlessness={inputs}/cost", "algorithm": "gapo", "data": inputs / "prompts.jsonl",
        "max_prompt_length": 64, "max_new_tokens": 12, "per_device_prompt_batch_size": 8,
        "per_device_train_batch_size": 4, "num_train_epochs": 2, "max_steps": 2, "actor_learning_rate": 1e-3,
        "critic_learning_rate": 1e-3, "lr_scheduler_type": "constant", "num_warmup_steps": 0,
    }  # fmt: skip
    both = tuple(f"{name}={inputs}/pairs.jsonl:{label}" for name, label in (("one", "better"), ("two", "safer")))
    objectives = {"actor_model": inputs / "policy", "objective": both, "validation_objective": both}
    own = {
        PAIRS: {"algorithm": "gapo", "max_length": 64} | objectives | SUPERVISED,
        STEP1: supervised | {"data": f"{inputs}/dialogues.jsonl:0.5", "validation_data": inputs / "dialogues.jsonl"},
        STEP2: supervised | pairs,
        STEP3: step3,
    }
    return flags(**own[run.script] | run.changes | {"output_dir": output})


def outcomes(runs: dict[str, Run], inputs: Path, folder: Path) -> Iterator[tuple[str, Outcome]]:
    """Run after run, and what it ended in, kept in `folder/name`; says how far it is."""
    start, refused = time.monotonic(), set()
    for number, (name, run) in enumerate(runs.items(), start=1):
        if run.first in refused:
            continue
        with tempfile.TemporaryDirectory() as output:
            result = run_script(run.script, flags_of(run, inputs, Path(output)), run.ranks)
            outcome = {"error": last_line(result.stderr)} if result.code else keep(Path(output), folder / name)
        refused |= {name} if "error" in outcome else set()
        yield name, outcome
        elapsed = time.monotonic() - start
        left = elapsed / number * (len(runs) - number)
        print(f"{number}/{len(runs)} {name} · {elapsed / number:.1f} s/run · ETA {left / 60:.1f} min", file=sys.stderr)


def kept_beside(file: Path) -> Path:
    return file.with_name(f"{file.name}.weights")


def last_line(text: str) -> str:
    return (text.strip().splitlines() or ["no word"])[-1]


def keep(output: Path, folder: Path) -> Outcome:
    """Copy a run's weights and its metrics without times; their digests."""
    folder.mkdir(parents=True)
    for file in output.glob("*.safetensors"):
        shutil.copy(file, folder)
    lines = [{tag: value for tag, value in step.items() if not UNTIMED.search(tag)} for step in read_metrics(output)]
    (folder / METRICS).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(folder.iterdir())}


def write(args: argparse.Namespace, runs: dict[str, Run], inputs: Path) -> int:
    """Write FILE and what is kept beside it; with `--only`, of these runs, and leave the others."""
    kept = kept_beside(args.file)
    golden = json.loads(args.file.read_text()) if args.only != "*" and args.file.is_file() else {}
    for name in runs:
        shutil.rmtree(kept / name, ignore_errors=True)
    golden |= dict(outcomes(runs, inputs, kept))
    args.file.write_text(json.dumps(golden, indent=1) + "\n")
    refused = [f"  {name}: {outcome['error']}" for name, outcome in golden.items() if "error" in outcome]
    print("\n".join([f"{len(golden)} runs in {args.file}, {len(refused)} of them refused", *refused]))
    return 0


def compare(args: argparse.Namespace, runs: dict[str, Run], inputs: Path) -> int:
    """Say which runs differ from FILE; 1 if there are any."""
    golden = {name: outcome for name, outcome in json.loads(args.file.read_text()).items() if fnmatch(name, args.only)}
    differing = [f"{name}: is not among the runs of this tree" for name in golden if name not in runs]
    with tempfile.TemporaryDirectory() as folder:
        for name, outcome in outcomes(runs, inputs, Path(folder)):
            if name not in golden:
                print(f"{name}: new, not in {args.file}", flush=True)
            elif what := differences(outcome, golden[name], Path(folder) / name, kept_beside(args.file) / name):
                tolerated = all(size <= args.tolerance for size in what.values())  # not NaN
                said = ", ".join(f"{where} by {size:.1e}" for where, size in what.items())
                print(f"{name}: {said}{' (tolerated)' if tolerated else ''}", flush=True)
                differing += [] if tolerated else [name]
    print("\n  ".join([f"{len(differing)} of {len(golden)} runs differ from {args.file}", *differing]))
    return 1 if differing else 0


def differences(outcome: Outcome, expected: Outcome, folder: Path, expected_folder: Path) -> dict[str, float]:
    """What differs, and by how much; infinite for what cannot be compared."""
    if "error" in outcome or "error" in expected:
        said = " -> ".join(one.get("error", "a good end") for one in (expected, outcome))
        return {said: math.inf} if outcome != expected else {}
    found = {}
    for file in sorted(outcome.keys() | expected.keys()):
        if file not in outcome or file not in expected:
            found[f"{file} (in one of them)"] = math.inf
        elif outcome[file] != expected[file]:
            compare_files = compare_metrics if file == METRICS else compare_weights
            found |= compare_files(folder / file, expected_folder / file)
    return found


def compare_weights(file: Path, expected_file: Path) -> dict[str, float]:
    """The largest difference of a weight, over the largest weight of its tensor."""
    weights, expected = load_file(file), load_file(expected_file)
    if {name: weight.shape for name, weight in weights.items()} != {n: weight.shape for n, weight in expected.items()}:
        return {f"{file.name} (names or shapes)": math.inf}
    pairs = [(weights[name].double(), expected[name].double()) for name in expected]
    sizes = [(a - b).abs().max() / b.abs().max().clamp(min=1e-30) for a, b in pairs]
    return {file.name: torch.stack(sizes).max().item()}


def compare_metrics(file: Path, expected_file: Path) -> dict[str, float]:
    """The metric a that differs most, in |a - b| / (1 + |a|)."""
    metrics, expected = read_metrics(file.parent), read_metrics(expected_file.parent)
    if [set(line) for line in metrics] != [set(line) for line in expected]:
        other = {tag for line in metrics for tag in line} ^ {tag for line in expected for tag in line}
        return {f"{METRICS} (steps, or tags {' '.join(sorted(other))})": math.inf}
    sizes = {
        f"{tag} of step {line['step']}": abs(line[tag] - other[tag]) / (1 + abs(line[tag]))
        for line, other in zip(expected, metrics, strict=True)
        for tag in line
    }
    worst = max(sizes, key=sizes.get)
    return {worst if sizes[worst] else f"{METRICS} (order of tags)": sizes[worst]}


if __name__ == "__main__":
    main()
