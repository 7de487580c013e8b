"""Data in the shapes people publish, from files to records: conversations, preferences, labels, parts; what of it is
dropped; turns that a chat template refuses; the inspection of files that are mixed or wrong."""

import json
import shutil
from pathlib import Path

import pandas
import pytest

from tests.helpers import STEP3, Result, Workshop, flags, run_script
from utils.data import ReadingSummary, load_dialogues, load_pairs, load_prompts
from utils.data.encoding import fit_lengths
from utils.data.registry import detect_format
from utils.data.rows import Row
from utils.data.token_lengths import describe_lengths
from utils.models.configs import load_tokenizer
from utils.process.errors import UserError

ALTERNATING = (
    "{{ bos_token }}{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{{ '<|' + m.role + '|>' + m.content }}"
    "{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def system(text):
    return {"role": "system", "content": text}


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def said(speaker, text):
    return {"from": speaker, "value": text}


def text_part(text):
    return {"type": "text", "text": text}


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


ASKED, YES, NO = user("Hi"), assistant("Yes."), assistant("No.")
SHARED = [system("Be kind."), user("Hi"), assistant("Hello"), user("Bye")]
WHOLE = {"chosen": [*SHARED, YES], "rejected": [*SHARED, NO]}
SHAREGPT_REPLIES = {"chosen": said("gpt", "Yes."), "rejected": said("gpt", "No.")}
TEXTS = {"chosen": "Yes.", "rejected": "No."}
REPLIES = {"chosen": [YES], "rejected": [NO]}
AS_TEXT = {name: json.dumps(turns) for name, turns in WHOLE.items()}
AS_PYTHON = {name: str(turns) for name, turns in WHOLE.items()}
PREFERENCES = {  # name: (row, format, prompt)
    "without a prompt": (WHOLE, "chosen_rejected", SHARED),
    "JSON in a cell": (AS_TEXT, "chosen_rejected", SHARED),
    "Python in a cell": (AS_PYTHON, "chosen_rejected", SHARED),
    "a text for a prompt": (WHOLE | {"prompt": "Hi"}, "prompt_chosen_rejected", SHARED),
    "no text for a prompt": (WHOLE | {"prompt": None}, "prompt_chosen_rejected", SHARED),
    "messages beside them": (
        WHOLE | {"prompt": "Hi", "messages": WHOLE["chosen"]}, "prompt_chosen_rejected", SHARED),
    "the prompt's turns are there twice": (WHOLE | {"prompt": SHARED}, "prompt_chosen_rejected", SHARED),
    "an empty list for a prompt": (WHOLE | {"prompt": []}, "prompt_chosen_rejected", SHARED),
    "the system turn in the prompt alone": (
        {name: turns[1:] for name, turns in WHOLE.items()} | {"prompt": SHARED}, "prompt_chosen_rejected", SHARED),
    "a prompt without the system turn": (WHOLE | {"prompt": SHARED[1:]}, "prompt_chosen_rejected", SHARED),
    "replies after turns": (REPLIES | {"prompt": SHARED}, "prompt_chosen_rejected", SHARED),
    "replies after a text": (REPLIES | {"prompt": "Hi"}, "prompt_chosen_rejected", [ASKED]),
    "one reply without a list": ({"prompt": [ASKED], "chosen": YES, "rejected": NO}, "prompt_chosen_rejected", [ASKED]),
    "texts after turns": (TEXTS | {"prompt": SHARED}, "prompt_chosen_rejected", SHARED),
    "texts under other names": (
        {"instruction": "Hi", "chosen_response": "Yes.", "rejected_response": "No."},
        "prompt_chosen_rejected", [ASKED]),
    "question and system": (
        TEXTS | {"question": "Hi", "system": "Be kind."}, "prompt_chosen_rejected", [system("Be kind."), ASKED]),
    "ShareGPT, replies alone": (
        SHAREGPT_REPLIES | {"conversations": [said("human", "Hi")]}, "prompt_chosen_rejected", [ASKED]),
    "ShareGPT, lists and a system field": (
        {name: [turn] for name, turn in SHAREGPT_REPLIES.items()}
        | {"conversations": [said("human", "Hi")], "system": "Be kind."},
        "prompt_chosen_rejected", [system("Be kind."), ASKED]),
    "other names for roles": (
        {name: [{"role": "Human", "content": "Hi"}, {"role": "Model", "content": text}]
         for name, text in TEXTS.items()}, "chosen_rejected", [ASKED]),
    "parts": (
        {name: [{"role": "user", "content": [text_part("H"), text_part("i")]}, assistant([text_part(text)])]
         for name, text in TEXTS.items()}, "chosen_rejected", [ASKED]),
}  # fmt: skip


@pytest.mark.parametrize("name", PREFERENCES)
def test_preferences(tmp_path, name):
    row, data_format, messages = PREFERENCES[name]
    assert detect_format(Row(row, "here:1")).name == data_format
    path = write(tmp_path / "rows.jsonl", [row])
    for label in ("better", "safer"):
        [pair], _ = load_pairs(path, label)
        assert (pair.messages, pair.chosen, pair.rejected) == (messages, "Yes.", "No.")
    [dialogue], [prompt] = load_dialogues(path)[0], load_prompts(path)[0]
    assert (dialogue.messages, dialogue.response, prompt.messages) == (messages, "Yes.", messages)


def test_a_table_of_conversations(tmp_path):
    pandas.DataFrame([WHOLE, WHOLE | {"chosen": [ASKED, YES]}]).to_parquet(tmp_path / "a.parquet")
    [pair], summary = load_pairs(str(tmp_path / "a.parquet"), "better")
    assert (pair.messages, pair.chosen, pair.rejected) == (SHARED, "Yes.", "No.")
    assert summary.dropped == {"dialogues that diverge before the last turn": 1}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"chosen": [ASKED, YES], "rejected": [user("Hey"), NO]}, "dialogues that diverge before the last turn"),
        (
            {"chosen": [ASKED, YES, ASKED, YES], "rejected": [ASKED, NO, ASKED, NO]},
            "dialogues that diverge before the last turn",
        ),
        ({"chosen": [ASKED, YES], "rejected": [ASKED, assistant(" Yes.\n")]}, "identical replies"),
        ({"chosen": [ASKED, YES], "rejected": [ASKED, assistant("")]}, "empty reply"),
        ({"chosen": [ASKED, YES, ASKED], "rejected": [ASKED, NO, ASKED]}, "no reply after the last user turn"),
        ({"chosen": [], "rejected": [ASKED, NO]}, "no turns in 'chosen'"),
        ({"chosen": [ASKED, YES], "rejected": None}, "no turns in 'rejected'"),
        ({"chosen": [YES], "rejected": [NO]}, "no user turn"),
        ({"prompt": SHARED, "chosen": [ASKED, YES], "rejected": [ASKED, NO]}, "reply to another prompt"),
        ({"prompt": [ASKED, YES], "chosen": [YES], "rejected": [NO]}, "prompt that ends with a turn by 'assistant'"),
        ({"prompt": " ", "chosen": [YES], "rejected": [NO]}, "empty prompt"),
    ],
)
def test_conversations_that_make_no_pair(tmp_path, row, reason):
    pairs, summary = load_pairs(write(tmp_path / "rows.jsonl", [WHOLE, row]), "better")
    assert len(pairs) == 1
    assert summary.dropped == {reason: 1}


VERL = {"data_source": "gsm8k", "ability": "math", "reward_model": {"style": "rule", "ground_truth": "3"}}
DIALOGUES = {  # name: (row, messages, response or None)
    "verl": (VERL | {"prompt": SHARED, "extra_info": {"index": 0}}, SHARED, None),
    "prompt turns alone": ({"prompt": [ASKED]}, [ASKED], None),
    "completion as turns": ({"prompt": [ASKED], "completion": [YES]}, [ASKED], "Yes."),
    "completion as a text": ({"prompt": "Hi", "completion": "Yes."}, [ASKED], "Yes."),
    "response to turns": ({"prompt": SHARED, "response": "Yes."}, SHARED, "Yes."),
    "question and answer": ({"question": "Hi", "answer": "Yes."}, [ASKED], "Yes."),
    "a system prompt beside them": (
        {"system_prompt": "Be kind.", "question": "Hi", "response": "Yes."}, [system("Be kind."), ASKED], "Yes."),
    "what wrote the reply is no system turn": ({"system": "M1", "input": "Hi", "output": "Yes."}, [ASKED], "Yes."),
    "instruction, context, response": (
        {"instruction": "Hi", "context": "you", "response": "Yes."}, [user("Hi\n\nyou")], "Yes."),
    "ShareGPT with the keys of messages": ({"conversations": [ASKED, YES]}, [ASKED], "Yes."),
    "both keys, as a table has them": (
        {"conversations": [
            ASKED | {"from": None, "value": None}, said("gpt", "Yes.") | {"role": None, "content": None}]},
        [ASKED], "Yes."),
    "a column for each key": (
        {"messages": {"role": ["user", "assistant"], "content": ["Hi", "Yes."]}}, [ASKED], "Yes."),
    "developer": ({"messages": [{"role": "developer", "content": "Be kind."}, ASKED, YES]},
                  [system("Be kind."), ASKED], "Yes."),
    "line ends stay": ({"messages": [user("a\r\nb"), YES]}, [user("a\r\nb")], "Yes."),
    "no calls": ({"messages": [ASKED, YES | {"tool_calls": None}], "tools": []}, [ASKED], "Yes."),
    "two turns of the assistant": ({"messages": [ASKED, YES, NO]}, [ASKED], "Yes.\n\nNo."),
}  # fmt: skip


@pytest.mark.parametrize("name", DIALOGUES)
def test_dialogues_and_prompts(tmp_path, name):
    row, messages, response = DIALOGUES[name]
    path = write(tmp_path / "rows.jsonl", [row])
    assert [prompt.messages for prompt in load_prompts(path)[0]] == [messages]
    if response:
        assert [(each.messages, each.response) for each in load_dialogues(path)[0]] == [(messages, response)]


CALL = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"messages": [ASKED, assistant(None) | {"tool_calls": [CALL]}, YES]}, "tool call in a turn"),
        ({"messages": [ASKED, {"role": "assistant", "tool_calls": [CALL]}]}, "tool call in a turn"),
        ({"messages": [ASKED, assistant(None)]}, "turn without text"),
        ({"messages": [ASKED, {"role": "ipython", "content": "42"}, YES]}, "turn by 'ipython'"),
        ({"messages": [ASKED, {"role": "function", "content": "42"}, YES]}, "turn by 'function'"),
        ({"messages": [user([text_part("What?"), {"type": "image"}]), YES]}, "image in a turn"),
        ({"messages": [user([{"type": "image_url", "image_url": {"url": "x"}}]), YES]}, "image in a turn"),
        ({"messages": [user([{"type": "input_audio", "input_audio": {}}]), YES]}, "audio in a turn"),
        ({"images": ["a.png"], "conversations": [said("human", "<image>"), said("gpt", "A cat.")]}, "image in a turn"),
        ({"messages": [user([]), YES]}, "empty prompt"),
        ({"messages": []}, "no turns in 'messages'"),
        ({"prompt": [system("Be kind.")]}, "no user turn"),
        ({"prompt": [ASKED, YES]}, "prompt that ends with a turn by 'assistant'"),
    ],
)
def test_rows_that_are_no_dialogue_in_text(tmp_path, row, reason):
    prompts, summary = load_prompts(write(tmp_path / "rows.jsonl", [{"messages": [user("Ho"), YES]}, row]))
    assert len(prompts) == 1
    assert summary.dropped == {reason: 1}


@pytest.mark.parametrize(
    ("base", "good", "bad"),
    [
        ({"prompt": "Hi", "completion": "Yes."}, {"label": True}, {"label": False}),
        ({"prompt": [ASKED], "completion": [YES]}, {"label": 1}, {"label": 0}),
        ({"prompt": "Hi", "completion": "Yes."}, {"label": "True"}, {"label": "False"}),
        ({"messages": [ASKED, YES]}, {"label": True}, {"label": False}),
        ({"conversations": [said("human", "Hi"), said("gpt", "Yes.")]}, {"kto_tag": True}, {"kto_tag": False}),
    ],
)
def test_single_replies_with_a_label(tmp_path, base, good, bad):
    path = write(tmp_path / "rows.jsonl", [base | good, base | bad])
    dialogues, summary = load_dialogues(path)
    assert [(each.messages, each.response) for each in dialogues] == [([ASKED], "Yes.")]
    assert summary.dropped == {"labelled as a bad reply": 1}
    assert load_prompts(path)[1].dropped == {"duplicate prompt": 1}
    with pytest.raises(UserError, match="hold no pairs of replies"):
        load_pairs(path, "better")


def test_a_label_that_names_a_topic_is_none(tmp_path):
    [dialogue], _ = load_dialogues(write(tmp_path / "rows.jsonl", [{"messages": [ASKED, YES], "label": "greeting"}]))
    assert dialogue.response == "Yes."


def test_hh_dialogues_with_line_ends_of_windows(tmp_path):
    start = "\r\n\r\nHuman: Hi\r\nyou\r\n\r\nAssistant: Hello\r\n\r\nHuman: Bye\r\n\r\nAssistant: "
    row = {"chosen": start + "Yes.", "rejected": start.replace("\r\n", "\n") + "No."}
    assert detect_format(Row(row, "here:1")).name == "hh_rlhf"
    [pair], _ = load_pairs(write(tmp_path / "rows.jsonl", [row]), "better")
    assert pair.messages == [user("Hi\nyou"), assistant("Hello"), user("Bye")]
    assert (pair.chosen, pair.rejected) == ("Yes.", "No.")


LINES = b'{"prompt": "Hi", "response": "Yes."}\r\n\r\n{"prompt": "Ho", "response": "No."}\r\n'


def test_files_with_line_ends_of_windows(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(
        b'{"prompt": "Hi", "response": "Yes."}\r\n\r\n{"prompt": "Ho", "response": "No."}\r\n'
    )
    (tmp_path / "b.csv").write_bytes(b'prompt,response\r\nHi,Yes.\r\nHo,"No.\r\nNever."\r\n')
    for name, second in (("a.jsonl", "No."), ("b.csv", "No.\r\nNever.")):
        assert [each.response for each in load_dialogues(str(tmp_path / name))[0]] == ["Yes.", second]


def test_rows_of_several_formats_are_read_each_by_its_own(tmp_path):
    path = write(tmp_path / "rows.jsonl", [{"messages": [ASKED, YES]}, {"question": "Ho", "answer": "No."}, WHOLE])
    dialogues, summary = load_dialogues(path)
    assert [each.response for each in dialogues] == ["Yes.", "No.", "Yes."]
    assert summary.lines() == [
        f"{path} (messages (1 row), prompt_response (1 row), chosen_rejected (1 row)): read 3, kept 3"
    ]
    with pytest.raises(UserError, match=r"rows\.jsonl:1: rows of the format 'messages' hold no pairs"):
        load_pairs(path, "better")


# --- what a chat template refuses, ids without an embedding


def alternating(workshop: Workshop, folder: Path) -> Path:
    """The base policy with a template that takes neither two turns of one role in a row nor a system turn."""
    shutil.copytree(workshop.base, folder)
    (folder / "chat_template.jinja").write_text(ALTERNATING)
    return folder


def chats(path: Path, refused: int, fine: int = 24) -> str:
    """Rows of which the last `refused` do not alternate."""
    rows = [{"messages": [user(f"How do I fix my bike {n}?"), YES]} for n in range(fine)]
    return write(path, rows + [{"messages": [ASKED, user(f"Now {n}"), YES]} for n in range(refused)])


def run_step1(model: Path, data: str, output: Path, **changes) -> Result:
    """Stage 1 with fixed validation data."""
    return run_script("step1_sft/main.py", flags(**{
        "model_name_or_path": model, "data": data, "validation_data": chats(output.parent / "validation.jsonl", 0, 4),
        "max_length": 128, "output_dir": output, "per_device_train_batch_size": 8} | changes))  # fmt: skip


def test_what_the_template_refuses_ends_the_run_or_is_dropped(workshop, tmp_path):
    model, data = alternating(workshop, tmp_path / "model"), chats(tmp_path / "rows.jsonl", 2)
    refused = run_step1(model, data, tmp_path / "out")
    assert refused.code == 2
    assert "rows.jsonl:25: " in refused.stderr and "(roles must alternate) (--unfit drop" in refused.stderr
    reason = f"2 examples dropped: the chat template refuses the turns (first: {data}:25: roles must alternate)"
    for more in ({}, {"dry_run": True}):
        run = run_step1(model, data, tmp_path / "out", unfit="drop", **more)
        assert run.code == 0, run.stderr
        assert reason in run.stdout and "24 examples to train on" in run.stdout
    none = run_step1(model, chats(tmp_path / "none.jsonl", 2, 0), tmp_path / "other", unfit="drop")
    assert none.code == 2
    assert "nothing is left of 2 examples: " in none.stderr and "the chat template refuses the turns" in none.stderr


def test_a_sampled_dry_run_drops_what_the_template_refuses(workshop, tmp_path):
    model, data = alternating(workshop, tmp_path / "model"), chats(tmp_path / "rows.jsonl", 1000, 1500)
    run = run_step1(model, data, tmp_path / "out", unfit="drop", dry_run=True)
    assert run.code == 0, run.stderr
    dropped = int(next(line for line in run.stdout.splitlines() if "examples dropped" in line).split()[0])
    assert 0 < dropped <= 1000
    total = int(next(line for line in run.stdout.splitlines() if "examples to train on" in line).split()[0])
    assert 1350 < total < 1650  # an estimate of 1500


def test_prompts_that_the_template_refuses(workshop, tmp_path):
    model = alternating(workshop, tmp_path / "model")
    data = write(tmp_path / "p.jsonl", [{"prompt": [user(f"Q{n}?")]} for n in range(16)] + [{"prompt": SHARED}])
    step3 = workshop.step3_flags("unfit", actor_model=model, data=data, dry_run=True, fresh=True)
    answer = flags(policy=f"a={model}", reference_model=model, data=data, max_new_tokens=4, output_dir=tmp_path / "out")
    for script, words in ((STEP3, step3), ("eval/generate.py", answer)):
        refused = run_script(script, words)
        assert refused.code == 2 and "p.jsonl:17: " in refused.stderr and "--unfit drop" in refused.stderr
        run = run_script(script, [*words, "--unfit", "drop"])
        assert run.code == 0, run.stderr
        assert "1 examples dropped: the chat template refuses the turns" in run.stdout
    assert len((tmp_path / "out/responses/a.jsonl").read_text().splitlines()) == 16


def test_replies_that_cannot_be_told_apart_are_dropped(workshop, tmp_path):
    tokenizer = load_tokenizer(str(workshop.base), "--model")
    tokenizer.chat_template = (
        "{% if messages | length > 2 %}{{ messages | length }}{% endif %}" + tokenizer.chat_template
    )
    records, _ = load_dialogues(write(tmp_path / "r.jsonl", [{"messages": [ASKED, YES]}, {"messages": [*SHARED, YES]}]))
    summary = ReadingSummary()
    assert len(fit_lengths(tokenizer, records, summary, unfit="drop")) == 1
    [(reason, count)] = summary.encoding.items()
    assert count == 1 and "cannot be told apart" in reason and "r.jsonl:2" in reason


def test_ids_without_an_embedding_are_named_where_they_are_used(workshop, tmp_path):
    tokenizer = load_tokenizer(str(workshop.base), "--model")
    rows = len(tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<picture>"]})
    fine, records = (
        load_dialogues(write(tmp_path / f"{name}.jsonl", [{"messages": [user("Hi"), assistant(text)]}]))[0]
        for name, text in (("fine", "Yes."), ("rows", "A <picture>."))
    )
    assert len(fit_lengths(tokenizer, fine, ReadingSummary(), embedding_rows=rows)) == 1
    message = rf"rows\.jsonl:1: holds the token '<picture>' \(id {rows}\), for which the model has no embedding"
    with pytest.raises(UserError, match=rf"{message} \({rows} rows\)"):
        fit_lengths(tokenizer, records, ReadingSummary(), embedding_rows=rows)
    assert len(fit_lengths(tokenizer, records, ReadingSummary(), embedding_rows=rows + 1)) == 1


# --- the inspection


def test_inspection_goes_on_after_mistakes(tmp_path):
    mixed = write(tmp_path / "mixed.jsonl", [{"prompt": "Hi"}, {"text": "?"}, WHOLE, {"prompt": 3}, {"prompt": "Ho"}])
    (tmp_path / "torn.jsonl").write_text('{"prompt": "Hi"}\n{"prompt"')
    good = write(tmp_path / "good.jsonl", [{"prompt": "Hi"}])
    words = [mixed, str(tmp_path / "torn.jsonl"), "nowhere.jsonl", good, "--json", str(tmp_path / "found.json")]
    result = run_script("utils/inspect_data.py", words)
    assert result.code == 2
    first, second, third = result.stderr.splitlines()
    assert f"error: {mixed}:2: no known format" in first and first.endswith("(and 1 other row)")
    assert "torn.jsonl:2: malformed JSON" in second and third == "error: nowhere.jsonl: no such file or folder"
    assert "prompts (3 rows), chosen_rejected (1 row)" in result.stdout
    assert "mistakes       in 2 rows" in result.stdout and f"{mixed}:4: the field 'prompt' must be" in result.stdout
    assert "pairs, better  1 kept; dropped: 3 of the format 'prompts', which has none" in result.stdout
    found = json.loads((tmp_path / "found.json").read_text())
    assert [each["name"] for each in found] == [mixed, good]
    assert (found[0]["read"], len(found[0]["faults"])) == (5, 2)


def test_inspection_of_rows_that_are_all_wrong(tmp_path):
    result = run_script("utils/inspect_data.py", [write(tmp_path / "a.jsonl", [{"prompt": 1}, {"prompt": 2}])])
    assert result.code == 2
    assert result.stderr.count("\n") == 1 and "a.jsonl:1: the field 'prompt' must be text, found 1" in result.stderr


def test_inspection_in_tokens(workshop, tmp_path):
    model, data = alternating(workshop, tmp_path / "model"), chats(tmp_path / "rows.jsonl", 3)
    words = [data, "--tokenizer", str(model), "--max_length", "24", "--max_prompt_length", "20", "--json"]
    result = run_script("utils/inspect_data.py", [*words, str(tmp_path / "found.json")])
    assert result.code == 0, result.stderr
    assert f"unfit          3 examples dropped: the chat template refuses the turns (first: {data}:25" in result.stdout
    [found] = json.loads((tmp_path / "found.json").read_text())
    tokens, tokenizer = found["tokens"], load_tokenizer(str(model), "--model")
    encoded = fit_lengths(tokenizer, load_dialogues(data)[0], ReadingSummary(), unfit="drop")
    prompts, texts = sorted(len(each.prompt) for each in encoded), sorted(each.length for each in encoded)
    assert [tokens["prompt"][name] for name in ("min", "median", "max")] == [prompts[0], prompts[11], prompts[-1]]
    assert (tokens["prompt and reply"]["min"], tokens["prompt and reply"]["max"]) == (texts[0], texts[-1])
    assert sum(count for _, _, count in tokens["prompt"]["histogram"]) == 24
    assert tokens["beyond"]["prompts longer than 20"] == sum(length > 20 for length in prompts)
    assert tokens["beyond"]["prompts with a reply longer than 24"] == sum(length > 24 for length in texts)
    assert result.stdout.count("#") > 0 and "prompt and reply: min" in result.stdout
    alone = run_script("utils/inspect_data.py", [data, "--max_length", "24"])
    assert alone.code == 2 and alone.stderr == "error: --max_length: needs --tokenizer\n"


def test_lengths_are_described():
    described = describe_lengths(list(range(1, 101)))
    assert {name: described[name] for name in ("min", "median", "95%", "max")} == {
        "min": 1, "median": 50, "95%": 95, "max": 100}  # fmt: skip
    assert described["histogram"] == [[1 + 13 * n, 13 + 13 * n, 13 if n < 7 else 9] for n in range(8)]
    assert describe_lengths([7])["histogram"] == [[7, 7, 1]]


def test_a_topic_is_no_label(tmp_path):
    """A column `label` of numbers beside turns, and texts under other names, leave the turns what they are."""
    rows = [{"messages": [ASKED, YES], "label": number} for number in (0, 3)]
    rows += [{"messages": [ASKED, YES], "prompt": "Else?", "output": "No.", "id": 7}]
    dialogues, summary = load_dialogues(write(tmp_path / "rows.jsonl", rows))
    assert [(d.messages, d.response) for d in dialogues] == [([ASKED], YES["content"])] * 3 and not summary.dropped
