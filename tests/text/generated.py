"""Owns generated data: the same content in every form, with all that may differ."""

import csv
import io
import json
import random
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

WORDS = [
    *("sea", "wind", '"moss"', "owl's", "a,", "I", "naïve", "夜里", "猫头鹰", "42", "Straße", "🙂"),
    *("e\u0301", "[x]", "{y}", "line\u2028end", "tab\\t", "it;", "ok"),
]
ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "utf-32", "utf-16-le", "utf-16-be")
MARKS = {"utf-16-le": b"\xff\xfe", "utf-16-be": b"\xfe\xff"}
OTHER_KEYS = ("id", "source", "score", "Größe")

Content = list[Any]  # of texts, or of dialogues that are lists of (role, content)


def sentence(rng: random.Random, breaks: bool = False) -> str:
    """Make a text that begins and ends with letters."""
    words = [rng.choice(WORDS) for _ in range(rng.randint(1, 8))]
    joined = "".join(
        word + (rng.choice((" ", " ", "  ", "\n") if breaks else " ")) for word in words
    )
    return f"So {joined}we go"


def texts(rng: random.Random, breaks: bool = True) -> Content:
    return [sentence(rng, breaks) for _ in range(rng.randint(1, 6))]


def pairs(rng: random.Random) -> Content:
    return [
        [("user", sentence(rng, True)), ("assistant", sentence(rng, True))]
        for _ in range(rng.randint(1, 6))
    ]


def chats(rng: random.Random) -> Content:
    made = []
    for _ in range(rng.randint(1, 5)):
        system = [("system", sentence(rng))] if rng.random() < 0.4 else []
        turns = [
            (role, sentence(rng, True))
            for _ in range(rng.randint(1, 3))
            for role in ("user", "assistant")
        ]
        made.append(system + turns)
    return made


def expected(content: Content) -> list[str]:
    """Return content as a model reads it."""
    found = []
    for item in content:
        if isinstance(item, str):
            found.append(f"{item} </s>")
            continue
        said = (
            f"{role.title()}: {text}" + (" </s>" if role == "assistant" else "")
            for role, text in item
        )
        found.append(" ".join(said))
    return found


# From content to the objects of a form


def _messages(rng: random.Random, dialogue: Any, keys: tuple[str, str], names: Any) -> list[Any]:
    found = []
    for role, text in dialogue:
        value: Any = text
        if keys[1] == "content" and rng.random() < 0.3:
            at = rng.randint(0, len(text))
            value = [{"type": "text", "text": text[:at]}, {"type": "text", "text": text[at:]}]
        message = {keys[0]: rng.choice(names[role]), keys[1]: value}
        if rng.random() < 0.2:
            message["weight"] = rng.choice((1, None))
        found.append(_shuffled(rng, message))
    return found


ROLES = {"system": ["system"], "user": ["user"], "assistant": ["assistant"]}
OTHER_ROLES = {"system": ["system"], "user": ["human", "user"], "assistant": ["gpt", "assistant"]}


def _instruction(rng: random.Random, dialogue: Any) -> dict[str, Any]:
    question, answer = dialogue[0][1], dialogue[1][1]
    if "\n" in question and rng.random() < 0.7:
        first, _, rest = question.partition("\n")
        return {"instruction": first, "input": rest, "output": answer}
    row = {"instruction": question, "output": answer}
    return row | rng.choice(({}, {"input": ""}, {"input": None}))


def _pair(question: str, answer: str) -> Callable[[random.Random, Any], dict[str, Any]]:
    return lambda rng, dialogue: {question: dialogue[0][1], answer: dialogue[1][1]}


OBJECTS: dict[str, tuple[Callable[..., Content], Callable[..., Any]]] = {
    "text": (texts, lambda rng, text: {"text": text}),
    "messages": (
        chats,
        lambda rng, chat: {"messages": _messages(rng, chat, ("role", "content"), ROLES)},
    ),
    "conversations": (
        chats,
        lambda rng, chat: {"conversations": _messages(rng, chat, ("from", "value"), OTHER_ROLES)},
    ),
    "instruction": (pairs, _instruction),
    "prompt": (pairs, _pair("prompt", "completion")),
    "question": (pairs, _pair("question", "answer")),
}  # fmt: skip
TABLES = ("text", "instruction", "prompt", "question")


def _shuffled(rng: random.Random, row: dict[str, Any]) -> dict[str, Any]:
    items = [*row.items()]
    rng.shuffle(items)
    return dict(items)


def _with_others(rng: random.Random, row: dict[str, Any]) -> dict[str, Any]:
    """Add keys that nothing is made of, null at times, and change the order."""
    others = {key: rng.choice((None, 1, "x", [1], {})) for key in OTHER_KEYS if rng.random() < 0.3}
    return _shuffled(rng, row | others)


# From objects to bytes


def encoded(rng: random.Random, text: str, ends: bool = True) -> bytes:
    """Encode in one of the encodings that are read, with line ends of one kind."""
    if ends and rng.random() < 0.5:
        text = text.replace("\n", "\r\n")
    encoding = rng.choice(ENCODINGS)
    return MARKS.get(encoding, b"") + text.encode(encoding)


def as_json(rng: random.Random, rows: list[Any]) -> bytes:
    """Write rows as a list, or one a line."""
    ascii_only, indent = rng.random() < 0.5, rng.choice((None, 0, 2))
    if rng.random() < 0.5:
        text = json.dumps(rows, ensure_ascii=ascii_only, indent=indent)
        return encoded(rng, rng.choice(("", " \n")) + text + rng.choice(("", "\n")))
    lines = [json.dumps(row, ensure_ascii=ascii_only) for row in rows]
    blank = rng.choice(("\n", "\n\n", " \n"))
    return encoded(rng, blank.join(lines) + rng.choice(("", "\n")))


def as_table(rng: random.Random, rows: list[dict[str, Any]], delimiter: str) -> bytes:
    names = [*{name: None for row in rows for name in row}]
    rng.shuffle(names)
    out = io.StringIO()
    quoting = rng.choice((csv.QUOTE_MINIMAL, csv.QUOTE_ALL))
    writer = csv.writer(out, delimiter=delimiter, quoting=quoting, lineterminator="\n")
    writer.writerow([rng.choice((name, name.title())) for name in names])
    for row in rows:
        writer.writerow([row.get(name) for name in names])
    return encoded(rng, out.getvalue())


def strings(rng: random.Random) -> tuple[str, bytes, Content]:
    content = texts(rng)
    rows = [f"{item} </s>" if rng.random() < 0.5 else f" {item}\n" for item in content]
    return rng.choice(("a.json", "a.jsonl")), as_json(rng, rows), content


def objects(form: str) -> Callable[[random.Random], tuple[str, bytes, Content]]:
    make, convert = OBJECTS[form]

    def made(rng: random.Random) -> tuple[str, bytes, Content]:
        content = make(rng)
        rows = [_with_others(rng, convert(rng, item)) for item in content]
        return rng.choice(("a.json", "a.jsonl", "a.txt", "a")), as_json(rng, rows), content

    return made


def table(form: str, delimiter: str) -> Callable[[random.Random], tuple[str, bytes, Content]]:
    make, convert = OBJECTS[form]

    def made(rng: random.Random) -> tuple[str, bytes, Content]:
        content = make(rng)
        rows = [_with_others(rng, convert(rng, item)) for item in content]
        named = "a.tsv" if delimiter == "\t" else "a.csv"
        name = rng.choice((named, "a.txt")) if form != "text" else named
        return name, as_table(rng, rows, delimiter), content

    return made


def no_header(rng: random.Random) -> tuple[str, bytes, Content]:
    content = texts(rng)
    out = io.StringIO()
    writer = csv.writer(out, quoting=csv.QUOTE_ALL, lineterminator="\n")
    writer.writerows([item] for item in content)
    return "a.csv", encoded(rng, out.getvalue()), content


def lines(rng: random.Random) -> tuple[str, bytes, Content]:
    content = [rng.choice(WORDS[:3]).strip('"').title() for _ in range(rng.randint(3, 9))]
    if rng.random() < 0.5:
        content = [f"{name} {sentence(rng)} </s>" for name in content]
    text = rng.choice(("\n", "\n", " \n")).join(content) + rng.choice(("", "\n", "\n\n"))
    return "a.txt", encoded(rng, text), [item.removesuffix(" </s>") for item in content]


def document(rng: random.Random) -> tuple[str, bytes, Content]:
    text = "\n\n".join(sentence(rng, True) for _ in range(rng.randint(1, 5)))
    text += rng.choice(("", ",\nand on it goes.", "\n    x = 1", "\n\n# A title\n- an item"))
    if text.count("\n") > 1 and "\n\n" not in text:
        text += ",\nas verse does"
    written = rng.choice(("", "\n")) + text + rng.choice(("", "\n"))
    return rng.choice(("a.txt", "a.md", "a")), encoded(rng, written), [text]


def plain_dialogues(rng: random.Random) -> tuple[str, bytes, Content]:
    content = chats(rng)
    if rng.random() < 0.3:  # each on one line
        content = [[(role, text.replace("\n", " ")) for role, text in chat] for chat in content]
        return "a.txt", encoded(rng, "\n".join(expected(content))), content
    between = rng.choice(("\n", " ", "\n\n"))
    blocks = []
    for chat in content:
        said = [f"{role.title()}: {text}" for role, text in chat]
        block = said[0]
        for before, message in pairwise(said):
            # A blank line before a user's turn begins another dialogue.
            turn = message.startswith("User:") and before.startswith("Assistant:")
            block += ("\n" if turn else between) + message
        blocks.append(block)
    return "a.txt", encoded(rng, "\n\n".join(blocks)), content


FORMS: dict[str, Callable[[random.Random], tuple[str, bytes, Content]]] = {
    "document": document,
    "lines": lines,
    "dialogue": plain_dialogues,
    "strings": strings,
    "CSV without header": no_header,
    **{f"JSON of {form}": objects(form) for form in OBJECTS},
    **{f"CSV of {form}": table(form, ",") for form in TABLES},
    **{f"TSV of {form}": table(form, "\t") for form in TABLES},
    "CSV of question, semicolons": table("question", ";"),
}  # fmt: skip


def mutants(form: str, number: int, seed: int = 0) -> Iterator[tuple[str, bytes]]:
    """Yield names and contents of damaged files of a form."""
    rng = random.Random(f"{form} {seed}")
    for _ in range(number):
        name, data, _ = FORMS[form](rng)
        content = bytearray(data)
        for _ in range(rng.choice((1, 1, 2, 5))):
            at, end = sorted(rng.randrange(len(content) + 1) for _ in range(2))
            match rng.randrange(6):
                case 0:  # cut short
                    del content[at:]
                case 1:  # a hole
                    del content[at : min(end, at + rng.choice((1, 10)))]
                case 2:  # a piece twice
                    content[at:at] = content[at:end]
                case 3:  # a sign that means something
                    content[at:at] = rng.choice(SIGNS)
                case 4 if at < len(content):  # a byte of any kind
                    content[at] = rng.randrange(256)
                case _:
                    content[at:end] = content[at:end][::-1]
        yield name, bytes(content)


SIGNS = [
    *(sign.encode() for sign in '[]{}",:\\\n\r\t;'),
    *(b"null", b"1e999", b"-", b"NaN", b"\0", b"\xff", b"\\ud800", b"9" * 5000, b"[" * 3000),
    *(b"</s>", b"User:", b"\nUser: ", b" Assistant: ", b"System:", b'{"text":', b'"role"', b'""'),
    *(b"\xef\xbb\xbf", b"\xff\xfe", "\u2028".encode()),
]
