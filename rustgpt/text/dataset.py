"""Owns the training data: the texts and dialogues of the two phases, of one's own or bundled."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from rustgpt.errors import ConfigError, DataError
from rustgpt.text.dialogue import Dialogue
from rustgpt.text.reading import AUTO, Report, read
from rustgpt.text.records import Kind
from rustgpt.text.sources import StrPath
from rustgpt.text.tokenizer import AUTO as AUTO_TOKENIZER
from rustgpt.text.tokenizer import BaseTokenizer, tokenizer_for

Paths = StrPath | Iterable[StrPath]

BUNDLED: Final = {"en": [""], "zh": ["_zh"], "all": ["", "_zh"]}  # language: endings of file names


@dataclass(frozen=True)
class Dataset:
    """The texts of the two phases of training.

    Attributes
    ----------
    pretraining_data : list of str
        Statements and documents.
    chat_training_data : list of str
        Dialogues, as a model reads them: in the form of `chat_prompt`, followed by its answer.
    dialogues : list of Dialogue or None
        The same by their messages; None for a text that is no dialogue. Made of
        `chat_training_data` where it is not given.
    report : Report, optional
        What was read of which file, and what was not.
    is_bundled : bool
        Whether they are the data that come with rustgpt.
    """

    pretraining_data: list[str]
    chat_training_data: list[str]
    dialogues: list[Dialogue | None] = field(default_factory=list, compare=False, repr=False)
    report: Report | None = field(default=None, compare=False, repr=False)
    is_bundled: bool = field(default=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        if not self.dialogues:
            self.dialogues.extend(map(_parsed, self.chat_training_data))
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
        report = Report()
        texts: list[str] = []
        chat_texts: list[str] = []
        dialogues: list[Dialogue | None] = []
        kinds: tuple[tuple[Paths | None, Kind], ...] = (
            (paths, "auto"), (pretraining, "texts"), (chat, "dialogues"),
        )  # fmt: skip
        for given, kind in kinds:
            for item in read(given, report, kind, form) if given is not None else ():
                if isinstance(item, Dialogue):
                    dialogues.append(item)
                    chat_texts.append(item.text())
                elif kind == "dialogues":
                    dialogues.append(None)
                    chat_texts.append(item)
                else:
                    texts.append(item)
        if report.total("single") == report.total("texts") and not report.total("dialogues"):
            raise DataError(
                f"{report.files[0].name} holds no text of more than one character, so no token "
                "follows another and there is nothing to learn: add some text"
            )
        return cls(texts, chat_texts, dialogues, report)

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
            chat=[folder / f"chat_training_data{ending}.json" for ending in endings],
        )
        return replace(data, is_bundled=True)

    @property
    def tuning_data(self) -> list[Dialogue | str]:
        """The dialogues, and as they are the texts for the chat that are none."""
        both = zip(self.dialogues, self.chat_training_data, strict=True)
        return [dialogue or text for dialogue, text in both]

    def tokenizer(self, name: str = AUTO_TOKENIZER, vocab_size: int | None = None) -> BaseTokenizer:
        """Return the tokenizer with which a model is to learn these data; see `tokenizer_for`."""
        return tokenizer_for(self.pretraining_data, name, vocab_size, self.chat_training_data)


def _parsed(text: str) -> Dialogue | None:
    try:
        return Dialogue.parse(text)
    except DataError:
        return None
