"""Owns the tests of `rustgpt.formats.hf_tokenizer`: its files, starts and ends, what is refused."""

import json

import pytest

from rustgpt import LLM, ModelConfig
from rustgpt.errors import ConfigError, TokenizerError
from rustgpt.formats import open_tokenizer
from rustgpt.formats.chat_template_jinja import written
from rustgpt.formats.hf_tokenizer import read_folder, read_template
from rustgpt.text.bpe_tokenizer import BpeTokenizer
from rustgpt.text.char_tokenizer import CharTokenizer
from rustgpt.text.library_json import beginning_json, characters_json

pytest.importorskip("tokenizers")

END = "<|endoftext|>"
N = 272  # tokens of the small BPE


def trained(end=END, more=()):
    """The tokenizer.json of a small BPE, whose end token has another name than ours."""
    text = BpeTokenizer.train(["the sun and the moon and the sea"] * 9, 300).to_json()
    content = json.loads(text)
    content["model"]["vocab"] = {
        end if token == "</s>" else token: i for token, i in content["model"]["vocab"].items()
    }
    content["added_tokens"][0]["content"] = end
    size = len(content["model"]["vocab"])
    content["added_tokens"] += [
        {**content["added_tokens"][0], "id": size + i, "content": name}
        for i, name in enumerate(more)
    ]
    return content


def put(folder, **files):
    """Write files of JSON, by name without ending."""
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / f"{name}.json").write_text(text, encoding="utf-8")
    return folder


def read(folder, size=None, config=None, **files):
    return read_folder(put(folder, **files), size, config or {})


def with_merges(folder, end=END, lines="#version: 0.2\n", **files):
    """Write vocab.json and merges.txt in the place of tokenizer.json."""
    model = trained(end)["model"]
    put(folder, vocab=model["vocab"], **files)
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    (folder / "merges.txt").write_text(lines + "\n".join([*merges, ""]), encoding="utf-8")
    return folder


@pytest.mark.parametrize("lines", ["#version: 0.2\n", ""])
def test_vocab_and_merges_are_a_gpt2_tokenizer(lines, tmp_path):
    whole = read(tmp_path / "whole", tokenizer=trained()).tokenizer
    found = read_folder(with_merges(tmp_path / "parts", lines=lines), None, {})
    for text in ("the sun and the sea", " é 你好\n\n  x", END):
        assert found.tokenizer.encode(text) == whole.encode(text)
    assert found.tokenizer.end_id == whole.end_id == whole.special_ids[END]
    assert (found.bos_id, found.end_ids) == (-1, (whole.end_id,))


def test_the_prefix_space_of_vocab_and_merges(tmp_path):
    settings = {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": True}
    folder = with_merges(tmp_path / "parts", tokenizer_config=settings)
    found = read_folder(folder, None, {}).tokenizer
    assert found.encode("the") == found.encode(" the")


def test_vocab_and_merges_of_another_class_are_refused(tmp_path):
    folder = with_merges(tmp_path / "parts", tokenizer_config={"tokenizer_class": "QwenTokenizer"})
    with pytest.raises(TokenizerError, match=r"how a QwenTokenizer cuts .* writes tokenizer\.json"):
        read_folder(folder, None, {})


def test_the_oldest_files_do_not_name_their_model(tmp_path):
    content = trained()
    content["model"] = {
        name: value for name, value in content["model"].items() if name in ("vocab", "merges")
    } | {"dropout": None, "unk_token": "", "continuing_subword_prefix": ""}
    found = read(tmp_path, tokenizer=content).tokenizer
    assert found.encode("the sun é") == BpeTokenizer(trained()).encode("the sun é")
    assert BpeTokenizer.from_json(found.to_json()).encode("the") == found.encode("the")


# Where texts begin and end


@pytest.mark.parametrize(
    ("files", "config", "expected"),
    [
        ({}, {}, (0,)),
        ({}, {"eos_token_id": 1}, (0, 1)),
        ({"generation_config": {"eos_token_id": [2, 1]}}, {"eos_token_id": 3}, (0, 2, 1)),
        ({"generation_config": {"eos_token_id": 2}}, {}, (0, 2)),
        ({"generation_config": {"eos_token_id": 0}}, {"eos_token_id": 3}, (0,)),
        ({"generation_config": {}}, {"eos_token_id": 3}, (0, 3)),
        ({}, {"eos_token_id": 50256}, (0,)),  # a default that no token has
        ({}, {"eos_token_id": "</s>"}, (0,)),
        ({"tokenizer_config": {"eos_token": "<|im_end|>"}}, {"eos_token_id": 0}, (N + 1, 0)),
        ({"special_tokens_map": {"eos_token": {"content": "<|im_end|>"}}}, {}, (N + 1,)),
        ({"special_tokens_map": {"eos_token": END}, "tokenizer_config": {"eos_token": "<x>"}},
         {}, (N + 2,)),
    ],
)  # fmt: skip
def test_the_ends_of_tokenizer_and_generation_are_honoured(files, config, expected, tmp_path):
    content = trained(more=["<|im_start|>", "<|im_end|>", "<x>"])
    found = read(tmp_path, None, config, tokenizer=content, **files)
    assert found.end_ids == expected
    assert found.tokenizer.end_id == expected[0]


def test_an_end_of_another_name_is_kept_on_disk(tmp_path):
    content = trained(more=["<x>"])
    found = read(tmp_path, tokenizer=content, tokenizer_config={"eos_token": "<x>"}).tokenizer
    again = BpeTokenizer.from_json(found.to_json())
    assert again.end_id == found.end_id == found.special_ids["<x>"]
    assert again.to_json() == found.to_json()
    assert BpeTokenizer.from_json(json.dumps(content)).end_id == 0


@pytest.mark.parametrize(
    ("settings", "post", "expected"),
    [
        ({}, None, -1),
        ({}, beginning_json(END, 0), 0),
        ({"bos_token": "<x>", "add_bos_token": True}, None, N),
        ({"bos_token": "<x>", "add_bos_token": True}, beginning_json(END, 0), N),
        ({"bos_token": "<x>", "add_bos_token": False}, beginning_json(END, 0), -1),
        ({"bos_token": None, "add_bos_token": True}, None, -1),
    ],
)
def test_the_start_token(settings, post, expected, tmp_path):
    content = trained(more=["<x>"]) | {"post_processor": post}
    found = read(tmp_path, tokenizer=content, tokenizer_config=settings)
    assert found.bos_id == expected


@pytest.mark.parametrize("token_id", [2**63, -2, 10**6])
def test_a_start_token_that_is_none_is_refused(token_id, tmp_path):
    content = characters_json("abc") | {"post_processor": beginning_json("</s>", token_id)}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(TokenizerError, match="no token of it"):
        read_folder(tmp_path, None, {})


def test_a_start_token_among_several_processors(tmp_path):
    level = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False}
    posts = {
        "type": "Sequence",
        "processors": [level | {"use_regex": True}, beginning_json(END, 0)],
    }
    assert read(tmp_path, tokenizer=trained() | {"post_processor": posts}).bos_id == 0


def test_a_start_token_comes_once(gpt2, tmp_path):
    content = characters_json("abcde") | {"post_processor": beginning_json("</s>", 0)}
    folder = gpt2(files={"tokenizer": content, "tokenizer_config": {"bos_token": "</s>"}})
    model = LLM.load(folder)
    assert model.prompt_ids("ab") == [0, 257, 258]
    assert model.config.bos_token_id == 0
    assert model.end_ids == (0,)


# The size


def test_rows_without_a_token_get_one(tmp_path):
    found = read(tmp_path, 310, tokenizer=trained()).tokenizer
    assert found.vocab_size == 310
    assert found.name(309) == "<|unused-309|>"
    assert found.decode([309, *found.encode("sun"), 300]) == "sun"
    assert 309 not in found.encode("<|unused-309|>")
    again = BpeTokenizer.from_json(found.to_json())
    assert again.vocab_size == 310
    tokens = found.library_content()["added_tokens"]
    assert [token["content"] for token in tokens] == [END]


@pytest.mark.parametrize("size", [N - 1, 10**7, 2**62])
def test_a_size_that_does_not_fit_is_refused(size, tmp_path):
    with pytest.raises(TokenizerError, match=r"tokenizer\.json: there are"):
        read(tmp_path, size, tokenizer=trained())


# What is refused


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, r"holds no tokenizer: .* tokenizer\.save_pretrained\(FOLDER\)"),
        ({"tokenizer": "{"}, r"tokenizer\.json is damaged"),
        ({"tokenizer": []}, r"tokenizer\.json must hold an object"),
        ({"tokenizer": {"model": 3}}, r"tokenizer\.json: of the tokenizers of others, byte"),
        ({"tokenizer": {"model": {"type": "Unigram"}}}, "the model is 'Unigram'"),
        ({"tokenizer": trained(), "tokenizer_config": []}, r"tokenizer_config\.json must hold"),
        ({"tokenizer": trained(), "tokenizer_config": {"eos_token": 3}}, "must be a text, not 3"),
        ({"tokenizer": trained(), "tokenizer_config": {"eos_token": "<z>"}}, "is no special token"),
        ({"tokenizer": trained(), "tokenizer_config": {"add_bos_token": 1}}, "true or false"),
        (
            {"tokenizer": trained(),
             "tokenizer_config": {"add_bos_token": True, "bos_token": "the"}},
            "bos_token 'the' is no special token",
        ),
        ({"tokenizer": trained(), "generation_config": "["}, r"generation_config\.json is damaged"),
        ({"vocab": {"a": 0}}, r"merges\.txt is missing"),
        ({"vocab": {"a": "b"}}, r"vocab\.json: each token must have a number"),
        ({"vocab": {"a": -1}}, r"vocab\.json: each token must have a number"),
    ],
)  # fmt: skip
def test_a_broken_tokenizer_is_refused(files, message, tmp_path):
    with pytest.raises(TokenizerError, match=message):
        read(tmp_path / "new", **files)


def test_open_tokenizer_reads_any_of_them(gpt2, tmp_path):
    folder = gpt2()
    found = open_tokenizer(folder)
    assert isinstance(found, CharTokenizer)
    LLM.load(folder).save(tmp_path / "ours")
    for source in (tmp_path / "ours", tmp_path / "ours" / "tokenizer.json"):
        assert open_tokenizer(source).encode("abé") == found.encode("abé")
    with pytest.raises(TokenizerError, match="cannot read the tokenizer"):
        open_tokenizer(tmp_path / "nowhere")


# The chat template


KNOWN = written("chatml", False)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, "rustgpt"),
        ({"chat_template": None}, "rustgpt"),
        ({"chat_template": KNOWN}, "chatml"),
        ({"chat_template": "{{ x }}"}, "unknown"),
        ({"chat_template": [{"name": "tools", "template": KNOWN}]}, "unknown"),
        ({"chat_template": [{"name": "default", "template": KNOWN}]}, "chatml"),
        ({"chat_template": [3]}, "unknown"),
        ({"chat_template": 3}, "unknown"),
    ],
)
def test_the_chat_template_is_known_by_its_text(settings, expected, tmp_path):
    assert read_template(put(tmp_path, tokenizer_config=settings), None) == expected
    (tmp_path / "chat_template.jinja").write_text(written("zephyr", False))
    assert read_template(tmp_path, None) == "zephyr"


def test_a_chat_template_goes_with_its_model(tmp_path):
    content = trained(more=["<|im_start|>", "<|im_end|>"])
    tokenizer = BpeTokenizer(content)
    sizes = ModelConfig(embedding_dim=8, hidden_dim=8, n_heads=2, chat_template="chatml")
    model = LLM(sizes, tokenizer)
    model.save(tmp_path / "out", format="hf")
    again = LLM.load(tmp_path / "out")
    assert again.config.chat_template == "chatml"
    assert {*again.end_ids} == {*model.end_ids} == {0, tokenizer.special_ids["<|im_end|>"]}


def test_a_template_that_is_not_known_is_never_run(gpt2):
    text = "{{ ''.__class__.__mro__[1].__subclasses__() }}"
    model = LLM.load(gpt2(files={"tokenizer_config": {"chat_template": text}}))
    assert model.config.chat_template == "unknown"
    with pytest.raises(ConfigError, match="chat template of this model is not known"):
        model.chat().send("Hi")
