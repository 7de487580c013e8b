"""The other side of section `peers`: whole steps of TRL's GRPO, as they are asked for.

python -m tests.benchmarks.peer_trl CASE   (see `peer_turns`), in an environment that has TRL and not DeepSpeed
"""

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoTokenizer, TrainerCallback, TrainerControl
from trl import GRPOConfig, GRPOTrainer

from tests.benchmarks.peer_turns import Case, Turns, case_of_command_line

OBJECTIVES, WITHOUT_END = 2, 100_000
DTYPES = {"fp32": "float32", "bf16": "bfloat16"}


class TimedGRPO(GRPOTrainer):
    """TRL's trainer, which notes how long generation, and generation with scoring, have taken."""

    generation = rollout = tokens = 0.0

    def _generate(self, *arguments: Any) -> Any:
        start = time.perf_counter()
        generated = super()._generate(*arguments)
        self.generation = time.perf_counter() - start
        return generated

    def _generate_and_score_completions(self, *arguments: Any) -> dict[str, Any]:
        start = time.perf_counter()
        scored = super()._generate_and_score_completions(*arguments)
        self.tokens = scored["completion_mask"].sum().item()
        self.rollout = time.perf_counter() - start
        return scored


class InTurns(TrainerCallback):
    """Begins each step when it is asked for and answers how long it took; ends where no more are asked for."""

    def __init__(self, turns: Turns):
        self.turns, self.trainer = turns, None

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        if self.turns.asked() is None:
            sys.exit()
        self.start = time.perf_counter()

    def on_step_end(self, *arguments: Any, **__: Any) -> TrainerControl:
        step, trainer = time.perf_counter() - self.start, self.trainer
        seconds = {
            "step": step,
            "generation": trainer.generation,
            "scoring": trainer.rollout - trainer.generation,
            "update": step - trainer.rollout,
        }
        self.turns.answer(seconds | {"tokens": trainer.tokens, "threads": torch.get_num_threads()})


def make_trainer(case: Case, folder: str, callback: InTurns) -> TimedGRPO:
    """GRPO with the KL term, and with what TRL would do for memory (checkpointing) left out, as on the other side."""
    rows = [json.loads(line) for line in Path(case.folder, "prompts.jsonl").read_text().splitlines()]
    prompts = [{"prompt": [{"role": "user", "content": row["prompt"]}]} for row in rows]
    config = GRPOConfig(
        output_dir=folder, max_steps=WITHOUT_END, per_device_train_batch_size=case.responses,
        num_generations=case.generations, max_completion_length=case.response, beta=case.kl_coeff,
        learning_rate=case.learning_rate, bf16=case.dtype == "bf16", model_init_kwargs={"dtype": DTYPES[case.dtype]},
        # The benchmarks' decoders are stored with the cache switched off, which models of the hub are not.
        generation_kwargs={"use_cache": True, "suppress_tokens": case.never or None}, gradient_checkpointing=False,
        use_cpu=not torch.cuda.is_available(), save_strategy="no", logging_strategy="no", report_to="none",
        disable_tqdm=True,
    )  # fmt: skip
    trainer = TimedGRPO(
        model=f"{case.folder}/policy", reward_funcs=[f"{case.folder}/score"] * OBJECTIVES, args=config,
        train_dataset=Dataset.from_list(prompts),
        processing_class=AutoTokenizer.from_pretrained(f"{case.folder}/policy", padding_side="left"),
        callbacks=[callback],
    )  # fmt: skip
    callback.trainer = trainer
    return trainer


def main() -> None:
    turns = Turns()
    with tempfile.TemporaryDirectory() as folder:
        make_trainer(case_of_command_line(), folder, InTurns(turns)).train()


if __name__ == "__main__":
    main()
