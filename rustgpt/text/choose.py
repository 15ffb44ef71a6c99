"""Owns which tokenizer suits which data, where nobody has said so."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final

from rustgpt.text.vocab import END

SAMPLE: Final = 1 << 20  # characters that are looked at
FEW: Final = 16  # texts below which a list cannot be told from prose
SHORT: Final = 4  # words a text, on average, of a list of names
RECURRING: Final = 4  # times that a word occurs, on average, in what is no list of names
ENOUGH: Final = 2000  # words from which on it says something how often they recur
RARE: Final = 1.6  # times that a word occurs, on average, where words are of no use
LONG: Final = 20  # characters of a word, on average, where words are not marked by spaces
_CJK: Final = re.compile(r"[\u3041-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7a3\uf900-\ufaff]")
_WORD: Final = re.compile(r"\w+")
_VISIBLE: Final = re.compile(r"\S+")
_DIALOGUE: Final = re.compile(r"(?s)\s*(?:System:.*?\s)?User:.*\sAssistant:")


def choose(texts: Iterable[str], dialogues: Sequence[str] = ()) -> tuple[str, str]:
    """Choose a tokenizer for data: one of words, or one of characters.

    Neither needs anything beyond rustgpt itself.

    Parameters
    ----------
    texts
        Texts to be learned. The first are looked at, about a million characters.
    dialogues
        Dialogues to be learned, where they are known apart.

    Returns
    -------
    tuple of str
        "word" or "char", and in one sentence why.
    """
    sample, asked = _sample(texts), _sample(dialogues)
    talk = asked + [text for text in sample if _DIALOGUE.match(text)]
    if talk and sum(map(len, talk)) * FEW >= sum(map(len, sample)):
        return "word", "words, for there are dialogues, which are made of words that recur"
    whole = "\n".join(sample)
    visible = sum(map(len, _VISIBLE.findall(whole)))
    if len(_CJK.findall(whole)) * 2 > visible:
        return "char", (
            "characters, for most of the text is Chinese, Japanese or Korean, where each is a word "
            "or a part of one"
        )
    words = Counter(_WORD.findall(whole))
    n = words.total()
    if not n:
        return "word", "words, for there is too little text to tell"
    if sum(len(word) * times for word, times in words.items()) > LONG * n:
        return "char", "characters, for the text has hardly any spaces between words"
    recurs = n / len(words)
    if len(sample) >= FEW and n <= SHORT * len(sample) and recurs < RECURRING:
        return "char", (
            f"characters, for the texts are short, {n / len(sample):.1f} words each, and their "
            "words hardly recur, as in a list of names"
        )
    if n >= ENOUGH and recurs < RARE:
        return "char", "characters, for most words of the text occur only once"
    if n < ENOUGH:
        return "word", "words, for nothing speaks against them in so little text"
    return "word", f"words, for a word of the text occurs {recurs:.0f} times on average"


def _sample(texts: Iterable[str]) -> list[str]:
    """Return the first texts, without their ends; the last of them may be cut."""
    found: list[str] = []
    room = SAMPLE
    for text in texts:
        if room <= 0:
            break
        found.append(text[:room].strip().removesuffix(END).strip())
        room -= len(text) + 1
    return [*filter(None, found)]
