"""Preset mistral_7b without its models: a dry run on configuration files alone, and the order of a real run."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cases import EXHAUSTIVE, cases
from tests.helpers import ROOT, STEP3, Result, Workshop, run_command, run_script
from tests.test_run_all import STAND_IN

pytestmark = pytest.mark.slow

MISTRAL_7B = {
    "architectures": ["MistralForCausalLM"], "model_type": "mistral", "hidden_size": 4096, "intermediate_size": 14336,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 32000,
    "max_position_embeddings": 32768, "sliding_window": 4096, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
    "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu", "torch_dtype": "bfloat16",
}  # fmt: skip
LLAMA_7B_SCORE = {
    "architectures": ["LlamaForScore"], "model_type": "llama", "hidden_size": 4096, "intermediate_size": 11008,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 32001,
    "max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "tie_word_embeddings": False, "hidden_act": "silu",
    "score_dim": 1, "score_bias": False, "do_normalize": False, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")


def describe(folder: Path, tokenizer_of: Path, config: dict) -> Path:
    """A model folder without weights."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    for name in TOKENIZER:
        if (tokenizer_of / name).is_file():
            shutil.copy(tokenizer_of / name, folder)
    return folder


@pytest.fixture(scope="module")
def variables(workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a dry run: the configurations of the 7B models with small tokenizers, local prompts."""
    folder = tmp_path_factory.mktemp("mistral_7b")
    score_models = {"REWARD_MODEL": ("reward", LLAMA_7B_SCORE | {"score_type": "reward"}),
                    "COST_MODEL": ("cost", LLAMA_7B_SCORE | {"score_type": "cost"})}  # fmt: skip
    models = {
        name: str(describe(folder / kind, workshop.foreign, config)) for name, (kind, config) in score_models.items()
    }
    models["ACTOR_MODEL"] = str(describe(folder / "policy", workshop.base, MISTRAL_7B))
    prompts = folder / "prompts.jsonl"
    prompts.write_text(
        "".join(json.dumps({"prompt": f"How do I fold {number} napkins?"}) + "\n" for number in range(2048))
    )
    return models | {"PROMPTS": str(prompts), "TEST_PROMPTS": str(prompts), "OUTPUT": str(folder / "out")}


# In place of Python: notes the words of a command, or says what it is known to have said, and ends as it did.
PROMPTER = r"""#!/usr/bin/env bash
case $1 in - | -c) exec "$REAL_PYTHON" "$@" ;; esac
words=$(printf '%s\x1f' "$@")
said=$(dirname "$0")/$(printf %s "$words" | sha256sum | cut -d " " -f 1)
[ -e "$said.code" ] || { echo "$words" >> "$(dirname "$0")/calls"; exit; }
cat "$said.out"; cat "$said.err" >&2; exit "$(cat "$said.code")"
"""


def dry_run(variables: dict[str, str], folder: Path, **changes: str) -> Result:
    """run_all.sh mistral_7b --dry_run, whose scripts have run in forked processes: they would import for a minute."""
    (folder / "python").write_text(PROMPTER)
    (folder / "python").chmod(0o755)
    environment = os.environ | {"PYTHON": str(folder / "python"), "REAL_PYTHON": sys.executable} | variables | changes
    command = ["bash", "run_all.sh", "mistral_7b", "--dry_run"]
    assert run_command(command, env=environment).code == 0
    for call in dict.fromkeys((folder / "calls").read_text().splitlines()):
        script, *words = [word for word in call.split("\x1f")[:-1] if word != "-u"]
        result, said = run_script(script, words), folder / hashlib.sha256(call.encode()).hexdigest()
        for suffix, text in ((".out", result.stdout), (".err", result.stderr), (".code", str(result.code))):
            said.with_suffix(suffix).write_text(text)
    return run_command(command, env=environment)


def test_a_dry_run_plans_eight_gpus_on_a_machine_without_any(variables: dict[str, str], tmp_path: Path) -> None:
    result = dry_run(
        variables, tmp_path, RUNS="gapo_p1 mgda morlhf_0.5 ppo_helpfulness ppo_harmlessness rewarded_soup_0.5"
    )
    assert result.code == 0, result.stdout + result.stderr
    said = result.stdout
    assert f"[sft] {variables['ACTOR_MODEL']} is used as it is" in said
    assert "5 would be trained: gapo_p1 mgda morlhf_0.5 ppo_helpfulness ppo_harmlessness" in said
    assert "1 would be averaged: rewarded_soup_0.5" in said
    assert "7.24B" in said and "MistralForCausalLM" in said
    # 2048 prompts twice, 16 on each of 8 ranks, 8 such batches an update.
    assert any(line.startswith("optimizer steps") and line.split()[-1] == "4" for line in said.splitlines()), said
    assert said.count("dry run: nothing is written") == 2, "one run with two critics, one with one"
    assert "dry run passed" in said.splitlines()[-1]
    assert not Path(variables["OUTPUT"]).exists()


def test_a_dry_run_goes_through_everything_before_it_fails(variables: dict[str, str], tmp_path: Path) -> None:
    changes = {"RUNS": "gapo_p1", "TEST_PROMPTS": str(tmp_path / "none.jsonl"), "STEP3_FLAGS": "--monitor truth",
               "COST_MODEL": str(tmp_path / "none"), "JUDGE": "--model m --objective wit --base_url here"}  # fmt: skip
    result = dry_run(variables, tmp_path, **changes)
    lines = result.stderr.splitlines()
    named = ("--cost_model harmlessness", "--monitor truth", "none.jsonl: no such file", "--objective wit",
             "--base_url", "error: dry run: problems in gapo_p1 evaluation (see above)")  # fmt: skip
    assert result.code == 2 and len(lines) == len(named), result.stderr
    assert all(text in line for text, line in zip(named, lines, strict=True)), result.stderr
    assert "passed" not in result.stdout


@EXHAUSTIVE
def test_a_dry_run_shows_all_plans_of_what_does_not_fit(variables: dict[str, str], tmp_path: Path) -> None:
    result = dry_run(variables, tmp_path, RUNS="gapo_p1 ppo_helpfulness", GPU_MEMORY="16", FRACTION="0.5")
    assert result.code == 1 and result.stdout.count("largest phase (") == 3, result.stdout + result.stderr
    assert "note: FRACTION: preset mistral_7b does not read it" in result.stdout.splitlines()
    last = result.stderr.splitlines()[-1]
    assert last == "error: dry run: does not fit in memory: gapo_p1 ppo_helpfulness (see above)"


# What is wrong -> variables, what the one line names.
BAD = {
    "unknown objective": ({"STEP3_FLAGS": "--monitor truth"}, ("--monitor truth", "no such objective")),
    "sequence longer than positions": (
        {"MAX_NEW_TOKENS": "32768"},
        ("--max_prompt_length + --max_new_tokens", "33024 tokens", "32768"),
    ),
    "batch not divisible": ({"GRADIENT_ACCUMULATION": "3", "GENERATION_BATCHES": "8"}, ("= 128 is not a multiple of",)),
    "three labels": ({"REWARD_MODEL": "SPOILED"}, ("--reward_model", "3 labels")),
    "a vocabulary that does not fit": ({"ACTOR_MODEL": "SPOILED"}, ("--actor_model", "300 rows")),
}


@pytest.mark.parametrize("case", cases(BAD, always=["unknown objective", "three labels"]))
def test_a_dry_run_that_fails_says_why_in_one_line(variables: dict[str, str], tmp_path: Path, case: str) -> None:
    """The preset's command line, run in a forked process."""
    changes, named = BAD[case]
    if changes.get("REWARD_MODEL"):
        classifier = {"architectures": ["LlamaForSequenceClassification"], "id2label": dict.fromkeys("012", "x")}
        changes = {"REWARD_MODEL": str(spoiled(variables["REWARD_MODEL"], tmp_path, classifier))}
    if changes.get("ACTOR_MODEL"):
        changes = {"ACTOR_MODEL": str(spoiled(variables["ACTOR_MODEL"], tmp_path, {"vocab_size": 300}))}
    calls = with_stand_in(
        tmp_path, variables | {"RUNS": "gapo_p1", "OUTPUT": str(tmp_path / "out")} | changes, "--dry_run"
    )[1]
    assert len(calls) == 2 and calls[0].startswith(f"-u {STEP3} ") and "--plan_ranks 8" in calls[0]
    check_refusal(run_script(STEP3, calls[0].split()[2:]), named)


def spoiled(model: str, folder: Path, config: dict) -> Path:
    """A copy of a model folder with other values in config.json."""
    copy = Path(shutil.copytree(model, folder / "spoiled"))
    (copy / "config.json").write_text(json.dumps(json.loads((copy / "config.json").read_text()) | config))
    return copy


SHELL_BAD = {
    "more ranks than devices": ({"GPUS": "4"}, "RANKS=8: more ranks than GPUs (4) on a machine"),
    "a model that is trained": ({"TRAIN_SFT": "1"}, "ACTOR_MODEL: TRAIN_SFT trains that model; give one of the two"),
    "no GPU number": ({"GPUS": "many"}, "GPUS=many: not a whole number from 0 on"),
    "no ready model": ({"OBJECTIVES": "reward/wit", "REWARD_MODEL": "", "RUNS": "mgda"}, "MODEL_wit names no model"),
}


@pytest.mark.parametrize("case", SHELL_BAD)
def test_a_machine_that_does_not_fit_is_refused_in_one_line(variables: dict[str, str], case: str) -> None:
    changes, line = SHELL_BAD[case]
    environment = os.environ | {"PYTHON": sys.executable} | variables | changes
    check_refusal(run_command(["bash", "run_all.sh", "mistral_7b", "--dry_run"], env=environment), (line,))


def check_refusal(result: Result, named: tuple[str, ...]) -> None:
    assert result.code == 2, result.stdout + result.stderr
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1, result.stderr
    assert all(text in result.stderr for text in named), result.stderr


def with_stand_in(folder: Path, variables: dict[str, str], *flags: str) -> tuple[str, list[str]]:
    """run_all.sh mistral_7b with a stand-in for Python, which leaves behind what the scripts would: (said, calls)."""
    stand_in, calls = folder / "python", folder / "calls"
    stand_in.write_text(STAND_IN)
    stand_in.chmod(0o755)
    calls.write_text("")
    environment = os.environ | variables
    environment |= {"PYTHON": str(stand_in), "REAL_PYTHON": sys.executable, "CALLS": str(calls)}
    result = subprocess.run(
        ["bash", "run_all.sh", "mistral_7b", *flags], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout, calls.read_text().splitlines()


def test_a_real_run_needs_a_gpu(variables: dict[str, str]) -> None:
    environment = os.environ | {"PYTHON": sys.executable} | variables
    result = run_command(["bash", "run_all.sh", "mistral_7b"], env=environment)
    check_refusal(result, ("there is no GPU on this machine",))


def test_the_whole_preset_runs_on_ready_models(variables: dict[str, str], tmp_path: Path) -> None:
    """Every run of the paper, with a rank in place of eight."""
    changes = {"OUTPUT": str(tmp_path / "out"), "ON_CPU": "1", "RANKS": "1", "LORA_DIM": "16"}
    said, calls = with_stand_in(tmp_path, variables | changes)
    trained = [call for call in calls if STEP3 in call]
    assert len(trained) == 7 + 8 and sum("eval/soup.py" in call for call in calls) == 4
    assert not any("step1_sft" in call or "step2_reward" in call for call in calls)
    assert "is used as it is" in said
    table_2 = ("--dtype bf16", "--zero_stage 0", "--gradient_checkpointing", "--num_train_epochs 2", "--kl_coeff 0.05",
               "--clip_range_ratio 0.1", "--actor_learning_rate 1e-6", "--critic_learning_rate 5e-7",
               "--warmup_ratio 0.03", "--temperature 0.7", "--per_device_prompt_batch_size 16",
               "--per_device_train_batch_size 16", "--gradient_accumulation_steps 8", "--lora_dim 16",
               f"--actor_model {variables['ACTOR_MODEL']} ")  # fmt: skip
    assert all(flag in call for flag in table_2 for call in trained), trained[0]
    (scored,) = [call for call in calls if "eval/score.py" in call]
    assert f"helpfulness={variables['REWARD_MODEL']}" in scored and "--dtype bf16" in scored
    assert with_stand_in(tmp_path, variables | changes)[1] == []


def test_stages_1_and_2_are_trained_on_demand(variables: dict[str, str], tmp_path: Path) -> None:
    names = ("ACTOR_MODEL", "REWARD_MODEL", "COST_MODEL")
    others = {name: value for name, value in variables.items() if name not in names}
    changes = {"OUTPUT": str(tmp_path / "out"), "ON_CPU": "1", "RANKS": "1", "RUNS": "gapo_p1"}
    changes |= {"TRAIN_SFT": "1", "TRAIN_REWARD": "1"}
    calls = with_stand_in(tmp_path, others | changes | {"TRAIN_REWARD": "true"})[1]
    pinned = next(call for call in calls if "pin_revisions" in call)
    assert pinned.endswith("--model HuggingFaceH4/mistral-7b-sft-beta"), "all else names a commit, or is a file"
    sft, reward, cost, policy = (call for call in calls if "/main.py " in call)
    assert "--model_name_or_path mistralai/Mistral-7B-v0.1@26bca36" in sft and "ultrachat_200k@train_sft@8049631" in sft
    for call in (reward, cost):
        assert f"--model_name_or_path {tmp_path}/out/sft " in call and "PKU-SafeRLHF@train@9421ffa" in call
    assert f"--actor_model {tmp_path}/out/sft " in policy and f"={tmp_path}/out/cost/harmlessness " in policy
