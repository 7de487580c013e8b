"""Generation under ZeRO-3: parameters gathered once a rollout against once a layer and token."""

from contextlib import nullcontext
from dataclasses import replace

import torch

from tests.benchmarks.measure import ratio_of, time_in_turns
from tests.benchmarks.section import Job, Row, Section, Settings, in_order
from tests.benchmarks.synthetic import (
    EOS,
    PAD,
    SIZES,
    Load,
    arguments_of,
    everything_partitioned,
    make_actor,
    make_experience,
)
from utils.policy.actor import Actor
from utils.process.distributed import rank, seed_everything

AT_LEAST, LARGE = 8.0, 10**7  # times as fast, for so many parameters: below, both ways mostly run Python
PROMPTS, LENGTH = 8, 32  # a rank; tokens of prompt and of response of the larger models


@torch.no_grad()
def generate_gathered(actor: Actor, ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    seed_everything(rank())
    with actor.gathered():
        return actor.generate(ids, attention_mask)


@torch.no_grad()
def generate_through_hooks(actor: Actor, ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    """All ranks go on until the last one is done: each forward pass is a collective."""
    seed_everything(rank())
    return actor.engine.module.generate(
        input_ids=ids, attention_mask=attention_mask, generation_config=actor.generation, synced_gpus=True
    )


def rollout_rows(load: Load, ranks: int, partitioned: bool, rounds: int) -> list[Row]:
    """One row.

    Args:
        partitioned: all parameters, not only those that ZeRO-3 takes for large ones.

    Raises:
        AssertionError: the two ways give other tokens.
    """
    args = arguments_of(load, ranks, zero_stage=3)
    sampling = {"do_sample": True, "top_k": 0, "top_p": 1.0, "use_cache": True}
    with everything_partitioned() if partitioned else nullcontext():
        actor = make_actor(load, args, max_new_tokens=load.response, eos_token_id=EOS, pad_token_id=PAD, **sampling)
    batch = make_experience(actor, load, args, 1)[0]
    prompts = actor, batch.input_ids[:, : load.prompt], batch.attention_mask[:, : load.prompt]
    gathered, hooked = generate_gathered(*prompts), generate_through_hooks(*prompts)
    # Without EOS on this rank, the slowest rank decides how long its padding is.
    length = gathered.shape[1]
    assert torch.equal(gathered, hooked[:, :length]) and hooked[:, length:].eq(PAD).all(), "other tokens"
    bar = AT_LEAST if SIZES[load.size].parameters >= LARGE else None
    seconds = time_in_turns(
        {"gathered": lambda: generate_gathered(*prompts), "hooked": lambda: generate_through_hooks(*prompts)}, rounds
    )
    return [{
        "parameters": f"{SIZES[load.size].parameters:,}",
        "partitioned": "all" if partitioned else "large",
        "ranks": ranks,
        "prompts a rank": len(gathered),
        "new tokens": length - load.prompt,
        "once a layer and token / once a rollout": ratio_of(seconds["hooked"], seconds["gathered"], bar, True),
        "once a rollout [s]": round(seconds["gathered"].median().item(), 3),
        "same tokens": "yes",
    }]  # fmt: skip


def jobs(settings: Settings) -> list[Job]:
    ranks, load = max(settings.ranks), settings.load
    few = replace(load, batch=PROMPTS * ranks)
    larger = [Load(size, load.dtype, few.batch, LENGTH, LENGTH) for size in settings.growth_sizes if size != load.size]
    cases = [(load, False), (few, False), (few, True), *((case, False) for case in larger)]
    return [
        Job(
            f"{case.size}, batch {case.batch}{', all partitioned' if partitioned else ''}",
            rollout_rows,
            (case, ranks, partitioned, settings.rounds),
            ranks,
            weight=20,
        )
        for case, partitioned in dict.fromkeys(cases)
    ]


SECTION = Section(
    title="Time of generation under ZeRO-3 with parameters gathered for every layer of every token",
    note="Over that with parameters gathered once a rollout; the same seed, and the same tokens. DeepSpeed partitions"
    " parameters of 100,000 numbers and more (large), the others stay whole, unless told to partition all.",
    jobs=jobs,
    rows=in_order,
)
