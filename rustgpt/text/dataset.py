"""Owns the training data: reading them from files, the bundled ones, and the form of a dialogue."""

from __future__ import annotations

import codecs
import csv
import json
import os
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import count, repeat
from pathlib import Path
from typing import Final

from rustgpt.errors import ConfigError, DataError
from rustgpt.text.vocab import END, SURROGATE

StrPath = str | os.PathLike[str]

BUNDLED: Final = {"en": [""], "zh": ["_zh"], "all": ["", "_zh"]}  # language: endings of file names
_JSON_FORM: Final = 'a list of strings: ["first text", "second text"]'


@dataclass(frozen=True)
class Dataset:
    """The texts of the two phases of training.

    Attributes
    ----------
    pretraining_data : list of str
        Statements.
    chat_training_data : list of str
        Dialogues in the form of `chat_prompt`, each followed by its answer.
    """

    pretraining_data: list[str]
    chat_training_data: list[str]

    @classmethod
    def load(cls, pretraining: StrPath | None = None, chat: StrPath | None = None) -> Dataset:
        """Read the texts of one phase or both; see `load_texts`. No file gives an empty list."""
        if pretraining is None and chat is None:
            raise DataError("no data to load: name a file for pre-training, for chat, or both")
        return cls(*([] if file is None else load_texts(file) for file in (pretraining, chat)))

    @classmethod
    def bundled(cls, language: str = "all") -> Dataset:
        """Read the data that come with rustgpt.

        Parameters
        ----------
        language : {"all", "en", "zh"}
            English, Chinese, or both.
        """
        if language not in BUNDLED:
            raise ConfigError(f"the language must be en, zh or all, not {language!r:.60}")
        package = Path(__file__).resolve().parent.parent
        folder = package / "data"
        if not folder.is_dir():  # not installed but a checkout
            folder = package.parent / "data"

        def texts(name: str) -> list[str]:
            files = [folder / f"{name}{ending}.json" for ending in BUNDLED[language]]
            return [text for file in files for text in load_texts(file)]

        return cls(texts("pretraining_data"), texts("chat_training_data"))


def load_texts(path: StrPath) -> list[str]:
    """Read texts from a file in UTF-8.

    The end of the name tells the form: ``.json`` is a list of strings; ``.csv`` has one text a
    record, its fields joined by commas, and no header; anything else is plain text, one text a
    line. White space at both ends of a text is removed, a blank text is left out, and one that does
    not end in ``</s>`` gets `` </s>`` appended.

    Parameters
    ----------
    path : str or path
        The file.

    Raises
    ------
    DataError
        The file cannot be read, is not in its form, or holds no text.
    """
    try:
        file = Path(path)
    except TypeError:
        raise DataError(f"a file must be named by text, not by {type(path).__name__}") from None
    name = repr(str(file))  # a name may hold line breaks and worse
    readers: dict[str, Callable[[Path, str], Iterable[str]]]
    readers = {".json": _read_json, ".csv": _read_csv}
    read = readers.get(file.suffix.lower(), _lines)
    try:
        texts = [ended for text in read(file, name) if (ended := _ended(text))]
    except OSError as error:
        raise DataError(
            f"cannot read {name}: {error.strerror or error}; check its name and rights"
        ) from None
    except MemoryError:
        raise DataError(f"cannot read {name}: it needs more memory than there is") from None
    except ValueError as error:
        raise DataError(f"cannot read {name}: {error}") from None
    if not texts:
        raise DataError(f"{name} holds no text, so there is nothing to train on")
    return texts


def chat_prompt(question: str) -> str:
    """Return what a model reads before it answers this question."""
    return f"User: {question} Assistant:"


def split_chat(text: str) -> tuple[str, str]:
    """Return question and answer of a dialogue ``User: ... Assistant: ... </s>``.

    Raises
    ------
    DataError
        The text is not of this form, or question or answer is empty.
    """
    head, sign, answer = text.strip().removesuffix(END).partition(" Assistant:")
    question = head.removeprefix("User:").strip()
    if not (head.startswith("User:") and sign and question and answer.strip()):
        raise DataError(f"a dialogue must be 'User: ... Assistant: ...', not {text!r:.80}")
    return question, answer.strip()


def _ended(text: str) -> str:
    """Return the text with its end token; nothing if there is no text."""
    text = text.strip()
    if not text.removesuffix(END).strip():
        return ""
    return text if text.endswith(END) else f"{text} {END}"


def _lines(file: Path, name: str) -> Generator[str, None, None]:
    r"""Read lines with their ends. Only "\n" ends a line: U+2028 and the like are text."""
    with file.open("rb") as lines:
        # Not a loop: its variables would keep the line, which may be as large as the file.
        yield from map(_decode, lines, count(1), repeat(name))


def _decode(line: bytes, number: int, name: str) -> str:
    if number == 1:
        if line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            raise DataError(f"{name} is in UTF-16; save it as UTF-8")
        line = line.removeprefix(codecs.BOM_UTF8)
    text, at = "", line.find(0)
    wrong = "a NUL byte; this is not a text file, or not in UTF-8"
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        if at < 0:
            at = error.start
            wrong = f"byte 0x{line[at]:02X} is not UTF-8; save the file as UTF-8"
    if at >= 0:
        column = len(line[:at].decode("utf-8", "replace")) + 1
        raise DataError(f"{name}, line {number}, column {column}: {wrong}")
    return text


def _read_csv(file: Path, name: str) -> Iterator[str]:
    start = 1
    try:
        # The reader's own errors do not reach the lines, whose file would stay open.
        with closing(_lines(file, name)) as lines:
            records = csv.reader(lines, strict=True)
            for record in records:
                yield ",".join(record)
                start = records.line_num + 1
    except csv.Error as error:
        raise DataError(
            f"{name}, record from line {start} on: {error}; close every quote, double those inside "
            f"a field, and keep each field within {csv.field_size_limit()} characters"
        ) from None


def _read_json(file: Path, name: str) -> list[str]:
    text = "".join(_lines(file, name))
    try:
        # A number is wrong here in any case; as a float it may have any count of digits.
        items = json.loads(text, parse_int=float)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{name}, line {error.lineno}, column {error.colno}: {error.msg}; "
            f"the file must be {_JSON_FORM}"
        ) from None
    except RecursionError:
        raise DataError(f"{name} is nested too deeply; it must be {_JSON_FORM}") from None
    if not isinstance(items, list):
        raise DataError(f"{name} is {_fault(items) or 'a single text'}; it must be {_JSON_FORM}")
    for index, item in enumerate(items):
        if fault := _fault(item):
            line = text.count("\n", 0, _start_of_item(text, index)) + 1
            raise DataError(f"{name}, line {line}: item {index} is {fault}; it must be text")
    return items


def _fault(item: object) -> str:
    """Say what is wrong with an item that should be a string; nothing if it is one."""
    if isinstance(item, str):
        return r"text with half of a character (\ud800 to \udfff)" if SURROGATE.search(item) else ""
    names = {dict: "an object", list: "a list", float: "a number", bool: "true or false"}
    return names.get(type(item), "null")


def _start_of_item(text: str, index: int) -> int:
    """Find an item of a JSON list that is known to be sound."""
    decoder = json.JSONDecoder(parse_int=float)
    position = text.index("[") + 1
    for skip in range(index + 1):
        while text[position] in " \t\n\r,":
            position += 1
        if skip < index:
            _, position = decoder.raw_decode(text, position)
    return position
