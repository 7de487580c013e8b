"""What foreign models and their words may not do: run code, be unpickled, or be more than text where they are shown."""

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoTokenizer

from eval.chatting.conversation import PageStreamer
from eval.chatting.page import Lines
from step3_gapo.tracking import sample_table
from tests.bad_inputs import Bench, edit_json, pickled, with_code
from tests.helpers import Workshop, flags, run_command, run_script
from utils.cli.types import safe_name
from utils.models.configs import load_tokenizer, same_tokenizer
from utils.process.plain_text import printable

pytestmark = pytest.mark.slow

ATTACK = (
    "<script>alert(1)</script> | [x](http://evil.example)\n<img src=http://evil.example> \x1b]0;title\x07\r\u202egnp"
)


@pytest.fixture
def bench(workshop: Workshop, tmp_path: Path) -> Bench:
    return Bench(workshop, tmp_path, tmp_path)


def generate_flags(workshop: Workshop, policy: Path, output: Path, **changes: object) -> list[str]:
    return flags(**{"policy": f"base={policy}", "reference_model": workshop.base, "data": workshop.prompts,
                    "max_new_tokens": 4, "output_dir": output} | changes)  # fmt: skip


def responses(output: Path) -> list[str]:
    return [json.loads(line)["response"] for line in (output / "responses/base.jsonl").read_text().splitlines()]


def test_pickled_weights_are_read_when_allowed(bench: Bench) -> None:
    copy = bench.model(bench.workshop.base, pickled)
    for path, output in ((bench.workshop.base, "plain"), (copy, "unpickled")):
        arguments = generate_flags(bench.workshop, path, bench.folder / output, allow_pickle=True)
        result = run_script("eval/generate.py", arguments)
        assert result.code == 0, result.stderr
    assert responses(bench.folder / "plain") == responses(bench.folder / "unpickled")


def test_pickled_code_is_not_run_even_then(bench: Bench) -> None:
    """torch unpickles tensors and plain containers alone."""
    copy, trace = bench.model(bench.workshop.base, pickled), bench.folder / "it_ran"
    torch.save({"lm_head.weight": _Trap(trace)}, copy / "pytorch_model.bin")
    arguments = generate_flags(bench.workshop, copy, bench.folder / "out", allow_pickle=True)
    result = run_script("eval/generate.py", arguments)
    assert result.code == 2 and "--policy base" in result.stderr and result.stderr.count("\n") == 1, result.stderr
    assert not trace.exists()


class _Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self) -> tuple:
        return Path.touch, (self.trace,)


def test_code_of_a_model_runs_when_trusted_and_only_then(bench: Bench) -> None:
    copy = bench.model(bench.workshop.base, with_code)
    variables = os.environ | {"HF_HOME": str(bench.folder / "cache")}  # transformers copies the code there
    for trusted in (False, True):
        arguments = generate_flags(bench.workshop, copy, bench.folder / "out", trust_remote_code=trusted)
        result = run_command([sys.executable, "eval/generate.py", *arguments], env=variables)
        assert result.code == 2  # what it brings along makes no model
        assert (copy / "it_ran").exists() == trusted


def test_a_model_that_transformers_knows_is_loaded_without_its_code(bench: Bench) -> None:
    copy = bench.model(bench.workshop.base, with_code)
    edit_json(copy / "config.json", {"model_type": "mistral"})
    result = run_script("eval/generate.py", generate_flags(bench.workshop, copy, bench.folder / "out"))
    assert result.code == 0, result.stderr
    assert len(responses(bench.folder / "out")) == 64 and not (copy / "it_ran").exists()


def test_tokenizers_that_split_differently_are_not_the_same(bench: Bench) -> None:
    """Equal vocabularies and templates, other merges: the ids of one would be read as those of the other."""
    original = load_tokenizer(str(bench.workshop.base), "--actor_model")
    copy = bench.model(bench.workshop.base)
    assert same_tokenizer(original, load_tokenizer(str(copy), "--reward_model"))
    model = json.loads((copy / "tokenizer.json").read_text())["model"]
    edit_json(copy / "tokenizer.json", {"model": model | {"merges": model["merges"][::-1]}})
    other = load_tokenizer(str(copy), "--reward_model")
    assert original.get_vocab() == other.get_vocab()
    assert not same_tokenizer(original, other)


def test_a_response_is_text_in_tensorboard() -> None:
    """TensorBoard renders markdown and lets some html through."""
    record = SimpleNamespace(messages=[{"role": "user", "content": ATTACK}])
    experience = SimpleNamespace(scores={"helpfulness": torch.tensor([1.0])}, judged={"helpfulness": torch.ones(1)})
    table = sample_table(
        SimpleNamespace(experience=experience, prompts=[SimpleNamespace(record=record)], responses=[ATTACK])
    )
    assert table.count("\n") == 2 and table.count("&lt;script&gt;") == 2
    assert "<script" not in table and "<img" not in table and "[x](" not in table and "\x1b" not in table


def test_a_response_cannot_command_the_terminal(workshop: Workshop, capsys: pytest.CaptureFixture) -> None:
    streamer = PageStreamer(AutoTokenizer.from_pretrained(workshop.base), Lines())
    streamer.on_finalized_text(ATTACK, stream_end=True)
    shown = capsys.readouterr().out
    assert shown == printable(ATTACK) + "\n"
    assert not set(shown) & set("\x1b\x07\r\u202e") and "<script>alert(1)</script>" in shown


@pytest.mark.parametrize(
    "text", ["", " ", "a/b", "..", "../a", "/a", "a\\b", ".a", "-a", "a\nb", "a\x1b", "a\u200b", "a" * 101]
)
def test_names_that_could_leave_their_folder(text: str) -> None:
    with pytest.raises(Exception, match="name"):
        safe_name(text)


@pytest.mark.parametrize("text", ["p_gapo_0.2@imbalanced#3", "Hilfsbereitschaft", "有用性", "a b", "x" * 100])
def test_names_that_are_fine(text: str) -> None:
    assert safe_name(text) == text
