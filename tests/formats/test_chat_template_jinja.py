"""Owns the tests of chat templates in Jinja: what is recognised is rendered by us as by Jinja."""

import random

import pytest

from rustgpt.formats import chat_template_jinja
from rustgpt.formats.chat_template_jinja import recognised, written
from rustgpt.text.chat_template import TEMPLATES, UNKNOWN
from rustgpt.text.dialogue import Message
from rustgpt.text.vocab import END

BOS, EOS = "<|begin_of_text|>", "<|end|>"
TEXTS = [(name, text) for name, texts in chat_template_jinja._TEXTS.items() for text in texts]
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + "
    "message['content'] + '<|im_end|>' + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def dialogue(seed):
    """A random dialogue in which the user speaks last."""
    chosen = random.Random(seed)
    roles = ["system"] * chosen.randint(0, 1) + ["user", "assistant"] * chosen.randint(0, 3)
    texts = ["Hi", " two  words\n", "{{ 7 * 7 }}", "", "<|im_end|>", "User: 世界 🙂 ' \" \\n"]
    return [Message(role, chosen.choice(texts)) for role in [*roles, "user"]]


def ours(name, messages):
    """What we write before the ids are made."""
    text = "".join(part for part, _ in TEMPLATES[name].parts(messages))
    return text.replace(END, EOS)


def jinja(source, messages):
    """What transformers and llama.cpp make of it."""
    sandbox = pytest.importorskip("jinja2.sandbox")
    world = sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    said = [{"role": message.role, "content": message.content} for message in messages]
    return world.from_string(source).render(
        messages=said, add_generation_prompt=True, bos_token=BOS, eos_token=EOS
    )


@pytest.mark.parametrize(("name", "source"), TEXTS)
def test_a_known_template_is_rendered_as_jinja_does(name, source):
    assert recognised(source, BOS) == name
    for seed in range(60):
        messages = dialogue(seed)
        begin = BOS if source.startswith("{{ bos_token }}") else ""
        assert begin + ours(name, messages) == jinja(source, messages)


def test_each_template_is_written_and_recognised():
    assert {name for name, _ in TEXTS} == {*TEMPLATES}
    for name in TEMPLATES:
        for begins in (False, True):
            assert recognised(written(name, begins)) == name
    assert written("rustgpt", True) == "{{ bos_token }}" + written("rustgpt", False)
    assert written(UNKNOWN, True) is None


@pytest.mark.parametrize(
    "source",
    [
        CHATML.replace("'", '"'),
        CHATML.replace("message['role']", "message.role"),
        CHATML.replace(" %}", "%}").replace("{% ", "{%- "),
        CHATML.replace("%}", "%}\n  ").replace("{{ ", "{{- ").rstrip(),
        CHATML.replace("\\n", "\n"),
        CHATML.replace(" + ", "+") + "\n",
        "{# ChatML #}\n" + CHATML.replace("\n", "\r\n"),
        CHATML.replace("%}{", "%}\n{").replace("}}{%", "}}{%"),
    ],
)
def test_what_changes_nothing_may_differ(source):
    assert recognised(source) == "chatml"
    messages = dialogue(3)
    assert jinja(source, messages) == ours("chatml", messages)


@pytest.mark.parametrize(
    "source",
    [
        "", "{", "{%", "{{ ' }}", "{% for message in messages %}", "x" * 100_000, "{{" * 1000,
        CHATML + " ",
        CHATML.replace("}}{% endfor", "}}\n{% endfor"),
        CHATML.replace("assistant\\n", "assistant"),
        CHATML.replace("'\\n' + message['content']", "'\\n ' + message['content']"),
        CHATML.replace("message['content']", "message['content'] | trim"),
        CHATML.replace("message['content']", "message['items']"),
        CHATML.replace("<|im_end|>", "<|im_end|> "),
        CHATML.replace("'\\n'", "'\\\\n'"),
        CHATML.replace("{% endfor %}", "{% endfor %}{{ bos_token }}"),
        CHATML.replace("if add_generation_prompt", "if not add_generation_prompt"),
        written("smollm2", False).replace("SmolLM", "Smol LM"),
        written("smollm2", False).replace("SmolLM", "smolLM"),
    ],
)  # fmt: skip
def test_what_would_be_rendered_otherwise_is_unknown(source):
    assert recognised(source) == UNKNOWN


def test_the_token_that_a_template_begins_with_must_be_its_own():
    llama3 = written("llama3", True)
    assert [recognised(llama3, bos) for bos in (None, BOS, "<s>")] == ["llama3", "llama3", UNKNOWN]
    assert recognised(written("chatml", True), "<s>") == "chatml"
