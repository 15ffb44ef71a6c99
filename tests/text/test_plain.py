"""What plain text is: a document, a list, dialogues."""

import pytest

from rustgpt.text.plain import dialogue_blocks, dialogue_form, ended, is_list, whole_document

LISTS = {
    "names": "anouk\nberit\ncarla\n",
    "capitals": "New York\nSan José\nÅrhus\n\n\n",
    "chinese": "北京\n上海\n广州",
    "numbers": "1\n22\n333",
    "statements": "The sun rises in the east\nWater is wet\nBees carry pollen\n",
    "sentences": 'Owls hunt at night.\nHe said "now".\nIs tar sticky?\n',
    "ended": "Any line,\n\nof which one ends </s>\n",
}
DOCUMENTS = {
    "one line": "anouk\n",
    "two lines": "anouk\nberit\n",
    "verse": "Of moles that dig the night away,\nand bees that sleep by candlelight,\nI sing\n",
    "prose": "The mole digs tunnels under the lawn\nand sleeps in winter. It\neats worms.\n",
    "paragraphs": "Moles dig.\n\nBees fly.\n\nOwls hunt.\n",
    "play": "First Mole:\nWe dig.\n\nSecond Mole:\nWe sleep.\n",
    "markdown": "# Moles\nThey dig\nThey sleep\n",
    "bullets": "- one\n- two\n- three\n",
    "code": "def dig(mole):\n    return mole\nprint(dig(1))\n",
    "long lines": "\n".join(["Moles dig " * 30] * 5),
}  # fmt: skip


@pytest.mark.parametrize("name", LISTS)
def test_lists(name):
    assert is_list(LISTS[name])


@pytest.mark.parametrize("name", DOCUMENTS)
def test_documents(name):
    assert not is_list(DOCUMENTS[name])


def test_a_few_lines_may_differ_in_a_long_list():
    names = "\n".join(f"name{'n' * (i % 7)}" for i in range(100))
    assert is_list(f"{names}\nAnouk\nwho?\n")
    assert not is_list(names + "\nAnouk" * 10)


# Blocks are divided by |.
BLOCKS = [
    ("User: a\nAssistant: b", "User: a\nAssistant: b"),
    ("User: a\n\nAssistant: b\n\nc\n\nUser: d", "User: a\n\nAssistant: b\n\nc|User: d"),
    ("User: a\nAssistant: b\nUser: c", "User: a\nAssistant: b\nUser: c"),
    ("User: a\nAssistant: b </s>\nUser: c", "User: a\nAssistant: b </s>|User: c"),
    (
        "User: a Assistant: b\nUser: c Assistant: d\nand e",
        "User: a Assistant: b|User: c Assistant: d\nand e",
    ),
    (
        "User: a Assistant: b\nUser: c\nUser: d Assistant: e",
        "User: a Assistant: b|User: c|User: d Assistant: e",
    ),
    (
        "System: s\n\nUser: a\nAssistant: b\n\nSystem: t\nUser: c",
        "System: s\n\nUser: a\nAssistant: b|System: t\nUser: c",
    ),
    ("\n\nUser: a\r\nAssistant: b\r\n\r\n", "User: a\nAssistant: b"),
]


@pytest.mark.parametrize(("text", "blocks"), BLOCKS)
def test_dialogue_blocks(text, blocks):
    lines = text.splitlines(keepends=True)
    assert [block for _, block in dialogue_blocks(lines, text)] == blocks.split("|")


def test_the_line_of_a_block():
    text = "User: a\nAssistant: b\n\n\nUser: c\nAssistant: d\n"
    assert [line for line, _ in dialogue_blocks(text.splitlines(), text)] == [1, 5]


def test_dialogue_form():
    assert dialogue_form("\n User: a\nAssistant: b")
    assert dialogue_form("System: s User: a Assistant: b")
    assert not dialogue_form("User: a guide")
    assert not dialogue_form("He wrote User: a Assistant: b")


def test_ended():
    assert ended(" a\n") == "a </s>"
    assert ended("a</s> ") == "a</s>"
    assert ended(" </s>") is None
    assert ended(" \n") is None


def test_a_document_in_pieces():
    pieces = ["\n \n", "\n a\r\n", "b\n", " \n", "c\n", "\n\n"]
    assert [*whole_document(pieces)] == ["a\n", "b\n \n", "c </s>"]
    assert [*whole_document([" ", "\n"])] == [""]
