"""Owns the forms of files: which one a file has, told by its content, and its records in order."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from itertools import chain, islice, starmap
from typing import Final, NamedTuple

from rustgpt.errors import DataError
from rustgpt.text.json_stream import DECODER, JsonStream, NotJson, is_one_value
from rustgpt.text.plain import dialogue_blocks, dialogue_form, is_list, whole_document
from rustgpt.text.records import FORMS, Unusable, form_of, is_message
from rustgpt.text.sources import Content

# By the name that --format has for it: how a report calls it.
FILE_FORMS: Final = {
    "text": "document",
    "lines": "list of lines",
    "dialogue": "dialogues in plain text",
    "json": "JSON",
    "jsonl": "JSON lines",
    "csv": "CSV",
    "tsv": "TSV",
}
JSON_ENDINGS: Final = {".json": "json", ".jsonl": "jsonl", ".ndjson": "jsonl"}
TABLE_ENDINGS: Final = {".csv": "csv", ".tsv": "tsv", ".tab": "tsv"}
DELIMITERS: Final = ",\t;"
WANTED: Final = (
    'a list of texts or of objects such as {"text": ...} or {"question": ..., "answer": ...}'
)
_LOOKED_AT: Final = 100  # records in which a header is looked for

# A list of strings, objects or lists; an object with a key.
_JSON: Final = re.compile(r'\s*(?:\[\s*(?:[\[{"\]]|null\b)|\{\s*["}])')
_NAME: Final = re.compile(r"[^\W\d][\w-]{0,39}")


class Record(NamedTuple):
    """A record of a file: its number and its line, both from 1, and its value or what is wrong."""

    number: int
    line: int
    value: object


def detect(content: Content, ending: str, texts_only: bool = False) -> str:
    """Return the form of a file, a key of `FILE_FORMS`.

    Parameters
    ----------
    content
        Decides.
    ending
        Of the file's name, in lower case. It decides where the content does not: what is broken
        in a ``.json`` is broken JSON, and a ``.csv`` without a header is still one.
    texts_only
        Whether plain text is to be read as texts even if it has the form of dialogues.
    """
    head = content.head()
    if ending in JSON_ENDINGS or _JSON.match(head):
        return _json_form(content, ending)
    if ending in TABLE_ENDINGS:
        return TABLE_ENDINGS[ending]
    delimiter = _delimiter(head.partition("\n")[0])
    if delimiter is not None:
        return "tsv" if delimiter == "\t" else "csv"
    if not texts_only and dialogue_form(head):
        return "dialogue"
    return "lines" if is_list(head) else "text"


def records(content: Content, form: str, notes: list[str]) -> Iterator[Record]:
    """Yield the records of a file of this form.

    What there is to tell beside is added to `notes`.
    """
    if form == "text":
        yield from (Record(1, 1, piece) for piece in whole_document(content.pieces()))
    elif form == "lines":
        for number, line in enumerate(content.lines(), 1):
            if line.strip():
                yield Record(number, number, line)
    elif form == "dialogue":
        for number, block in dialogue_blocks(content.lines(), content.head()):
            yield Record(number, number, block)
    elif form == "json":
        yield from _json_records(content)
    elif form == "jsonl":
        yield from _json_lines(content)
    else:
        yield from _table_records(content, form, notes)


# JSON


def _json_form(content: Content, ending: str) -> str:
    """Tell a file of one value from one with a value a line."""
    pieces = content.decoded()
    text = _first_not_blank(pieces)
    first = text[:1]
    while text and "\n" not in text:
        text = next(pieces, "")
    second = (text.partition("\n")[2].lstrip() or _first_not_blank(pieces))[:1]
    if not second:
        return "jsonl" if ending == ".jsonl" and first not in "[{" else "json"
    if first == second == "{" or is_one_value(_first_line(content.decoded())):
        return "jsonl"
    # The first line may be broken, or a part of a larger value.
    return "json" if first in "[{" else JSON_ENDINGS.get(ending, "json")


def _first_not_blank(pieces: Iterator[str]) -> str:
    """Return the first piece that is not blank, without the space at its beginning."""
    return next(filter(None, map(str.lstrip, pieces)), "")


def _first_line(pieces: Iterator[str]) -> Iterator[str]:
    """Yield the first line that is not blank, in pieces."""
    for piece in chain([_first_not_blank(pieces)], pieces):
        line, end, _ = piece.partition("\n")
        yield line
        if end:
            return


def _json_lines(content: Content) -> Iterator[Record]:
    for number, line in enumerate(content.lines(), 1):
        if not line.strip():
            continue
        value: object
        try:
            value = DECODER.decode(line.rstrip())
        except json.JSONDecodeError as error:
            value = Unusable(f"column {error.pos + 1}: {error.msg}")
        except RecursionError:
            value = Unusable("it is nested too deeply")
        yield Record(number, number, value)


def _json_records(content: Content) -> Iterator[Record]:
    """Yield the items of a list, or values one behind another."""
    values = starmap(Record, JsonStream(content.decoded()).values())
    try:
        first = next(values, None)
        if first is None:
            return
        if is_message(first.value):  # the list is one dialogue
            rest = [record.value for record in values]
            yield Record(1, first.line, [first.value, *rest])
            return
        yield first
        del first  # it may be as large as the file
        yield from values
    except NotJson as error:
        raise DataError(
            f"{content.name}, {error}; if it shall be JSON, it must be {WANTED}, or an object a "
            "line; if not, see --format"
        ) from None
    except RecursionError:
        raise DataError(f"{content.name} is nested too deeply; it must be {WANTED}") from None


# CSV


def _delimiter(first: str) -> str | None:
    """Return what divides a line into the names of a known form."""
    for delimiter in DELIMITERS:
        names = _names(first, delimiter)
        if len(names) > 1 and form_of({*names}):
            return delimiter
    return None


def _names(line: str, delimiter: str) -> list[str]:
    try:
        return _lowered(next(csv.reader([line], delimiter=delimiter, strict=True), []))
    except csv.Error:
        return []


def _lowered(fields: list[str]) -> list[str]:
    return [field.strip().lower() for field in fields]


def _table_records(content: Content, form: str, notes: list[str]) -> Iterator[Record]:
    first = next(iter(content.lines()), "")
    delimiter = _delimiter(first) or ("\t" if form == "tsv" else ",")
    rows = _csv_rows(content, delimiter)
    ahead = [*islice(rows, _LOOKED_AT)]
    names = _lowered(ahead[0][2]) if ahead else []
    known = form_of({*names})
    if known:
        read = (*FORMS[known].needs, *FORMS[known].may)
        if twice := [name for name in read if names.count(name) > 1]:
            raise DataError(f"{content.name} has two columns of the name {twice[0]!r}; remove one")
    if not known and _is_header([fields for _, _, fields in ahead]):
        forms = " or ".join(", ".join(form.needs) for form in FORMS.values())
        notes.append(
            "its first record was taken for the names of columns, none of them known "
            f"({', '.join(names)!r:.80}), and the fields of each other one together for a text; "
            f"name them {forms} to choose"
        )
        del ahead[0]
    elif known:
        del ahead[0]
    for part in (ahead, rows):
        for number, line, fields in part:
            if not known:
                yield Record(number, line, delimiter.join(fields))
            elif len(fields) != len(names):
                wrong = Unusable(f"it has {len(fields)} fields, and the header {len(names)}")
                yield Record(number, line, wrong)
            else:
                yield Record(number, line, dict(zip(names, fields, strict=True)))


def _csv_rows(content: Content, delimiter: str) -> Iterator[tuple[int, int, list[str]]]:
    """Yield number, line and fields of each record that is not blank."""
    line = 1
    try:
        reader = csv.reader(content.lines(), delimiter=delimiter, strict=True)
        for number, fields in enumerate(reader, 1):
            if fields:
                yield number, line, [field.replace("\r\n", "\n") for field in fields]
            line = reader.line_num + 1
    except csv.Error as error:
        reason = str(error).replace("\t", "tab")
        raise DataError(
            f"{content.name}, record from line {line} on: {reason}; close every quote, double "
            f"those inside a field, and keep each field within {csv.field_size_limit()} characters"
        ) from None


def _is_header(rows: list[list[str]]) -> bool:
    """Tell whether the first of these records names columns: words, unlike all others."""

    def of_words(fields: list[str]) -> bool:
        return len(fields) > 1 and all(_NAME.fullmatch(field.strip()) for field in fields)

    widths = {len(fields) for fields in rows}
    return (
        len(rows) > 1
        and len(widths) == 1
        and of_words(rows[0])
        and not any(map(of_words, rows[1:]))
    )
