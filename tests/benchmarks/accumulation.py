"""One optimizer step of four micro-batches: what the gradients of a whole step cost before the first backward pass."""

from tests.benchmarks.measure import ratio_of, time_in_turns
from tests.benchmarks.section import Job, Row, Section, Settings, in_order
from tests.benchmarks.step import BASELINE, critic_steps, whole_step
from tests.benchmarks.synthetic import Load, arguments_of, make_actor, make_critics, make_experience, make_update
from tests.updates import policy_step

MICRO_BATCHES, OBJECTIVES = 4, 2
LAST_LAYER = {"algorithm": "gapo", "gradient_scope": "last_layer"}
VARIANTS = {  # name -> flags, and whether the policy still is the one of the rollout
    BASELINE: ({}, False),
    "last_layer, policy moved: a second forward pass": (LAST_LAYER, False),
    "last_layer, hidden states of the rollout": (LAST_LAYER, True),
    "last_layer, --gram_per micro_batch": (LAST_LAYER | {"gram_per": "micro_batch"}, False),
    "full": ({"algorithm": "gapo", "gradient_scope": "full"}, False),
}


def accumulation_rows(load: Load, stage: int, ranks: int, rounds: int) -> list[Row]:
    args = arguments_of(load, ranks, stage, MICRO_BATCHES)
    actor, critics = make_actor(load, args), make_critics(load, args, OBJECTIVES)
    experience = make_experience(actor, load, args, OBJECTIVES, keep_hidden=True)
    steps = critic_steps(critics, experience, args)
    for name, (flags, on_policy) in VARIANTS.items():
        update = make_update(actor, args, OBJECTIVES, **flags)
        steps[name] = lambda update=update, on_policy=on_policy: policy_step(update, experience, on_policy)
    seconds = time_in_turns(steps, rounds)
    baseline = whole_step(seconds, BASELINE, OBJECTIVES)
    return [
        {
            "variant": name,
            "ZeRO": stage,
            "ranks": ranks,
            "step": ratio_of(whole_step(seconds, name, OBJECTIVES), baseline),
            "policy only": ratio_of(seconds[name], seconds[BASELINE]),
        }
        for name in VARIANTS
        if name != BASELINE
    ]


def jobs(settings: Settings) -> list[Job]:
    return [
        Job(
            f"ranks: {ranks}",
            accumulation_rows,
            (settings.load, settings.usual_stage, ranks, settings.rounds),
            ranks,
            weight=20,
        )
        for ranks in settings.ranks
    ]


SECTION = Section(
    title=f"Time of one optimizer step of {MICRO_BATCHES} micro-batches, over that of morlhf",
    note=f"{OBJECTIVES} objectives, each with a critic.",
    jobs=jobs,
    rows=in_order,
)
