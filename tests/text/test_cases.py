"""Small files of every form, and what is right."""

import pytest

from rustgpt.errors import DataError
from rustgpt.text.dataset import Dataset

SHORT = [
    ("What do moles dig?", "Tunnels, mostly."),
    ("How many wings has a bee?", "A bee has four."),
]
BEES = """[{"question": "What do moles dig?", "answer": "Tunnels, mostly."},
{"question": "How many wings has a bee?", "answer": "A bee has four."}]"""
MESSAGES = (
    '{"messages": [{"role": "system", "content": "Be brief."}, '
    '{"role": "user", "content": "Is tar sticky?"}, {"role": "assistant", "content": "Yes."}]}\n'
    '{"messages": [{"role": "user", "content": [{"type": "text", "text": "Is glass "}, '
    '{"type": "text", "text": "soft?"}]}, {"role": "assistant", "content": "No.", "weight": 1}]}\n'
)
TAR = "System: Be brief. User: Is tar sticky? Assistant: Yes. </s>"
GLASS = "User: Is glass soft? Assistant: No. </s>"


def told(pairs):
    return [f"User: {question} Assistant: {answer} </s>" for question, answer in pairs]


DIALOGUES = {
    "question.json": (BEES, told(SHORT)),
    "one_line.jsonl": (BEES.replace("\n", " "), told(SHORT)),
    "lines.json": (BEES[1:-1].replace("},", "}"), told(SHORT)),
    "instruction.json": (
        '[{"instruction": "Name the young.", "input": "cow", "output": "calf"},'
        ' {"instruction": "Say no.", "input": "", "output": "No."}]',
        told([("Name the young.\ncow", "calf"), ("Say no.", "No.")]),
    ),
    "prompt.jsonl": (
        '{"prompt": "What do moles dig?", "completion": "Tunnels, mostly."}\n\n'
        '{"completion": "A bee has four.", "prompt": "How many wings has a bee?"}\n\n',
        told(SHORT),
    ),
    "header.csv": (
        'question,answer\r\nWhat do moles dig?,"Tunnels, mostly."\r\n'
        'How many wings has a bee?,"A bee\r\nhas four."\r\n',
        told([SHORT[0], (SHORT[1][0], "A bee\nhas four.")]),
    ),
    "header.tsv": ("answer\tquestion\nTunnels, mostly.\tWhat do moles dig?\n", told(SHORT[:1])),
    "dialogue.txt": (
        "User: What do moles dig?\nAssistant: Tunnels, mostly.\n\n"
        "User: Is tar sticky?\nAssistant: Yes.\nUser: And glass?\nAssistant: No.\n",
        [
            *told(SHORT[:1]),
            "User: Is tar sticky? Assistant: Yes. </s> User: And glass? Assistant: No. </s>",
        ],
    ),
    "conversations.json": (
        '[{"id": "1", "conversations": [{"from": "system", "value": "Use one word."},'
        '{"from": "human", "value": "Is tar sticky?"}, {"from": "gpt", "value": "Yes."},'
        '{"from": "human", "value": "And glass?"}, {"from": "gpt", "value": "No."}]}]',
        [
            "System: Use one word. User: Is tar sticky? Assistant: Yes. </s> "
            "User: And glass? Assistant: No. </s>"
        ],
    ),
    "messages.jsonl": (MESSAGES, [TAR, GLASS]),
    "bom_crlf.jsonl": ("\ufeff" + MESSAGES.replace("\n", "\r\n"), [TAR, GLASS]),
    "one_dialogue.json": (
        '[{"role": "user", "content": "Is glass soft?"}, {"role": "assistant", "content": "No."}]',
        [GLASS],
    ),
}  # fmt: skip
TEXTS = {
    "text.jsonl": (
        '{"text": "The sea is salt.", "source": "a note"}\n{"text": "Moles dig.", "source": null}',
        ["The sea is salt. </s>", "Moles dig. </s>"],
    ),
    "no_header.csv": (
        '"The wind, they say, turns."\n"He said ""when""."\n',
        ["The wind, they say, turns. </s>", 'He said "when". </s>'],
    ),
    "utf16.json": (
        '["Moles dig.", "鼹鼠挖洞。"]'.encode("utf-16"),
        ["Moles dig. </s>", "鼹鼠挖洞。 </s>"],
    ),
    "empties.json": ('["", "  ", "</s>", "Moles dig."]', ["Moles dig. </s>"]),
    "names.txt": ("anneke\nbjarne\ncosima\n", ["anneke </s>", "bjarne </s>", "cosima </s>"]),
}  # fmt: skip


@pytest.fixture
def load(tmp_path):
    def read(name, content):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return Dataset.load(path)

    return read


@pytest.mark.parametrize("name", DIALOGUES)
def test_dialogues(load, name):
    content, expected = DIALOGUES[name]
    data = load(name, content)
    assert (data.pretraining_data, data.chat_training_data) == ([], expected)
    assert [dialogue.text() for dialogue in data.dialogues] == expected


@pytest.mark.parametrize("name", TEXTS)
def test_texts(load, name):
    content, expected = TEXTS[name]
    data = load(name, content)
    assert (data.pretraining_data, data.chat_training_data) == (expected, [])


def test_what_is_ignored_is_reported_whatever_the_order(load):
    rows = TEXTS["text.jsonl"][0].split("\n")
    for lines in (rows, rows[::-1]):
        assert load("text.jsonl", "\n".join(lines)).report.ignored == {"source": 2}
    assert load("messages.jsonl", MESSAGES).report.ignored == {"weight": 1}


def test_rows_that_cannot_be_used_are_counted_with_number_and_reason(load):
    content = (
        '["User: Is tar sticky? Assistant: Yes. </s>",\n"User: no answer",\n'
        '{"question": "Is glass soft?", "answer": null},\n'
        '{"question": "Is glass soft?", "answer": "No."}]'
    )
    data = load("mixed.json", content)
    assert data.chat_training_data == ["User: Is tar sticky? Assistant: Yes. </s>", GLASS]
    (file,) = data.report.files
    assert file.unusable == 2
    assert file.reasons == [
        "row 2: a dialogue must be 'User: ... Assistant: ...', not 'User: no answer </s>'",
        "row 3: 'answer' is null, not text",
    ]


def test_empty_texts_are_counted(load):
    (file,) = load("empties.json", TEXTS["empties.json"][0]).report.files
    assert (file.texts, file.empty, file.unusable) == (1, 3, 0)


@pytest.mark.parametrize("content", ["A\n", "山", "A </s>\n"])
def test_one_token_alone_is_an_error(load, content):
    with pytest.raises(DataError, match="no token follows another"):
        load("one.txt", content)
    data = load("two.json", '["A", "Moles dig."]')
    assert data.report.total("single") == 1
