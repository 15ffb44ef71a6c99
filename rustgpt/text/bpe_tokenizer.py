"""Owns byte-level BPE, through the package `tokenizers`: trained here, or read from its files."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, pairwise, repeat
from typing import Any, Final

import numpy as np

from rustgpt.backend import encoder
from rustgpt.errors import RustGPTError, TokenizerError
from rustgpt.file_set import reason
from rustgpt.reference import bpe
from rustgpt.text.chunks import BLOCK, blocks
from rustgpt.text.counting import count_parts, most_frequent
from rustgpt.text.pairs import Table, pair_table
from rustgpt.text.tokenizer_json import read_object
from rustgpt.text.tokens import BYTES, PieceTokenizer, check_limit, split_texts
from rustgpt.text.vocab import END, SURROGATE

DEFAULT_SIZE: Final = 4096
# What ends a text in the files of others, in the order in which they are looked for.
ENDS: Final = (END, "<|endoftext|>", "<|end_of_text|>", "<|im_end|>", "<|eot_id|>", "<eos>")
UNUSED: Final = "<|unused-{}|>"  # tokens of a model that its file does not have
END_OF_TEXT: Final = "end_of_text"  # what of our own stands in the "model" of a file
REPLACEMENT: Final = "\ufffd"
HOLES: Final = 1 << 16  # numbers without a token that a file may have
# What a tokenizer is trained on: more would cost much memory or time and change little.
MOST_DIFFERENT: Final = 1 << 17  # pieces, the most frequent ones
MOST_FED: Final = 1 << 23  # occurrences of pieces
AT_ONCE: Final = 1 << 12  # occurrences that the package is given as one text
_SPLIT: Final = re.compile(rf"({SURROGATE.pattern})")
# What GPT-2's rule takes each code point for, by numbers of `rustgpt/reference/bpe.py`: what the
# library has said, and 0 where it has not been asked yet.
_KINDS: Final = np.zeros(0x110000, np.uint8)


class BpeTokenizer(PieceTokenizer):
    """Byte pair encoding over bytes, as in GPT-2; what is on disk is the library's own file.

    Ids and text are those of the library (`tokenizers`), but for what it cannot take or would
    mistake: the name of a special token in a text is text, a lone surrogate is three bytes, and
    what a file has no bytes for becomes U+FFFD. A file whose normalizer changes texts gives the
    changed text back.

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
        If it is no byte-level BPE, or one in which text could get lost; or if the package
        `tokenizers` is not installed.
    """

    def __init__(
        self, content: dict[str, Any], end: str | None = None, size: int | None = None
    ) -> None:
        _check_kind(content)
        # Nothing is cut off, filled up or left to chance.
        model = {**content["model"], "dropout": None}
        content = {**content, "truncation": None, "padding": None, "model": model}
        self._library = _guarded(_library().Tokenizer.from_str, json.dumps(content))
        self._named_end = end or model.get(END_OF_TEXT)
        end = _end_token(self._library, content, self._named_end)
        if size is not None:
            _fill_up(self._library, size)
        self._library.encode_special_tokens = True  # as text: nothing that is typed is special
        special = _special_tokens(self._library, content)
        pieces = _pieces(self._library)
        super().__init__(pieces, special, self._library.token_to_id(end))
        spelled = {piece: i for i, piece in enumerate(pieces) if i not in special}
        self._missing = b"".join(byte for byte in BYTES if byte not in spelled)
        if any(byte in self._missing for byte in REPLACEMENT.encode()):
            raise TokenizerError(
                f"the tokenizer lacks {len(self._missing)} of the 256 bytes, so that text would "
                "get lost: train it with the whole alphabet "
                "(pre_tokenizers.ByteLevel.alphabet())"
            )
        self._bytes = np.array([spelled.get(byte, -1) for byte in BYTES], np.int32)
        self._merges = _merges(content["model"]) if _is_gpt2(content) else None

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self).from_json, (self.to_json(),)

    @classmethod
    def train(cls, texts: Iterable[str], max_vocab_size: int | None = None) -> BpeTokenizer:
        """Learn which pairs to merge from texts.

        Parameters
        ----------
        texts
            The texts; ``</s>`` in them is the end token.
        max_vocab_size
            The most tokens to have, from 257 on (default: 4,096).
        """
        check_limit(max_vocab_size, 1 + len(BYTES))
        library = _library()
        level = library.pre_tokenizers.ByteLevel
        trained = library.Tokenizer(library.models.BPE())
        trained.pre_tokenizer = level(add_prefix_space=False)
        trained.decoder = library.decoders.ByteLevel()
        trainer = library.trainers.BpeTrainer(
            vocab_size=DEFAULT_SIZE if max_vocab_size is None else max_vocab_size,
            special_tokens=[END],
            initial_alphabet=level.alphabet(),
            show_progress=False,
        )
        counts = most_frequent(count_parts(_cut(texts)), MOST_DIFFERENT)
        _guarded(lambda: trained.train_from_iterator(_repeated(counts), trainer))
        return cls(json.loads(trained.to_str()))

    def _encode_part(self, text: str) -> list[int]:
        if len(text) <= BLOCK:
            return self._encode_block(text)
        ids: list[int] = []
        for start, end in blocks(text):
            ids += self._encode_block(text[start:end])
        return ids

    def _encode_block(self, text: str) -> list[int]:
        try:
            utf8 = text.encode()
        except UnicodeEncodeError:
            ids: list[int] = []
            for part in _SPLIT.split(text):
                if SURROGATE.match(part):
                    ids += self._bytes[[*part.encode("utf-8", "surrogatepass")]].tolist()
                else:
                    ids += self._encode_block(part)
            return ids
        if not utf8:
            return []
        if self._missing and len(utf8.translate(None, self._missing)) < len(utf8):
            signs = (REPLACEMENT if {*sign.encode()} & {*self._missing} else sign for sign in text)
            text = "".join(signs)
            utf8 = text.encode()
        if self._merges is None:
            return self._asked([text])[0]
        return self._encode_utf8(utf8, self._merges)

    def _encode_utf8(self, utf8: bytes, merges: Table) -> list[int]:
        """Encode text as GPT-2 does; the library has the pieces that are very long."""
        encode = encoder("bpe_encode")
        room = np.empty(len(utf8), np.int32)
        ids: list[int] = []
        start = 0
        while start < len(utf8):
            start, end, n = encode(utf8, start, _KINDS, self._bytes, merges, room)
            ids += room[:n].tolist()
            if end > start:
                ids += self._asked([utf8[start:end].decode()])[0]
                start = end
            elif start < len(utf8):
                _learn_kinds(utf8)
        return ids

    def _asked(self, texts: list[str]) -> list[list[int]]:
        """Return what the library makes of each text."""
        made = self._library.encode_batch_fast(texts, add_special_tokens=False)
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
    def from_json(cls, text: str) -> BpeTokenizer:
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


def _cut(texts: Iterable[str]) -> Iterator[list[bytes]]:
    """Yield the pieces that GPT-2's rule cuts texts into, a list for each block of them."""
    cut = encoder("bpe_pieces")
    for text in chain.from_iterable(map(_SPLIT.split, split_texts(texts))):
        for first, last in blocks(text) if not SURROGATE.match(text) else ():
            utf8 = text[first:last].encode()
            ends = np.empty(len(utf8), np.int32)
            start = 0
            while start < len(utf8):
                begin = start
                start, n = cut(utf8, start, _KINDS, ends)
                yield [utf8[a:b] for a, b in pairwise([begin, *ends[:n].tolist()])]
                if start < len(utf8):
                    _learn_kinds(utf8)


def _repeated(counts: Counter[bytes]) -> Iterator[str]:
    """Yield pieces as text that is cut into them, as often as they occur.

    Between two of the same there is a line break, which is a piece by itself, and as a single byte
    merges with nothing. Where there are very many pieces, a fixed share of each is enough.
    """
    share = min(1.0, MOST_FED / max(1, counts.total()))
    for piece, times in counts.items():
        text, left = piece.decode(), round(times * share)
        at_once = 1 if text.isspace() else AT_ONCE  # white space joins the line break
        for times in (*repeat(at_once, left // at_once), left % at_once):
            yield "\n".join(repeat(text, times))


def _learn_kinds(utf8: bytes) -> None:
    """Ask the library for the kinds of those code points of a text that have none yet."""
    codes = np.unique(np.frombuffer(utf8.decode().encode("utf-32-le"), "<u4"))
    codes = codes[_KINDS[codes] == 0]
    text = "".join(map(chr, codes.tolist()))
    kinds = np.full(len(codes), bpe.OTHER, np.uint8)
    library = _library()
    for kind, sign, pattern in (
        (bpe.LETTER, "a", r"\p{L}"), (bpe.NUMBER, "1", r"\p{N}"), (bpe.WHITE, " ", r"\s"),
    ):  # fmt: skip
        # All characters of the kind become one of them.
        replaced = library.normalizers.Replace(library.Regex(pattern), sign).normalize_str(text)
        kinds[[character == sign for character in replaced]] = kind
    _KINDS[codes] = kinds  # at once: another thread may be encoding


def _merges(model: dict[str, Any]) -> Table:
    """Return the rank and the token of each pair of tokens that merges; see `bpe_encode`."""
    ids = model["vocab"]
    found: dict[tuple[int, int], int] = {}
    for rank, merge in enumerate(model["merges"]):
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        found[ids[left], ids[right]] = rank << 32 | ids[left + right]
    pairs = np.array([*found], np.int64).reshape(-1, 2)
    return pair_table(pairs[:, 0], pairs[:, 1], [*found.values()])


def _library() -> Any:
    """Return the package `tokenizers`; it is an extra."""
    try:
        import tokenizers

        tokenizers.Tokenizer  # noqa: B018  (a folder of this name may be in the way)
    except (ImportError, AttributeError):
        raise TokenizerError(
            "byte-level BPE needs the package tokenizers: install it by pip install 'rustgpt[bpe]'"
        ) from None
    return tokenizers


def _guarded(work: Callable[..., Any], *arguments: Any) -> Any:
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


def _check_kind(content: dict[str, Any]) -> None:
    """Raise TokenizerError unless this describes a BPE over bytes."""
    parts = {name: content.get(name) for name in ("model", "decoder")}
    model, decoder = (part if isinstance(part, dict) else {} for part in parts.values())
    kinds = model.get("type"), decoder.get("type")
    affixes = model.get("continuing_subword_prefix"), model.get("end_of_word_suffix")
    if kinds != ("BPE", "ByteLevel") or any(affixes):
        raise TokenizerError(
            "of the tokenizers of others, only byte-level BPE can be read: the model must be BPE "
            f"and the decoder ByteLevel, but they are {kinds[0]!r:.40} and {kinds[1]!r:.40}"
        )
    if not isinstance(model.get("vocab"), dict) or not isinstance(model.get("merges"), list):
        raise TokenizerError('the "model" of the tokenizer lacks an object "vocab" or "merges"')
    pairs = (m.split(" ") if isinstance(m, str) else m for m in model["merges"])
    if not all(isinstance(m, list) and len(m) == 2 and {*map(type, m)} == {str} for m in pairs):
        raise TokenizerError('each of the "merges" of the tokenizer must be two pieces of text')


def _is_gpt2(content: dict[str, Any]) -> bool:
    """Whether text is cut as GPT-2 does, and nothing else happens to it."""
    cut = content.get("pre_tokenizer") or {}
    settings = cut.get("type"), cut.get("use_regex", True), cut.get("add_prefix_space")
    if settings != ("ByteLevel", True, False) or content.get("normalizer") is not None:
        return False
    if content["model"].get("ignore_merges"):
        return False
    return all(token["special"] for token in content.get("added_tokens") or [])


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
        if name in merged or i in library.encode(name, add_special_tokens=False).ids:
            raise TokenizerError(
                f"the special token {name!r:.60} of the tokenizer is also made of ordinary text; "
                "it must be another"
            )
    return special


def _pieces(library: Any) -> list[bytes]:
    """Return the bytes of each token."""
    ids = library.get_vocab(with_added_tokens=True)
    size = max(ids.values()) + 1
    if size > len(ids) + HOLES:
        raise TokenizerError(f"the tokenizer has {len(ids):,} tokens, but one of number {size - 1}")
    pieces = [b""] * size
    for token, i in ids.items():
        try:
            pieces[i] = bytes([_BYTE_OF[character] for character in token])
        except KeyError:  # an added token: the text itself
            pieces[i] = token.encode()
    return pieces


def _alphabet() -> dict[str, int]:
    """Return which byte each character of a token stands for, as GPT-2 has it."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in shown]
    return {
        **{chr(byte): byte for byte in shown},
        **{chr(256 + i): byte for i, byte in enumerate(others)},
    }


_BYTE_OF: Final = _alphabet()
