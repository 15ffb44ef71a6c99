"""Owns the random texts on which tokenizers are compared: all that people write, and more."""

import random

WORDS = ["sun", "The", "mountain", "pollen", "unheard-of", "naïve", "Straße", "1,500.75", "don't"]
SIGNS = [*".,;:!?\"'()[]{}<>#@/\\|~^&*+=%$€£`_-–—…。，、？！«»“”"]
OTHERS = [
    "你好",
    "雨下得很大",
    "안녕",
    "こんにちは",
    "Привет",
    "שלום",
    "नमस्ते",
    "😀",
    "👩‍👩‍👧",
    "🇩🇪",
    "é",
    "e\u0301",
]
SPACES = [
    " ",
    "  ",
    "\n",
    "\n\n",
    "\t",
    "\r\n",
    "\u00a0",
    "\u3000",
    "\u2028",
    "\x0b",
    "\x85",
    " \n ",
]


def random_text(rng: random.Random) -> str:
    """A text of words, signs, other scripts, emoji, odd white space and any code point."""
    parts = []
    for _ in range(rng.randrange(12)):
        kind = rng.randrange(10)
        if kind < 4:
            parts.append(rng.choice(WORDS))
        elif kind < 8:
            parts.append(rng.choice(rng.choice([SIGNS, OTHERS, SPACES, SPACES])))
        else:
            code = rng.randrange(0x110000) if kind == 9 else rng.randrange(0x3000)
            parts.append(chr(code) if not 0xD800 <= code < 0xE000 else "x")
        if rng.random() < 0.4:
            parts.append(" ")
    return "".join(parts)
