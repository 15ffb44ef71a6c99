"""Text to tokens and back: nothing is lost, whatever the text."""

import os
import random
import subprocess
import sys
import time
from collections.abc import Iterable

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rustgpt.errors import ConfigError, DataError, TokenizerError
from rustgpt.text import chunks, word_tables, word_tokenizer
from rustgpt.text.dataset import Dataset
from rustgpt.text.tokenizer import TextStream, WordTokenizer

from .any_text import HARD_TEXTS

TEXTS = [
    "The sun rises in the east, and it's warm. </s>",
    "User: How far is the moon? Assistant: About 384,400 kilometers (or 3.8 days) away! </s>",
    'User: What is "C++"? Assistant: A state-of-the-art language. </s>',
    "User: 山是怎样形成的？ Assistant: 山是地壳运动形成的，很慢。 </s>",
    "seeing going doing flying trying\n </s>",
]
TOKENIZER = WordTokenizer.train(TEXTS)
BYTES_ONLY = WordTokenizer.train([])
JOIN, SPACE = (TOKENIZER.vocab.ids[name] for name in ("<join>", "<space>"))

# Text in which anything meets anything: all code points, and what the rules speak of.
PARTS = [
    *(" ", "  ", "\n", "\t", "\u3000", "\x00", "\u200d", "\ufe0f", "\u0301", "\ufffd"),
    *("The", "sun", "unsung", "über", "мир", "x" * 40, "7", "299,792", "3.14", "U.S.", "C++"),
    *("'", '"', "’", "“", "”", "-", "/", "(", ")", ".", ",", ":", "？", "：", "《", "》", "$", "%"),
    *("</s>", "<join>", "<space>", "<0x41>", "##ing", "#", "<", ">"),
    *("山", "龘", "ひ", "한", "👍", "👩\u200d👧", "\ud800", "\udc00", "\U0010ffff", "\U0001fadf"),
]
ANY_TEXT = st.one_of(
    st.text(st.characters(), max_size=30),
    st.lists(st.one_of(st.sampled_from(PARTS), st.characters()), max_size=12).map("".join),
)
TOKENIZERS = st.sampled_from([TOKENIZER, BYTES_ONLY])


def ids_of(tokens: Iterable[str]) -> list[int]:
    return [TOKENIZER.vocab.ids[token] for token in tokens]


# --- text -> ids -> text -------------------------------------------------------------------------


@settings(max_examples=500, deadline=None)
@given(TOKENIZERS, ANY_TEXT)
@example(TOKENIZER, "Zsun")
@example(TOKENIZER, 'a "C++ moon" is "far"')
@example(TOKENIZER, "5 ,6 5, 6")
@example(TOKENIZER, '" "\n" a " "b')
def test_decode_inverts_encode(tokenizer, text):
    ids = tokenizer.encode(text)
    assert all(type(i) is int and 0 < i < tokenizer.vocab_size for i in ids)
    assert tokenizer.decode(ids) == text


@settings(deadline=None)
@given(ANY_TEXT)
def test_a_tokenizer_trained_on_any_text_holds(text):
    tokenizer = WordTokenizer.train([text])
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.decode(tokenizer.encode("x" + text)) == "x" + text
    assert WordTokenizer.from_json(tokenizer.to_json()).vocab == tokenizer.vocab


@settings(max_examples=500, deadline=None)
@given(TOKENIZERS, ANY_TEXT)
@example(TOKENIZER, "")
def test_tokens_are_those_of_plain_python(tokenizer, text):
    assert tokenizer.encode(text) == tokenizer.encode_plain(text)


@pytest.mark.parametrize("block", [1, 7, 50])
def test_blocks_change_nothing(monkeypatch, block):
    monkeypatch.setattr(chunks, "BLOCK", block)
    monkeypatch.setattr(word_tokenizer, "BLOCK", block)
    draw = random.Random(block)
    for _ in range(300):
        text = "".join(draw.choices([*PARTS, "7", ". ", '" ', "'"], k=40))
        assert TOKENIZER.encode(text) == TOKENIZER.encode_plain(text)


@pytest.mark.slow
def test_tokens_of_hard_texts():
    for text in HARD_TEXTS:
        assert TOKENIZER.encode(text) == TOKENIZER.encode_plain(text)
    every = [*map(chr, range(0x110000))]
    for between in ("", "a", " ", "\u0301"):
        text = between.join(every[:: 1 if between == "a" else 7])
        assert TOKENIZER.encode(text) == TOKENIZER.encode_plain(text)


def test_the_plain_backend_needs_nothing_compiled(switch_backend):
    text = 'The suns, 7.5 山 "C++" é'
    expected = TOKENIZER.encode(text)
    switch_backend("reference")
    assert TOKENIZER.encode(text) == expected


def test_characters_are_learned_as_they_turn_up(monkeypatch):
    fresh = np.full(0x110000, 255, np.uint8)
    monkeypatch.setattr(word_tables, "CODE_KINDS", fresh)
    monkeypatch.setattr(word_tokenizer, "CODE_KINDS", fresh)
    text = "The sun, ж 山? \U0010ffff\ud800 '"
    assert TOKENIZER.encode(text) == TOKENIZER.encode_plain(text)
    assert (fresh != 255).sum() == len({*text})


def test_every_code_point():
    # All of the first plane, and a sample of the others.
    text = "".join(map(chr, [*range(0x10000), *range(0x10000, 0x110000, 61), 0x10FFFF]))
    assert TOKENIZER.decode(TOKENIZER.encode(text)) == text
    spaced = " ".join(text[::17])
    assert TOKENIZER.decode(TOKENIZER.encode(spaced)) == spaced


@pytest.mark.slow
@pytest.mark.parametrize(
    ("word", "count"), [("abcdefghij", 100_000), ("ж", 50_000), ("9", 100_000), ('"', 100_000)]
)
def test_a_megabyte_without_a_space(word, count):
    text = word * count
    start = time.perf_counter()
    ids = TOKENIZER.encode(text)
    assert time.perf_counter() - start < 60  # one or two seconds; quadratic time would be hours
    assert TOKENIZER.decode(ids) == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ""),
        ("The sun rises in the east.", "The sun rises in the east ."),
        ("it's warm, and it's far!", "it ' s warm , and it ' s far !"),
        ("A state-of-the-art moon", "A state - of - the - art moon"),
        ("384,400 (3.8 kilometers)", "384 , 400 ( 3 . 8 kilometers )"),
        ('What is "far"? A "C++" moon', 'What is " far " ? A " C <join> + + " moon'),
        ("山是怎样形成的？ Assistant: 山是", "山 是 怎 样 形 成 的 ？ Assistant : 山 是"),
        ("User: 山，很慢。", "User : 山 ， 很 慢 。"),
        # Spaces against the rules.
        ("it 's", "it <space> ' s"),
        ("east ,west", "east <space> , <join> w ##e ##s ##t"),
        ("sun:moon", "sun : <join> moon"),
        ("山 是", "山 <space> 是"),
        (" sun", "<space> sun"),
        ("sun ", "sun <space>"),
        ("sun  moon", "sun <space> <space> moon"),
        ("sun\nmoon", "sun \n moon"),
        ("sun \n\n moon", "sun <space> \n \n <space> moon"),
        ("sun\tmoon", "sun <0x09> moon"),
        ("3, 8", "3 , <space> 8"),
        ('"sun', '" sun'),
        ('" sun', '" <space> sun'),
        # Words in pieces; "ing" ends five words of the data.
        ("suns sunny", "sun ##s sun ##n ##y"),
        ("Asking", "A ##s ##k ##ing"),
        ("The2nd", "The ##2 ##n ##d"),
        # Characters in bytes: C3 BC, C3 A9, E9 BE 98, D0 BC.
        ("Zür", "Z <0xC3> <0xBC> ##r"),
        ("ür", "<0xC3> <0xBC> ##r"),
        ("sun ür", "sun <space> <0xC3> <0xBC> ##r"),
        ("é é", "<0xC3> <0xA9> <space> <0xC3> <0xA9>"),
        ("é sun", "<0xC3> <0xA9> sun"),
        ("ésun", "<0xC3> <0xA9> ##s ##u ##n"),
        ("山龘山", "山 <0xE9> <0xBE> <0x98> 山"),
        ("sun; moon", "sun <0x3B> moon"),
        ("sun ;moon", "sun <space> <0x3B> <join> moon"),
        ("\x00", "<0x00>"),
        ("\ud800", "<0xED> <0xA0> <0x80>"),
        # Names of tokens, typed.
        ("</s>", "<0x3C> <0x2F> s <0x3E>"),
        ("##s", "<0x23> <0x23> s"),
    ],
)
def test_tokens(text, expected):
    assert TOKENIZER.tokens(text) == (expected.split(" ") if expected else [])


def test_typed_names_of_tokens_are_ordinary_text():
    for name in ["</s>", "<join>", "<space>", "<0x41>", "##ing", "The sun</s>", "a </s> b"]:
        ids = TOKENIZER.encode(name)
        assert TOKENIZER.end_id not in ids
        assert TOKENIZER.decode(ids) == name
    for name in ["<join>", "<space>", "<0x41>", "##ing"]:
        assert TOKENIZER.encode(name, allow_special=True) == TOKENIZER.encode(name)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The sun </s>", ["The", "sun", "</s>"]),
        ("The sun</s>", ["The", "sun", "</s>"]),
        ("The sun  </s>", ["The", "sun", "<space>", "</s>"]),
        ("The sun </s> \n the moon </s>", ["The", "sun", "</s>", "the", "moon", "</s>"]),
        ("</s></s>", ["</s>", "</s>"]),
        ('A "sun </s>"moon', ["A", '"', "sun", "</s>", '"', "moon"]),
    ],
)
def test_the_end_token_in_training_text(text, expected):
    assert TOKENIZER.tokens(text, allow_special=True) == expected
    assert TOKENIZER.vocab.ids["</s>"] == TOKENIZER.end_id == 0


def test_decode_shows_or_skips_the_end_token():
    ids = TOKENIZER.encode("The sun </s> The moon </s>", allow_special=True)
    assert TOKENIZER.decode(ids) == "The sunThe moon"
    assert TOKENIZER.decode(ids, skip_special=False) == "The sun</s>The moon</s>"


def test_the_end_of_a_text_closes_its_quotes():
    ids = TOKENIZER.encode('A "sun </s>"moon" is', allow_special=True)
    assert TOKENIZER.decode(ids) == 'A "sun"moon" is'


def test_a_prompt_is_the_beginning_of_its_dialogue():
    for text in TEXTS[1:4]:
        prompt = text[: text.index("Assistant:") + len("Assistant:")]
        ids = TOKENIZER.encode(text, allow_special=True)
        start = TOKENIZER.encode(prompt)
        assert ids[: len(start)] == start


def test_a_word_of_one_question_alone_is_spelled_where_there_are_few():
    questions = [*["What is the sun?"] * 20, "What is a zebu?"]
    texts = [*questions, "The moon is round.", "A zebu is a cow."]
    known = WordTokenizer.train(texts[:-1], questions=questions).vocab.ids
    assert "zebu" not in known
    assert {"sun", "moon"} <= {*known}  # of many questions, and of no question
    assert "zebu" in WordTokenizer.train(texts, questions=questions).vocab.ids
    assert "zebu" in WordTokenizer.train(texts[:-1]).vocab.ids
    few = ["What is the sun?", "What is a zebu?"]
    assert "zebu" in WordTokenizer.train(few, questions=few).vocab.ids


def test_the_bundled_data_cost_no_marker():
    data = Dataset.bundled()
    tokenizer = WordTokenizer.train(data.pretraining_data + data.chat_training_data)
    answers = [m.content for d in data.dialogues for m in d.messages if m.role == "assistant"]
    texts = data.pretraining_data + [f"{answer} </s>" for answer in answers]
    for text in texts:
        ids = tokenizer.encode(text, allow_special=True)
        assert tokenizer.decode(ids, skip_special=False) == text.removesuffix(" </s>") + "</s>"
        assert not {JOIN, SPACE, *range(3, 259)} & {*ids}


# --- ids -> text, as a stream --------------------------------------------------------------------

IDS = st.lists(
    st.one_of(
        st.integers(0, TOKENIZER.vocab_size - 1),
        st.integers(3, 258),  # bytes
        st.sampled_from([0, JOIN, SPACE, *ids_of(["\n", '"', ".", "3", "##s", "山"])]),
    ),
    max_size=25,
)


@settings(deadline=None)
@given(IDS, st.booleans())
def test_any_ids_decode_and_a_stream_gives_the_same(ids, skip_special):
    stream = TextStream(TOKENIZER, skip_special)
    streamed = "".join([*map(stream.push, ids), stream.finish()])
    assert streamed == TOKENIZER.decode(ids, skip_special)


@settings(deadline=None)
@given(IDS, IDS)
def test_after_gives_what_is_appended(before, ids):
    before = [*before, JOIN]  # not within a character
    whole = TOKENIZER.decode(before + ids)
    assert TOKENIZER.decode(before) + TOKENIZER.decode(ids, after=before) == whole


def test_a_character_cut_by_after_appears_with_its_last_byte():
    first, *others = TOKENIZER.encode("龘")
    assert TOKENIZER.decode([first]) == "\ufffd"
    assert TOKENIZER.decode(others, after=[first]) == "龘"


def test_a_stream_gives_text_as_soon_as_it_is_certain():
    stream = TextStream(TOKENIZER, after=ids_of(["User", ":"]))
    tokens = ["sun", "##s", ",", "<0xC3>", "<0xA9>", "moon", "</s>", "A", "<0xE9>", "?", "<0xE9>"]
    pushed = [stream.push(i) for i in ids_of(tokens)]
    assert pushed == [" sun", "s", ",", "", "é", " moon", "", "A", "", "\ufffd?", ""]
    assert stream.finish() == "\ufffd"
    assert stream.finish() == ""


@pytest.mark.parametrize(
    ("tokens", "text"),
    [
        (["##s", "##s"], "ss"),
        (["?", "##s", "sun"], "?s sun"),
        (["<join>", "<join>", "sun"], "sun"),
        (["sun", "<join>", "moon"], "sunmoon"),
        (["sun", "<space>", "moon"], "sun moon"),
        (["<0xFF>", "sun"], "\ufffd sun"),
        (["sun", "<0xE5>", "<0xB1>", "moon"], "sun\ufffd moon"),
        (["<0x22>", "sun", '"', "moon"], '"sun" moon'),
        (["3", "<0x2C>", "8"], "3,8"),
    ],
)
def test_ids_that_encode_would_not_write(tokens, text):
    assert TOKENIZER.decode(ids_of(tokens)) == text


@pytest.mark.parametrize(
    "wrong",
    [
        *(-1, TOKENIZER.vocab_size, 2**70, 1.0, 1.5, float("nan"), True, False, None, "1", "sun"),
        *(np.float64(1), np.bool_(True), np.array([1, 2]), [1]),
        pytest.param(10**5000, id="huge"),
        pytest.param(-(10**5000), id="minus huge"),
    ],
)
def test_what_is_no_token_id(wrong):
    with pytest.raises(TokenizerError, match=r"^a token id must be [^\n]{1,120}$"):
        TOKENIZER.decode([5, wrong])
    with pytest.raises(TokenizerError, match="a token id must be"):
        TextStream(TOKENIZER).push(wrong)
    with pytest.raises(TokenizerError, match="a token id must be"):
        TOKENIZER.decode([5], after=[wrong])


def test_messages_about_ids_show_the_range():
    last = TOKENIZER.vocab_size - 1
    with pytest.raises(TokenizerError, match=f"from 0 to {last}, not {last + 1}$"):
        TOKENIZER.decode([last + 1])
    with pytest.raises(TokenizerError, match="must be a whole number, not float"):
        TOKENIZER.decode([1.0])  # type: ignore[list-item]


def test_whole_numbers_of_numpy_are_token_ids():
    ids = TOKENIZER.encode("The sun rises")
    for dtype in (np.int32, np.int64, np.uint16):
        assert TOKENIZER.decode(np.array(ids, dtype)) == "The sun rises"


@pytest.mark.parametrize("wrong", [None, 5, 1.5, True])
def test_what_is_no_list_of_ids(wrong):
    with pytest.raises(TokenizerError, match="must be a list"):
        TOKENIZER.decode(wrong)
    with pytest.raises(TokenizerError, match="must be a list"):
        TOKENIZER.decode([], after=wrong)


@pytest.mark.parametrize("wrong", [None, b"sun", 5, ["sun"]])
def test_only_text_is_encoded(wrong):
    with pytest.raises(TokenizerError, match="only text can be encoded, not"):
        TOKENIZER.encode(wrong)


# --- training and files --------------------------------------------------------------------------


def test_train_learns_units_and_takes_the_end_token_for_itself():
    tokens = set(TOKENIZER.vocab.tokens)
    assert {"The", "sun", "384", "400", "'", "\n", "山", "？", "##ing"} <= tokens
    assert not {"it's", "state-of-the-art", "/", "<", " "} & tokens
    assert TOKENIZER.vocab_size == len(tokens) == len(TOKENIZER.vocab)


def test_train_with_a_limit():
    small = WordTokenizer.train(["moon moon sun sun sun east"], max_vocab_size=259 + 124 + 2)
    assert small.vocab_size == 385
    assert small.tokens("sun moon east") == ["sun", "moon", "e", "##a", "##s", "##t"]
    with pytest.raises(ConfigError, match="from 383 on"):
        WordTokenizer.train(["moon"], max_vocab_size=382)


@pytest.mark.parametrize("wrong", ["one text", [b"sun"], [None], ["sun", 5]])
def test_train_refuses_what_is_no_list_of_texts(wrong):
    with pytest.raises(DataError, match=r"the texts|a text"):
        WordTokenizer.train(wrong)


def test_texts_may_come_from_a_generator():
    assert WordTokenizer.train(text for text in TEXTS).vocab == TOKENIZER.vocab


def test_the_vocabulary_does_not_depend_on_hash_seeds():
    code = (
        "import sys; from rustgpt.text.tokenizer import WordTokenizer; "
        "from rustgpt.text.dataset import Dataset; "
        "sys.stdout.buffer.write("
        "WordTokenizer.train(Dataset.bundled().chat_training_data, 1500).to_json().encode())"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("0", "1", "4242")
    }
    assert len(outputs) == 1
    assert len(outputs.pop()) > 10_000


def test_from_json():
    again = WordTokenizer.from_json(TOKENIZER.to_json())
    assert again.vocab == TOKENIZER.vocab
    assert again.encode("The sun rises") == TOKENIZER.encode("The sun rises")
    with pytest.raises(TokenizerError, match="no tokenizer of rustgpt"):
        WordTokenizer.from_json("{}")


def test_a_vocabulary_from_elsewhere_still_loses_nothing():
    # Long pieces, several CJK characters in a token, signs inside: not what `train` makes.
    vocab = TOKENIZER.vocab
    content = TOKENIZER.to_json().replace('"moon"', '"##unrisesun", "山是", "a—b", "##—", "moon"')
    other = WordTokenizer.from_json(content)
    assert other.vocab_size == len(vocab) + 4
    for text in ["xunrisesun", "山是山", "a—b c", "unrisesun xunrise"]:
        assert other.decode(other.encode(text)) == text
    assert other.tokens("xunrisesun") == ["x", "##unrisesun"]


def test_another_format_is_told():
    for text, words in (
        ('{"format": "letters", "letters": "abc"}', "of the format 'letters'"),
        ('{"format": ["a"]}', "of the format"),
        ('{"format": "rustgpt-word"}', "version"),
        ("[]", "no tokenizer of rustgpt"),
        ("", "cannot be read as JSON"),
        ("[" * 100_000, "cannot be read as JSON"),
    ):
        with pytest.raises(TokenizerError, match=words):
            WordTokenizer.from_json(text)


def test_a_stream_gives_the_same_text():
    tokenizer = WordTokenizer.train(["The sun rises </s>"])
    ids = tokenizer.encode("The sun sets 雨!")
    stream = tokenizer.stream(after=ids[:1])
    text = "".join([*map(stream.push, ids[1:]), stream.finish()])
    assert text == tokenizer.decode(ids[1:], after=ids[:1]) == " sun sets 雨!"


def test_new_words_come_after_all_others():
    words = WordTokenizer.train(["the sun rises </s>"])
    texts = ["the λόγος of Pippin! </s>", "a " + "x" * 40 + " \ud800"]
    larger = words.extended(texts)
    size = words.vocab_size
    assert larger.vocab.tokens[:size] == words.vocab.tokens
    assert larger.vocab.tokens[size:] == ("!", "Pippin", "of", "λόγος")
    assert larger.encode("the sun rises") == words.encode("the sun rises")
    for text in texts[0].removesuffix(" </s>"), texts[1]:
        assert larger.decode(larger.encode(text)) == text
    assert larger.extended(texts).vocab == larger.vocab
    assert words.vocab_size == size
