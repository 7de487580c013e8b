"""Time and peak memory of optimizer steps: algorithms, ZeRO stages, logits in chunks, LoRA, offload, no critics."""

import argparse
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import GenerationConfig

from step3_gapo.critics import Critic
from step3_gapo.experience import Experience
from step3_gapo.needs import compares_gradients
from step3_gapo.update import ActorUpdate, optimizer_step
from tests.benchmarks import critic_free
from tests.benchmarks.measure import peak_bytes, seconds_of
from tests.benchmarks.step import BASELINE, FLAGS
from tests.benchmarks.synthetic import (
    SIZES,
    TOTAL_STEPS,
    Load,
    arguments_of,
    make_actor,
    make_critics,
    make_decoder,
    make_update,
    shape_without_memory,
)
from tests.gpu_check.jobs import Checks, Settings
from tests.gpu_check.rates import TERA, matrix_rate
from utils.memory.plan import critic_moments, fullest, policy_moments, step_moments
from utils.memory.sizes import DEVICE, GIB, Memory, PlannedModel, Surroundings
from utils.models.lora import with_adapters
from utils.policy.actor import Actor
from utils.process.distributed import init_distributed

OBJECTIVES = 2
CHUNK, LORA_DIM, ROUNDS = 512, 16, 3
SMALL, USUAL = Load("tiny", "bf16", 4, 8, 8), Load("300m", "bf16", 32, 256, 256)
AT_MOST = {name: FLAGS[name] for name in (BASELINE, "full")}
LARGEST = Load("7b", "bf16", 48, 256, 256)  # with adapters: on one GPU of 80 GB


@dataclass
class Bench:
    """Models and experience of a process, on which optimizer steps are taken.

    Attributes:
        overhead: bytes that were taken before there was a model, where the peak counts them: on a CPU.
        rate: of matrix products, operations a second.
        rounds: how often a step is timed.
        seconds: of a step that was measured, by its name.
    """

    load: Load
    actor: Actor
    critics: list[Critic]
    experience: Experience
    args: argparse.Namespace
    overhead: int
    rate: float
    rounds: int
    seconds: dict[str, float] = field(default_factory=dict)

    def measured(self, name: str, update: ActorUpdate) -> str:
        """What the steps of an update are like, policy and critics."""
        batches = critic_free.batches_of(self.experience, update.args)

        def step() -> None:
            _, not_finite = optimizer_step(update, self.critics, batches, False, update.args)
            assert not not_finite, f"{not_finite} is not finite"

        step()  # after it the optimizer's memory is complete
        peak = peak_bytes(step)
        seconds = sorted(seconds_of(step) for _ in range(self.rounds))
        self.seconds[name] = median = seconds[self.rounds // 2]
        planned = self.planned_bytes(update.args)
        tokens = self.experience.attention_mask.sum().item()
        share = step_operations(self.load.size, len(self.critics), tokens) / median / self.rate
        compared = name != BASELINE and BASELINE in self.seconds
        against = f", {median / self.seconds[BASELINE]:.2f} × {BASELINE}" if compared else ""
        return (
            f"{tokens / median:,.0f} tokens/s ({median:.3f} s, {seconds[0]:.3f}-{seconds[-1]:.3f}{against}),"
            f" {share:.1%} of {self.rate / TERA:.3g} TFLOP/s, peak {peak / GIB:.2f} GiB, planned {planned / GIB:.2f}"
            f" ({planned / peak:.2f})"
        )

    def planned_bytes(self, args: argparse.Namespace) -> int:
        """Of the fullest phase of an update, by the memory plan, without the libraries on a GPU."""
        shape = shape_without_memory(self.load)
        models = [PlannedModel("policy", shape), *(PlannedModel("critic", shape) for _ in self.critics)]
        on_gpu = torch.cuda.is_available()
        memory = torch.cuda.get_device_properties(0).total_memory if on_gpu else 2**50
        around = Surroundings(
            1, on_gpu, memory, None, self.overhead, 0, longest=(self.load.prompt, self.load.response),
            objectives=OBJECTIVES, compares=compares_gradients(args),
        )  # fmt: skip
        memory = Memory(models, args, around)
        phases = [policy_moments, step_moments, *([critic_moments] if self.critics else [])]
        return max(fullest(moments.__name__, list(moments(memory))).total(DEVICE) for moments in phases)


def step_operations(size: str, critics: int, tokens: int) -> float:
    """Floating-point operations that one optimizer step needs: 6 n a token, forward and backward, of each model.

    n counts the parameters that tokens are multiplied with, without the table of embeddings; a critic is a policy
    without output head. Attention's products of tokens with tokens are left out, and the head counts for the prompt's
    tokens, too. What a variant computes more (logits twice, a backward pass an objective) is no need: it lowers the
    share.
    """
    table = SIZES[size].vocabulary * SIZES[size].hidden
    policy = SIZES[size].parameters - table
    return 6.0 * tokens * (policy + critics * (policy - table))


def make_bench(
    settings: Settings, stage: int, critics: int = OBJECTIVES, rounds: int = ROUNDS, load: Load = USUAL, **changes: Any
) -> Bench:
    init_distributed()
    overhead = 0 if torch.cuda.is_available() else peak_bytes(lambda: None)
    load = SMALL if settings.small else load
    args = arguments_of(load, 1, stage, **changes)
    if args.lora_dim:
        policy = with_adapters(make_decoder(load), args)
        actor = Actor(policy, GenerationConfig(), args, TOTAL_STEPS)
    else:
        actor = make_actor(load, args)
    experience = critic_free.make_responses(actor, load, args, OBJECTIVES)
    made = make_critics(load, args, critics)
    rate = matrix_rate(settings.small)
    return Bench(load, actor, made, experience, args, overhead, rate, 1 if settings.small else rounds)


def variants(bench: Bench, prefix: str, flags: dict[str, dict[str, Any]]) -> Checks:
    """A check for every variant, by what it changes."""

    def check(name: str) -> str:
        return bench.measured(name, make_update(bench.actor, bench.args, OBJECTIVES, **flags[name]))

    return {
        f"{prefix}: {name if name == BASELINE else f'gapo, {name}'}": lambda name=name: check(name) for name in flags
    }


def update_checks(settings: Settings, stage: int) -> Checks:
    """Fixed weights and gapo at both scopes."""
    return variants(make_bench(settings, stage), f"ZeRO-{stage}", FLAGS)


def chunk_checks(settings: Settings) -> Checks:
    """The policy's step without critics, whose memory would hide the logits'."""
    bench = make_bench(settings, stage=0, critics=0)

    def check(chunk: int) -> str:
        bench.actor.forward.chunk_size = bench.args.logits_chunk_size = chunk
        return bench.measured(f"chunk {chunk}", make_update(bench.actor, bench.args, OBJECTIVES, **FLAGS["last_layer"]))

    label = "gapo, last_layer, policy alone, --logits_chunk_size"
    return {f"{label} {chunk}": lambda chunk=chunk: check(chunk) for chunk in (CHUNK, 0)}


def critic_free_checks(settings: Settings, stage: int) -> Checks:
    """All that there is without critics is the policy's step."""
    bench = make_bench(settings, stage, critics=0, **critic_free.WITHOUT_CRITICS)
    return variants(bench, f"ZeRO-{stage}, group", critic_free.FLAGS)


def largest_checks(settings: Settings) -> Checks:
    """Seven billion parameters, adapters and no critics: what fits one GPU."""
    lora = {"lora_dim": LORA_DIM, "gradient_checkpointing": True}
    bench = make_bench(settings, 0, critics=0, rounds=1, load=LARGEST, **lora, **critic_free.WITHOUT_CRITICS)
    flags = {name: critic_free.FLAGS[name] for name in (BASELINE, "full", critic_free.SHARE)}
    return variants(bench, f"7B, --lora_dim {LORA_DIM}, group", flags)


def offload_checks(settings: Settings, stage: int) -> Checks:
    """The policy alone, once: AdamW on the host takes seconds a step."""
    bench = make_bench(settings, stage, critics=0, rounds=1, offload=True)
    return variants(bench, f"--offload, ZeRO-{stage}, policy alone", AT_MOST)
