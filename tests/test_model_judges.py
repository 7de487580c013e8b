"""A language model as a judge: its probabilities against a softmax by hand, and its verdicts in a run."""

import argparse
import dataclasses
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.helpers import STEP3, Workshop, flags, read_metrics, run_function, run_script
from utils.data.records import Prompt
from utils.process.distributed import init_distributed, rank, shutdown_distributed
from utils.process.errors import UserError
from utils.scoring.model_judges import TEMPLATE, ModelJudge, add_model_judge_arguments, model_judges_of
from utils.scoring.verdicts import Replies

pytestmark = pytest.mark.slow

DIALOGUES = [
    ([{"role": "user", "content": "What is it?"}], "No."),
    ([{"role": "user", "content": "Tell me " * 5}], "I do not know what you mean, and so I cannot."),
    ([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}], "d"),
    ([{"role": "user", "content": "Why?"}], ""),
    ([{"role": "user", "content": "What is it?"}], "Because of the rain " * 3),
]


def words_of(workshop: Workshop) -> tuple[str, str]:
    """Two words that are one token each."""
    tokenizer = AutoTokenizer.from_pretrained(workshop.base)
    found = [
        word for word in (tokenizer.convert_ids_to_tokens(i).strip("▁Ġ") for i in range(3, len(tokenizer)))
        if word.isalpha() and any(
            len(tokenizer(text, add_special_tokens=False)["input_ids"]) == 1 for text in (word, f" {word}")
        )
    ]  # fmt: skip
    return found[0], found[-1]


def judge_of(workshop: Workshop, **changes: object) -> ModelJudge:
    yes, no = words_of(workshop)
    return ModelJudge("kind", str(workshop.base), "Is it kind?", words=((yes,), (no,)), **changes)


def by_hand(judge: ModelJudge) -> list[float]:
    """One dialogue after another, without padding: the masses of the two words in the whole softmax."""
    model = AutoModelForCausalLM.from_pretrained(judge.path, dtype=torch.float32).eval()
    tokenizer, found = AutoTokenizer.from_pretrained(judge.path), []
    for messages, response in DIALOGUES:
        text = (
            f"Is it kind?\n\nRequest: {messages[-1]['content']}\n\nReply: {response}\n\n"
            f"Answer with {judge.words[0][0]} or {judge.words[1][0]}:"
        )
        turn = [{"role": "user", "content": text}]
        written = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
        ids = torch.tensor([tokenizer(written, add_special_tokens=False)["input_ids"]])
        with torch.no_grad():
            masses = model(ids).logits[0, -1].double().softmax(dim=-1)
        yes, no = (
            sum(masses[i] for i in {
                one[0] for one in (tokenizer(t, add_special_tokens=False)["input_ids"] for t in (word, f" {word}"))
                if len(one) == 1
            })
            for (word,) in judge.words
        )  # fmt: skip
        found.append((yes / (yes + no)).item())
    return found


def test_masses_are_those_of_the_softmax(workshop: Workshop) -> None:
    """Whatever the batch size, and with it the padding; more words have more mass."""
    judge = judge_of(workshop)
    expected = torch.tensor(by_hand(judge))
    model = AutoModelForCausalLM.from_pretrained(judge.path, dtype=torch.float32).eval()
    for size in (1, 2, 5, 9):
        found = dataclasses.replace(judge, engine=model, batch_size=size).probabilities(DIALOGUES)
        assert torch.allclose(found, expected, atol=1e-5), size
    assert 0 < expected.min() and expected.max() < 1 and expected.std() > 1e-4, "it makes a difference"
    assert dataclasses.replace(judge, engine=model).probabilities([]).shape == (0,)


def check_under_zero(judge: ModelJudge, expected: list[float], stage: int) -> None:
    """Rank 0 asks about all dialogues, rank 1 about one."""
    init_distributed()
    args = SimpleNamespace(
        zero_stage=stage, dtype="fp32", per_device_train_batch_size=2, park_frozen_models=stage == 0, offload=False,
        gradient_accumulation_steps=1, attn_implementation=None, gradient_checkpointing=False, lora_dim=0,
    )  # fmt: skip
    number = 1 if rank() else len(DIALOGUES)
    replies = Replies([Prompt(messages, "f:1") for messages, _ in DIALOGUES], [response for _, response in DIALOGUES])
    found = judge.loaded(args).verdicts(replies, {}, range(number))
    assert found.judged.tolist() == [float(i < number) for i in range(len(DIALOGUES))]
    assert found.passed.tolist() == [float(p > 0.5 and i < number) for i, p in enumerate(expected)]
    shutdown_distributed()


@pytest.mark.parametrize("stage", [0, 3])
def test_ranks_with_other_numbers_of_responses(workshop: Workshop, stage: int) -> None:
    judge = judge_of(workshop)
    result = run_function(check_under_zero, judge, by_hand(judge), stage, ranks=2)
    assert result.code == 0, result.stderr


def test_in_a_run(workshop: Workshop, tmp_path: Path) -> None:
    """With a template and words of one's own; verdicts are logged, and change nothing else."""
    yes, no = words_of(workshop)
    (tmp_path / "ask.jinja").write_text("{{ prompt }} {{ response }} {{ question }}")
    given = {"judge_model": f"kind={workshop.base}", "judge_template": f"kind={tmp_path / 'ask.jinja'}"}
    given |= {"judge_words": f"kind={yes}:{no}", "judge_question": "kind=Well?", "max_steps": 1}
    (step,) = read_metrics(workshop.step3("judged_by_model", **given))
    assert 0 <= step["judge/kind"] <= 1 and step["judge/all"] == step["judge/kind"]
    (turned,) = read_metrics(workshop.step3("judged_by_model", **given | {"judge_words": f"kind={no}:{yes}"}))
    assert turned["judge/kind"] == pytest.approx(1 - step["judge/kind"])
    result = run_script(STEP3, workshop.step3_flags("dry", dry_run=True, **given))
    assert result.code == 0 and "judge kind" in result.stdout, result.stderr


@pytest.mark.parametrize(("changes", "said"), [
    ({"judge_question": None}, "--judge_question kind=... is needed"),
    ({"judge_model": "kind=/nowhere/at/all"}, "/nowhere/at/all"),
    ({"judge_model": "kind={reward}"}, "--judge_model kind"),
    ({"judge_words": "kind=a"}, "is not YES"), ({"judge_words": "kind=xyzzy:{no}"}, "is not one token of"),
    ({"judge_words": "kind={no}:{no}"}, "stands for yes and for no"),
    ({"judge_template": "kind=/no/file"}, "cannot be read"),
    ({"judge_template": "kind={bad}"}, "--judge_template kind"),
    ({"judge_template": "kind={unknown}"}, "'nobody' is undefined"),
    ({"judge_question": ["kind=Well?", "other=What?"]}, "there is no --judge_model of that name"),
])  # fmt: skip
def test_bad_model_judges_end_in_one_line(workshop: Workshop, tmp_path: Path, changes: dict, said: str) -> None:
    (tmp_path / "bad").write_text("{% if %}")
    (tmp_path / "unknown").write_text("{{ nobody }}")
    yes, no = words_of(workshop)
    places = {"reward": workshop.reward, "yes": yes, "no": no, "bad": tmp_path / "bad", "unknown": tmp_path / "unknown"}
    given = {"judge_model": f"kind={workshop.base}", "judge_question": "kind=Well?", "judge_words": "kind={yes}:{no}"}
    values = {key: value if value is None or isinstance(value, list) else value.format(**places)
              for key, value in (given | changes).items()}  # fmt: skip
    parser = argparse.ArgumentParser()
    add_model_judge_arguments(parser)
    args = parser.parse_args(flags(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}))
    with pytest.raises(UserError, match=said.replace("?", r"\?")):
        model_judges_of(args)


def test_the_question_as_a_model_without_a_template_reads_it() -> None:
    judge = ModelJudge("a", "unused", "Is it?", TEMPLATE, (("Yes", "yes"), ("No",)))
    text = judge.text([{"role": "user", "content": "Who?"}], "Me.")
    assert text == "Is it?\n\nRequest: Who?\n\nReply: Me.\n\nAnswer with Yes or No:"
