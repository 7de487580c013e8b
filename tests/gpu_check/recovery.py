"""What must go on as if nothing had happened: a step after a NaN, and a run from its checkpoint."""

import copy
import json
import sys
from pathlib import Path

import torch

from tests.architectures import Architecture, make_language_model
from tests.benchmarks.step import FLAGS
from tests.benchmarks.synthetic import Load, arguments_of, make_actor, make_experience, make_update
from tests.gpu_check.jobs import Checks, Settings
from tests.helpers import STEP3, distance, flags, read_weights, run_command, run_script
from tests.updates import policy_step
from utils.engines.engines import gathered_weights
from utils.process.distributed import init_distributed

STAGES, OBJECTIVES = (0, 2, 3), 2
LOAD = Load("tiny", "bf16", 4, 8, 8)
RATE = 1e-2  # seen in bf16


def nan_checks(settings: Settings) -> Checks:
    return {f"a NaN in an advantage, ZeRO-{stage}": lambda stage=stage: steps_around_nan(stage) for stage in STAGES}


def steps_around_nan(stage: int) -> str:
    """Every variant skips the step with a NaN and leaves the weights; the next step is taken."""
    init_distributed()
    args = arguments_of(LOAD, 1, stage, actor_learning_rate=RATE, num_warmup_steps=0)
    actor = make_actor(LOAD, args)
    clean = make_experience(actor, LOAD, args, OBJECTIVES)
    poisoned = copy.deepcopy(clean)
    poisoned[0].advantages["objective_1"][0, 0] = torch.nan
    for variant, changes in FLAGS.items():
        update = make_update(actor, args, OBJECTIVES, **changes)
        before = gathered_weights(actor.engine.module)
        assert policy_step(update, poisoned) is None, f"{variant}: the step with a NaN was taken"
        assert same(before, gathered_weights(actor.engine.module)), f"{variant}: the skipped step has moved weights"
        assert policy_step(update, clean) is not None, f"{variant}: the step after it was skipped, too"
        after = gathered_weights(actor.engine.module)
        assert all(weight.isfinite().all() for weight in after.values()), f"{variant}: weights are not finite"
        assert not same(before, after), f"{variant}: the step after it has moved no weight"
    return f"skipped, weights unchanged, the next step taken: {', '.join(FLAGS)}"


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(first[name], second[name]) for name in first)


def resume_checks(settings: Settings) -> Checks:
    return {"step3_gapo/main.py: 2 rollouts against 1 and a resumed one": lambda: resumed_run(Path(settings.folder))}


def resumed_run(folder: Path) -> str:
    """Whole runs of a random policy with functions as rewards; on a CPU the weights must be the same, bit for bit."""
    make_language_model(Architecture("mistral", "mistral"), folder / "policy")
    prompts = [json.dumps({"prompt": f"What is {number} + {number}?"}) for number in range(16)]
    (folder / "prompts.jsonl").write_text("\n".join(prompts) + "\n")
    run_step3(folder, "whole", max_steps=2)
    run_step3(folder, "resumed", max_steps=1)
    said = run_step3(folder, "resumed", max_steps=2, allow_changed_flags=True)
    assert "going on" in said, f"the second run did not go on from the checkpoint: {said[-200:]}"
    off = distance(folder / "whole", folder / "resumed")
    started = read_weights(folder / "policy")
    assert not same(started, read_weights(folder / "whole")), "the run has moved no weight"
    if torch.cuda.is_available():
        return f"largest difference {off:.1e} of the largest weight"
    assert off == 0, f"the weights differ by {off:.1e} of the largest"
    return "the same weights, bit for bit"


def run_step3(folder: Path, name: str, **changes: object) -> str:
    """Run the script to its good end; what it says."""
    rewards = tuple(f"{name}=examples.reward_functions:{name}" for name in ("conciseness", "format"))
    words = flags(**{
        "actor_model": folder / "policy", "reward_function": rewards, "algorithm": "gapo", "critic": "shared",
        "data": folder / "prompts.jsonl", "max_prompt_length": 64, "max_new_tokens": 12,
        "per_device_prompt_batch_size": 8, "per_device_train_batch_size": 4, "zero_stage": 2,
        "actor_learning_rate": 1e-3, "critic_learning_rate": 1e-3, "lr_scheduler_type": "constant",
        "num_warmup_steps": 0, "checkpoint_interval": 1, "keep_checkpoints": True, "output_dir": folder / name,
    } | changes)  # fmt: skip
    on_gpu = torch.cuda.is_available()
    result = run_command([sys.executable, STEP3, *words]) if on_gpu else run_script(STEP3, words)
    print(result.stdout, result.stderr, flush=True)
    assert result.code == 0, f"exit code {result.code}: {' '.join(result.stderr.split())[-200:]}"
    return result.stdout
