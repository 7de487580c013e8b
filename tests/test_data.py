"""The loaders, through files: formats, reasons for dropping, mixing, bad input; ids, lengths and batches."""

import gzip
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import datasets
import pandas
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tests.helpers import run_script
from utils.data import (
    Dialogue,
    Pair,
    Prompt,
    ReadingSummary,
    load_dialogues,
    load_pairs,
    load_prompts,
)
from utils.data.batching import left_pad, length_grouped_batches, right_pad
from utils.data.encoding import encode_prompt, encode_response, fit_lengths
from utils.data.registry import detect_format
from utils.data.rows import Row
from utils.inspect_data import main
from utils.process.errors import UserError, run_main
from utils.process.plain_text import printable

ROOT = Path(__file__).resolve().parents[1]

PKU = {
    "prompt": "How do I bake bread?",
    "response_0": "Mix and wait.",
    "response_1": "No.",
    "is_response_0_safe": False,
    "is_response_1_safe": True,
    "better_response_id": 0,
    "safer_response_id": 1,
}
SAFETY = {"id": "7", "prompt": "Pick a lock?", "responses": ["Call a locksmith.", "Use a pin."], "safer": 0}
HH = {
    "chosen": "\n\nHuman: Hi\n\nAssistant: Hello! \n\nHuman: A joke?\n\nAssistant: Knock knock.",
    "rejected": "\n\nHuman: Hi\n\nAssistant: Hello! \n\nHuman: A joke?\n\nAssistant: No.",
}
ULTRACHAT = {
    "prompt": "Hi",
    "prompt_id": "1",
    "messages": [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "Bye"},
        {"role": "assistant", "content": "Goodbye"},
    ],
}
SHAREGPT = {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]}
ALPACA = {"instruction": "Add them.", "input": "1, 2", "output": "3"}
PLAIN = {"prompt": "Hi", "response": "Hello"}
PREFERENCE = {"prompt": "Hi", "chosen": "Hello", "rejected": "Go away"}
RATED = {"input": "inform(name=Inn)", "output": "It is the Inn.", "scores": {"fluency": 4.0}}
PROMPT = {"prompt": "Hi", "category": "greeting", "risky": False}


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


# --- formats ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "name"),
    [
        (PKU, "pku_saferlhf"),
        (SAFETY, "safety_pairs"),
        (HH, "hh_rlhf"),
        (ULTRACHAT, "messages"),
        (SHAREGPT, "conversations"),
        (ALPACA, "alpaca"),
        (PLAIN, "prompt_response"),
        (RATED, "rated_input"),
        (PREFERENCE, "prompt_chosen_rejected"),
        (PROMPT, "prompts"),
    ],
)
def test_a_format_is_known_by_its_fields(row, name):
    assert detect_format(Row(row, "here:1")).name == name


@pytest.mark.parametrize(
    ("row", "messages", "response"),
    [
        (PKU, [user("How do I bake bread?")], "Mix and wait."),
        (SAFETY, [user("Pick a lock?")], "Call a locksmith."),
        (HH, [user("Hi"), assistant("Hello!"), user("A joke?")], "Knock knock."),
        (ULTRACHAT, ULTRACHAT["messages"][:4], "Goodbye"),
        (SHAREGPT, [user("Hi")], "Hello"),
        (ALPACA, [user("Add them.\n\n1, 2")], "3"),
        ({**ALPACA, "input": ""}, [user("Add them.")], "3"),
        (PLAIN, [user("Hi")], "Hello"),
        (PREFERENCE, [user("Hi")], "Hello"),
        (RATED, [user("inform(name=Inn)")], "It is the Inn."),
    ],
)
def test_prompts_and_dialogues(tmp_path, row, messages, response):
    path = write(tmp_path / "rows.jsonl", [row])
    assert load_prompts(path)[0] == [Prompt(messages, f"{path}:1")]
    assert load_dialogues(path)[0] == [Dialogue(messages, response, f"{path}:1")]


def test_prompts_alone(tmp_path):
    assert load_prompts(write(tmp_path / "p.jsonl", [PROMPT]))[0][0].messages == [user("Hi")]


@pytest.mark.parametrize(
    ("row", "label", "expected"),
    [
        (PKU, "better", ("Mix and wait.", "No.", False, True)),
        (PKU, "safer", ("No.", "Mix and wait.", True, False)),
        (SAFETY, "safer", ("Call a locksmith.", "Use a pin.", True, False)),
        ({**SAFETY, "safer": 1}, "safer", ("Use a pin.", "Call a locksmith.", True, False)),
        (HH, "better", ("Knock knock.", "No.", None, None)),
        (HH, "safer", ("Knock knock.", "No.", None, None)),
        (PREFERENCE, "better", ("Hello", "Go away", None, None)),
    ],
)
def test_pairs(tmp_path, row, label, expected):
    [pair], _ = load_pairs(write(tmp_path / "rows.jsonl", [row]), label)
    assert (pair.chosen, pair.rejected, pair.chosen_safe, pair.rejected_safe) == expected


def test_pku_rows_without_safety_labels_still_give_preferences(tmp_path):
    row = {key: value for key, value in PKU.items() if "safe" not in key}
    [pair], _ = load_pairs(write(tmp_path / "rows.jsonl", [row]), "better")
    assert (pair.chosen, pair.chosen_safe) == ("Mix and wait.", None)


# --- what is dropped, and why ----------------------------------------------------------------------------


HH_START = "\n\nHuman: Hi\n\nAssistant:"


@pytest.mark.parametrize(
    ("chosen", "rejected", "reason"),
    [
        (HH_START + " Hello", HH_START + " ", "empty reply"),
        (HH_START, HH_START + " Hello", "empty reply"),
        (HH_START + " Hello", HH_START + " Hello\n", "identical replies"),
        (
            HH_START + " Hello\n\nAssistant: Well?",
            HH_START + " Hello",
            "dialogues that diverge before the last turn",
        ),
        (
            HH_START + " Hello",
            "\n\nHuman: Hey\n\nAssistant: Go",
            "dialogues that diverge before the last turn",
        ),
        (HH_START + " Hello", HH_START + " Hello\n\nHuman: So?", "dialogue ends with a human turn"),
        ("Hello", "Go", "not a dialogue of Human and Assistant turns"),
        ("\n\nAssistant: Hello", "\n\nAssistant: Go", "not a dialogue of Human and Assistant turns"),
        ("\n\nHuman: \n\nAssistant: Hello", "\n\nHuman: \n\nAssistant: Go", "empty prompt"),
    ],
)
def test_hh_rows_that_make_no_pair(tmp_path, chosen, rejected, reason):
    path = write(tmp_path / "rows.jsonl", [HH, {"chosen": chosen, "rejected": rejected}])
    pairs, summary = load_pairs(path, "better")
    assert len(pairs) == 1
    assert summary.dropped == {reason: 1}


def test_hh_turns_of_one_speaker_in_a_row_are_joined(tmp_path):
    start = "\n\nHuman: Hi\n\nAssistant: One.\n\nAssistant:"
    path = write(tmp_path / "rows.jsonl", [{"chosen": start + " Two.", "rejected": start + " Three."}])
    [pair], _ = load_pairs(path, "better")
    assert (pair.messages, pair.chosen, pair.rejected) == ([user("Hi")], "One.\n\nTwo.", "One.\n\nThree.")


@pytest.mark.parametrize(
    ("load", "row", "reason"),
    [
        (load_dialogues, {**SAFETY, "safer": None}, "tie"),
        (lambda path: load_pairs(path, "safer"), {**SAFETY, "safer": None}, "tie"),
        (
            lambda path: load_pairs(path, "safer"),
            {**SAFETY, "responses": ["Same", "Same"]},
            "identical replies",
        ),
        (load_dialogues, {**SAFETY, "prompt": " "}, "empty prompt"),
        (load_dialogues, {**SAFETY, "responses": ["", "x"]}, "empty reply"),
        (load_prompts, SAFETY, "duplicate prompt"),
        (load_prompts, {**SAFETY, "prompt": "\ud83d"}, "text that is not valid Unicode"),
    ],
)
def test_other_rows_that_are_dropped(tmp_path, load, row, reason):
    records, summary = load(write(tmp_path / "rows.jsonl", [SAFETY, row]))
    assert len(records) == 1
    assert summary.dropped == {reason: 1}
    assert (summary.read, summary.kept) == (2, 1)


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([user("Hi")], "no reply after the last user turn"),
        ([assistant("Hi")], "no user turn"),
        ([user("Hi"), {"role": "tool", "content": "42"}], "turn by 'tool'"),
        ([user(" "), assistant("Hi")], "empty prompt"),
    ],
)
def test_chats_that_make_no_dialogue(tmp_path, messages, reason):
    _, summary = load_dialogues(write(tmp_path / "rows.jsonl", [ULTRACHAT, {"messages": messages}]))
    assert summary.dropped == {reason: 1}


def test_rated_rows_without_input_are_dropped(tmp_path):
    _, summary = load_dialogues(write(tmp_path / "rows.jsonl", [RATED, {**RATED, "input": None}]))
    assert summary.dropped == {"empty prompt": 1}


def test_the_summary_for_people_and_machines(tmp_path):
    path = write(tmp_path / "rows.jsonl", [SAFETY, {**SAFETY, "id": "8"}, {**SAFETY, "id": "9", "safer": None}])
    _, summary = load_pairs(path, "safer")
    assert summary.lines() == [f"{path} (safety_pairs): read 3, kept 2, dropped 1 (1 tie)"]
    source = {"name": path, "format": "safety_pairs", "read": 3, "kept": 2, "dropped": {"tie": 1}}
    assert summary.as_dict() == {
        "read": 3,
        "kept": 2,
        "dropped": {"tie": 1},
        "sources": [source],
        "encoding": {},
    }


def test_ids_that_stand_twice(tmp_path):
    other = {**SAFETY, "responses": ["Ask a friend.", "Use a pin."]}
    a = write(tmp_path / "a.jsonl", [SAFETY, other, SAFETY, {**SAFETY, "id": ""}, {**SAFETY, "id": ""}])
    b = write(tmp_path / "b.jsonl", [{**SAFETY, "prompt": "Pick a bike lock?"}])  # files number their rows alike
    pairs, summary = load_pairs(f"{a},{b}", "safer")
    assert [pair.source for pair in pairs] == [f"{a}:1", f"{a}:2", f"{a}:4", f"{a}:5", f"{b}:1"]
    assert summary.dropped == {"repeated row (same id, same content)": 1}
    first, second = summary.as_dict()["sources"]
    assert first["conflicting_ids"] == [f"{a}:2 and {a}:1"] and "conflicting_ids" not in second
    assert summary.lines()[0].endswith(f"; 1 with the id of a different row (first: {a}:2 and {a}:1)")


# --- files, folders, mixtures ----------------------------------------------------------------------------


def test_every_kind_of_file_gives_the_same_pairs(tmp_path):
    rows = [PKU, {**PKU, "prompt": 'Two\nlines, "quoted"', "better_response_id": 1}]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "a.jsonl").write_text("\ufeff" + lines.replace("\n", "\r\n"), encoding="utf-8")
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    (tmp_path / "c.json").write_text(json.dumps(rows, indent=1))
    (tmp_path / "d.json").write_text("\ufeff" + lines, encoding="utf-8")
    (tmp_path / "e.json.gz").write_bytes(gzip.compress(json.dumps(rows).encode()))
    pandas.DataFrame(rows).to_csv(tmp_path / "f.csv", index=False)
    pandas.DataFrame(rows).to_csv(tmp_path / "g.csv.gz", index=False)
    pandas.DataFrame(rows).to_parquet(tmp_path / "h.parquet")
    expected = [("Mix and wait.", "No.", False, True), ("No.", "Mix and wait.", True, False)]
    for file in sorted(tmp_path.iterdir()):
        pairs, _ = load_pairs(str(file), "better")
        assert [(pair.chosen, pair.rejected, pair.chosen_safe, pair.rejected_safe) for pair in pairs] == expected, file
        assert pairs[1].messages == [user('Two\nlines, "quoted"')], file


def test_nulls_survive_tables(tmp_path):
    rows = [SAFETY, {**SAFETY, "safer": None}]
    pandas.DataFrame(rows).to_parquet(tmp_path / "a.parquet")  # the integers become 0.0 and null
    assert load_pairs(str(tmp_path / "a.parquet"), "safer")[1].dropped == {"tie": 1}


def test_places_are_lines_even_with_other_separators_and_blank_lines(tmp_path):
    path = tmp_path / "rows.jsonl"
    odd = json.dumps({"prompt": "one\u2028two\x85three\x0bfour"}, ensure_ascii=False)
    path.write_text(f"{odd}\n\n{json.dumps(PROMPT)}\n", encoding="utf-8")
    prompts, _ = load_prompts(str(path))
    assert [prompt.source for prompt in prompts] == [f"{path}:1", f"{path}:3"]
    (tmp_path / "t.csv").write_text('prompt\n"two\nlines"\nHi\n')
    assert [prompt.source for prompt in load_prompts(str(tmp_path / "t.csv"))[0]] == [
        f"{tmp_path}/t.csv:2",
        f"{tmp_path}/t.csv:4",
    ]


def test_a_folder_stands_for_its_files_whatever_their_formats(tmp_path):
    (tmp_path / "sub").mkdir()
    write(tmp_path / "b.jsonl", [HH])
    write(tmp_path / "sub" / "a.jsonl", [PKU])
    write(tmp_path / ".hidden.jsonl", [PKU])
    (tmp_path / "README.md").write_text("not data")
    pairs, summary = load_pairs(str(tmp_path), "better")
    assert [pair.chosen for pair in pairs] == ["Knock knock.", "Mix and wait."]
    assert [source.format for source in summary.sources] == ["hh_rlhf", "pku_saferlhf"]


def test_mixing_and_subsampling_is_seeded(tmp_path):
    a = write(tmp_path / "a.jsonl", [{"prompt": f"a{n}"} for n in range(40)])
    b = write(tmp_path / "b.jsonl", [{"prompt": f"b{n}"} for n in range(10)] + [{"prompt": "a0"}])
    prompts, summary = load_prompts(f"{a}:0.25,{b}", seed=3)
    texts = [prompt.messages[0]["content"] for prompt in prompts]
    assert sum(text.startswith("a") for text in texts) - ("a0" in texts[10:]) == 10
    assert summary.sources[0].dropped == {"left out by the fraction 0.25": 30}
    assert texts[:10] == sorted(texts[:10], key=lambda text: int(text[1:]))
    assert load_prompts(f"{a}:0.25,{b}", seed=3)[0] == prompts
    assert load_prompts(f"{a}:0.25,{b}", seed=4)[0] != prompts


def test_duplicates_are_found_across_files(tmp_path):
    a = write(tmp_path / "a.jsonl", [{"prompt": "Hi"}])
    b = write(tmp_path / "b.jsonl", [{"prompt": "Hi"}, {"prompt": "Ho"}])
    _, summary = load_prompts(f"{a},{b}")
    assert [(source.kept, source.dropped.total()) for source in summary.sources] == [(1, 0), (1, 1)]


def test_a_hub_data_set(monkeypatch):
    def load_dataset(name, split, revision):
        assert (name, split, revision) == ("someone/chats", "train_sft", None)
        return datasets.Dataset.from_list([ULTRACHAT, {**ULTRACHAT, "prompt_id": "2"}])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    dialogues, _ = load_dialogues("someone/chats@train_sft")
    assert [dialogue.source for dialogue in dialogues] == [
        "someone/chats@train_sft:0",
        "someone/chats@train_sft:1",
    ]
    assert dialogues[0].response == "Goodbye"


# --- bad input -------------------------------------------------------------------------------------------


BAD_FILES = [
    ("broken.jsonl", b'{"prompt": "Hi"}\n{"prompt": \n', "broken.jsonl:2: malformed JSON"),
    ("list.jsonl", b"[1, 2]\n", "list.jsonl:1: expected an object with named fields, found list"),
    ("latin.jsonl", b'{"prompt": "Hi"}\n{"prompt": "\xe9"}\n', "latin.jsonl:2: the text is not UTF-8"),
    ("utf16.jsonl", '{"prompt": "Hi"}\n'.encode("utf-16"), "utf16.jsonl:1: the text is not UTF-8 but UTF-16"),
    ("utf16le.jsonl", '{"prompt": "Hi"}\n'.encode("utf-16-le"), "utf16le.jsonl:1: holds zero bytes, as UTF-16 does"),
    ("zero.jsonl", b'{"prompt": "Hi"}\n{"prompt": "H\0o"}\n', "zero.jsonl:2: holds zero bytes"),
    ("utf16.csv", "prompt\nHi\n".encode("utf-16"), "utf16.csv:1: the text is not UTF-8 but UTF-16"),
    ("packed.jsonl", gzip.compress(b'{"prompt": "Hi"}\n'), "packed.jsonl:1: the text is not UTF-8 but gzip data"),
    ("empty.jsonl", b"", "empty.jsonl: holds no rows"),
    ("blank.jsonl", b"\n \n", "blank.jsonl: holds no rows"),
    ("empty.json", b"[]", "empty.json: holds no rows"),
    ("broken.json", b'[{"prompt": "Hi"},\n {"prompt" "Ho"}]', "broken.json:2: malformed JSON"),
    ("digits.jsonl", b'{"prompt": ' + b"1" * 5000 + b"}\n", "digits.jsonl:1: unusable JSON"),
    ("number.json", b"7", "number.json:row 1: expected an object with named fields, found int"),
    ("empty.csv", b"", "empty.csv: holds no rows"),
    ("ragged.csv", b"prompt,response\nHi,Ho\nHi\n", "ragged.csv:3: 1 cells, but the header names 2 columns"),
    ("open.csv", b'prompt,response\nHi,"Ho\n', "open.csv:2: malformed CSV"),
    (
        "cut.jsonl.gz",
        gzip.compress(b'{"prompt": "Hi"}\n' * 9)[:-9],
        "cut.jsonl.gz: the gzip file is truncated",
    ),
    ("plain.jsonl.gz", b'{"prompt": "Hi"}\n', "plain.jsonl.gz: the gzip file is truncated or damaged"),
    ("text.parquet", b"no parquet", "text.parquet: cannot be read as parquet"),
    ("notes.txt", b"Hi", "notes.txt: not a kind of file that can be read"),
    (
        "other.jsonl",
        b'{"question": "Hi", "label": 1}\n',
        "other.jsonl:1: no known format has these fields: question, "
        "label (known formats: alpaca: instruction, output; ",
    ),
    (
        "changes.jsonl",
        b'{"prompt": "Hi"}\n{"text": "Ho"}\n',
        "changes.jsonl:2: no known format has these fields: text",
    ),
    ("typed.jsonl", b'{"prompt": 12}\n', "typed.jsonl:1: the field 'prompt' must be text, found 12"),
    ("hollow.jsonl", b'{"prompt": ""}\n{"prompt": " "}\n', "none of the 2 rows can be used (2 empty prompt)"),
]


@pytest.mark.parametrize(("name", "content", "message"), BAD_FILES, ids=[name for name, _, _ in BAD_FILES])
def test_bad_files_are_named_in_one_line(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as error:
        load_prompts(str(tmp_path / name))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


BAD_ROWS = [
    (PKU, {"better_response_id": 7}, "the field 'better_response_id' must be 0 or 1, found 7"),
    (PKU, {"better_response_id": True}, "the field 'better_response_id' must be 0 or 1, found True"),
    (
        PKU,
        {"is_response_0_safe": "maybe"},
        "the field 'is_response_0_safe' must be true or false, found 'maybe'",
    ),
    (PKU, {"response_1": 3.5}, "the field 'response_1' must be text, found 3.5"),
    (SAFETY, {"responses": ["one"]}, "the field 'responses' must be a list of 2 texts"),
    (SAFETY, {"responses": ["one", None]}, "the field 'responses' must be text, found None"),
    (SAFETY, {"safer": [0]}, "the field 'safer' must be 0 or 1, found [0]"),
    (HH, {"rejected": ["No."]}, "the field 'rejected' must be text, found ['No.']"),
    (PREFERENCE, {"chosen": None}, "the field 'chosen' must be text, found None"),
]


@pytest.mark.parametrize(("row", "change", "message"), BAD_ROWS, ids=[str(change) for _, change, _ in BAD_ROWS])
def test_wrong_types_name_file_line_and_field(tmp_path, row, change, message):
    label = "safer" if row is SAFETY else "better"
    path = write(tmp_path / "rows.jsonl", [row, {**row, **change}])
    with pytest.raises(UserError) as error:
        load_pairs(path, label)
    assert str(error.value).startswith(f"{path}:2: {message}")


@pytest.mark.parametrize("messages", ["Hi", ["Hi"], [{"role": "user"}], [{"role": "user", "content": 3}]])
def test_malformed_chats(tmp_path, messages):
    path = write(tmp_path / "rows.jsonl", [{"messages": messages}])
    with pytest.raises(UserError, match=r"rows\.jsonl:1: the field 'messages"):
        load_dialogues(path)


@pytest.mark.parametrize(
    ("row", "load", "message"),
    [
        (PROMPT, load_dialogues, "hold no replies to learn from"),
        (ALPACA, lambda path: load_pairs(path, "better"), "hold no pairs of replies"),
        (
            SAFETY,
            lambda path: load_pairs(path, "better"),
            "do not say which reply is better, only which is safer",
        ),
        (PKU, lambda path: load_pairs(path, "kinder"), "must be one of better, safer, not 'kinder'"),
    ],
)
def test_a_view_that_the_format_lacks(tmp_path, row, load, message):
    with pytest.raises(UserError, match=message):
        load(write(tmp_path / "rows.jsonl", [row]))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("nowhere.jsonl", "nowhere.jsonl: no such file or folder"),
        ("some/deep/path", "some/deep/path: no such file or folder"),
        ("tests/nothing", "tests/nothing: no such file or folder"),
        ("tests/templates", "tests/templates: no such file or folder"),
        ("{file}:0", "the fraction must be above 0 and at most 1"),
        ("{file}:1.5", "the fraction must be above 0 and at most 1"),
        ("{file}:nan", "the fraction must be above 0 and at most 1"),
        ("{file}:half", "{file}:half: no such file or folder"),
        ("{file},", "a file or data set name is missing"),
        ("", "a file or data set name is missing"),
        ("{folder}", "{folder}: holds no data file"),
    ],
)
def test_bad_specifications(tmp_path, monkeypatch, spec, message):
    monkeypatch.chdir(ROOT)
    names = {"file": write(tmp_path / "a.jsonl", [PROMPT]), "folder": str(tmp_path / "empty")}
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError) as error:
        load_prompts(spec.format(**names))
    assert message.format(**names) in str(error.value)


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.jsonl")
    with pytest.raises(UserError, match="pipe.jsonl: not a regular file"):
        load_prompts(str(tmp_path / "pipe.jsonl"))


def test_what_the_library_says_of_a_hub_data_set_is_one_line(monkeypatch):
    def load_dataset(name, split, revision):
        raise ValueError("no such\nconfiguration")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(UserError, match=r"someone/chats: no file or folder here, .* \(no such configuration\)"):
        load_dialogues("someone/chats")


# --- tokens ----------------------------------------------------------------------------------------------


TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if message.role == 'user' %}[Q]{{ message.content }}[A]"
    "{% else %}{{ message.content }}{% if ends %}{{ eos_token }}{% endif %}\n{% endif %}{% endfor %}"
)


@pytest.fixture
def tokenizer():
    """A token for every byte, and BOS, EOS and padding."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {symbol: index for index, symbol in enumerate(["<pad>", "<s>", "</s>", *alphabet])}
    model = Tokenizer(models.BPE(vocabulary, merges=[]))
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(tokenizer_object=model, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    made.chat_template = TEMPLATE.replace("{% if ends %}{{ eos_token }}{% endif %}\n", "{{ eos_token }}\n")
    return made


@pytest.mark.parametrize("end", ["{{ eos_token }}\n", "{{ eos_token }}", "", "\n"])
def test_prompt_and_response_are_the_whole_with_one_bos_and_one_eos(tokenizer, end):
    tokenizer.chat_template = TEMPLATE.replace("{% if ends %}{{ eos_token }}{% endif %}\n", end)
    prompt = encode_prompt(tokenizer, [user("Hi")])
    response = encode_response(tokenizer, [user("Hi")], "Ho\u2028ho")
    assert tokenizer.decode(prompt) == "<s>[Q]Hi[A]"
    assert tokenizer.decode(response).replace("\n", "") == "Ho\u2028ho</s>"
    assert (prompt + response).count(tokenizer.bos_token_id) == 1
    assert response[-1] == tokenizer.eos_token_id and response.count(tokenizer.eos_token_id) == 1


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (None, "the tokenizer has no chat template"),
        ("{{ messages | length }}", "renders a prompt differently once a reply follows"),
        ("{{ raise_exception('roles must alternate') }}", "the chat template refuses the turns"),
    ],
)
def test_unusable_chat_templates(tokenizer, template, message):
    tokenizer.chat_template = template
    tokenizer.name_or_path = "models/mine"
    with pytest.raises(UserError, match=f"models/mine: .*{message}"):
        encode_response(tokenizer, [user("Hi")], "Ho")
    with pytest.raises(UserError, match=f"here:3: models/mine: .*{message}"):
        fit_lengths(tokenizer, [Dialogue([user("Hi")], "Ho", "here:3")], ReadingSummary())


def test_fit_lengths_encodes_each_kind_of_record(tokenizer):
    messages = [user("Hi")]
    records = [
        Prompt(messages, "a:1"),
        Dialogue(messages, "Ho", "a:2"),
        Pair(messages, "Ho", "Ha", None, None, "a:3"),
    ]
    prompt, dialogue, pair = fit_lengths(tokenizer, records, ReadingSummary())
    assert prompt.responses == () and prompt.length == 9
    assert dialogue.prompt == prompt.prompt == encode_prompt(tokenizer, messages)
    assert pair.responses == tuple(encode_response(tokenizer, messages, text) for text in ("Ho", "Ha"))
    assert pair.length == 12


def test_an_overlong_prompt_is_named_or_dropped_and_counted(tokenizer):
    records = [Prompt([user("x" * length)], f"a.jsonl:{length}") for length in (3, 30, 20)]
    with pytest.raises(UserError) as error:
        fit_lengths(tokenizer, records, ReadingSummary(), max_prompt_length=20)
    assert str(error.value) == (
        "a.jsonl:30: prompt of 37 tokens is longer than --max_prompt_length 20 "
        "(2 such prompts; raise the flag or pass --overlong drop)"
    )
    summary = ReadingSummary()
    [kept] = fit_lengths(tokenizer, records, summary, "drop", max_prompt_length=20)
    assert kept.record is records[0]
    assert summary.lines() == ["2 prompts dropped: longer than --max_prompt_length 20"]
    with pytest.raises(UserError, match="nothing is left of 2 examples"):
        fit_lengths(tokenizer, records[1:], ReadingSummary(), "drop", max_prompt_length=20)


def test_long_replies_are_cut_and_pairs_made_equal_by_that_dropped(tokenizer):
    messages = [user("Hi")]
    records = [
        Pair(messages, "aaaa" + "b" * 9, "aa", None, None, "a:1"),
        Pair(messages, "aaaab", "aaaac", None, None, "a:2"),
    ]
    summary = ReadingSummary()
    [pair] = fit_lengths(tokenizer, records, summary, max_length=13)
    assert [len(ids) for ids in pair.responses] == [4, 3]
    assert summary.encoding == {
        "pairs dropped: equal once encoded and cut": 1,
        "replies cut so that prompt and reply have 13 tokens": 1,
    }
    with pytest.raises(
        UserError, match="a:1: prompt of 9 tokens is too long to leave room for a reply in --max_length 9"
    ):
        fit_lengths(tokenizer, records, ReadingSummary(), max_length=9)
    with pytest.raises(UserError, match="--max_prompt_length 9 leaves no room for a reply in --max_length 9"):
        fit_lengths(tokenizer, records, ReadingSummary(), max_prompt_length=9, max_length=9)


# --- batches ---------------------------------------------------------------------------------------------


def test_padding_masks_come_from_lengths():
    ids, mask = right_pad([[5, 0], [0, 6, 7]], pad_id=0)
    assert ids.tolist() == [[5, 0, 0], [0, 6, 7]] and mask.tolist() == [[1, 1, 0], [1, 1, 1]]
    ids, mask = left_pad([[5, 0], [0, 6, 7]], pad_id=9)
    assert ids.tolist() == [[9, 5, 0], [0, 6, 7]] and mask.tolist() == [[0, 1, 1], [1, 1, 1]]


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("count", [1, 2, 7, 64, 1001])
def test_batches_cover_everything_with_equal_counts_on_all_ranks(count, world_size):
    lengths = [random.Random(index).randint(1, 200) for index in range(count)]
    ranks = [length_grouped_batches(lengths, 4, 1, 0, rank, world_size) for rank in range(world_size)]
    assert len({len(batches) for batches in ranks}) == 1
    assert all(1 <= len(batch) <= 4 for batches in ranks for batch in batches)
    indices = [index for batches in ranks for batch in batches for index in batch]
    assert set(indices) == set(range(count))
    assert len(indices) - count < world_size


def test_batches_are_grouped_shuffled_and_repeatable():
    lengths = [random.Random(index).randint(1, 200) for index in range(2000)]
    batches = length_grouped_batches(lengths, 8, seed=1, epoch=0)
    padded = sum(len(batch) * max(lengths[index] for index in batch) for batch in batches)
    assert sum(lengths) / padded > 0.9
    assert batches == length_grouped_batches(lengths, 8, seed=1, epoch=0)
    assert batches != length_grouped_batches(lengths, 8, seed=1, epoch=1)
    firsts = [lengths[batch[0]] for batch in batches]
    assert firsts != sorted(firsts)


# --- the inspection tool ---------------------------------------------------------------------------------


def test_inspection(tmp_path):
    a, b = (
        write(tmp_path / "a.jsonl", [SAFETY, {**SAFETY, "safer": None}]),
        write(tmp_path / "b.jsonl", [PROMPT]),
    )
    command = [sys.executable, "utils/inspect_data.py", f"{a},{b}", "--json", str(tmp_path / "found.json")]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr
    assert "pairs, safer   1 kept; dropped: 1 tie" in result.stdout
    assert "dialogues      not in this format" in result.stdout
    assert "chosen       Call a locksmith." in result.stdout
    found = json.loads((tmp_path / "found.json").read_text())
    assert [each["format"] for each in found] == ["safety_pairs", "prompts"]
    assert found[0]["views"]["prompts"] == {"kept": 1, "dropped": {"duplicate prompt": 1}}
    assert found[0]["views"]["pairs, better"] is None
    assert found[0]["example"]["source"] == f"{a}:1"


def test_what_rows_hold_cannot_command_the_terminal(tmp_path):
    """Control characters and half characters of roles, texts and fields are replaced, on the screen and in files."""
    odd = {"messages": [{"role": "\x1b[31mevil", "content": "Hi"}], "note\x1b[2J\udfff": 1}
    turns = {"messages": [user("Hi \x1b]0;pwned\x07 there"), assistant("Ho")]}
    spec = write(tmp_path / "odd.jsonl", [odd, turns, turns | {"id": 1}])
    for command in (
        ["inspect_data.py", spec, "--json", tmp_path / "found.json"],
        ["split_data.py", "--input", f"a={spec}", "--output_dir", tmp_path / "split", "--validation_fraction", 0,
         "--test_fraction", 0],
    ):  # fmt: skip
        result = run_script(f"utils/{command[0]}", [str(word) for word in command[1:]])
        assert result.code == 0, result.stderr
        assert "turn by '\ufffd[31mevil" in result.stdout
        assert printable(result.stdout + result.stderr) == result.stdout + result.stderr
    assert "Hi \ufffd]0;pwned\ufffd there" in run_script("utils/inspect_data.py", [str(spec)]).stdout
    found = json.loads((tmp_path / "found.json").read_text())
    assert found[0]["fields"] == ["messages", "note\ufffd[2J\ufffd"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.jsonl"], "error: nowhere.jsonl: no such file or folder\n"),
        ([], "error: the following arguments are required: FILE_OR_SPEC"),
    ],
)
def test_inspection_of_nothing(monkeypatch, capsys, arguments, message):
    monkeypatch.setattr(sys, "argv", ["inspect_data.py", *arguments])
    with pytest.raises(SystemExit) as ended:
        run_main(main)
    stderr = capsys.readouterr().err
    assert ended.value.code == 2
    assert stderr.startswith(message) and stderr.count("\n") == 1
