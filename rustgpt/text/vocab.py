"""Owns the vocabulary: which tokens exist, under which number, and how they are chosen from data.

A vocabulary is laid out as ``[special tokens][256 bytes][continuation pieces][words and signs]``.
A token of the last part that names itself, such as ``"rain"`` or ``"?"``, is a unit of text; the
names of all others hold one of ``# < >`` beside other characters. These signs are punctuation, and
punctuation is always cut into units of one character, so no text that a user types can be mistaken
for ``</s>``, ``<0x41>`` or ``##ing``: it arrives as ``<`` ``/`` ``s`` ``>`` and so on.
"""

from __future__ import annotations

import json
import re
import string
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from rustgpt.errors import ConfigError, TokenizerError
from rustgpt.text.counting import count_parts
from rustgpt.text.tokenizer_json import read_content
from rustgpt.text.units import is_word

END: Final = "</s>"  # the text ends here
JOIN: Final = "<join>"  # no space here although one is the rule
SPACE_MARK: Final = "<space>"  # a space here although none is the rule
PIECE: Final = "##"  # begins the name of a piece that continues a word

FORMAT: Final = "rustgpt-word"
VERSION: Final = 1

SPECIALS: Final = (END, JOIN, SPACE_MARK)
END_ID: Final = SPECIALS.index(END)
FIRST_BYTE: Final = len(SPECIALS)
FIXED: Final = (*SPECIALS, *(f"<0x{byte:02X}>" for byte in range(256)))

# A longer word is spelled in pieces. The bound keeps encoding linear in the length of a word.
LONGEST_WORD: Final = 32
FRAGMENT_LENGTHS: Final = (2, 3, 4)
FRAGMENT_WORDS: Final = 5  # a fragment stands in at least so many different words
MOST_FRAGMENTS: Final = 100

# No white space, ASCII punctuation or half of a surrogate pair. Other punctuation is let through:
# what counts as such differs between Unicode versions, and a token that no text is cut into is
# merely never used.
_WORD: Final = re.compile(rf"[^\s!-/:-@\[-`{{-~\ud800-\udfff]{{1,{LONGEST_WORD}}}")
SURROGATE: Final = re.compile(r"[\ud800-\udfff]")


@dataclass(frozen=True)
class Vocab:
    """Tokens by number (`tokens`) and numbers by token (`ids`).

    Parameters
    ----------
    tokens : tuple of str
        All tokens in order, starting with the special tokens and the 256 bytes.

    Raises
    ------
    TokenizerError
        A token is missing at its fixed place, stands twice, or cannot be a token.
    """

    tokens: tuple[str, ...]
    ids: dict[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        ids: dict[str, int] = {}
        for index, token in enumerate(self.tokens):
            if not isinstance(token, str):
                raise TokenizerError(f"token {index} is a {type(token).__name__}, not a string")
            if index < len(FIXED) and token != FIXED[index]:
                raise TokenizerError(f"token {index} must be {FIXED[index]!r}, not {token!r:.60}")
            if index >= len(FIXED) and not _is_token(token):
                raise TokenizerError(
                    f"token {index} is {token!r:.60}, which is neither a word of at most "
                    f"{LONGEST_WORD} characters nor one sign nor a piece like '##ing'"
                )
            if ids.setdefault(token, index) != index:
                raise TokenizerError(f"token {token!r} stands twice, as {ids[token]} and {index}")
        if len(ids) < len(FIXED):
            raise TokenizerError(f"token {len(ids)} must be {FIXED[len(ids)]!r}, but is missing")
        object.__setattr__(self, "ids", ids)

    def __len__(self) -> int:
        return len(self.tokens)

    def __contains__(self, token: object) -> bool:
        return token in self.ids

    @classmethod
    def build(cls, counts: Mapping[str, int], max_size: int | None = None) -> Vocab:
        """Choose the tokens for text whose units occur so many times.

        Parameters
        ----------
        counts : mapping of str to int
            How often each unit occurs.
        max_size : int, optional
            The most tokens to have. The least frequent units give way, of equally frequent ones
            those later in the alphabet. Default: no limit.

        Raises
        ------
        ConfigError
            The limit leaves no room for the tokens that spell unknown words.
        """
        # Half a surrogate pair is not text: it has no place in a file and stays with the bytes.
        sound = [unit for unit in counts if not SURROGATE.search(unit)]
        words = [unit for unit in sound if is_word(unit)]
        letters = {*string.ascii_letters, *string.digits, *"".join(words)}
        pieces = sorted(PIECE + part for part in letters | _fragments(words))
        rest = [unit for unit in sound if unit not in letters and unit != " "]
        rest = [unit for unit in rest if len(unit) <= LONGEST_WORD]
        if max_size is not None:
            taken = len(FIXED) + len(pieces) + len(letters)
            if isinstance(max_size, bool) or not isinstance(max_size, int) or max_size < taken:
                raise ConfigError(
                    f"the largest size of this vocabulary must be a whole number from {taken} on: "
                    "so many tokens are needed to spell unknown words"
                )
            rest.sort()
            rest.sort(key=lambda unit: -counts[unit])
            del rest[max_size - taken :]
        return cls((*FIXED, *pieces, *sorted([*letters, *rest])))

    def extended(self, units: Iterable[str]) -> Vocab:
        """Return a vocabulary that also has these units, after all others."""
        new = {unit for unit in units if unit not in self.ids and _is_token(unit)}
        return Vocab((*self.tokens, *sorted(new)))

    def to_json(self) -> str:
        """Write the vocabulary as JSON, one token a line."""
        content = {"format": FORMAT, "version": VERSION, "tokens": self.tokens}
        return json.dumps(content, ensure_ascii=False, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Vocab:
        """Read what `to_json` has written; anything else is a TokenizerError."""
        return cls(tuple(read_content(text, FORMAT, VERSION, "tokens", list)))


def _is_token(token: str) -> bool:
    """Tell whether this can stand behind the fixed tokens."""
    if len(token) == 1:
        return token != " " and not SURROGATE.match(token)
    return _WORD.fullmatch(token.removeprefix(PIECE)) is not None


def _fragments(words: Iterable[str]) -> set[str]:
    """Find the endings and inner parts that save most when words are spelled with them."""
    ends = {
        n: [(i, i + m) for m in FRAGMENT_LENGTHS for i in range(1, n - m + 1)]
        for n in range(LONGEST_WORD + 1)
    }
    parts = (
        [word[i:end] for i, end in ends[len(word)]] for word in words if len(word) <= LONGEST_WORD
    )
    seen = count_parts([*filter(str.isalpha, dict.fromkeys(each))] for each in parts)
    frequent = [part for part, n in seen.items() if n >= FRAGMENT_WORDS]
    # One token in place of `len(part)` saves all but one of them, in each of the words.
    frequent.sort(key=lambda part: (-seen[part] * (len(part) - 1), part))
    return set(frequent[:MOST_FRAGMENTS])
