"""The chat through its command line, fed by a pipe, and interrupted in a real process."""

import contextlib
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from eval import chat
from eval.chatting.conversation import score_answer
from eval.chatting.page import Lines
from tests.helpers import ROOT, Result, Workshop, default_signals, flags, run_function
from utils.data.encoding import encode_prompt
from utils.process.errors import run_main
from utils.process.plain_text import printable
from utils.safe_rlhf_mini import gold_scores
from utils.scoring.objectives import Objective
from utils.scoring.scorers import ScoredRows, last_token_scores

pytestmark = pytest.mark.slow

QUESTION, SECOND = "How do I bake a cake?", "And what about the bread?"
VALUES = re.compile(r"\[(helpfulness .*)\]")


def talk_in_child(said: str, arguments: list[str]) -> None:
    """In a forked process: the chat with a pipe for its input."""
    reading, writing = os.pipe()
    os.write(writing, said.encode())
    os.close(writing)
    sys.stdin = os.fdopen(reading, encoding="utf-8")
    sys.argv = ["eval/chat.py", *arguments]
    run_main(chat.main)


def talk(said: str, **settings: Any) -> Result:
    return run_function(talk_in_child, said, flags(**({"max_new_tokens": 12, "greedy": True} | settings)))


def answers(output: str, name: str) -> list[str]:
    """What a policy said, turn by turn, with the line of values."""
    turns = re.split(r"\n── (\w+) ─+\n", output)
    return [said.split("\nyou>")[0].strip() for who, said in zip(turns[1::2], turns[2::2], strict=True) if who == name]


def greedy(path: Path, messages: list[dict[str, str]], length: int = 12) -> list[int]:
    """The likeliest tokens one by one, without transformers' generation."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(path), AutoTokenizer.from_pretrained(path)
    prompt = encode_prompt(tokenizer, messages)
    ids = list(prompt)
    while len(ids) < len(prompt) + length and (ids == prompt or ids[-1] != tokenizer.eos_token_id):
        with torch.no_grad():
            ids.append(model(torch.tensor([ids])).logits[0, -1].argmax().item())
    return ids[len(prompt) :]


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def test_turns_with_several_policies(workshop: Workshop) -> None:
    """Every policy answers in its own history, and the values are those of the models on exactly that."""
    said = f"{QUESTION}\n{SECOND}\n"
    policies = {"base": workshop.base, "other": workshop.folder / "other"}
    ended = talk(
        said, policy=tuple(f"{name}={path}" for name, path in policies.items()),
        reward_model=f"helpfulness={workshop.reward}", cost_model=f"harmlessness={workshop.cost}",
        gold="utils.safe_rlhf_mini:gold_scores",
    )  # fmt: skip
    assert ended.code == 0, ended.stderr
    for name, path in policies.items():
        tokenizer, messages = AutoTokenizer.from_pretrained(path), []
        shown = answers(ended.stdout, name)
        assert len(shown) == 2
        for question, answer in zip((QUESTION, SECOND), shown, strict=True):
            messages = [*messages, user(question)]
            ids = greedy(path, messages)
            text = tokenizer.decode(ids, skip_special_tokens=True)
            assert " ".join(answer.split()).startswith(" ".join(text.split()))
            row = {"messages": messages, "response": text, "finished": ids[-1] == tokenizer.eos_token_id}
            assert VALUES.search(answer)[1] == expected_values(workshop, row, question)
            messages = [*messages, assistant(text)]


def expected_values(workshop: Workshop, row: dict[str, Any], question: str) -> str:
    parts = []
    for name, path, sign in (("helpfulness", workshop.reward, 1), ("harmlessness", workshop.cost, -1)):
        model = Objective(name, "reward", str(path)).load_model()
        ids, _ = model.encode(row["messages"], row["response"], row["finished"])
        score = last_token_scores(model.module.eval(), [ids], model.tokenizer.pad_token_id, 1).item()
        mean = json.loads((path / "config.json").read_text())["score_mean"]
        parts.append(f"{name} {sign * score - (mean if sign == 1 else 0):+.2f}")
    gold = gold_scores([question], [row["response"]])
    return " · ".join(parts + [f"gold {name} {values[0]:+.2f}" for name, values in gold.items()])


def test_an_answer_that_is_not_judged() -> None:
    """Objectives of one model or function stand beside each other; None is no value."""
    scorers = {"a, b": lambda rows: ScoredRows({"a": [1.25], "b": [-2.0]}, [True]),
               "c": lambda rows: ScoredRows({"c": [None]}, [False])}  # fmt: skip
    row = {"prompt": QUESTION, "messages": [user(QUESTION)], "response": "Well.", "finished": True}
    beginning = "(without the beginning)"
    values, reasons = score_answer(row, scorers, None, Lines(), None)
    assert values == [f"a +1.25 {beginning}", f"b -2.00 {beginning}", "c (not judged)"] and not reasons


def test_commands(workshop: Workshop) -> None:
    said = f"{QUESTION}\n/policies\n/reset\n/policies\n{QUESTION}\n/what\n/help\n\n/quit\n{SECOND}\n"
    ended = talk(said, policy=f"base={workshop.base}", greedy=False, temperature=0.7)
    assert ended.code == 0 and not ended.stderr, ended.stderr
    first, again = answers(ended.stdout, "base")
    assert first.split("\n")[0] == again.split("\n")[0] != ""  # same seed, no history
    assert f"{workshop.base}, 1 exchanges" in ended.stdout and f"{workshop.base}, 0 exchanges" in ended.stdout
    assert "/what: no such command" in ended.stdout and "/reset     forget" in ended.stdout
    assert SECOND not in ended.stdout


def test_a_history_that_gets_too_long(workshop: Workshop) -> None:
    """The oldest exchanges go; a question too long by itself is refused and forgotten."""
    room = AutoModelForCausalLM.from_pretrained(workshop.base).config.max_position_embeddings
    tokenizer = AutoTokenizer.from_pretrained(workshop.base)
    longest = len(encode_prompt(tokenizer, [user(QUESTION)])) * 2
    said = f"{QUESTION}\n{SECOND}\n{'bake ' * room}\n{QUESTION}\n"
    ended = talk(said, policy=f"base={workshop.base}", max_new_tokens=room - longest)
    assert ended.code == 0, ended.stderr
    shown = answers(ended.stdout, "base")
    assert len(shown) == 4 and shown[1].startswith("(the history got too long: without the oldest 1 of 1 exchanges)")
    assert re.search(rf"error: the question has \d+ tokens, there is room for {longest}$", shown[2])
    assert shown[3].split(")\n")[-1] == shown[0]


SYSTEM = "Answer like a pirate."
REFUSING = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for turn in messages %}{{ turn['content'] + eos_token }}{% endfor %}"
)
FORGETFUL = "{% for turn in messages if turn['role'] != 'system' %}{{ turn['content'] + eos_token }}{% endfor %}"


def with_template(policy: Path, folder: Path, template: str) -> Path:
    """A copy of a policy with another chat template."""
    shutil.copytree(policy, folder)
    (folder / "chat_template.jinja").write_text(template)
    return folder


def test_a_system_turn(workshop: Workshop) -> None:
    """Every conversation begins with it: also after /reset, and when old turns had to go; score models read it."""
    room = AutoModelForCausalLM.from_pretrained(workshop.base).config.max_position_embeddings
    tokenizer, turns = AutoTokenizer.from_pretrained(workshop.base), [{"role": "system", "content": SYSTEM}]
    exchange = len(encode_prompt(tokenizer, [*turns, user(QUESTION)])) * 2
    said = f"{QUESTION}\n{SECOND}\n/policies\n/reset\n/policies\n{SECOND}\n{'bake ' * room}\n"
    ended = talk(
        said, policy=f"base={workshop.base}", system=SYSTEM, reward_model=f"helpfulness={workshop.reward}",
        cost_model=f"harmlessness={workshop.cost}", gold="utils.safe_rlhf_mini:gold_scores",
        max_new_tokens=room - exchange,
    )  # fmt: skip
    assert ended.code == 0 and not ended.stderr, ended.stderr
    assert f"{workshop.base}, 1 exchanges" in ended.stdout and f"{workshop.base}, 0 exchanges" in ended.stdout
    shown = answers(ended.stdout, "base")
    assert shown[1].startswith("(the history got too long: without the oldest 1 of 1 exchanges)")
    assert re.search(
        rf"error: the system turn and the question have \d+ tokens, there is room for {exchange}$", shown[3]
    )
    for question, answer in zip((QUESTION, SECOND, SECOND), shown[:3], strict=True):
        messages = [*turns, user(question)]
        ids = greedy(workshop.base, messages, room - exchange)
        text = tokenizer.decode(ids, skip_special_tokens=True)
        assert text != tokenizer.decode(greedy(workshop.base, messages[1:], room - exchange), skip_special_tokens=True)
        assert " ".join(printable(text).split())[:60] in " ".join(answer.split())
        row = {"messages": messages, "response": text, "finished": ids[-1] == tokenizer.eos_token_id}
        assert VALUES.search(answer)[1] == expected_values(workshop, row, question)


def test_templates_without_system_turns(workshop: Workshop, tmp_path: Path) -> None:
    """A policy's is refused before the conversation; a score model's costs the answer this one value."""
    refusing = with_template(workshop.base, tmp_path / "refusing", REFUSING)
    forgetful = with_template(workshop.base, tmp_path / "forgetful", FORGETFUL)
    both = (f"base={workshop.base}", f"other={refusing}")
    for settings, expected in (
        ({"policy": both}, f"--system: --policy other {refusing}: the chat template refuses the turns (System role"),
        ({"policy": f"a={forgetful}"}, f"--system: --policy a {forgetful}: the chat template leaves it out"),
        ({"policy": f"a={workshop.base}", "max_new_tokens": 480}, "--max_new_tokens, --system and a question"),
        ({"policy": f"a={workshop.base}", "system": " "}, "--system: the text is empty"),
        ({"policy": f"a={workshop.base}", "system": "\ud800"}, "--system: the text is empty, or holds control char"),
    ):
        ended = talk("hello\n", **{"system": SYSTEM * 4} | settings)
        assert ended.code == 2 and ended.stderr.count("\n") == 1 and expected in ended.stderr, ended.stderr
    (tmp_path / "turns.jinja").write_text(REFUSING)
    ended = talk(
        f"{QUESTION}\n{SECOND}\n", policy=f"base={workshop.base}", system=SYSTEM,
        reward_model=f"helpfulness={workshop.reward}", cost_model=f"harmlessness={workshop.cost}",
        score_template=f"helpfulness={tmp_path / 'turns.jinja'}",
    )  # fmt: skip
    assert ended.code == 0 and not ended.stderr, ended.stderr
    for answer in answers(ended.stdout, "base"):
        assert re.search(r"^error: helpfulness: .* refuses the turns \(System role not supported\)$", answer, re.M)
        assert re.search(r"^   \[harmlessness [+-]\d+\.\d\d\]$", answer, re.M)


def test_bad_flags(workshop: Workshop) -> None:
    base = f"base={workshop.base}"
    for settings, expected in (
        ({"policy": (base, base)}, "--policy base: given twice"),
        ({"policy": "base=./missing"}, "--policy base ./missing: no such model"),
        ({"policy": f"base={workshop.reward}"}, "not a language model"),
        ({"policy": base, "reward_model": f"helpfulness={workshop.base}"}, "is not a reward or cost model"),
        ({"policy": base, "gold": "utils.nothing:at_all"}, "--gold utils.nothing:at_all"),
        ({"policy": base, "max_new_tokens": 100000}, "--max_new_tokens 100000"),
        ({"policy": base, "temperature": 0.5}, "not allowed with argument"),
    ):
        ended = talk("hello\n", **settings)
        assert ended.code == 2 and ended.stderr.count("\n") == 1, ended.stderr
        assert ended.stderr.startswith("error: ") and expected in ended.stderr


@pytest.fixture
def endless(workshop: Workshop, tmp_path: Path) -> Path:
    """A policy that hardly ever ends by itself."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(workshop.base), AutoTokenizer.from_pretrained(workshop.base)
    model.lm_head.weight.data[tokenizer.eos_token_id] = 0
    model.save_pretrained(tmp_path / "endless")
    tokenizer.save_pretrained(tmp_path / "endless")
    return tmp_path / "endless"


def test_interrupted(endless: Path) -> None:
    """Ctrl-C ends the answer, which is shown up to there; the next question is answered with it in the history."""
    arguments = flags(policy=f"endless={endless}", greedy=True, max_new_tokens=450)
    process = subprocess.Popen(
        [sys.executable, "-u", "eval/chat.py", *arguments], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, bufsize=1,
        preexec_fn=default_signals,
    )  # fmt: skip
    try:
        process.stdin.write(f"{QUESTION}\n")
        output = ""
        while not re.search("── endless ─+\n.{20}", output):  # the answer has begun to come
            output += (character := process.stdout.read(1))
            assert character, process.stderr.read()
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate("/policies\n/quit\n", timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0 and not errors, errors
    assert "(interrupted)" in rest and "1 exchanges" in rest
    text = AutoTokenizer.from_pretrained(endless).decode(greedy(endless, [user(QUESTION)], 30))
    shown = (output + rest).split("─\n")[1].split("\n(interrupted)")[0]
    assert len(shown) >= 20 and (shown.startswith(text[:20]) or text.startswith(shown[:20]))


def test_columns_in_a_terminal(workshop: Workshop) -> None:
    """In a wide terminal the answers stand side by side and grow; in a narrow one below one another."""
    arguments = flags(policy=(f"base={workshop.base}", f"again={workshop.base}"), greedy=True, max_new_tokens=12,
                      reward_model=f"helpfulness={workshop.reward}")  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(workshop.base)
    word = tokenizer.decode(greedy(workshop.base, [user(QUESTION)]), skip_special_tokens=True).split()[0]
    wide, narrow = (in_terminal(f"{QUESTION}\n/quit\n", arguments, width) for width in (120, 60))
    assert re.search(r"base +┃ again", wide) and "── base" not in wide
    assert re.search(rf"{re.escape(word)}.*│.*{re.escape(word)}", wide)
    assert re.search(r"helpfulness [+-]\d.*│.*helpfulness [+-]\d", wide)
    assert wide.count("again") > 3  # drawn again and again as the answers grow
    assert "── base" in narrow and "── again" in narrow and "┃" not in narrow


def test_names_in_columns_are_no_markup(workshop: Workshop) -> None:
    names = ("a[]", "[bold]b")
    arguments = flags(policy=tuple(f"{name}={workshop.base}" for name in names), greedy=True, max_new_tokens=2)
    assert re.search(r"a\[\] +┃ \[bold\]b", in_terminal(f"{QUESTION}\n/quit\n", arguments, 120))


def in_terminal(said: str, arguments: list[str], width: int) -> str:
    """What the chat shows in a terminal of this width, without its colors."""
    with tempfile.TemporaryDirectory() as folder:
        ended = run_function(talk_in_terminal, said, arguments, width, folder)
        assert ended.code == 0, ended.stderr
        return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", (Path(folder) / "screen").read_text())


def talk_in_terminal(said: str, arguments: list[str], width: int, folder: str) -> None:
    """In a forked process: the chat in a pseudo-terminal, whose screen goes to a file."""
    os.environ |= {"TERM": "xterm", "COLUMNS": str(width), "LINES": "50"}
    child, terminal = pty.fork()
    if child == 0:
        sys.stdin, sys.stdout = os.fdopen(0, encoding="utf-8"), os.fdopen(1, "w", encoding="utf-8")
        sys.argv = ["eval/chat.py", *arguments]
        run_main(chat.main)
        sys.stdout.flush()
        os._exit(0)
    os.write(terminal, said.encode())
    shown = b""
    with contextlib.suppress(OSError):  # how Linux says that the other side has closed
        while part := os.read(terminal, 4096):
            shown += part
    (Path(folder) / "screen").write_bytes(shown)
    _, status = os.waitpid(child, 0)
    sys.exit(os.waitstatus_to_exitcode(status))
