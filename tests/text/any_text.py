"""Text in which anything meets anything, for tests of every tokenizer."""

import unicodedata

from hypothesis import strategies as st

PARTS = [
    *(" ", "  ", " " * 100, "\n", "\t", "\u3000", "\x00", "\x1c", "\x85", "\xa0", "\u2028"),
    *("\u200d", "\ufe0f", "\u0301", "\u3099", "\ufffd", "e\u0301", "é", "½", "²"),
    *(
        "The",
        "sun",
        "unsung",
        "über",
        "café",
        "naïve",
        "мир",
        "x" * 40,
        "7",
        "299,792",
        "'s",
        "'ll",
        "C++",
    ),
    *("'", '"', "’", "“", "”", "-", "/", "(", ")", ".", ",", ":", "？", "：", "《", "》", "$"),
    *("</s>", "<join>", "<space>", "<0x41>", "##ing", "#", "<", ">", "<|endoftext|>"),
    *("山", "龘", "ひ", "か", "・", "한", "👍", "👩\u200d👧", "\ud800", "\udc00", "\U0010ffff"),
]
SPACES = st.integers(0, 100).map(" ".__mul__)
ANY_TEXT = st.one_of(
    st.text(st.characters(), max_size=30),
    st.lists(st.one_of(st.sampled_from(PARTS), SPACES, st.characters()), max_size=12).map("".join),
)
_SENTENCE = "Žluťoučký kůň, 한국어 が Å ﬁ"
HARD_TEXTS = [
    *(f"a{' ' * n}b{' ' * n}" for n in range(101)),
    *(unicodedata.normalize(form, _SENTENCE) for form in ("NFC", "NFD", "NFKC", "NFKD")),
    *("\ud800", "\udc00\ud800", "\ud83d\ude00", "a\udfffb"),
    *(letter * 10**6 for letter in ("a", " ", "\n", "9", "-")),
    *(letter * 10**5 for letter in ("山", "龘", "é", "\u0301", '"', "</s>", "\ud800", " a")),
    "".join(map(chr, [*range(0x10000), *range(0x10000, 0x110000, 61), 0x10FFFF])),
]
