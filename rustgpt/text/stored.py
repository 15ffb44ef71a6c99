"""Owns data larger than memory: read again from their files, and as tokens from a cache on disk."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar, overload

from rustgpt.errors import CheckpointError, DataError
from rustgpt.folder_lock import LOCK_FILE, FolderLock
from rustgpt.text.choose import SAMPLE
from rustgpt.text.dialogue import Dialogue, Message
from rustgpt.text.pieces import Text, checked, encode_text
from rustgpt.text.reading import FileReport, Report, read
from rustgpt.text.records import Item, Kind
from rustgpt.text.rows import Rows, flat_parts
from rustgpt.text.sources import StrPath, find_sources
from rustgpt.text.text_format import TextFormat
from rustgpt.text.token_files import cannot_write, read_tokens, replacing, sweep, write_tokens
from rustgpt.text.tokenizer import BaseTokenizer, read_tokenizer, tokenizer_for

LARGE: Final = 2**24  # bytes of data, from which on they are stored
_DIGESTED: Final = 2**20  # characters at a time
VERSION: Final = 1
MANIFEST: Final = "data.json"
PATIENCE: Final = 3600.0  # seconds to wait while another process reads the same data

Paths = StrPath | Iterable[StrPath]
# Told of work on much data: what is done, how many bytes of it are done, and how many there are.
OnProgress = Callable[[str, int, int], None]
Shown = TypeVar("Shown")


@dataclass(frozen=True)
class Request:
    """What data somebody has asked for.

    Parameters
    ----------
    groups
        Paths, and what they are to be read as.
    form
        See `read`.
    """

    groups: tuple[tuple[tuple[StrPath, ...], Kind], ...]
    form: str

    @classmethod
    def of(cls, groups: Iterable[tuple[Paths | None, Kind]], form: str) -> Request:
        """Return the request for some groups; None is for one that is not asked for."""
        found = []
        for paths, kind in groups:
            if paths is not None:
                several = isinstance(paths, Iterable) and not isinstance(paths, (str, bytes))
                found.append(((*paths,) if several else (paths,), kind))  # type: ignore[misc]
        return cls((*found,), form)

    def items(
        self, report: Report, on_bytes: Callable[[int], None] | None = None
    ) -> Iterator[tuple[bool, Item]]:
        """Yield whether it is for the chat, and the item; one that is no dialogue may be, too."""
        done = 0

        def tell(here: int) -> None:
            if on_bytes:
                on_bytes(done + here)

        for paths, kind in self.groups:
            for item in read(paths, report, kind, self.form, tell):
                yield kind == "dialogues" or isinstance(item, Dialogue), item
            done += sum(source[2] for source in self.sources() if source[0] == kind)

    def sources(self) -> list[tuple[str, str, int, int]]:
        """Return of each file how it is read, its path, its size, and when it was changed."""
        found: list[tuple[str, str, int, int]] = []
        for paths, kind in self.groups:
            for source in find_sources(paths):
                if source.path is not None:
                    with suppress(OSError):  # who reads it will say so
                        stat = source.path.stat()
                        path = os.path.realpath(source.path)
                        found.append((kind, path, stat.st_size, stat.st_mtime_ns))
        return found

    def is_large(self) -> bool:
        """Whether the data are to be stored. Standard input cannot be read twice."""
        found = [source for paths, _ in self.groups for source in find_sources(paths)]
        from_files = all(source.path is not None for source in found)
        return from_files and sum(size for _, _, size, _ in self.sources()) >= LARGE


@dataclass
class Extent:
    """How much there is for a phase.

    Attributes
    ----------
    items, characters
        Their number, and their length.
    others
        How many of them are no dialogues.
    sha256
        Of all of them; see `digest`.
    beginning
        The first of them, about a million characters.
    """

    items: int = 0
    characters: int = 0
    others: int = 0
    sha256: str = ""
    beginning: list[Item] = field(default_factory=list)
    _shown: int = 0
    _sha256: Any = field(default_factory=hashlib.sha256)

    def count(self, item: Item) -> None:
        """Count an item."""
        text = item if isinstance(item, str) else item.text()
        self.items, self.characters = self.items + 1, self.characters + len(text)
        self.others += isinstance(item, str)
        add_to_digest(self._sha256, text)
        if self._shown < SAMPLE:
            self.beginning.append(item[: SAMPLE - self._shown] if isinstance(item, str) else item)
            self._shown += len(text)

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON holds it."""
        shown = [
            item if isinstance(item, str) else [[one.role, one.content] for one in item.messages]
            for item in self.beginning
        ]
        return {
            "items": self.items, "characters": self.characters, "others": self.others,
            "sha256": self._sha256.hexdigest(), "beginning": shown,
        }  # fmt: skip

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Extent:
        """Return what `to_dict` has returned."""
        beginning = [
            item if isinstance(item, str) else Dialogue(tuple(Message(*one) for one in item))
            for item in values["beginning"]
        ]
        return cls(**{**values, "beginning": beginning})


def add_to_digest(sha256: Any, text: str) -> None:
    """Add a text to a digest of many."""
    parts = range(0, len(text), _DIGESTED)  # of a text as large as a file, no copy is made
    length = sum(len(_bytes(text, first)) for first in parts)
    sha256.update(length.to_bytes(8, "little"))
    for first in parts:
        sha256.update(_bytes(text, first))


def _bytes(text: str, first: int) -> bytes:
    return text[first : first + _DIGESTED].encode("utf-8", "surrogatepass")


class StoredData:
    """Data that stay in their files, and what is known of them on disk.

    All that follows from the files lies in one folder of the cache, whose name follows from their
    paths. Once a file is changed, it is made anew.

    Parameters
    ----------
    request
        The data.
    cache
        The folder of all caches.
    on_progress
        Told of work that takes long.

    Attributes
    ----------
    report
        What was read of which file.
    extents : tuple of Extent
        Of the texts, and of the chat.

    Raises
    ------
    DataError
        If the data cannot be read, or the cache not be written.
    """

    def __init__(self, request: Request, cache: Path, on_progress: OnProgress | None) -> None:
        self.request, self._on_progress = request, on_progress
        self._sources = request.sources()
        self._made_from = {
            "version": VERSION, "form": request.form, "sources": [*map(list, self._sources)],
        }  # fmt: skip
        paths = json.dumps([request.form, *(source[:2] for source in self._sources)])
        # Its name begins with a dot, so that it is no data where it lies in a folder of data.
        self._cache, self._folder = cache, cache / f".{_name_of(paths)}"
        self._state = _name_of(json.dumps(self._made_from))
        self._rows: dict[str, Rows] = {}  # what a training has begun with it ends with
        self.report, self.extents = self._made(MANIFEST, self._read_manifest, self._write_manifest)

    def __reduce__(self) -> tuple[Any, ...]:
        """Let another process open the files itself."""
        return StoredData, (self.request, self._cache, None)

    # What is on disk

    def _made(
        self, name: str, find: Callable[[Path], Shown | None], make: Callable[[Path], None]
    ) -> Shown:
        """Return what a file of the cache holds, which is made if it is not there."""
        path = self._folder / name
        found = find(path)
        if found is None:
            with self._writing():
                found = find(path)  # another process may have made it
                if found is None:
                    make(path)
                    found = find(path)
        if found is None:
            raise DataError(f"the token cache in {str(self._folder)!r} was removed meanwhile")
        return found

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            with FolderLock(self._folder, PATIENCE):
                yield
        except (OSError, CheckpointError) as error:
            raise cannot_write(self._folder, error) from None

    def _check_unchanged(self) -> None:
        for _, file, *_ in {*self.request.sources()} ^ {*self._sources}:
            raise DataError(f"{file!r} was changed while it was read: begin again")

    def _read_manifest(self, path: Path) -> tuple[Report, tuple[Extent, Extent]] | None:
        try:
            content = json.loads(path.read_bytes())
            if content["made_from"] != self._made_from:
                return None
            files = [
                FileReport(**{**values, "ignored": Counter(values["ignored"])})
                for values in content["files"]
            ]
            texts, chat = map(Extent.from_dict, content["extents"])
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return Report(files, content["left_out"]), (texts, chat)

    def _write_manifest(self, path: Path) -> None:
        """Read all data once; what was made of them before is removed."""
        for file in self._folder.iterdir():
            if file.name != LOCK_FILE:
                with suppress(OSError):  # somebody has it open (Windows)
                    file.unlink()
        report, extents = Report(), (Extent(), Extent())
        for is_chat, item in self.items("reading", report):
            extents[is_chat].count(item)
        content = {
            "made_from": self._made_from,
            "files": [vars(file) for file in report.files],
            "left_out": report.left_out,
            "extents": [extent.to_dict() for extent in extents],
        }
        with replacing(path) as written:
            written.write(json.dumps(content).encode())

    # What is made of them

    def items(self, what: str, report: Report | None = None) -> Iterator[tuple[bool, Item]]:
        """Yield whether it is for the chat, and the item, of all; what is told is done."""
        tell, total = self._on_progress, sum(size for _, _, size, _ in self._sources)
        on_bytes = (lambda done: tell(what, done, total)) if tell else None
        yield from self.request.items(report or Report(), on_bytes)
        self._check_unchanged()  # before anything that is made of them is whole
        if tell:
            tell(what, total, total)

    def texts(self, is_chat: bool, view: Callable[[Item], Shown]) -> StoredTexts[Shown]:
        """Return the items of a phase, each as `view` shows it."""
        return StoredTexts(self, is_chat, view)

    def tokenizer(self, name: str, vocab_size: int | None) -> BaseTokenizer:
        """Return a tokenizer that was trained on the data; see `tokenizer_for`."""

        def find(path: Path) -> BaseTokenizer | None:
            try:
                return read_tokenizer(path.read_text(encoding="utf-8"))
            except (OSError, ValueError):
                return None

        def make(path: Path) -> None:
            texts = (_as_text(item) for _, item in self.items("finding the tokens"))
            content = tokenizer_for(texts, name, vocab_size).to_json()
            with replacing(path) as file:
                file.write(content.encode())

        file = f"tokenizer-{name}-{vocab_size or 'default'}-{self._state}.json"
        return self._made(file, find, make)

    def rows(self, is_chat: bool, text_format: TextFormat, loss_on: str) -> Rows:
        """Return the items of a phase as token ids; see `encode_text`."""
        made_by = [self._state, *text_format.described(), is_chat, loss_on]
        name = f"tokens-{_name_of(json.dumps(made_by))}"
        size = text_format.tokenizer.vocab_size

        def make(path: Path) -> None:
            texts = (item for chat, item in self.items("tokenising") if chat == is_chat)
            encoded = (encode_text(text, text_format, loss_on) for text in texts)
            rows = (checked(row, size) for row in encoded)
            sweep(self._folder)
            write_tokens(path, flat_parts(rows), size, loss_on == "assistant")

        if name not in self._rows:
            self._rows[name] = self._made(name, read_tokens, make)
        return self._rows[name]


class StoredTexts(Sequence[Shown]):
    """Texts or dialogues that are read from their files each time that somebody goes through them.

    One in the middle is found by reading all before it.
    """

    def __init__(self, data: StoredData, is_chat: bool, view: Callable[[Item], Shown]) -> None:
        self._data, self._is_chat, self._view = data, is_chat, view
        self.extent = data.extents[is_chat]

    def __reduce__(self) -> tuple[Any, ...]:
        return StoredTexts, (self._data, self._is_chat, self._view)

    def __len__(self) -> int:
        return self.extent.items

    def __iter__(self) -> Iterator[Shown]:
        for is_chat, item in self._data.items("reading"):
            if is_chat == self._is_chat:
                yield self._view(item)

    @overload
    def __getitem__(self, index: int) -> Shown: ...
    @overload
    def __getitem__(self, index: slice) -> list[Shown]: ...
    def __getitem__(self, index: int | slice) -> Shown | list[Shown]:
        wanted = range(len(self))[index]
        if isinstance(wanted, range):
            rows = {i: text for i, text in enumerate(self) if i in wanted}
            return [rows[i] for i in wanted]
        return next(text for i, text in enumerate(self) if i == wanted)

    def beginning(self) -> list[Shown]:
        """Return the first of them, about a million characters."""
        return [*map(self._view, self.extent.beginning)]

    def rows(self, text_format: TextFormat, loss_on: str = "") -> Rows:
        """Return them as token ids; see `encode_text`."""
        return self._data.rows(self._is_chat, text_format, loss_on)


def _name_of(content: str) -> str:
    return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _as_text(item: Item) -> str:
    return item if isinstance(item, str) else item.text()


# Of texts, wherever they are


def encode_all(texts: Sequence[Text], text_format: TextFormat, loss_on: str = "") -> Rows:
    """Return whole texts as token ids; see `encode_text`."""
    if isinstance(texts, StoredTexts):
        return texts.rows(text_format, loss_on)
    rows = (encode_text(text, text_format, loss_on) for text in texts)
    return Rows.of(checked(row, text_format.tokenizer.vocab_size) for row in rows)


def characters(texts: Sequence[Any]) -> int:
    """Return how many characters texts or dialogues have."""
    if isinstance(texts, StoredTexts):
        return texts.extent.characters
    return sum(map(len, map(_as_text, texts)))


def digest(texts: Sequence[object]) -> str:
    """Return the SHA-256 of texts."""
    if isinstance(texts, StoredTexts):
        return texts.extent.sha256
    sha256 = hashlib.sha256()
    for text in texts:
        add_to_digest(sha256, str(text))
    return sha256.hexdigest()
