"""Which tokenizer suits which data."""

import random

import pytest

from rustgpt.text.choose import SAMPLE, choose
from rustgpt.text.dataset import Dataset

PROSE = [
    "When the rain had gone, the old man went down to the river and looked at the water.",
    "The water was brown, and it ran fast between the stones; the boat was gone.",
    "He sat down on a stone, and he thought of the days when he was young.",
]


def names(n: int, seed: int = 0) -> list[str]:
    """Return names of a small grammar."""
    draw = random.Random(seed)
    parts = ("mar", "lo", "be", "nin", "sa", "ro", "ti", "wen", "ka", "dor", "el", "vi")
    return ["".join(draw.choices(parts, k=draw.randint(2, 4))).capitalize() for _ in range(n)]


@pytest.mark.parametrize(
    ("texts", "name", "words"),
    [
        (names(1000), "char", "a list of names"),
        (names(26), "char", "a list of names"),
        ([f"{a} {b}" for a, b in zip(names(500), names(500, 1), strict=True)], "char", "names"),
        ([f"{name} </s>" for name in names(100)], "char", "a list of names"),
        (PROSE, "word", "so little text"),
        (PROSE * 100, "word", "140 times on average"),
        (["\n".join(PROSE * 100)], "word", "times on average"),
        ("\n".join(PROSE * 100).split("\n"), "word", "times on average"),
        (["山是怎样形成的？山是地壳运动形成的，很慢。"], "char", "Chinese"),
        (["The Chinese word for rain is 雨."], "word", "so little text"),
        (["ひらがなとカタカナ"], "char", "Chinese"),
        (["한국어는 한국에서 쓰는 말이다."], "char", "Korean"),
        (["".join(random.Random(0).choices("ACGT", k=5000))], "char", "hardly any spaces"),
        ([" ".join(str(i * i) for i in range(3000))], "char", "occur only once"),
        (["User: Who are you? Assistant: A model. </s>"] * 30, "word", "dialogues"),
        (["System: Be short. User: Who? Assistant: I. </s>"], "word", "dialogues"),
        ([], "word", "too little"),
        (["", "  ", "</s>", "?!"], "word", "too little"),
        (["sun"], "word", "so little text"),
    ],
)
def test_kinds_of_data(texts, name, words):
    chosen, why = choose(texts)
    assert (chosen, words in why) == (name, True), why
    assert "\n" not in why


def test_dialogues_known_apart():
    dialogues = ["User: Who are you? Assistant: A model. </s>"] * 10
    assert choose([], dialogues)[0] == choose(names(20), dialogues)[0] == "word"
    assert choose(names(1000), dialogues[:1])[0] == "char"


@pytest.mark.parametrize("language", ["en", "zh", "all"])
def test_the_bundled_data_are_learned_by_words(language):
    data = Dataset.bundled(language)
    assert choose(data.pretraining_data, data.chat_training_data)[0] == "word"


def test_the_beginning_decides():
    def texts():
        yield from PROSE * 6000
        raise AssertionError("too much was read")

    assert sum(map(len, PROSE)) * 6000 > SAMPLE
    assert choose(texts())[0] == "word"
    assert choose(["山" * 3 * SAMPLE + "a" * 10 * SAMPLE])[0] == "char"
