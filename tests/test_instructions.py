"""Instructions that a program checks: every kind on texts made by hand; the pairs made of them, by the paper's rule."""

import json
import random
import re
from collections import Counter
from itertools import combinations
from pathlib import Path

import pytest

from tests.helpers import Result, flags, run_script
from utils.data import load_pairs
from utils.instructions import KINDS, Instruction
from utils.instructions.texts import count_paragraphs, sentence_lengths, words
from utils.process.errors import UserError
from utils.safe_rlhf_mini.generate import corpus

SCRIPT = "utils/make_prompt_pairs.py"
FILES = ("prompt_pairs.jsonl", "instruction_pairs.jsonl", "summary.json")

# {kind: (arguments, texts that meet it, texts that break it)}; one word, mark or line more or less decides.
TABLE: dict[str, tuple[dict, list[str], list[str]]] = {
    "at_least_words": ({"count": 3}, ["One two three.", "don't - well-known\n3"], ["don't stop", "a, - ! b"]),
    "at_most_words": ({"count": 3}, ["One two three.", ""], ["One two three 4."]),
    "about_words": ({"count": 10}, ["w " * 8, "w " * 12], ["w " * 7, "w " * 13]),
    "at_least_sentences": ({"count": 2}, ["Go. Now", "- one\n- two", "去吧。现在！"], ["Go.", "1. It is 3.50 now"]),
    "at_most_sentences": ({"count": 2}, ["Go! Really?", "Wait... what?"], ["A. B. C.", "one\ntwo\n3", "你。我。他。"]),
    "short_sentences": ({"count": 5}, ["One two three four five. One two."], ["Yes. One two three four five six."]),
    "exactly_paragraphs": ({"count": 2}, ["a\n\nb", "a\nb\r\n \r\n\r\nc\n\n"], ["a\nb", "a\n\nb\n\nc", ""]),
    "at_least_paragraphs": ({"count": 2}, ["a\n\nb", "a\n\nb\n\nc"], ["a\nb"]),
    "contains_word": ({"word": "cat"}, ["A Cat.", "the 'cat', then", "CAT-\n"], ["A category.", "cats", "cat's", ""]),
    "repeats_word": ({"word": "cat", "count": 2}, ["cat, Cat"], ["cat cats", "cat"]),
    "lacks_word": ({"word": "cat"}, ["A category.", ""], ["A Cat!"]),
    "opens_with": ({"words": "Well then"}, ["well, then go", '"Well then"'], ["Well thence", "So, well then", "Well"]),
    "closes_with": ({"words": "the end"}, ["This is the end.", "THE END"], ["The end of it", "the ends", "end"]),
    "no_first_person": ({}, ["Mind it; Amy is.", ""], ["I'm here", "Well, I am", "Give me it", "My-o", "I’d"]),
    "lower_case": ({}, ["all small, 3 of them", "straße"], ["One Capital", "3", ""]),
    "upper_case": ({}, ["ALL OF IT, 3!"], ["ALL oF IT", "3", ""]),
    "capital_words": ({"count": 2}, ["NOT now, NEVER"], ["NOT now", "I am A man", "Not Never"]),
    "no_digits": ({}, ["none", ""], ["1 time", "x2", "٣"]),
    "contains_digit": ({}, ["in 3 days"], ["in three days", ""]),
    "no_commas": ({}, ["one; two"], ["one, two", "一，二"]),
    "no_exclamation_marks": ({}, ["Go."], ["Go!", "！"]),
    "contains_exclamation_mark": ({}, ["Go!"], ["Go.", ""]),
    "no_question_marks": ({}, ["Go."], ["Go? Yes.", "？"]),
    "ends_with_question": ({}, ["Go?", 'He asked: "Go?" \n'], ["Go? Yes.", ""]),
    "exactly_bullets": ({"count": 2}, ["List:\n- a\n* b\nEnd"], ["- a", "- a\n- b\n- c", "-a\n-b", "**a**\n- b"]),
    "at_least_bullets": ({"count": 2}, ["- a\n* b", "- a\n- b\n  - c"], ["- a - b", "1. a\n2. b"]),
    "numbered_list": ({"count": 3}, ["So:\n1. a\n2. b\n3. c", "1) a\n 2) b\n3) c\n4) d"], ["1. a\n2. b", "2. a\n3. b"]),
    "no_lists": ({}, ["a - b", "1.5 of it", ""], ["Well:\n- a", "1. a"]),
    "valid_json": ({}, ['{"a": [1, "x"]}', "[]\n"], ['{"a": 1', '"text"', "3", "", 'Here: {"a": 1}', "[" * 100000]),
    "double_quotes": ({}, ['"Yes."', ' “Yes.”\n'], ["'Yes.'", '"Yes." he said', '"', '""', ""]),
    "title": ({}, ["<<Cats>>\nThey purr."], ["<Cats>", "<< >>", "<<a\nb>>", "<<Cats>", ""]),
    "postscript": ({}, ["Bye.\nP.S. Call me.", "Bye.\n\np. s.: call\n"],
                   ["P.S. Call me.", "Bye. P.S. Call.", "P.S. a\nBye.", "Bye.\nP.S."]),
    "placeholders": ({"count": 2}, ["Dear [name] of [place]"], ["Dear [name]", "[] []", "[a](http://b) [c](d)"]),
    "highlights": ({"count": 2}, ["*a* and **b c**"], ["*a* b", "* a\n* b", "2 * 3 * 4 * 5", "** **"]),
}  # fmt: skip

# Kinds that no text can meet together, for some arguments at least.
CONTRADICTIONS = [
    ("no_digits", "numbered_list"), ("no_digits", "contains_digit"), ("lower_case", "capital_words"),
    ("lower_case", "upper_case"), ("lacks_word", "opens_with"), ("lacks_word", "contains_word"),
    ("no_first_person", "opens_with"), ("at_most_words", "at_least_sentences"), ("at_most_words", "repeats_word"),
    ("at_most_words", "about_words"), ("at_most_sentences", "at_least_words"), ("at_most_sentences", "postscript"),
    ("at_most_words", "capital_words"), ("exactly_bullets", "no_lists"), ("valid_json", "opens_with"),
    ("valid_json", "double_quotes"), ("valid_json", "ends_with_question"), ("closes_with", "no_first_person"),
    ("closes_with", "postscript"), ("no_question_marks", "ends_with_question"), ("no_digits", "closes_with"),
    ("no_exclamation_marks", "contains_exclamation_mark"), ("exactly_paragraphs", "at_least_paragraphs"),
]  # fmt: skip
ORDINARY = (
    "Wait for the rain to stop. Then open every window of the house, and wait again.\n\nThe smell goes with the wind."
)
# With something of every kind that asks for a number of things, so that more and fewer of them can be asked for.
RICH = "Use *it* and *that* of [water] or [more water], NOT now, NEVER.\n\nSo:\n- a\n- b\n\n1. c\n2. d\n3. e"
MARKED = "<<" * 999 + "[" * 999 + "*" * 999
ODD = ["", " \n\t", "。", "नमस्ते दुनिया।", "a" * 5000, MARKED, "\ud800 \x00\u2028x", "🙂 🙂\r\n"]


def instruction(kind: str, arguments: dict) -> Instruction:
    return Instruction.from_dict({"kind": kind, "arguments": arguments}, "here")


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_knows_its_texts(name: str) -> None:
    """A kind that is added needs a row of texts that meet it and texts that break it."""
    arguments, meet, broken = TABLE[name]
    made = instruction(name, arguments)
    assert [text for text in meet if not made.met_by(text)] == []
    assert [text for text in broken if made.met_by(text)] == []
    assert all(str(value) in made.text for value in arguments.values()) and made.text.endswith((".", '"'))
    assert instruction(**json.loads(json.dumps(made.as_dict()))) == made


def test_there_are_many_kinds_and_none_beside_the_table() -> None:
    assert TABLE.keys() == KINDS.keys() and len(KINDS) >= 24
    assert len({instruction(name, row[0]).text for name, row in TABLE.items()}) == len(TABLE)


def test_measures_of_many_languages() -> None:
    """Words as people count them, whatever the script; an accent is the same, composed or not."""
    assert words("Don’t stop—it's 'well-known' (3.5 km).") == ("Don’t", "stop", "it's", "well-known", "3", "5", "km")
    assert words("हिन्दी में, कुछ।") == ("हिन्दी", "में", "कुछ")
    assert words("_snake_ case") == ("snake", "case")
    assert instruction("contains_word", {"word": "café"}).met_by("Un CAFE\u0301.")
    assert sentence_lengths('She said "Go on." Then 1.5 km!\n- An item\n2. Another one') == (4, 4, 2, 2)
    assert sentence_lengths("We were 3. Go - now") == (3, 2)
    assert count_paragraphs("a\n\n\n\nb\n \nc") == 3


@pytest.mark.parametrize("name", KINDS)
def test_draws_come_out_both_ways(name: str) -> None:
    """Over several texts both outcomes of every kind come up; of a kind with arguments, over one text; any will do."""
    rng, (_, meet, broken) = random.Random(0), TABLE[name]
    if KINDS[name].parameters:
        drawn = [KINDS[name].proposal(rng, RICH, ORDINARY) for _ in range(60)]
        assert {each.met_by(RICH) for each in drawn} == {True, False}
    texts = [*meet, *broken, RICH, ORDINARY]
    drawn = [(KINDS[name].proposal(rng, text, ORDINARY), text) for text in texts for _ in range(20)]
    assert {each.met_by(text) for each, text in drawn} == {True, False}
    for text in ODD:
        for other in (ORDINARY, text):
            made = KINDS[name].proposal(rng, text, other)
            assert made is None or made.met_by(text) in (True, False)
            assert made is None or instruction(**made.as_dict()) == made


def test_what_contradicts_each_other_shares_a_family() -> None:
    assert [pair for pair in CONTRADICTIONS if KINDS[pair[0]].goes_with(KINDS[pair[1]])] == []
    assert not any(kind.goes_with(kind) for kind in KINDS.values())
    assert KINDS["at_least_words"].goes_with(KINDS["no_commas"])


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("no_commas", "an instruction has 'kind' and 'arguments', found 'no_commas'"),
        ({"kind": "no_commas"}, "an instruction has 'kind' and 'arguments'"),
        ({"kind": "no_comma", "arguments": {}}, "'no_comma' is no kind of instruction (known: "),
        ({"kind": ["no_commas"], "arguments": {}}, "['no_commas'] is no kind of instruction"),
        ({"kind": "no_commas", "arguments": {"count": 1}}, "the arguments of 'no_commas' are none; found {'count': 1}"),
        (
            {"kind": "repeats_word", "arguments": {"word": "a"}},
            "the arguments of 'repeats_word' are word, count; found",
        ),
        ({"kind": "repeats_word", "arguments": [1]}, "the arguments of 'repeats_word' are word, count; found [1]"),
        ({"kind": "at_least_words", "arguments": {"count": 0}}, "must be a whole number from 1 to 1000000, found 0"),
        (
            {"kind": "at_least_words", "arguments": {"count": True}},
            "'count' of 'at_least_words' must be a whole number",
        ),
        ({"kind": "at_least_words", "arguments": {"count": 2.0}}, "found 2.0"),
        ({"kind": "opens_with", "arguments": {"words": "?!"}}, "must be text with a word in it, found '?!'"),
    ],
)
def test_what_is_no_instruction_is_refused_with_its_place(value: object, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)) as refused:
        Instruction.from_dict(value, "rows.jsonl:7")
    assert str(refused.value).startswith("rows.jsonl:7: ") and "\n" not in str(refused.value)


# --- data: pairs of short plain texts, on which the checks below, written anew, say what the library must say

OWN_CHECKS = {
    "at_least_words": lambda text, count: len(text.split()) >= count,
    "at_most_words": lambda text, count: len(text.split()) <= count,
    "at_least_sentences": lambda text, count: text.count(".") >= count,
    "contains_word": lambda text, word: word in re.split("[ .,]+", text.lower()),
    "lacks_word": lambda text, word: word not in re.split("[ .,]+", text.lower()),
    "repeats_word": lambda text, word, count: re.split("[ .,]+", text.lower()).count(word) >= count,
    "no_commas": lambda text: text.replace(",", "") == text,
    "no_digits": lambda text: not set(text) & set("0123456789"),
    "upper_case": lambda text: False,
    "valid_json": lambda text: False,
    "opens_with": lambda text, words: (
        re.sub("[.,]", "", text).lower().split()[: len(words.split())] == words.lower().split()
    ),
}


def met(value: dict, text: str) -> bool:
    own = OWN_CHECKS.get(value["kind"])
    known = Instruction.from_dict(value, "here").met_by(text)
    assert own is None or own(text, **value["arguments"]) == known, (value, text)
    return known


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 pairs of the project's own corpus, and every fourth a dialogue of several turns with a system turn."""
    rows = corpus(3, 8, 90, 8, 8, 8)["preferences_train"]
    pairs = [row for row in rows if row["response_0"] != row["response_1"]
             and not re.search(r"[^a-zA-Z ,.]", row["response_0"] + row["response_1"])][:60]  # fmt: skip
    assert len(pairs) == 60
    made = []
    for number, row in enumerate(pairs):
        turns = [("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello!"), ("user", row["prompt"])]
        prompt = [{"role": role, "content": text} for role, text in turns] if number % 4 == 0 else row["prompt"]
        made.append({"prompt": prompt, "chosen": row["response_0"], "rejected": row["response_1"]})
    return write(tmp_path_factory.mktemp("data") / "pairs.jsonl", made)


def run(folder: Path, data: Path, **changes: object) -> Result:
    return run_script(SCRIPT, flags(data=data, output_dir=folder, **changes))


@pytest.fixture(scope="module")
def output(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "out"
    result = run(folder, data, prompt_pairs_per_response=3, instruction_pairs_per_pair=3)
    assert result.code == 0, result.stderr
    assert "prompt_pairs.jsonl: 360 rows of 120 responses\n" in result.stdout
    assert "instruction_pairs.jsonl: 180 rows of 60 pairs of responses\n" in result.stdout
    return folder


def check_prompt(prompt: str | list, original: str | list, instructions: list[dict]) -> None:
    """The original prompt with every instruction behind its last user turn, and none that may contradict another."""
    texts = [Instruction.from_dict(each, "here").text for each in instructions]
    if isinstance(original, list):
        assert prompt[:-1] == original[:-1] and prompt[-1]["role"] == "user"
        prompt, original = prompt[-1]["content"], original[-1]["content"]
    assert prompt == original + "\n\n" + " ".join(texts)
    for first, second in combinations(instructions, 2):
        assert KINDS[first["kind"]].goes_with(KINDS[second["kind"]])
        assert not {(first["kind"], second["kind"]), (second["kind"], first["kind"])} & set(CONTRADICTIONS)


def test_prompt_pairs_follow_the_rule(data: Path, output: Path) -> None:
    rows, pairs = read(output / "prompt_pairs.jsonl"), read(data)
    forms, sizes = Counter(), Counter()
    for number, row in enumerate(rows):
        pair, side = pairs[number // 6], ("chosen", "rejected")[number // 3 % 2]
        assert (row["side"], row["response"]) == (side, pair[side])
        in_chosen = [met(each, row["response"]) for each in row["chosen_instructions"]]
        in_rejected = [met(each, row["response"]) for each in row["rejected_instructions"]]
        forms["all met"] += (all_met := all(in_chosen) and not all(in_rejected))
        forms["all broken"] += (all_broken := any(in_chosen) and not any(in_rejected))
        assert all_met or all_broken
        forms["all met alone"] += not all_broken
        forms["all broken alone"] += not all_met
        sizes[len(in_chosen)] += 1
        for name in ("chosen", "rejected"):
            check_prompt(row[f"{name}_prompt"], pair["prompt"], row[f"{name}_instructions"])
    assert min(forms.values()) > 30 and sizes.keys() == {1, 2, 3} and min(sizes.values()) > 60
    used = {each["kind"] for row in rows for each in row["chosen_instructions"] + row["rejected_instructions"]}
    assert used == KINDS.keys()


def test_instruction_pairs_follow_the_rule(data: Path, output: Path) -> None:
    """Whichever response meets more is the chosen one; the preference reader takes the rows, several turns too."""
    rows, pairs = read(output / "instruction_pairs.jsonl"), read(data)
    margins, reversed_ = Counter(), 0
    for number, row in enumerate(rows):
        pair, size = pairs[number // 3], len(row["instructions"])
        assert {row["chosen"], row["rejected"]} == {pair["chosen"], pair["rejected"]}
        more = sum(met(each, row["chosen"]) for each in row["instructions"])
        fewer = sum(met(each, row["rejected"]) for each in row["instructions"])
        assert row["margin"] == (more - fewer) / size > 0 and 2 <= size <= 3
        check_prompt(row["prompt"], pair["prompt"], row["instructions"])
        margins[row["margin"]] += 1
        reversed_ += row["chosen"] == pair["rejected"]
    assert margins.keys() == {1 / 3, 1 / 2, 2 / 3, 1.0} and 60 < reversed_ < 120
    records, summary = load_pairs(str(output / "instruction_pairs.jsonl"), "better")
    assert summary.kept == len(rows)
    for record, row in zip(records, rows, strict=True):
        prompt = row["prompt"] if isinstance(row["prompt"], list) else [{"role": "user", "content": row["prompt"]}]
        assert (record.messages, record.chosen, record.rejected) == (prompt, row["chosen"], row["rejected"])


def test_the_summary_counts_what_is_there(output: Path) -> None:
    summary = json.loads((output / "summary.json").read_text())
    assert summary["reading"]["kept"] == 60 and summary["kinds"] == list(KINDS) and summary["seed"] == 42
    prompts, instructions = read(output / "prompt_pairs.jsonl"), read(output / "instruction_pairs.jsonl")
    counts = Counter(
        (each["kind"], met(each, row["response"]))
        for row in prompts for each in row["chosen_instructions"] + row["rejected_instructions"]
    )  # fmt: skip
    found = summary["prompt_pairs"]
    assert (found["rows"], found["made_from"], found["failed"]) == (len(prompts), 120, {})
    assert found["kinds"] == {kind: {"met": counts[kind, True], "broken": counts[kind, False]} for kind in KINDS}
    found = summary["instruction_pairs"]
    assert (found["rows"], found["made_from"]) == (len(instructions), 60)
    total = sum(len(row["instructions"]) for row in instructions)
    assert sum(count for counts in found["kinds"].values() for count in counts.values()) == 2 * total


def test_rows_depend_on_seed_and_place_alone(data: Path, output: Path, tmp_path: Path) -> None:
    """Not on the rows after, the tries for each, or what else is made; another seed gives others."""
    runs = {
        "same": {"prompt_pairs_per_response": 3, "instruction_pairs_per_pair": 3},
        "fewer": {"data": write(tmp_path / "few.jsonl", read(data)[:20]), "instruction_pairs_per_pair": 0},
        "other": {"prompt_pairs_per_response": 3, "instruction_pairs_per_pair": 3, "seed": 7},
    }
    (tmp_path / "fewer").mkdir()
    (tmp_path / "fewer/instruction_pairs.jsonl").write_text("of an earlier run")
    for name, changes in runs.items():
        result = run(tmp_path / name, **({"data": data} | changes))
        assert result.code == 0, result.stderr
    assert [(tmp_path / "same" / name).read_bytes() == (output / name).read_bytes() for name in FILES] == [True] * 3
    first_of_each = read(output / "prompt_pairs.jsonl")[::3]
    assert read(tmp_path / "fewer/prompt_pairs.jsonl") == first_of_each[:40]
    assert not (tmp_path / "fewer/instruction_pairs.jsonl").exists()
    others = read(tmp_path / "other/prompt_pairs.jsonl")
    assert sum(row in others for row in read(output / "prompt_pairs.jsonl")) < 20


@pytest.mark.parametrize("share", [0, 1])
def test_the_share_of_each_form_and_the_kinds_are_the_users(data: Path, tmp_path: Path, share: int) -> None:
    kinds = ("at_least_words", "no_commas", "opens_with", "contains_word")
    assert run(tmp_path, data, all_met_share=share, kinds=kinds, max_instructions=2).code == 0
    rows = read(tmp_path / "prompt_pairs.jsonl")
    asked = [each for row in rows for name in ("chosen", "rejected") for each in row[f"{name}_instructions"]]
    assert {each["kind"] for each in asked} == set(kinds)
    for row in rows:
        in_chosen = [met(each, row["response"]) for each in row["chosen_instructions"]]
        in_rejected = [met(each, row["response"]) for each in row["rejected_instructions"]]
        assert len(in_chosen) <= 2 and len(in_rejected) <= 2
        assert all(in_chosen) if share else not any(in_rejected)


def test_responses_without_pairs_are_counted(tmp_path: Path) -> None:
    """<<A>> meets one of two kinds, "<<B>>" both, the others none: what cannot be told apart gives no row."""
    replies = [("<<A>>", '"<<B>>"'), ("C", "D"), ("E", '"<<F>>"')]
    rows = [{"prompt": "Hi", "chosen": first, "rejected": second} for first, second in replies]
    result = run(tmp_path / "out", write(tmp_path / "rows.jsonl", rows), kinds=("title", "double_quotes"))
    assert result.code == 0, result.stderr
    assert [row["response"] for row in read(tmp_path / "out/prompt_pairs.jsonl")] == ["<<A>>"]
    pairs = read(tmp_path / "out/instruction_pairs.jsonl")
    assert [(row["chosen"], row["margin"]) for row in pairs] == [('"<<B>>"', 0.5), ('"<<F>>"', 1.0)]
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    broken, kept = "breaks every instruction drawn", "meets every instruction drawn"
    assert summary["prompt_pairs"]["failed"] == {broken: 3, kept: 2}
    assert summary["instruction_pairs"]["failed"] == {"no instruction drawn tells the responses apart": 1}
    assert f"prompt_pairs.jsonl: 1 rows of 6 responses; none of 5 (3 {broken}, 2 {kept})" in result.stdout
