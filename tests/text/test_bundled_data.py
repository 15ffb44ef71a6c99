"""Tests of the data that come with the package, and of the questions that are held out of them."""

import json
import re
from collections import defaultdict
from pathlib import Path

import pytest

from rustgpt import Dataset, ModelConfig
from rustgpt.text.dialogue import Dialogue
from rustgpt.text.text_format import TextFormat

HELD_OUT = Path(__file__).parents[2] / "benchmarks" / "held_out.json"
UNKNOWN = {"en": "I do not know that, because", "zh": "这个我不知道"}


def plain(question):
    """Return a question without its signs and capital letters."""
    return " ".join(re.findall(r"\w+", question.lower()))


@pytest.fixture(scope="module", params=["en", "zh"])
def language(request):
    return request.param


@pytest.fixture(scope="module")
def dialogues(language):
    return [Dialogue.parse(text) for text in Dataset.bundled(language).chat_training_data]


def test_each_question_has_one_answer(dialogues):
    answers = defaultdict(set)
    for dialogue in dialogues:
        answers[dialogue.question].add(dialogue.turns()[0][-1].content)
    assert {question for question, those in answers.items() if len(those) > 1} == set()


def test_questions_are_asked_in_several_ways(language, dialogues):
    asked = defaultdict(set)
    for dialogue in dialogues:
        asked[dialogue.turns()[0][-1].content].add(dialogue.question)
    known = [those for answer, those in asked.items() if UNKNOWN[language] not in answer]
    assert sum(len(those) >= 5 for those in known) >= {"en": 348, "zh": 129}[language]


def test_some_dialogues_have_two_turns_and_of_some_nothing_is_known(language, dialogues):
    two = {d.messages[2].content for d in dialogues if len(d.messages) == 4}
    assert len(two) >= {"en": 60, "zh": 30}[language]
    unknown = {d.question for d in dialogues if UNKNOWN[language] in d.messages[1].content}
    assert len(unknown) >= 100


def test_a_word_that_only_an_unknown_question_has_is_spelled():
    tokenizer = Dataset.bundled().tokenizer()
    assert {"volcano", "Nobel", "capital"} <= {*tokenizer.vocab.ids}
    assert not {"zeppelin", "axolotl", "Kubernetes"} & {*tokenizer.vocab.ids}


def test_every_dialogue_fits_the_context(language, dialogues):
    tokenizer, longest = Dataset.bundled(language).tokenizer(), ModelConfig().max_seq_len
    text_format = TextFormat(tokenizer, tokenizer.end_id)
    rows = [text_format.dialogue(dialogue) for dialogue in dialogues]
    assert max(map(len, rows)) <= longest + 1


def test_no_question_that_is_held_out_is_in_the_data(dialogues):
    held_out = json.loads(HELD_OUT.read_text(encoding="utf-8"))
    questions = [item["question"] for item in held_out["rewordings"]] + held_out["outside"]
    learned = {plain(m.content) for d in dialogues for m in d.messages if m.role == "user"}
    assert not {plain(question) for question in questions} & learned


def test_what_is_held_out_means_questions_of_the_data():
    held_out = json.loads(HELD_OUT.read_text(encoding="utf-8"))
    known = {dialogue.question for dialogue in Dataset.bundled().dialogues}
    assert {item["means"] for item in held_out["rewordings"]} <= known
    assert (len(held_out["rewordings"]), len({*held_out["outside"]})) == (200, 50)
