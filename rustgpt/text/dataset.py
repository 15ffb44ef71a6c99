"""Owns the training data: the texts and dialogues of the two phases, of one's own or bundled."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, chain
from pathlib import Path
from typing import Any, Final

from rustgpt.errors import ConfigError, DataError
from rustgpt.text.choose import SAMPLE, choose
from rustgpt.text.dialogue import Dialogue
from rustgpt.text.reading import AUTO, Report
from rustgpt.text.records import Item, Kind
from rustgpt.text.sources import StrPath
from rustgpt.text.stored import OnProgress, Paths, Request, StoredData, StoredTexts
from rustgpt.text.tokenizer import AUTO as AUTO_TOKENIZER
from rustgpt.text.tokenizer import KINDS, BaseTokenizer, tokenizer_for

BUNDLED: Final = {"en": [""], "zh": ["_zh"], "all": ["", "_zh"]}  # language: endings of file names
# Questions with answers; the same asked otherwise; two turns each; and of what nothing is known.
BUNDLED_CHAT: Final = ("chat_training_data", "chat_rewordings", "chat_dialogues", "chat_unknown")


@dataclass(frozen=True)
class Dataset:
    """The texts of the two phases of training.

    Of data larger than `stored.LARGE` each is no list but `StoredTexts`.

    Attributes
    ----------
    pretraining_data : list of str
        Statements and documents.
    chat_training_data : list of str
        Dialogues, as a model reads them: ``User: ... Assistant: ... </s>``.
    dialogues : list of Dialogue or None
        The same by their messages; None for a text that is no dialogue. Made of
        `chat_training_data` where it is not given.
    report : Report, optional
        What was read of which file, and what was not.
    is_bundled : bool
        Whether they are the data that come with rustgpt.
    """

    pretraining_data: Sequence[str]
    chat_training_data: Sequence[str]
    dialogues: Sequence[Dialogue | None] = field(default=(), compare=False, repr=False)
    report: Report | None = field(default=None, compare=False, repr=False)
    is_bundled: bool = field(default=False, compare=False, repr=False)
    stored: StoredData | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        if not self.dialogues:
            object.__setattr__(self, "dialogues", [*map(_parsed, self.chat_training_data)])
        if len(self.dialogues) != len(self.chat_training_data):
            raise DataError(
                f"there are {len(self.chat_training_data)} texts for the chat, but "
                f"{len(self.dialogues)} dialogues: leave the latter out, or give one for each"
            )

    @classmethod
    def load(
        cls,
        paths: Paths | None = None,
        *,
        pretraining: Paths | None = None,
        chat: Paths | None = None,
        form: str = AUTO,
        cache: StrPath | None = None,
        on_progress: OnProgress | None = None,
    ) -> Dataset:
        """Read files, folders, patterns ("notes/*.md") and standard input ("-").

        Parameters
        ----------
        paths : path or list of paths, optional
            Data of any kind: texts are for pre-training, dialogues for tuning.
        pretraining : path or list of paths, optional
            Data to be read as texts, dialogues too.
        chat : path or list of paths, optional
            Dialogues; what is none is learned as it is in the same phase.
        form : str
            The form of the files or of the records in them, where it shall not be found out; see
            the page on your own data.
        cache
            Of more than 16 MB of files nothing is held in memory: they are read as they are
            needed, and their tokens are kept in this folder; by default `rustgpt` in the user's
            folder for caches.
        on_progress
            Told of work on that much data: what is done, and how many bytes of how many.

        Raises
        ------
        DataError
            If something cannot be read, or there is nothing to train on.
        ConfigError
            If the form is unknown.

        Examples
        --------
        >>> Dataset.load(["notes/", "questions.jsonl"])  # doctest: +SKIP
        """
        if paths is None and pretraining is None and chat is None:
            raise DataError("no data to load: name files or folders")
        kinds: tuple[tuple[Paths | None, Kind], ...] = (
            (paths, "auto"), (pretraining, "texts"), (chat, "dialogues"),
        )  # fmt: skip
        request = Request.of(kinds, form)
        if request.is_large():
            folder = default_cache() if cache is None else Path(cache)
            return cls._stored(StoredData(request, folder, on_progress))
        return cls._read(request)

    @classmethod
    def _read(cls, request: Request) -> Dataset:
        report = Report()
        phases: tuple[list[Item], list[Item]] = ([], [])
        for is_chat, item in request.items(report):
            phases[is_chat].append(item)
        texts, chats = phases
        if report.total("single") == report.total("texts") and not report.total("dialogues"):
            raise DataError(
                f"{report.files[0].name} holds no text of more than one character, so no token "
                "follows another and there is nothing to learn: add some text"
            )
        return cls([*map(_text, texts)], [*map(_text, chats)], [*map(_dialogue, chats)], report)

    @classmethod
    def _stored(cls, data: StoredData) -> Dataset:
        texts, chats = data.extents
        return cls(
            data.texts(False, _text) if texts.items else [],
            data.texts(True, _text) if chats.items else [],
            data.texts(True, _dialogue) if chats.items else [],
            data.report,
            stored=data,
        )

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
        endings = BUNDLED[language]
        data = cls.load(
            pretraining=[folder / f"pretraining_data{ending}.json" for ending in endings],
            chat=[folder / f"{name}{ending}.json" for ending in endings for name in BUNDLED_CHAT],
        )
        return replace(data, is_bundled=True)

    @property
    def tuning_data(self) -> Sequence[Item]:
        """The dialogues, and as they are the texts for the chat that are none."""
        if self.stored and self.chat_training_data:
            return self.stored.texts(True, lambda item: item)
        both = zip(self.dialogues, self.chat_training_data, strict=True)
        return [dialogue or text for dialogue, text in both]

    def tokenizer(self, name: str = AUTO_TOKENIZER, vocab_size: int | None = None) -> BaseTokenizer:
        """Return the tokenizer with which a model is to learn these data; see `tokenizer_for`."""
        if name == AUTO_TOKENIZER:
            name, _ = self.suitable_tokenizer()
        if self.stored and name in KINDS:
            return self.stored.tokenizer(name, vocab_size)
        texts = chain(self.pretraining_data, self.chat_training_data)
        asked = (one for one in self.dialogues if one and not self.stored)
        questions = (m.content for one in asked for m in one.messages if m.role == "user")
        return tokenizer_for(texts, name, vocab_size, questions)

    def suitable_tokenizer(self) -> tuple[str, str]:
        """Return which tokenizer suits the data, and why; see `choose`."""
        first, _ = self.beginning(SAMPLE)
        return choose(first.pretraining_data, first.chat_training_data)

    def beginning(self, most: int) -> tuple[Dataset, bool]:
        """Return the first so many characters, at most `SAMPLE`, and whether those are all."""
        if self.stored:
            return self._stored_beginning(), False
        texts = []
        room = most
        for text in self.pretraining_data:
            if room <= 0:
                break
            texts.append(text[:room])
            room -= len(text)
        ends = accumulate(map(len, self.chat_training_data))
        chats = sum(end < room for end in ends) + (room > 0)
        first = Dataset(texts, self.chat_training_data[:chats], self.dialogues[:chats])
        all_of_them = texts == self.pretraining_data and chats >= len(self.chat_training_data)
        return first, all_of_them

    def _stored_beginning(self) -> Dataset:
        def first(texts: Any) -> list[Any]:
            return texts.beginning() if isinstance(texts, StoredTexts) else list(texts)

        return Dataset(
            first(self.pretraining_data), first(self.chat_training_data), first(self.dialogues)
        )

    @property
    def other_chats(self) -> int:
        """How many of the texts for the chat are no dialogues."""
        return self.stored.extents[1].others if self.stored else [*self.dialogues].count(None)


def default_cache() -> Path:
    """Return where the tokens of data larger than memory are kept."""
    of_user = os.environ.get("XDG_CACHE_HOME")
    return (Path(of_user) if of_user else Path.home() / ".cache") / "rustgpt"


def _text(item: Item) -> str:
    return item if isinstance(item, str) else item.text()


def _dialogue(item: Item) -> Dialogue | None:
    return None if isinstance(item, str) else item


def _parsed(text: str) -> Dialogue | None:
    try:
        return Dialogue.parse(text)
    except DataError:
        return None
