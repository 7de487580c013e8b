"""Decoding with rows that leave the batch: the tokens of transformers' own loop, and the same distribution."""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    DynamicCache,
    GenerationConfig,
    Lfm2Config,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2VLConfig,
)

from tests.architectures import ARCHITECTURES, SIZES, VOCABULARY, Architecture, random_model, tokenizer
from tests.cases import beyond
from tests.helpers import STEP3, Workshop, flags, run_function, run_script
from tests.test_step3_engine import build
from utils.data.batching import left_pad
from utils.models.configs import DTYPES, language_model_class
from utils.policy import sampling as decoding
from utils.policy.forward import response_log_probs
from utils.policy.log_probs import response_mask
from utils.policy.sampling import compaction_obstacle, decode, select_rows
from utils.process.distributed import all_gather_objects, rank, seed_everything, shutdown_distributed, world_size

PAD, LONGEST, ROWS = 0, 24, 8
ENDS = list(range(1, 25))  # ids that end a response: of so many, rows end one after another
PROMPTS = [list(range(30, 30 + length)) for length in (19, 3, 7, 12, 5, 4, 9, 6)]
MULTIMODAL_POSITIONS = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}}
LLAMA = next(row for row in ARCHITECTURES if row.name == "llama")


def settings(do_sample: bool = True, ends: list[int] = ENDS, **changes: Any) -> GenerationConfig:
    sampling = {"temperature": 1.3, "top_k": 0, "top_p": 1.0} if do_sample else {}
    return GenerationConfig(
        do_sample=do_sample, use_cache=True, max_new_tokens=LONGEST, eos_token_id=ends, pad_token_id=PAD,
        **sampling | changes,
    )  # fmt: skip


def make(architecture: Architecture, spread: float = 2.0) -> PreTrainedModel:
    return random_model(AutoModelForCausalLM, architecture.config(), spread=spread)


def both_ways(
    model: PreTrainedModel, generation: GenerationConfig, compact_at: float = 0.01
) -> tuple[torch.Tensor, torch.Tensor]:
    """The sequences of `generate`, and those of the loop in which rows leave, from the same seed."""
    model.generation_config = generation
    answers = []
    for share in (0.0, compact_at):
        seed_everything(3)
        answers.append(decode(model, *left_pad(PROMPTS, PAD), generation, share))
    return answers[0], answers[1]


class Recorder(decoding.Draw):
    """Also keeps of every step: the rows that were there, their logits, the tokens drawn."""

    steps: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []

    def __call__(self, logits: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        tokens = super().__call__(logits, rows)
        self.steps.append((rows, logits, tokens))
        return tokens


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]]:
    monkeypatch.setattr(Recorder, "steps", [])
    monkeypatch.setattr(decoding, "Draw", Recorder)
    return Recorder.steps


FEW = ("gpt2", "opt", "bloom", "falcon", "mistral", "gemma2", "deepseek_v3")
FIRST = [row if row.name in FEW else beyond(row) for row in ARCHITECTURES]


@pytest.mark.parametrize("architecture", FIRST, ids=lambda architecture: architecture.name)
def test_tokens_are_those_of_generate(architecture: Architecture, steps: list) -> None:
    model = make(architecture)
    assert compaction_obstacle(model) is None
    for generation in (settings(), settings(do_sample=False)):
        expected, found = both_ways(model, generation)
        assert found.equal(expected)
    sizes = {len(rows) for rows, *_ in steps}
    assert len(sizes) > 2 and min(sizes) < len(PROMPTS) / 2  # rows have left, time and again


@pytest.mark.parametrize("name", ["llama", "mistral", "bloom", "gpt2"])  # mistral: a window shorter than the sequences
@pytest.mark.parametrize(("dtype", "tolerance"), [("fp32", 1e-5), ("bf16", 0.1)])
def test_log_probs_are_those_of_the_training_pass(name: str, dtype: str, tolerance: float, steps: list) -> None:
    """What each token was drawn from is what a forward pass over whole sequences says, padding and all."""
    model = make(next(row for row in ARCHITECTURES if row.name == name)).to(DTYPES[dtype])
    ids, mask = left_pad(PROMPTS, PAD)
    seed_everything(3)
    sequences = decode(model, ids, mask, settings(temperature=1.0), 0.2)
    actions = response_mask(sequences[:, ids.shape[1] :], ENDS)
    read = sequences, torch.cat([mask, actions.long()], dim=1), actions.shape[1]
    expected, drawn = response_log_probs(model, *read, 1.0) * actions, torch.zeros_like(actions)
    for time, (rows, logits, tokens) in enumerate(steps):
        drawn[rows, time] = logits.log_softmax(dim=-1).gather(-1, tokens[:, None]).squeeze(-1)
    torch.testing.assert_close(drawn * actions, expected, atol=tolerance, rtol=0)
    assert len(steps[-1][0]) < len(PROMPTS) / 2


def test_draws_do_not_depend_on_who_is_still_there() -> None:
    """Token for token those of `torch.multinomial` over the whole batch, also after rows have left."""
    logits, draw, found = torch.randn(3, 6, 50), decoding.Draw(do_sample=True), []
    for rows in (torch.arange(6), torch.tensor([0, 2, 3]), torch.tensor([3])):
        seed_everything(len(rows))
        found.append(draw(logits[len(found), rows], rows))
        seed_everything(len(rows))
        expected = torch.multinomial(logits[len(found) - 1].softmax(dim=-1), 1)[rows, 0]
        assert found[-1].equal(expected)
    with pytest.raises(RuntimeError, match="inf.*nan"):
        draw(torch.full((1, 50), torch.nan), torch.tensor([3]))


@pytest.mark.parametrize(
    ("ends", "length"), [(list(range(VOCABULARY)), 1), ([VOCABULARY - 1], LONGEST)], ids=["at_once", "never"]
)
@pytest.mark.parametrize("compact_at", [0.01, 1.0])
def test_all_rows_end_at_once_or_never(ends: list[int], length: int, compact_at: float) -> None:
    generation = settings(ends=ends, suppress_tokens=[VOCABULARY - 1])
    expected, found = both_ways(make(LLAMA), generation, compact_at)
    assert found.equal(expected) and found.shape[1] == len(PROMPTS[0]) + length


@pytest.mark.parametrize("compact_at", [0.01, 0.3, 0.6])
def test_rows_leave_when_enough_have_ended(compact_at: float, steps: list) -> None:
    seed_everything(3)
    decode(make(LLAMA), *left_pad(PROMPTS, PAD), settings(), compact_at)
    ended: set[int] = set()
    for (rows, _, tokens), (after, *_) in pairwise(steps):
        there = rows.tolist()
        ended |= {row for row, token in zip(there, tokens.tolist(), strict=True) if token in ENDS}
        left = [row for row in there if row not in ended]
        assert after.tolist() == (left if len(there) - len(left) >= compact_at * len(there) else there)
    assert len(steps[-1][0]) < len(PROMPTS)


RECURRENT = Lfm2Config(**SIZES, layer_types=["conv", "full_attention"], pad_token_id=PAD)


@pytest.mark.parametrize(
    ("config", "obstacle"),
    [
        (RECURRENT, "LinearAttentionLayer"),
        (Qwen2VLConfig(text_config=SIZES | MULTIMODAL_POSITIONS, vision_config={"depth": 1}), "positions"),
    ],
    ids=["recurrent", "positions"],
)
def test_other_states_stay_with_generate(config: PreTrainedConfig, obstacle: str) -> None:
    model = random_model(language_model_class(config), config, spread=1.0)
    assert obstacle in compaction_obstacle(model)
    expected, found = both_ways(model, settings())
    assert found.equal(expected)


@pytest.mark.parametrize(("told", "counts", "columns"), [(True, False, 3), (True, True, 5), (False, False, 5)])
def test_columns_stay_where_they_are_positions(told: bool, counts: bool, columns: int) -> None:
    """A model that is told no positions, or brings its own code, may count what it has kept."""
    cache, mask = DynamicCache(), torch.tensor([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]])
    kept = torch.arange(2 * 5).reshape(2, 1, 5, 1).float()
    cache.update(kept, kept, 0)
    left = {"attention_mask": mask, "past_key_values": cache}
    left |= {"position_ids": mask.cumsum(dim=-1) - 1} if told else {}
    left = select_rows(left, torch.tensor([1]), columns_count=counts)
    assert left["attention_mask"].tolist() == mask[1:, 5 - columns :].tolist()
    assert cache.layers[0].keys.flatten().tolist() == kept[1, 0, 5 - columns :, 0].tolist()


@pytest.mark.parametrize("changes", [{"dry_run": True}, {}], ids=str)
def test_a_run_says_once_that_ended_responses_stay(workshop: Workshop, tmp_path: Path, changes: dict) -> None:
    random_model(AutoModelForCausalLM, RECURRENT).save_pretrained(tmp_path / "base")
    tokenizer().save_pretrained(tmp_path / "base")
    result = run_script(STEP3, flags(
        actor_model=tmp_path / "base", reward_function="conciseness=examples.reward_functions:conciseness",
        algorithm="ppo", data=workshop.prompts, max_prompt_length=256, max_new_tokens=4, max_steps=2,
        per_device_prompt_batch_size=4, per_device_train_batch_size=4, output_dir=tmp_path / "policy", **changes,
    ))  # fmt: skip
    assert result.code == 0, result.stderr
    (line,) = [line for line in result.stdout.splitlines() if "Lfm2ForCausalLM keeps more than keys" in line]
    assert line.startswith("ended responses" if changes else "--compact_at: ")


def check_rollouts(arguments: list[str]) -> None:
    """Through the actor, on every rank for itself: the last one has other ends, and is done at another time."""
    args, engine, _, prompts = build(arguments)
    actor, last = engine.actor, rank() == world_size() - 1
    actor.generation.eos_token_id = list(range(4, 40 if last else 400))
    ids, mask = left_pad([prompt.prompt for prompt in prompts[rank() :: world_size()][:ROWS]], PAD)
    answers = []
    for actor.compact_at in (0.0, args.compact_at):
        seed_everything(rank())
        with torch.no_grad(), actor.gathered():
            answers.append(actor.generate(ids, mask))
    assert answers[0].equal(answers[1])
    lengths = all_gather_objects(answers[1].shape[1] - ids.shape[1])
    assert len(set(lengths)) == world_size(), lengths
    shutdown_distributed()


@pytest.mark.parametrize("changes", [{"zero_stage": 2}, {"zero_stage": 3}, {"zero_stage": 3, "lora_dim": 4}], ids=str)
def test_ranks_end_at_different_times(workshop: Workshop, changes: dict) -> None:
    result = run_function(check_rollouts, workshop.step3_flags("unused", **changes), ranks=2)
    assert result.code == 0, result.stderr
