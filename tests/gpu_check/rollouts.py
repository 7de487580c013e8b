"""Tokens a second of rollouts, by what generates them: many short responses and a few long ones."""

import argparse
from collections.abc import Callable

import torch
from torch import nn
from transformers import GenerationConfig, LlamaForCausalLM

from tests.benchmarks.generation import SAMPLING, Prompts, static_cache
from tests.benchmarks.measure import seconds_of
from tests.benchmarks.synthetic import EOS, TOTAL_STEPS, Load, arguments_of, make_decoder, make_experience
from tests.gpu_check.jobs import Checks, NotThere, Settings
from tests.gpu_check.rates import TERA, matrix_rate
from tests.gpu_check.versions import has_nvcc
from utils.policy.actor import Actor, hybrid_engine_obstacle
from utils.policy.sampling import COMPACT_AT
from utils.process.distributed import init_distributed

MEAN_LENGTH = 1 / 4  # of a response, over the longest allowed
ROUNDS = 1


def through_step3(prompts: Prompts) -> list[int]:
    """Lengths of the responses that step 3 generates by default."""
    return prompts.lengths(prompts.answer(COMPACT_AT))


def with_static_cache(prompts: Prompts) -> list[int]:
    """Room for all tokens from the start, and on a GPU a compiled forward pass."""
    on_gpu = torch.cuda.is_available()
    return prompts.lengths(prompts.answer(**static_cache() if on_gpu else {"cache_implementation": "static"}))


# name -> generates for all prompts; the lengths of the responses
ENGINES: dict[str, Callable[[Prompts], list[int]]] = {
    "generate, ended responses leave (step 3)": through_step3,
    "generate, all responses stay": lambda prompts: prompts.lengths(prompts.answer()),
    "generate_batch (continuous batching)": Prompts.answer_continuously,
    "generate, static cache, compiled on a GPU": with_static_cache,
}


def load_of(settings: Settings) -> Load:
    return Load("tiny", "bf16", 8, 8, 16) if settings.small else Load("300m", "bf16", 64, 128, 128)


def make_prompts(actor: Actor, load: Load, args: argparse.Namespace) -> Prompts:
    """Prompts for a policy, whose EOS then is as likely as responses of `MEAN_LENGTH` need."""
    (batch,) = make_experience(actor, load, args, 1, keep_hidden=True)
    end_early(actor.twin.get_output_embeddings(), batch.hidden[batch.mask.bool()], 1 / (MEAN_LENGTH * load.response))
    return Prompts(actor, batch.input_ids[:, : load.prompt], batch.attention_mask[:, : load.prompt])


@torch.no_grad()
def end_early(head: nn.Linear, hidden: torch.Tensor, probability: float, rows: int = 1024) -> None:
    """Stretch the weights of EOS until its mean probability is `probability`: near certain in some states, else none.

    Args:
        hidden: [states, features], input of the head.
        rows: states to look at.
    """
    logits = head(hidden[:rows]).float()
    own = logits[:, EOS].clone()
    logits[:, EOS] = -torch.inf
    others, low, high = logits.logsumexp(dim=-1), 0.0, 100.0
    for _ in range(30):
        factor = (low + high) / 2
        mean = (factor * own - others).sigmoid().mean().item()
        low, high = (factor, high) if mean < probability else (low, factor)
    head.weight[EOS] *= high


def measured(engine: Callable[[Prompts], list[int]], prompts: Prompts) -> str:
    """Tokens a second of an engine; the first call, which may compile, is not counted."""
    found: list[list[int]] = []
    first = seconds_of(lambda: engine(prompts))
    seconds = [seconds_of(lambda: found.append(engine(prompts))) for _ in range(ROUNDS)]
    tokens = [sum(responses) for responses in found]
    rates = sorted(number / time for number, time in zip(tokens, seconds, strict=True))
    every = sorted(length for responses in found for length in responses)
    return (
        f"{sum(tokens) / sum(seconds):,.0f} tokens/s ({rates[0]:,.0f}-{rates[-1]:,.0f}), {len(prompts.ids)} responses"
        f" of {every[len(every) // 2]} tokens in the median, {sum(every) / len(every):.0f} in the mean,"
        f" {every[-1]} at most; {sum(seconds) / ROUNDS:.2f} s, the first time {first:.2f} s"
    )


def generation_checks(settings: Settings) -> Checks:
    """A Mistral decoder, and the machine's rate beside it."""
    init_distributed()
    load = load_of(settings)
    args = arguments_of(load, 1, zero_stage=0)
    prompts = make_prompts(Actor(make_decoder(load), GenerationConfig(**SAMPLING), args, TOTAL_STEPS), load, args)
    rate = {"bf16 matrix products": lambda: f"{matrix_rate(settings.small) / TERA:.3g} TFLOP/s"}
    return rate | {name: lambda engine=engine: measured(engine, prompts) for name, engine in ENGINES.items()}


def hybrid_checks(settings: Settings) -> Checks:
    """A Llama decoder of the same size: DeepSpeed has no inference policy for Mistral's."""
    init_distributed()
    load = load_of(settings)

    def prompts(**changes: object) -> Prompts:
        args = arguments_of(load, 1, 0, **changes)
        model = make_decoder(load, LlamaForCausalLM)
        if args.enable_hybrid_engine and (obstacle := hybrid_engine_obstacle(model)):
            raise NotThere(obstacle)
        if args.enable_hybrid_engine and not has_nvcc():
            raise NotThere("its inference kernels are compiled, and there is no nvcc")
        actor = Actor(model, GenerationConfig(**SAMPLING), args, TOTAL_STEPS)
        return make_prompts(actor, load, args)

    return {
        "Llama: generate, ended responses leave": lambda: measured(through_step3, prompts()),
        "Llama: hybrid engine": lambda: measured(through_step3, prompts(enable_hybrid_engine=True)),
    }
