"""How texts and dialogues become tokens."""

import pytest

from rustgpt.config import CHAT_TEMPLATES
from rustgpt.errors import ConfigError, TokenizerError
from rustgpt.text.bpe_tokenizer import BpeTokenizer
from rustgpt.text.char_tokenizer import ByteTokenizer
from rustgpt.text.chat_template import TEMPLATES, UNKNOWN
from rustgpt.text.dialogue import Dialogue, Message
from rustgpt.text.text_format import TextFormat
from rustgpt.text.tokenizer import WordTokenizer

from .test_dialogue import dialogue


class Merging:
    """Characters as tokens, but two of them together are one where the second is given."""

    vocab_size, end_id = 0x20000, 0x1FFFF

    def __init__(self, merged: str) -> None:
        self.merged = merged

    def encode(self, text: str, allow_special: bool = False) -> list[int]:
        assert not allow_special  # what people write never becomes the end token
        ids: list[int] = []
        for sign in text:
            if sign == self.merged and ids and ids[-1] < 0x10000:
                ids[-1] += 0x10000
            else:
                ids.append(ord(sign) % 0x10000)
        return ids


def learned(tokenizer, row):
    """Return the runs of tokens that count."""
    runs, ids = [[]], row.ids.tolist()
    for token, counts in zip(ids[1:], row.counted.tolist(), strict=True):
        if counts:
            runs[-1].append(token)
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]


TWO = dialogue("S Be kind.", "U Is it? a", "A a b.", "U And?", "A No </s> no")


def test_words_count_where_the_assistant_speaks():
    tokenizer = WordTokenizer.train([TWO.text()])
    row = TextFormat(tokenizer).dialogue(TWO)
    end = tokenizer.end_id
    assert row.ids.dtype == "int32"
    assert learned(tokenizer, row) == [
        [*tokenizer.encode("a b."), end],
        [*tokenizer.encode("No </s> no"), end],
    ]
    assert row.ids.tolist().count(end) == 2
    one = dialogue("U Is it? a", "A a b.")
    assert TextFormat(tokenizer).dialogue(one).ids.tolist() == tokenizer.encode(one.text(), True)


@pytest.mark.parametrize("merged", ["", "a", "b", " ", ":", ".", "N"])
def test_any_tokenizer(merged):
    tokenizer = Merging(merged)
    row = TextFormat(tokenizer).dialogue(TWO)
    found = []
    for run in learned(tokenizer, row):
        assert run.pop() == tokenizer.end_id
        found.append(run)
    for run, answer in zip(found, (" a b.", " No </s> no"), strict=True):
        # The space may be one token with the colon before it, and is then learned with it.
        assert run in (tokenizer.encode(answer), tokenizer.encode(":" + answer))
    assert len(row.counted) == len(row.ids) - 1


def test_the_loss_on_all():
    tokenizer = Merging("")
    row = TextFormat(tokenizer).dialogue(TWO, "all")
    assert row.counted is None
    assert row.ids.tolist() == TextFormat(tokenizer).dialogue(TWO).ids.tolist()
    with pytest.raises(ConfigError, match="assistant or all"):
        TextFormat(tokenizer).dialogue(TWO, "user")


# Templates


SPECIAL = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|begin_of_text|>", "<|start_header_id|>",
    "<|end_header_id|>", "<|eot_id|>",
)  # fmt: skip


@pytest.fixture(scope="module")
def bpe():
    library = pytest.importorskip("tokenizers")
    made = library.Tokenizer(library.models.BPE())
    made.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = library.decoders.ByteLevel()
    alphabet = library.pre_tokenizers.ByteLevel.alphabet()
    trainer = library.trainers.BpeTrainer(
        special_tokens=[*SPECIAL], initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator([], trainer)
    return BpeTokenizer.from_json(made.to_str())


CHAT = dialogue("U Is it?", "A It is.", "U And <|im_end|>?", "A No </s> no")
WRITTEN = {
    "chatml": (
        "<|im_start|>user\nIs it?<|im_end|>\n<|im_start|>assistant\n[It is.<|im_end|>]\n"
        "<|im_start|>user\nAnd <|im_end|>?<|im_end|>\n<|im_start|>assistant\n"
        "[No </s> no<|im_end|>]\n"
    ),
    "llama3": (
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nIs it?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n[It is.<|eot_id|>]"
        "<|start_header_id|>user<|end_header_id|>\n\nAnd <|im_end|>?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n[No </s> no<|eot_id|>]"
    ),
    "zephyr": (
        "<|user|>\nIs it?<|endoftext|>\n<|assistant|>\n[It is.<|endoftext|>]\n"
        "<|user|>\nAnd <|im_end|>?<|endoftext|>\n<|assistant|>\n[No </s> no<|endoftext|>]\n"
    ),
    "rustgpt": (
        "User: Is it? Assistant:[ It is.<|endoftext|>]"
        "User: And <|im_end|>? Assistant:[ No </s> no<|endoftext|>]"
    ),
}
WRITTEN["smollm2"] = (
    "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
    "<|im_end|>\n" + WRITTEN["chatml"]
)


def marked(tokenizer, row):
    """Return a row's text with brackets around what counts."""
    text, counts = "", [False, *row.counted.tolist()]
    for i, token in enumerate(row.ids.tolist()):
        opens = counts[i] and not counts[i - 1]
        closes = counts[i] and (i + 1 == len(counts) or not counts[i + 1])
        name = tokenizer.decode([token], skip_special=False)
        text += "[" * opens + name + "]" * closes
    return text


@pytest.mark.parametrize("name", WRITTEN)
def test_a_dialogue_is_written_as_the_template_says(bpe, name):
    row = TextFormat(bpe, 0, name).dialogue(CHAT)
    begin = "<|endoftext|>" * (name == "rustgpt")  # as any text does
    assert marked(bpe, row) == begin + WRITTEN[name]
    # The name that the user has typed is none of these.
    ends = row.ids.tolist().count(bpe.special_ids["<|im_end|>"])
    assert ends == {"chatml": 4, "smollm2": 5}.get(name, 0)


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_prompt_is_the_beginning_of_a_dialogue(bpe, name):
    """What a chat asks is what the model has learned, up to its answer."""
    text_format = TextFormat(bpe, None, name)
    *before, answer = CHAT.messages
    prompt = text_format.chat_prompt(before)
    row = text_format.dialogue(CHAT)
    assert row.ids[: len(prompt)].tolist() == prompt
    assert not row.counted[: len(prompt) - 1][-1]
    learned = row.ids[len(prompt) :]
    assert bpe.decode(learned).strip() == answer.content


def test_a_system_message_takes_the_place_of_the_default(bpe):
    text_format = TextFormat(bpe, None, "smollm2")
    own = text_format.chat_prompt([Message("system", "Be kind."), Message("user", "Hi")])
    assert bpe.decode(own, skip_special=False) == (
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_the_tokens_that_end_what_is_written(bpe):
    special = bpe.special_ids
    assert TextFormat(bpe).ends() == (0,)
    assert TextFormat(bpe).ends([5, 2, 5]) == (5, 2)
    assert TextFormat(bpe, None, "chatml").ends() == (0, special["<|im_end|>"])
    assert TextFormat(bpe, None, UNKNOWN).ends([3]) == (3,)


def test_a_template_that_cannot_be_used_is_refused():
    with pytest.raises(TokenizerError, match="chatml needs the special token"):
        TextFormat(ByteTokenizer(), None, "chatml").dialogue(CHAT)
    with pytest.raises(ConfigError, match="--template, one of rustgpt, chatml"):
        TextFormat(ByteTokenizer(), None, UNKNOWN).chat_prompt(CHAT.messages[:1])


def test_every_template_can_be_configured_and_ends_an_answer():
    assert (*TEMPLATES, UNKNOWN) == CHAT_TEMPLATES
    for template in TEMPLATES.values():
        parts = [*template.parts(CHAT.messages)]
        assert [part for part, own in parts if own].count(template.end) == 2


def test_a_text_begins_with_the_token_that_is_given():
    tokenizer = ByteTokenizer()
    assert TextFormat(tokenizer, 65).prompt("a") == [65, *tokenizer.encode("a")]
    assert TextFormat(tokenizer).prompt("a") == tokenizer.encode("a")
    assert TextFormat(tokenizer, 65).dialogue(Dialogue.parse("User: a Assistant: b")).ids[0] == 65
