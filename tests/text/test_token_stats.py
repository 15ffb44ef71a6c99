from rustgpt.text.char_tokenizer import CharTokenizer
from rustgpt.text.token_stats import token_stats
from rustgpt.text.tokenizer import WordTokenizer

TEXTS = ["The sun rises </s>", "The sun, the é </s>"]


def test_counts():
    tokenizer = WordTokenizer.train(["The sun rises, the </s>"])
    stats = token_stats(tokenizer, TEXTS, 2)
    assert stats.texts == 2
    assert stats.bytes == 13 + 15
    # The sun rises </s> | The sun , the <space> <0xC3> <0xA9> </s>
    assert (stats.tokens, stats.used, stats.longest_text) == (12, 9, 8)
    assert stats.bytes_per_token == 28 / 12
    assert stats.unknown_pieces == 2
    assert stats.most_frequent == [("</s>", 2), ("The", 2)]
    assert stats.longest_tokens == ["<space>", "<0xA9>"]


def test_pieces_of_words_are_unknown_and_characters_are_not():
    word = WordTokenizer.train(["sun"])
    assert token_stats(word, ["suns"], 1).unknown_pieces == 1
    assert token_stats(CharTokenizer("suné"), ["suns é"], 1).unknown_pieces == 1  # the space
    assert token_stats(word, [], 3).bytes_per_token == 0
