"""`--keep_graphs`: the update goes on from the rollout's passes. The same run from fewer, or one line why not."""

from collections import Counter

import pytest

from step3_gapo.arguments import algorithm_of, objectives_of, parse_args
from step3_gapo.main import optimizer_steps
from step3_gapo.rollout import make_rollout
from tests.cases import beyond
from tests.helpers import Workshop, distance, read_metrics, run_function, untimed
from tests.test_critic_free_runs import build
from utils.process.distributed import shutdown_distributed
from utils.process.errors import Problems

PASSES = "cost/forward_passes"
ONE_MICRO_BATCH = {"per_device_prompt_batch_size": 8, "per_device_train_batch_size": 8}
GROUP = {"advantage": "group", "responses_per_prompt": 2, "kl_in": "reward", "per_device_prompt_batch_size": 4}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ranks", "changes"),
    [
        (1, {}),
        (2, {"zero_stage": 2, "gradient_scope": "full", "critic": "shared"}),
        beyond((2, {"zero_stage": 1, "offload": True, "dtype": "bf16", "log_gradients": True, "algorithm": "morlhf"})),
        beyond((1, {"lora_dim": 4, "gradient_checkpointing": True})),
        beyond((1, GROUP)),
    ],
)
def test_the_run_is_the_same(workshop: Workshop, ranks: int, changes: dict[str, object]) -> None:
    whole, kept = (
        workshop.step3(f"graphs_{keep}", ranks, **{**ONE_MICRO_BATCH, "keep_graphs": keep, **changes})
        for keep in (False, True)
    )
    assert distance(whole, kept) <= (1e-2 if "dtype" in changes else 1e-5)
    for own, other in zip(*(untimed(read_metrics(folder)) for folder in (kept, whole)), strict=True):
        assert own.pop(PASSES) < other.pop(PASSES)
        assert own == pytest.approx(other, rel=5e-2 if "dtype" in changes else 1e-3, abs=1e-4)


def count_passes(arguments: list[str]) -> None:
    """Passes of policy and critics in a rollout and the step on it, in a process."""
    for keep, passes in ((False, 2), (True, 1)):
        args, engine, update, prompts = build([*arguments, *(["--keep_graphs"] if keep else [])])
        counts: Counter[str] = Counter()
        for name, trained in engine.trained().items():
            trained.module.register_forward_pre_hook(lambda *_, n=name, c=counts: c.update([n]))
        rollout = make_rollout(engine, prompts[:8], update.algorithm, args)
        ((scalars, not_finite),) = optimizer_steps(rollout, update, engine.critics, args)
        assert not_finite is None and abs(scalars["approximate_kl"]) < 1e-6
        assert counts == {"actor": passes, "critic_0": passes, "critic_1": passes}
        assert rollout.experience.graphs is None
        rollout = make_rollout(engine, prompts[:8], update.algorithm, args)
        assert (rollout.experience.graphs is not None) is keep
        rollout.not_finite = "a score"
        assert list(optimizer_steps(rollout, update, engine.critics, args)) == [({}, "a score")]
        assert rollout.experience.graphs is None
    shutdown_distributed()


def test_every_model_that_is_trained_passes_once(workshop: Workshop) -> None:
    result = run_function(count_passes, workshop.step3_flags("unused", **ONE_MICRO_BATCH))
    assert result.code == 0, result.stderr


REFUSED = {
    "several steps": ({"per_device_train_batch_size": 4}, "of one step: --per_device_train_batch_size 8"),
    "two passes": (ONE_MICRO_BATCH | {"ppo_epochs": 2}, "one micro-batch of one step: --ppo_epochs 1"),
    "tokens": (ONE_MICRO_BATCH | {"micro_batch_tokens": 99}, "one micro-batch of one step: --micro_batch_tokens 0"),
    "a part": (ONE_MICRO_BATCH | {"gradient_scope": "full", "gram_fraction": 0.5}, "--gram_fraction makes two"),
    "partitioned weights": (ONE_MICRO_BATCH | {"zero_stage": 3}, "--zero_stage 3 takes the weights away"),
    "nothing to keep": (ONE_MICRO_BATCH | GROUP | {"kl_in": "loss"}, "there is none: no critics, and with the KL"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_where_no_pass_can_serve_twice(workshop: Workshop, what: str) -> None:
    changes, reason = REFUSED[what]
    args = parse_args(workshop.step3_flags("refused", keep_graphs=True, **changes))
    problems = Problems(collecting=True)
    algorithm_of(args, objectives_of(args), problems)
    assert [reason in line for line in problems.found] == [True], problems.found
