"""Score models of others are read where their own forward pass reads them, however their templates end a turn.

Against plain transformers on the rendered text: text in, ids of the tokenizer, the classifier's own logits.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedTokenizerFast

from tests import architectures
from tests.helpers import Workshop, run_function
from tests.test_score_models import ARGS, FINISHED, MESSAGES, RESPONSES, sample, score_file
from utils.data.encoding import render_dialogue
from utils.models.configs import load_tokenizer
from utils.process.distributed import init_distributed
from utils.process.errors import UserError
from utils.scoring.objectives import Objective
from utils.scoring.scorers import make_scorers, score_responses

TURNS = "{%- for m in messages -%}"
END = "{%- endfor -%}"


@dataclass(frozen=True)
class Ending:
    """A chat template as people publish it, with its special tokens and what the tokenizer calls EOS and pad."""

    template: str
    special: tuple[str, ...]
    eos: str
    pad: str | None
    bos: str | None = None

    def tokenizer(self) -> PreTrainedTokenizerFast:
        names = {"eos_token": self.eos, "pad_token": self.pad, "bos_token": self.bos}
        return architectures.tokenizer(self.template, self.special, **{n: t for n, t in names.items() if t})


LLAMA_3 = (
    "{{- bos_token -}}" + TURNS + "{{- '<|start|>' + m.role + '<|end|>\n\n' + m.content | trim + '<|eot|>' -}}" + END
    + "{%- if add_generation_prompt -%}{{- '<|start|>assistant<|end|>\n\n' -}}{%- endif -%}"
)  # fmt: skip
GEMMA = (
    "{{- bos_token -}}" + TURNS + "{{- '<turn>' + ('model' if m.role == 'assistant' else m.role) + '\n'"
    " + m.content | trim + '<end>\n' -}}" + END + "{%- if add_generation_prompt -%}{{- '<turn>model\n' -}}{%- endif -%}"
)  # fmt: skip
ZEPHYR = (
    TURNS + "{{- '<|' + m.role + '|>\n' + m.content + eos_token + '\n' -}}" + END
    + "{%- if add_generation_prompt -%}{{- '<|assistant|>\n' -}}{%- endif -%}"
)  # fmt: skip
TULU = (
    TURNS + "{{- '<|' + m.role + '|>\n' + m.content -}}"
    "{%- if m.role == 'assistant' -%}{{- eos_token -}}{%- endif -%}{%- if not loop.last -%}{{- '\n' -}}{%- endif -%}"
    + END + "{%- if add_generation_prompt -%}{{- '\n<|assistant|>\n' -}}{%- endif -%}"
)  # fmt: skip
HEADERS = ("<bos>", "<|start|>", "<|end|>", "<|eot|>")
ENDINGS = {
    "llama3": Ending(LLAMA_3, (*HEADERS, "<pad>"), "<|eot|>", "<pad>", "<bos>"),
    "llama3, pad is EOS": Ending(LLAMA_3, HEADERS, "<|eot|>", "<|eot|>", "<bos>"),
    "llama3, no pad": Ending(LLAMA_3, HEADERS, "<|eot|>", None, "<bos>"),
    "chatml": Ending(architectures.CHATML, architectures.SPECIAL, "<|im_end|>", "<|endoftext|>"),
    "chatml, EOS of the base": Ending(architectures.CHATML, architectures.SPECIAL, "<|endoftext|>", "<|endoftext|>"),
    "gemma": Ending(GEMMA, ("<pad>", "<eos>", "<bos>", "<turn>", "<end>"), "<eos>", "<pad>", "<bos>"),
    "zephyr": Ending(ZEPHYR, ("<unk>", "<s>", "</s>"), "</s>", "</s>"),
    "zephyr, pad is unknown": Ending(ZEPHYR, ("<unk>", "<s>", "</s>"), "</s>", "<unk>"),
    "tulu": Ending(TULU, ("<s>", "</s>", "<pad>"), "</s>", "<pad>"),
}


def make_classifier(ending: Ending, architecture: str, folder: Path) -> Path:
    """A random classifier with the tokenizer of an ending; its configuration says what the tokenizer pads with."""
    tokenizer = ending.tokenizer()
    row = next(a for a in architectures.ARCHITECTURES if a.name == architecture)
    config = row.config()
    config.num_labels, config.pad_token_id = 1, tokenizer.pad_token_id
    architectures.random_model(AutoModelForSequenceClassification, config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@torch.no_grad()
def plain_scores(folder: Path) -> list[float]:
    """transformers' own, of the text as the template writes it; of a response cut off, up to there."""
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer, scores = AutoTokenizer.from_pretrained(folder), []
    for messages, response, finished in zip(MESSAGES, RESPONSES, FINISHED, strict=True):
        text = tokenizer.apply_chat_template([*messages, {"role": "assistant", "content": response}], tokenize=False)
        text = text if finished else text[: text.rindex(response) + len(response)]
        ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
        scores.append(model(input_ids=ids).logits.item())
    return scores


def score_in_rollouts(cases: list[tuple[str, str, bool]], result: str) -> None:
    """The values of `sample` by (policy's folder, score model's folder, whether they share a tokenizer)."""
    init_distributed(60.0)
    found = []
    for policy, folder, same in cases:
        tokenizer = load_tokenizer(policy, "--actor_model")
        (scorer,) = make_scorers([Objective("score", "reward", folder)], ARGS, tokenizer, with_critics=[])
        assert scorer.starts_critics == same and not scorer.reads_policy_tokens
        found.append(score_responses([scorer], sample(tokenizer), ARGS)["score"].values.tolist())
    Path(result).write_text(json.dumps(found))


def test_scores_are_those_of_their_own_forward_pass(workshop: Workshop, tmp_path: Path) -> None:
    """Finished and cut off, one turn and several, in eval/score.py and in rollouts, with the policy's tokenizer too."""
    trunks = ("llama", "qwen2", "gpt_neox", "opt_projected")
    folders = [
        make_classifier(ending, trunks[number % len(trunks)], tmp_path / f"model{number}")
        for number, ending in enumerate(ENDINGS.values())
    ]
    expected = [plain_scores(folder) for folder in folders]
    assert all(abs(first - second) > 0.01 for first, second in expected)  # a score of something
    cases = [(str(workshop.base), str(f), False) for f in folders] + [(str(f), str(f), True) for f in folders]
    result = run_function(score_in_rollouts, cases, str(tmp_path / "found.json"))
    assert result.code == 0, result.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    in_eval, _ = score_file(tmp_path, reward_model=tuple(f"model{n}={f}" for n, f in enumerate(folders)))
    for number, name in enumerate(ENDINGS):
        assert in_eval[f"model{number}"] == pytest.approx(expected[number], abs=1e-5), name
        assert found[number] == pytest.approx(expected[number], abs=1e-5), name
        assert found[number + len(folders)] == pytest.approx(expected[number], abs=1e-5), name


def test_ids_that_a_score_model_does_not_know(tmp_path: Path) -> None:
    """More ids than the model has rows are told of; a dialogue that holds one is refused by its place."""
    folder = make_classifier(ENDINGS["chatml"], "llama", tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([f"<extra{number}>" for number in range(len(tokenizer), 300)])
    tokenizer.save_pretrained(folder)
    objective = Objective("score", "reward", str(folder))
    objective.check()
    model = objective.load_model()
    assert model.encode(MESSAGES[0], "Fine.", finished=True)
    with pytest.raises(UserError, match=r"^here:7: holds the token '<extra290>' \(id 290\), .* \(272 rows\)"):
        model.encode(MESSAGES[0], "An <extra290>.", finished=True, source="here:7")


def test_a_cut_reply_that_the_template_rewrites(tmp_path: Path) -> None:
    """Qwen3's template takes thoughts out of replies: one cut off is read as a policy continues the prompt."""
    template = (
        TURNS + "{{- '<|im_start|>' + m.role + '\n' + m.content.split('</think>')[-1] + '<|im_end|>\n' -}}" + END
        + "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}"
    )  # fmt: skip
    tokenizer = architectures.tokenizer(template)
    prompt = tokenizer.apply_chat_template(MESSAGES[0], tokenize=False, add_generation_prompt=True)
    reply = "<think>\n\n</think>\n\nThe answer"
    assert render_dialogue(tokenizer, MESSAGES[0], reply, finished=False) == prompt + reply
    assert render_dialogue(tokenizer, MESSAGES[0], reply).endswith("The answer<|im_end|>\n")
    assert render_dialogue(tokenizer, MESSAGES[0], " \n", finished=False) == prompt + " \n"
