"""Owns what all tokenizers of the package `tokenizers` share: its file, special tokens, ends."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Final, Self

from rustgpt.errors import RustGPTError, TokenizerError
from rustgpt.extras import extra
from rustgpt.file_set import reason
from rustgpt.text.tokenizer_json import read_object
from rustgpt.text.tokens import PieceTokenizer
from rustgpt.text.vocab import END

# What ends a text in the files of others, in the order in which they are looked for.
ENDS: Final = (END, "<|endoftext|>", "<|end_of_text|>", "<|im_end|>", "<|eot_id|>", "<eos>")
UNUSED: Final = "<|unused-{}|>"  # tokens of a model that its file does not have
END_OF_TEXT: Final = "end_of_text"  # what of our own stands in the "model" of a file
READABLE: Final = (
    "of the tokenizers of others, byte-level BPE can be read, and BPE as SentencePiece has it"
)
HOLES: Final = 1 << 16  # numbers without a token that a file may have


class LibraryTokenizer(PieceTokenizer):
    """A tokenizer whose ids are those of the library; what is on disk is the library's own file.

    Parameters
    ----------
    content
        A `tokenizer.json` as a dictionary.
    end
        The special token that ends a text; without, it is looked for under the usual names.
    size
        How many tokens there must be: a model may have room for more than the file names. What is
        left over is named ``<|unused-N|>``.

    Raises
    ------
    TokenizerError
        If text could become a special token, or the tokens do not fit the size; or if the
        package `tokenizers` is not installed.
    """

    def __init__(
        self, content: dict[str, Any], end: str | None = None, size: int | None = None
    ) -> None:
        # Nothing is cut off, filled up or left to chance.
        model = {**content["model"], "dropout": None}
        content = {**content, "truncation": None, "padding": None, "model": model}
        content["post_processor"] = None  # who asks for ids puts the start token before them
        self._library = guarded(the_library().Tokenizer.from_str, json.dumps(content))
        self._named_end = end or model.get(END_OF_TEXT)
        end = _end_token(self._library, content, self._named_end)
        if size is not None:
            _fill_up(self._library, size)
        self._library.encode_special_tokens = True  # as text: nothing that is typed is special
        special = _special_tokens(self._library, content)
        super().__init__(self._all_pieces(), special, self._library.token_to_id(end))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self).from_json, (self.to_json(),)

    def _bytes_of(self, token: str) -> bytes:
        """Return the bytes of a token, by its name in the file."""
        raise NotImplementedError

    def _all_pieces(self) -> list[bytes]:
        """Return the bytes of each token."""
        ids = self._library.get_vocab(with_added_tokens=True)
        size = max(ids.values()) + 1
        if size > len(ids) + HOLES:
            raise TokenizerError(
                f"the tokenizer has {len(ids):,} tokens, but one of number {size - 1}"
            )
        pieces = [b""] * size
        for token, i in ids.items():
            pieces[i] = self._bytes_of(token)
        return pieces

    def _asked(self, texts: list[str]) -> list[list[int]]:
        """Return what the library makes of each text."""
        made = guarded(self._library.encode_batch_fast, texts, False, False)
        return [encoding.ids for encoding in made]

    def library_content(self) -> dict[str, Any]:
        """Return the `tokenizer.json` for other programs, without what only fills it up."""
        content: dict[str, Any] = json.loads(self._library.to_str())
        tokens = content["added_tokens"]
        content["added_tokens"] = [t for t in tokens if t["content"] != UNUSED.format(t["id"])]
        return content

    def to_json(self) -> str:
        """Write the tokenizer as the library does."""
        text = str(self._library.to_str(pretty=True))
        if self._named_end is None:
            return text
        content = json.loads(text)
        content["model"][END_OF_TEXT] = self._named_end  # which the library passes over
        return json.dumps(content, ensure_ascii=False, indent=2)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read a `tokenizer.json` of the library.

        Raises
        ------
        TokenizerError
            If it is anything else, or see the class.
        """
        content = read_object(text)
        if content is None:
            raise TokenizerError("this is no tokenizer.json: it must be an object")
        return cls(content)


def check_bpe(content: dict[str, Any]) -> dict[str, Any]:
    """Return the model of a tokenizer.json, or raise TokenizerError if it is none of BPE."""
    model = content.get("model")
    kind = model.get("type") if isinstance(model, dict) else None
    if isinstance(model, dict) and "merges" in model:
        kind = model.get("type", "BPE")  # which the oldest files do not say
    if not isinstance(model, dict) or kind != "BPE":
        raise TokenizerError(f"{READABLE}, but the model is {kind!r:.40}")
    if not isinstance(model.get("vocab"), dict) or not isinstance(model.get("merges"), list):
        raise TokenizerError('the "model" of the tokenizer lacks an object "vocab" or "merges"')
    pairs = [m.split(" ") if isinstance(m, str) else m for m in model["merges"]]
    if not all(isinstance(m, list) and len(m) == 2 and {*map(type, m)} == {str} for m in pairs):
        raise TokenizerError('each of the "merges" of the tokenizer must be two pieces of text')
    for pair in pairs:
        if "".join(pair) not in model["vocab"]:  # on which the library may print an alarm
            raise TokenizerError(f"the merge {pair!r:.60} of the tokenizer gives no token of it")
    return model


def the_library() -> Any:
    """Return the package `tokenizers`; it is an extra."""
    return extra("tokenizers", "Tokenizer", "bpe", "byte pair encoding", TokenizerError)


def guarded(work: Callable[..., Any], *arguments: Any) -> Any:
    """Do what the library may refuse; its panics are no `Exception`."""
    try:
        return work(*arguments)
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        if isinstance(error, RustGPTError):
            raise
        why = f"the package tokenizers refuses the tokenizer: {reason(error):.200}"
        raise TokenizerError(why) from None


def _end_token(library: Any, content: dict[str, Any], named: str | None) -> str:
    """Return the name of the token that ends a text; one is added where there is none."""
    special = {t["content"] for t in content.get("added_tokens") or [] if t.get("special")}
    if named is not None and named not in special:
        raise TokenizerError(f"{named!r:.60}, which ends texts, is no special token")
    for name in ENDS if named is None else [named]:
        if name in special:
            return name
    if library.token_to_id(END) is not None:
        raise TokenizerError(f"{END} must be a special token of the tokenizer, not an ordinary one")
    library.add_special_tokens([END])
    return END


def _fill_up(library: Any, size: int) -> None:
    """Add tokens until there are `size`, or raise TokenizerError."""
    ids = library.get_vocab(with_added_tokens=True)
    first = max(ids.values()) + 1
    if first > size:
        raise TokenizerError(
            f"there are tokens up to number {first - 1:,}, but a model of {size:,}"
        )
    if size > first + HOLES:
        raise TokenizerError(f"there are {first:,} tokens, but a model of {size:,}")
    if first < size:
        library.add_special_tokens([UNUSED.format(i) for i in range(first, size)])
    if library.get_vocab_size(with_added_tokens=True) != len(ids) + size - first:
        raise TokenizerError(f"its {first:,} tokens cannot be filled up to {size:,}")


def _special_tokens(library: Any, content: dict[str, Any]) -> dict[int, str]:
    """Return the special tokens by number; TokenizerError if text could become one."""
    added = library.get_added_tokens_decoder()
    special = {i: token.content for i, token in added.items() if token.special}
    merges = content["model"]["merges"]
    merged = {m.replace(" ", "", 1) if isinstance(m, str) else "".join(m) for m in merges}
    for i, name in special.items():
        if name in merged or i in guarded(library.encode, name).ids:
            raise TokenizerError(
                f"the special token {name!r:.60} of the tokenizer is also made of ordinary text; "
                "it must be another"
            )
    return special
