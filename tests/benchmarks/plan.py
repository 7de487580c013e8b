"""The memory planner against real runs: what --dry_run plans, and what the same command then takes."""

import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.benchmarks.measure import single
from tests.benchmarks.section import Job, Row, Section, Settings
from tests.benchmarks.synthetic import Load, make_decoder
from tests.helpers import Workshop, flags, free_port, run_command

STEP1, STEP2, STEP3 = "step1_sft/main.py", "step2_reward/main.py", "step3_gapo/main.py"
PAIRS = "step3_dpo/main.py"
MEGABYTE = 2**20
BAR = 0.15
# Freed memory goes back to the system at once: otherwise the peak also counts what glibc keeps for later.
ENVIRONMENT = {"MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
# As they were before `tests.conftest` hid the GPUs: what is measured runs where the benchmarks are asked to run.
DEVICES = {name: os.environ.get(name) for name in ("CUDA_VISIBLE_DEVICES", "DS_ACCELERATOR")}
LONG = {"per_device_train_batch_size": 16, "per_device_eval_batch_size": 8}
MANY = {"per_device_prompt_batch_size": 16, "per_device_train_batch_size": 16, "max_new_tokens": 48}
GROUP = {"advantage": "group", "responses_per_prompt": 4}
LARGE = {"per_device_train_batch_size": 16, "max_new_tokens": 48}

# size, script, ranks, flags that differ from `arguments`
CASES: list[tuple[str, str, int, dict[str, Any]]] = [
    ("tiny", STEP3, 1, {}),
    ("tiny", STEP3, 2, {"zero_stage": 3}),
    ("50m", STEP3, 1, {}),
    ("50m", STEP3, 1, {"zero_stage": 2}),
    ("50m", STEP3, 1, {"zero_stage": 2, "dtype": "bf16"}),
    ("50m", STEP3, 2, {"zero_stage": 2}),
    ("50m", STEP3, 2, {"zero_stage": 3}),
    ("50m", STEP3, 2, {"zero_stage": 3, "dtype": "bf16"}),
    ("50m", STEP3, 1, {"zero_stage": 2, "critic": "shared"}),
    ("50m", STEP3, 1, {"zero_stage": 2, "critic": "shared", "gradient_scope": "full"}),
    ("50m", STEP3, 1, {"critic": "shared", **MANY}),
    ("50m", STEP3, 1, {"critic": "shared", "gradient_checkpointing": True, **MANY}),
    ("50m", STEP3, 1, {"critic": "shared", "keep_graphs": True, **MANY}),
    ("50m", STEP3, 1, {"zero_stage": 2, "offload": True, "critic": "shared"}),
    ("50m", STEP3, 1, {"lora_dim": 8}),
    ("50m", STEP3, 2, {"lora_dim": 8, "zero_stage": 3}),
    ("50m", STEP3, 1, {"zero_stage": 1, "monitor": "harmlessness"}),
    ("50m", STEP3, 1, {"critic": "shared", "micro_batch_tokens": 160, "logits_chunk_size": 64, **MANY}),
    ("50m", STEP3, 1, {"park_frozen_models": True, "critic": "shared", "algorithm": "morlhf"}),
    ("tiny", STEP3, 1, GROUP),
    ("50m", STEP3, 1, GROUP),
    ("50m", STEP3, 1, {"zero_stage": 2, "gradient_accumulation_steps": 2, **GROUP}),
    ("50m", STEP3, 2, {"zero_stage": 3, **GROUP}),
    ("50m", STEP3, 1, {"gradient_scope": "full", **GROUP, **LARGE}),
    ("50m", STEP3, 1, {"gradient_scope": "full", "gram_fraction": 0.25, **GROUP, **LARGE}),
    ("50m", STEP3, 1, {"zero_stage": 2, "gradient_scope": "full", "gram_fraction": 0.25, **GROUP}),
    ("50m", STEP3, 1, {"policy_loss": "crpg", "responses_per_prompt": 4}),
    ("50m", STEP3, 1, {"policy_loss": "crraft", "responses_per_prompt": 4, "gradient_scope": "full"}),
    ("50m", STEP3, 2, {"policy_loss": "codpo", "responses_per_prompt": 4, "zero_stage": 3}),
    ("50m", PAIRS, 1, {}),
    ("50m", PAIRS, 1, {"gradient_scope": "full", "gradient_accumulation_steps": 2}),
    ("50m", PAIRS, 1, {"reference_log_probs": "per_batch", "zero_stage": 2}),
    ("50m", PAIRS, 2, {"zero_stage": 3, "dtype": "bf16"}),
    ("50m", PAIRS, 1, {"lora_dim": 8, "reference_log_probs": "per_batch"}),
    ("50m", STEP2, 1, {}),
    ("50m", STEP1, 1, {"per_device_train_batch_size": 8}),
    ("50m", STEP1, 1, LONG),
    ("50m", STEP1, 2, {"zero_stage": 2, "dtype": "bf16", **LONG}),
]


def planned_and_measured(size: str, script: str, ranks: int, changes: dict[str, Any]) -> tuple[int, int]:
    """`compare` with models and data of its own."""
    from tests.conftest import make_workshop  # sets what must be set before torch starts

    with tempfile.TemporaryDirectory() as folder:
        return compare(Path(folder), make_workshop(Path(folder) / "workshop"), size, script, ranks, changes)


def compare(
    folder: Path, workshop: Workshop, size: str, script: str, ranks: int, changes: dict[str, Any]
) -> tuple[int, int]:
    """Bytes of the fullest phase as planned, and of the largest rank as measured."""
    make_models(size, folder, workshop.base)
    words = arguments(folder, workshop, script, changes)
    plan = run(folder, script, [*words, "--dry_run", *flags(plan_ranks=ranks)], 1)
    run(folder, script, words, ranks)
    return planned_bytes(plan), max(int((folder / str(rank)).read_text()) for rank in range(ranks))


def make_models(size: str, folder: Path, tokenizer: Path) -> None:
    """A policy and a score model with random weights of a size, with the tokenizer of a model folder."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = make_decoder(Load(size, "fp32", 1, 256, 256))
    AutoTokenizer.from_pretrained(tokenizer).save_pretrained(folder / "policy")
    model.save_pretrained(folder / "policy")
    model = AutoModelForSequenceClassification.from_pretrained(folder / "policy", num_labels=1)
    AutoTokenizer.from_pretrained(tokenizer).save_pretrained(folder / "score")
    model.save_pretrained(folder / "score")


def arguments(folder: Path, workshop: Workshop, script: str, changes: dict[str, Any]) -> list[str]:
    """A short run: two optimizer steps, after which the optimizer's memory is complete."""
    common = {"output_dir": folder / "out", "checkpoint_interval": 0, "num_warmup_steps": 0}
    if script == PAIRS:
        row = max((workshop.folder / "data/preferences_train.jsonl").read_text().splitlines(keepends=True), key=len)
        (folder / "alike.jsonl").write_text(row * 32)
        data = tuple(f"{name}={folder / 'alike.jsonl'}:{label}" for name, label in (("a", "better"), ("b", "safer")))
        sizes = {"max_length": 128, "per_device_train_batch_size": 8, "per_device_eval_batch_size": 4}
        own = {"actor_model": folder / "policy", "objective": data, "validation_objective": data, "algorithm": "gapo"}
        return flags(**(own | sizes | common | changes))
    if script != STEP3:
        name, count = ("sft", 96) if script == STEP1 else ("preferences", 16)
        rows = (workshop.folder / f"data/{name}_train.jsonl").read_text().splitlines(keepends=True)
        (folder / "alike.jsonl").write_text(max(rows, key=len) * count)  # every batch is as long as the longest
        data = {"model_name_or_path": folder / "policy", "data": folder / "alike.jsonl"}
        sizes = {"max_length": 128, "per_device_train_batch_size": 4, "per_device_eval_batch_size": 4}
        kind = {"objective": "helpfulness", "kind": "reward"} if script == STEP2 else {}
        return flags(**(data | {"validation_data": folder / "alike.jsonl"} | sizes | kind | common | changes))
    models = {
        "actor_model": folder / "policy", "reward_model": f"helpfulness={folder / 'score'}",
        "cost_model": f"harmlessness={folder / 'score'}", "data": workshop.prompts,
    }  # fmt: skip
    if "policy_loss" in changes:  # with a language model as a judge
        asked = {"judge_question": "kind=?", "judge_words": "kind=to:help"}
        models |= asked | {"judge_model": f"kind={folder / 'policy'}"}
    sizes = {
        "algorithm": "gapo", "max_prompt_length": 64, "max_new_tokens": 16, "per_device_prompt_batch_size": 4,
        "per_device_train_batch_size": 4, "max_steps": 2,
    }  # fmt: skip
    return flags(**(models | sizes | common | changes))


def run(folder: Path, script: str, words: list[str], ranks: int) -> str:
    """What a script says on stdout, run by a process a rank that measures itself."""
    launcher = ["-m", "deepspeed.launcher.runner", "--num_accelerators", str(ranks), "--master_port", str(free_port())]
    command = [sys.executable, *(launcher if ranks > 1 else []), "tests/benchmarks/measured_run.py"]
    hidden = [word for name, value in DEVICES.items() if value is None for word in ("-u", name)]
    settings = [f"{name}={value}" for name, value in (ENVIRONMENT | DEVICES).items() if value is not None]
    result = run_command(["env", *hidden, *settings, *command, str(folder), script, *words])
    if result.code:
        raise RuntimeError(result.stderr)
    return result.stdout


def planned_bytes(text: str) -> int:
    """Of the fullest phase in the table that --dry_run prints; without the libraries on a GPU, as `peak` measures."""
    unit = {"MiB": 2**20, "GiB": 2**30}[re.search(r"memory a rank in (\S+),", text)[1]]
    (totals,), (libraries,) = (re.findall(rf"^{row} +(.*)$", text, re.MULTILINE) for row in ("all", "libraries"))
    unseen = float(libraries.split()[0]) if " of a GPU " in text else 0.0
    return int((max(map(float, totals.split())) - unseen) * unit)


def jobs(settings: Settings) -> list[Job]:
    return [
        Job(f"{case[0]}, {case[1]}, ranks: {case[2]}, {' '.join(flags(**case[3]))}", planned_and_measured, case, 0, 4)
        for case in chosen(settings)
    ]


def chosen(settings: Settings) -> list[tuple[str, str, int, dict[str, Any]]]:
    """The cases whose ZeRO stages and numbers of ranks are among those to look at."""
    return [c for c in CASES if c[3].get("zero_stage", 0) in settings.stages and c[2] in settings.ranks]


def rows(settings: Settings, answers: list[tuple[int, int]]) -> list[Row]:
    table = []
    for (size, script, ranks, changes), (planned, measured) in zip(chosen(settings), answers, strict=True):
        table.append({
            "stage": script.partition("_")[0], "model": size, "ranks": ranks, "flags": " ".join(flags(**changes)),
            "planned [MB]": round(planned / MEGABYTE), "measured [MB]": round(measured / MEGABYTE),
            "planned / measured": single(planned / measured),
        })  # fmt: skip
    return table


SECTION = Section(
    title="The memory planner against real runs",
    note=f"Planned by --dry_run, measured over the same command; aimed at within {BAR:.0%}. On CPU the peak of the"
    " resident memory of the largest rank, libraries included (which the planner takes from the dry run's own process);"
    " on GPU what torch has allocated at most, and the plan without its libraries.",
    jobs=jobs,
    rows=rows,
)
