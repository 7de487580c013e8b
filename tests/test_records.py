"""Records answer for themselves, and data formats are found in their folder: a format and a kind of record of one's own
are read by the tools without another line; what checkpoints know of data stays as it is."""

import dataclasses
import hashlib
import inspect
import json
import shutil
import sys
from dataclasses import dataclass
from typing import ClassVar

import pytest

from tests.helpers import ROOT, run_command
from utils.data import Dialogue, Pair, Prompt, ReadingSummary
from utils.data.encoding import Encoded, data_fingerprint, fit_lengths
from utils.data.prompt_pairs import PromptPair
from utils.data.ratings import Rated
from utils.data.records import DIALOGUES, PROMPTS, Message, Record, View
from utils.data.registry import Format, views
from utils.data.rows import Row
from utils.data.token_lengths import measure
from utils.models.configs import load_tokenizer
from utils.process.errors import UserError
from utils.supervised.examples import characters

HI = [{"role": "user", "content": "Hi"}]
PROMPT, DIALOGUE = Prompt(HI, "a:1"), Dialogue(HI, "Yes.", "a:1")
PAIR = Pair(HI, "Yes.", "No.", True, None, "a:1")


@dataclass(frozen=True)
class Graded(Record):
    """A reply that teachers graded."""

    PLURAL: ClassVar[str] = "graded replies"
    CONTENT: ClassVar[str] = "grades"
    REPLIES: ClassVar[tuple[str, ...]] = ("response",)

    messages: list[Message]
    response: str
    grades: dict[str, float | None]
    source: str


GRADED = Graded(HI, "Yes.", {"helpful": 4.0, "honest": None}, "a:1")
RATED = Rated(HI, "Yes.", {"helpful": 4.0}, "a:1")
HO = [{"role": "user", "content": "Ho"}]
PROMPT_PAIR = PromptPair(HI, [{"role": "user", "content": "Hey"}], "Yes.", "chosen", "a:1")


def encode(record: Record) -> Encoded:
    """A record and ids that tell its texts apart."""
    first, *others = ([ord(letter) for turn in turns for letter in turn["content"]] for turns in record.prompts)
    replies = tuple([ord(letter) for letter in text] for _ in record.prompts for text in record.replies)
    return Encoded(record, first, replies, tuple(others))


def fingerprint(record: Record) -> str:
    return data_fingerprint([encode(record)])


# --- what a record says


@pytest.mark.parametrize(
    ("record", "text"),
    [
        (PROMPT, "[72, 105]"),
        (DIALOGUE, "[[72, 105], [89, 101, 115, 46], [null, null]]"),
        (PAIR, "[[72, 105], [89, 101, 115, 46], [78, 111, 46], [true, null]]"),
    ],
)
def test_fingerprints_are_those_in_checkpoints(record, text):
    assert fingerprint(record) == hashlib.sha256(text.encode()).hexdigest()
    assert data_fingerprint([encode(record)] * 2) == hashlib.sha256(2 * text.encode()).hexdigest()


CHANGES = {
    "messages": HO, "rejected_prompt": HO, "response": "No!", "chosen": "Yes!", "rejected": "No!", "chosen_safe": None,
    "rejected_safe": False, "margin": 0.5, "grades": {"helpful": 4.0, "honest": 1.0}, "ratings": {"helpful": 3.0},
    "instructions": ({"kind": "at_most_words", "arguments": {"count": 3}},), "fields": {"answer": "Yes."},
    "task": "howto",
}  # fmt: skip


@pytest.mark.parametrize(
    "record", [PROMPT, DIALOGUE, PAIR, RATED, GRADED, PROMPT_PAIR], ids=lambda record: type(record).__name__
)
def test_whatever_trains_something_is_in_the_fingerprint(record):
    names = [each.name for each in dataclasses.fields(record) if each.name not in ("source", "side")]
    changed = [dataclasses.replace(record, **{name: CHANGES[name]}) for name in names]
    assert len({fingerprint(each) for each in (record, *changed)}) == 1 + len(names)
    assert fingerprint(dataclasses.replace(record, source="b:7")) == fingerprint(record)


def test_the_order_in_which_a_row_names_its_ratings_is_not():
    turned = dataclasses.replace(GRADED, grades={"honest": None, "helpful": 4.0})
    assert fingerprint(turned) == fingerprint(GRADED)


@pytest.mark.parametrize(
    ("record", "replies", "sequences", "more"),
    [
        (PROMPT, {}, 1, {}),
        (DIALOGUE, {"response": "Yes."}, 1, {}),
        (PAIR, {"chosen": "Yes.", "rejected": "No."}, 2, {"chosen_safe": True, "rejected_safe": None}),
        (GRADED, {"response": "Yes."}, 1, {"grades": {"helpful": 4.0, "honest": None}}),
    ],
    ids=["prompt", "dialogue", "pair", "graded"],
)
def test_records_describe_themselves(record, replies, sequences, more):
    assert (record.replies, record.sequences, record.annotations) == (tuple(replies.values()), sequences, more)
    assert record.texts == ["Hi", *replies.values()]
    assert record.shown() == [("user", "Hi"), *replies.items()]
    assert json.loads(json.dumps(record.as_dict())) == {"source": "a:1", "messages": HI, **replies, **more}


def test_a_kind_of_ones_own_is_encoded_measured_and_cut(workshop):
    tokenizer = load_tokenizer(str(workshop.base), "--model")
    records = [GRADED, dataclasses.replace(GRADED, response="Yes, " * 40)]
    for first, second in (measure(tokenizer, records, "")[0], fit_lengths(tokenizer, records, ReadingSummary())):
        assert len(first.responses) == 1 and tokenizer.decode(first.responses[0][:-1]) == "Yes."
        assert second.length > first.length + 40
    summary = ReadingSummary()
    cut = fit_lengths(tokenizer, records, summary, max_length=first.length)
    assert [each.length for each in cut] == [first.length] * 2
    assert summary.lines() == [f"1 replies cut so that prompt and reply have {first.length} tokens"]
    assert characters(records[1]) == len("Hi") + len("Yes, " * 40)


# --- formats and the views that they offer


def test_a_format_says_what_it_lacks():
    graded = View(Graded)
    chat = Format("chat", ("text",), {PROMPTS: lambda row: PROMPT, View(Pair, "honest"): lambda row: PAIR})
    row = Row({"text": "Hi"}, "a:1")
    assert chat.read(row, PROMPTS) is PROMPT and chat.read(row, View(Pair, "honest")) is PAIR
    for view, lacks in (
        (DIALOGUES, "hold no replies to learn from (found: text)"),
        (graded, "hold no grades (found: text)"),
        (View(Pair, "kinder"), "do not say which reply is kinder, only which is honest"),
    ):
        with pytest.raises(UserError) as error:
            chat.read(row, view)
        assert str(error.value) == f"a:1: rows of the format 'chat' {lacks}"


def test_views_that_say_most_come_last():
    known = ["prompts", "dialogues", "pairs, better", "pairs, safer"]
    assert [view.name for view in views() if view.name in known] == known


QUIZ = '''"""Questions with a right and a wrong answer."""

from utils.data.prompt_pairs import PromptPair
from utils.data.ratings import Rated
from utils.data.records import DIALOGUES, PROMPTS, Dialogue, Pair, Prompt
from utils.data.registry import Format, preferences, register
from utils.data.rows import Row, distinct_replies, user_turn


def _pair(row: Row, label: str) -> Pair:
    answers = distinct_replies(row.text("right"), row.text("wrong"))
    return Pair(user_turn(row.text("quiz")), *answers, None, None, row.source)


register(
    Format(
        "quiz",
        ("quiz", "right", "wrong"),
        {
            PROMPTS: lambda row: Prompt(user_turn(row.text("quiz")), row.source),
            DIALOGUES: lambda row: Dialogue(user_turn(row.text("quiz")), row.text("right"), row.source),
            **preferences(_pair, ("correct",)),
        },
    )
)
'''
GRADES = '''"""Replies that teachers graded."""

from utils.data.graded import Graded
from utils.data.records import View
from utils.data.registry import Format, register
from utils.data.rows import Drop, user_turn


def _graded(row):
    grades = row.value("grades")
    if not any(grades.values()):
        raise Drop("no grade")
    return Graded(user_turn(row.text("asked")), row.text("said"), grades, row.source)


register(Format("grades", ("asked", "said", "grades"), {View(Graded): _graded}))
'''
GRADED_FILE = f'''"""Graded replies."""

from dataclasses import dataclass
from typing import ClassVar

from utils.data.records import Message, Record


{inspect.getsource(Graded)}'''


@pytest.fixture(scope="module")
def inspected(tmp_path_factory) -> tuple[str, dict[str, dict]]:
    """What `utils/inspect_data.py` prints, and writes by format, in a copy of the project with both formats above."""
    project = tmp_path_factory.mktemp("project")
    shutil.copytree(ROOT / "utils", project / "utils", ignore=shutil.ignore_patterns("__pycache__"))
    files = {"formats/quiz.py": QUIZ, "formats/grades.py": GRADES, "graded.py": GRADED_FILE}
    for name, text in files.items():
        (project / "utils/data" / name).write_text(text)
    quiz, graded = {"quiz": "2 + 2?", "right": "4", "wrong": "5"}, {"asked": "Hi", "said": "Yes."}
    rows = {
        "quiz": [quiz, quiz | {"wrong": "4"}],
        "grades": [graded | {"grades": grades} for grades in (GRADED.grades, {"helpful": None})],
    }
    for name, part in rows.items():
        (project / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    words = [*(f"{name}.jsonl" for name in rows), "--json", "found.json"]
    result = run_command([sys.executable, "utils/inspect_data.py", *words], cwd=project)
    assert result.code == 0, result.stderr
    return result.stdout, {found["format"]: found for found in json.loads((project / "found.json").read_text())}


def test_a_format_of_ones_own_is_one_file(inspected):
    said, found = inspected[0], inspected[1]["quiz"]
    assert found["views"] == {
        "prompts": {"kept": 1, "dropped": {"duplicate prompt": 1}},
        "dialogues": {"kept": 2, "dropped": {}},
        "rated replies": None,
        "graded replies": None,
        "prompt pairs": None,
        "pairs, better": None,
        "pairs, correct": {"kept": 1, "dropped": {"identical replies": 1}},
        "pairs, safer": None,
    }
    assert "pairs, correct 1 kept; dropped: 1 identical replies" in said
    assert found["example"]["chosen"] == "4" and "    rejected     5\n" in said


def test_a_kind_of_record_of_ones_own_is_its_class_and_its_format(inspected):
    said, found = inspected[0], inspected[1]["grades"]
    assert {name: counts for name, counts in found["views"].items() if counts} == {
        "graded replies": {"kept": 1, "dropped": {"no grade": 1}}
    }
    assert found["example"] == {
        "source": "grades.jsonl:1", "messages": HI, "response": "Yes.", "grades": GRADED.grades
    }  # fmt: skip
    assert "graded replies 1 kept; dropped: 1 no grade" in said and "    response     Yes.\n" in said
