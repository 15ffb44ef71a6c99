"""Owns how sources become texts and dialogues, and the report of what was not read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from rustgpt.errors import ConfigError, DataError
from rustgpt.text.dialogue import Dialogue
from rustgpt.text.formats import FILE_FORMS, Record, detect, records
from rustgpt.text.records import FORMS, Item, Kind, Unusable, read_record
from rustgpt.text.sources import Source, StrPath, find_sources, opened, readable
from rustgpt.text.vocab import END

AUTO: Final = "auto"
FORM_NAMES: Final = (AUTO, *FILE_FORMS, *FORMS)  # what --format may be
REASONS_SHOWN: Final = 3


@dataclass
class FileReport:
    """What was read of a source, and what was not.

    Attributes
    ----------
    name
        How messages call the source.
    form
        A key of `FILE_FORMS`.
    texts, dialogues
        How many were read.
    single
        How many of the texts are a single character: no token follows it.
    empty, unusable
        How many records hold nothing, and how many cannot be used.
    reasons
        Of the first three that cannot be used, which they are and why.
    ignored
        The keys that nothing is made of, with the number of records that have them.
    notes
        What else there is to tell.
    """

    name: str
    form: str = ""
    texts: int = 0
    dialogues: int = 0
    single: int = 0
    empty: int = 0
    unusable: int = 0
    reasons: list[str] = field(default_factory=list)
    ignored: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)

    def refuse(self, record: Record, reason: str) -> None:
        """Count a record that cannot be used."""
        self.unusable += 1
        if len(self.reasons) < REASONS_SHOWN:
            line = f" (line {record.line})" if record.line != record.number else ""
            self.reasons.append(f"row {record.number}{line}: {reason}")


@dataclass
class Report:
    """What was read of all sources.

    Attributes
    ----------
    files
        Those that were read.
    left_out
        Those found in a folder that could not be, each with the reason.
    """

    files: list[FileReport] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    def total(self, count: str) -> int:
        """Sum up one of the counts of all files."""
        return sum(getattr(file, count) for file in self.files)

    @property
    def ignored(self) -> Counter[str]:
        """The keys that were ignored, in all files."""
        return sum((file.ignored for file in self.files), Counter())


def read(
    paths: StrPath | Iterable[StrPath],
    report: Report,
    kind: Kind = "auto",
    form: str = AUTO,
    on_bytes: Callable[[int], None] | None = None,
) -> Iterator[Item]:
    """Read all that paths mean, one text or dialogue after another.

    A text ends in ``</s>``. What is wrong with a file found in a folder leaves it out; what is
    wrong with one that was named is an error.

    Parameters
    ----------
    paths
        Files, folders, patterns; "-" is standard input.
    report
        Filled in as it goes.
    kind
        Whether to read texts, dialogues, or whichever each record is.
    form
        One of `FORM_NAMES`: of the files, or of the records in them.
    on_bytes
        Called before each item with the number of bytes that were read.

    Raises
    ------
    DataError
        If a file cannot be read or is in none of the forms; at the end, if there was nothing.
    ConfigError
        If the form is unknown.
    """
    if form not in FORM_NAMES:
        raise ConfigError(f"the format must be one of {', '.join(FORM_NAMES)}, not {form!r:.60}")
    sources, first = find_sources(paths), len(report.files)
    before = here = 0  # bytes of the files before, and of this one

    def tell(position: int) -> None:
        nonlocal here
        here = position
        if on_bytes:
            on_bytes(before + here)

    for source in sources:
        file = FileReport(source.name)
        before, here = before + here, 0
        try:
            yield from read_source(source, file, kind, form, tell)
        except DataError as error:
            if source.named or file.texts or file.dialogues:
                raise
            report.left_out.append(str(error))
        else:
            report.files.append(file)
    if not any(file.texts or file.dialogues for file in report.files[first:]):
        raise DataError(_nothing(sources, report.files[first:], report.left_out))


def read_source(
    source: Source,
    report: FileReport,
    kind: Kind = "auto",
    form: str = AUTO,
    on_bytes: Callable[[int], None] | None = None,
) -> Iterator[Item]:
    """Read one source; see `read`."""
    only = form if form in FORMS else None
    # What reads a source is closed at once when it fails, not when its traceback is forgotten.
    with readable(source.name), opened(source) as content:
        ending = Path(source.path).suffix.lower() if source.path else ""
        report.form = form if form in FILE_FORMS else detect(content, ending, kind == "texts")
        for record in records(content, report.form, report.notes):
            try:
                item = _item(record, report, kind, only)
            except Unusable as error:
                report.refuse(record, str(error))
                continue
            if item is None:
                report.empty += 1
                continue
            if isinstance(item, Dialogue):
                report.dialogues += 1
            else:
                # Of a large document only the last piece ends.
                report.texts += item.endswith(END)
                report.single += len(item) <= len(f"? {END}")
            del record  # the text may be as large as the file
            if on_bytes:
                on_bytes(content.position())
            yield item


def _item(record: Record, report: FileReport, kind: Kind, only: str | None) -> Item | None:
    if isinstance(record.value, Unusable):
        raise record.value
    if report.form == "text":  # whatever it begins with
        return record.value or None if isinstance(record.value, str) else None
    return read_record(record.value, report.ignored, kind, only)


def _nothing(sources: list[Source], files: list[FileReport], left_out: list[str]) -> str:
    """Say why there is nothing to train on."""
    names = ", ".join(source.name for source in sources[:3])
    more = f" and {len(sources) - 3} more" if len(sources) > 3 else ""
    alone = len(sources) == 1
    why = [(f"{file.name}, ", reason) for file in files for reason in file.reasons]
    why += [("", reason) for reason in left_out]
    reason = f" ({why[0][0] * (not alone)}{why[0][1]})" if why else ""
    holds = "holds" if alone else "hold"
    return f"{names}{more} {holds} no text, so there is nothing to train on{reason}"
