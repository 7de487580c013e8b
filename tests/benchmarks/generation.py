"""Ways to generate a rollout, a few long responses among many short ones, against transformers' plain `generate`."""

import math
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import nn
from transformers import CompileConfig, ContinuousBatchingConfig, GenerationConfig

from tests.benchmarks.measure import ratio_of, seconds_of, single, time_in_turns
from tests.benchmarks.section import Job, Row, Section, Settings, in_order
from tests.benchmarks.synthetic import EOS, PAD, SIZES, Load, arguments_of, make_actor, random_experience
from utils.policy.actor import Actor, hybrid_engine_obstacle
from utils.policy.log_probs import response_mask
from utils.policy.sampling import COMPACT_AT
from utils.process.distributed import device, seed_everything

MEAN = 1 / 4  # of the longest response allowed: lengths are geometric, and one row in fifty runs to the limit
GPU_SHARE = 0.3  # of the free memory, for keys and values: in training, other models are there, too
FEW_BLOCKS = {"num_blocks": 256, "max_batch_tokens": 512}  # on a CPU, all of whose memory would be cleared
SHARES = (0.125, COMPACT_AT, 0.5)
OTHERS = ("static cache, compiled", "compilation [s]", "continuous batching", "hybrid engine")
SAMPLING = {
    "do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "use_cache": True, "eos_token_id": EOS,
    "pad_token_id": PAD,
}  # fmt: skip


@dataclass(frozen=True)
class Prompts:
    """A policy with its prompts: [batch, prompt] ids and mask, left-padded."""

    actor: Actor
    ids: torch.Tensor
    attention_mask: torch.Tensor

    @torch.no_grad()
    def answer(self, share: float = 0.0, **changes: object) -> torch.Tensor:
        """The actor's own way, where rows leave at this share, or with other settings of `generate`."""
        seed_everything(0)
        self.actor.compact_at = share
        self.actor.generation = GenerationConfig(**SAMPLING, max_new_tokens=self.longest, **changes)
        with self.actor.gathered():
            return self.actor.generate(self.ids, self.attention_mask)

    @torch.no_grad()
    def answer_continuously(self) -> list[int]:
        """transformers' continuous batching, a response that has ended makes room for the next; tokens of every one.

        Raises:
            RuntimeError: responses are missing.
        """
        seed_everything(0)
        self.actor.generation = GenerationConfig(**SAMPLING, max_new_tokens=self.longest)
        rows = [row[mask.bool()].tolist() for row, mask in zip(self.ids, self.attention_mask, strict=True)]
        room = {"max_memory_percent": GPU_SHARE} if torch.cuda.is_available() else FEW_BLOCKS
        with self.actor.gathered():
            answers = self.actor.twin.generate_batch(
                rows,
                generation_config=self.actor.generation,
                continuous_batching_config=ContinuousBatchingConfig(**room),
            )
        if len(answers) < len(rows):
            raise RuntimeError(f"{len(answers)} responses to {len(rows)} prompts")
        return [len(answer.generated_tokens) for answer in answers.values()]

    def lengths(self, sequences: torch.Tensor) -> list[int]:
        """Tokens of every response, with EOS."""
        return response_mask(sequences[:, self.ids.shape[1] :], EOS).sum(dim=-1).int().tolist()

    @property
    def longest(self) -> int:
        return self.actor.twin.config.max_position_embeddings - self.ids.shape[1]


def make_prompts(load: Load) -> Prompts:
    """A random policy whose responses end with the same small probability at every token."""
    args = arguments_of(load, 1, zero_stage=0)
    actor = make_actor(load, args, **SAMPLING, max_new_tokens=load.response)
    vocabulary, ends = SIZES[load.size].vocabulary, 1 / (MEAN * load.response)
    bias = torch.zeros(vocabulary, device=device(), dtype=actor.parameters[0].dtype)
    bias[EOS] = math.log(vocabulary * ends / (1 - ends))
    actor.twin.lm_head.bias = nn.Parameter(bias, requires_grad=False)
    seed_everything(1)
    with device():
        experience = random_experience(load, load.batch, [])
    return Prompts(actor, experience.input_ids[:, : load.prompt], experience.attention_mask[:, : load.prompt])


def static_cache() -> dict[str, object]:
    """Settings of a cache of fixed size and a compiled forward pass, on the CPU, too."""
    compilation = CompileConfig(mode="reduce-overhead" if torch.cuda.is_available() else "default")
    compilation._compile_all_devices = True
    return {"cache_implementation": "static", "compile_config": compilation}


def generation_rows(load: Load, rounds: int, compiled: bool) -> list[Row]:
    """One row.

    Args:
        compiled: also the static cache with compilation, and continuous batching, which may take minutes.

    Raises:
        AssertionError: compaction gives other tokens, in more rows than rounding may tip.
    """
    prompts = make_prompts(load)
    expected = prompts.answer()
    same = min(same_rows(prompts.answer(share), expected) for share in SHARES)
    assert same >= 0.9, f"other tokens in {1 - same:.0%} of the rows"
    ways = {f"compaction at {share:g}": partial(prompts.answer, share) for share in SHARES}
    seconds = time_in_turns({"generate": prompts.answer, **ways}, rounds)
    plain = seconds.pop("generate")
    lengths = prompts.lengths(expected)
    return [{
        "parameters": f"{SIZES[load.size].parameters:,}",
        "prompts": load.batch,
        "mean length": round(sum(lengths) / len(lengths), 1),
        "longest": max(lengths),
        "generate [s]": round(plain.median().item(), 2),
        **{way: ratio_of(plain, of_way) for way, of_way in seconds.items()},
        "rows with the same tokens": f"{same:.0%}",
        **(others(prompts, rounds) if compiled else dict.fromkeys(OTHERS, "-")),
    }]  # fmt: skip


def others(prompts: Prompts, rounds: int) -> Row:
    """What does not win on a CPU: a compiled forward pass, continuous batching (once: it is slow), other kernels."""
    static = partial(prompts.answer, **static_cache())
    first = seconds_of(static)
    seconds = time_in_turns({"generate": prompts.answer, "static": static}, rounds)
    continuous = seconds_of(prompts.answer) / seconds_of(prompts.answer_continuously)
    cells = (
        ratio_of(seconds["generate"], seconds["static"]),
        round(first - seconds["static"].median().item(), 1),
        single(continuous),
        hybrid_engine_obstacle(prompts.actor.twin) or "see docs/gpu.md",
    )
    return dict(zip(OTHERS, cells, strict=True))


def same_rows(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The share of rows that are equal, whichever is padded further."""
    width = min(found.shape[1], expected.shape[1])
    return found[:, :width].eq(expected[:, :width]).all(dim=-1).float().mean().item()


def jobs(settings: Settings) -> list[Job]:
    """Few prompts at once, and as many as a step has sequences; on a CPU, one row alone has what is slow there."""
    load = settings.load
    sizes = dict.fromkeys((load.size, *settings.growth_sizes))
    batches = dict.fromkeys((max(1, load.batch // 8), load.batch))
    loads = [replace(load, size=size, batch=batch) for size in sizes for batch in batches]
    return [
        Job(
            f"{case.size}, {case.batch} prompts",
            generation_rows,
            (case, settings.rounds, case == load or torch.cuda.is_available()),
            1,
            weight=10 + case.batch * SIZES[case.size].parameters / 10**7,
        )
        for case in loads
    ]


SECTION = Section(
    title="Time of transformers' `generate` over that of other ways to sample a rollout: above 1, the other is faster",
    note="EOS comes at every token with the same probability: responses have a quarter of the length allowed on"
    " average, one in fifty runs to the limit. Compaction: once they are this share of the batch, responses that have"
    " ended leave it.",
    jobs=jobs,
    rows=in_order,
)
