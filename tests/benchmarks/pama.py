"""What the number of objectives costs PAMA, which combines advantages, and MGDA, which combines gradients."""

from dataclasses import replace
from unittest import mock

from step3_gapo.update import ActorUpdate, StepBatches
from tests.benchmarks.critic_free import WITHOUT_CRITICS, batches_of, make_responses
from tests.benchmarks.measure import ratio_of, time_in_turns
from tests.benchmarks.section import Job, Row, Section, Settings, in_order
from tests.benchmarks.step import BASELINE
from tests.benchmarks.synthetic import Load, arguments_of, make_actor, make_update
from tests.updates import policy_step

FLAGS = {
    BASELINE: {},
    "pama, by token": {"algorithm": "pama", "pama_level": "token"},
    "pama, by batch": {"algorithm": "pama", "pama_level": "batch"},
    "mgda, last_layer": {"algorithm": "mgda", "gradient_scope": "last_layer"},
    "mgda, full": {"algorithm": "mgda", "gradient_scope": "full"},
}


def backward_passes(update: ActorUpdate, batches: StepBatches) -> int:
    """How many one update of the policy takes."""
    engine = update.actor.engine
    with mock.patch.object(engine, "backward", wraps=engine.backward) as backward:
        policy_step(update, batches)
    return backward.call_count


def pama_rows(load: Load, stage: int, ranks: int, objectives: tuple[int, ...], rounds: int) -> list[Row]:
    """A row an m and method."""
    args = arguments_of(load, ranks, stage, **WITHOUT_CRITICS)
    actor = make_actor(load, args)
    experience = make_responses(actor, load, args, max(objectives))
    batches = batches_of(experience, args)
    updates = {f"{name} {m}": make_update(actor, args, m, **FLAGS[name]) for m in objectives for name in FLAGS}
    steps = {key: lambda update=update: policy_step(update, batches) for key, update in updates.items()}
    seconds, least = time_in_turns(steps, rounds), min(objectives)
    return [
        {
            "m": m,
            "method": name,
            f"update, over that of {BASELINE}": ratio_of(seconds[f"{name} {m}"], seconds[f"{BASELINE} {m}"]),
            f"over its own at m = {least}": ratio_of(seconds[f"{name} {m}"], seconds[f"{name} {least}"]),
            "backward passes": backward_passes(updates[f"{name} {m}"], batches),
        }
        for m in objectives
        for name in FLAGS
        if name != BASELINE
    ]


def jobs(settings: Settings) -> list[Job]:
    ranks, load = min(settings.ranks), settings.load
    small = replace(load, batch=max(ranks, load.batch // 4))
    objectives, stage = settings.growth_objectives, settings.usual_stage
    label = f"ZeRO-{stage}, m = {', '.join(map(str, objectives))}"
    return [Job(label, pama_rows, (small, stage, ranks, objectives, settings.rounds), ranks, weight=15)]


SECTION = Section(
    title="Time and backward passes of the policy's update by objectives: advantages or gradients combined",
    note="PAMA's claim is that no gradient of any objective is needed: one backward pass whatever m is, where MGDA's"
    " scope full has one an objective. Without critics, under one ZeRO stage, one micro-batch.",
    jobs=jobs,
    rows=in_order,
)
