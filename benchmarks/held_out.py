"""Owns the count of what the model of the bundled data answers beyond the lines that it has read.

Trains as `rustgpt` does (or takes a model's folder), and counts right answers:

- the bundled data's questions, each answer's first, word for word, and each in four variants:
  without its mark, with two spaces, in lower case, with a comma more;
- with `--wordings`, all questions of the data word for word;
- 200 rewordings and 50 questions of which the data say nothing, in `held_out.json`; they were
  written before the data that they are to measure, and are not in them. A rewording is answered
  right with an answer that the data give to the question that it means; a question from outside
  with an honest "I do not know" in its own language;
- statements that go on as they are learned from their first three words (or Chinese characters);
- what follows an empty prompt.
"""

import argparse
import json
import re
import time
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from answers import ask, first_questions

import rustgpt
from rustgpt.plan import for_data
from rustgpt.text.dialogue import Dialogue

HELD_OUT = Path(__file__).with_suffix(".json")
UNKNOWN = {"en": r"\bI (do not|don't) know\b", "zh": r"我不(知道|清楚)"}
STATEMENTS = 100
VARIANTS = ("no mark", "two spaces", "lower case", "a comma more")


def is_chinese(text: str) -> bool:
    """Whether a text has Chinese characters."""
    return bool(re.search(r"[一-鿿]", text))


def answers_of(dialogues: list[str]) -> dict[str, set[str]]:
    """Return the answers that some dialogues give to each question that begins one."""
    found: dict[str, set[str]] = defaultdict(set)
    for text in dialogues:
        dialogue = Dialogue.parse(text)
        found[dialogue.question].add(dialogue.turns()[0][-1].content)
    return found


def variants(question: str, number: int) -> list[str]:
    """Return a question in the forms of `VARIANTS`; its number says where something is put in."""
    bare = re.sub(r"[?!.？！。]+$", "", question)
    words = list(bare) if is_chinese(bare) else bare.split(" ")
    glue, comma = ("", "，") if is_chinese(bare) else (" ", ",")
    at = 1 + number % max(1, len(words) - 1)
    first, rest = glue.join(words[:at]), glue.join(words[at:]) + question[len(bare) :]
    return [bare, f"{first}  {rest}", question.lower(), f"{first}{comma}{glue}{rest}"]


def goes_on(model: rustgpt.LLM, statement: str, known: set[str]) -> bool:
    """Whether a statement's first three words are made a statement of the data."""
    end = 3 if is_chinese(statement) else len(" ".join(statement.split(" ")[:3]))
    prompt = statement[:end]
    return (prompt + model.generate(prompt, max_new_tokens=model.max_seq_len)).strip() in known


def share(right: int, of: int) -> str:
    """Return a count with its percentage."""
    return f"{right} of {of} ({100 * right / max(1, of):.1f} %)"


def measure(
    model: rustgpt.LLM, data: rustgpt.Dataset, show: bool = False, wordings: bool = False
) -> dict[str, int]:
    """Print what a model answers right; return the counts.

    Parameters
    ----------
    show
        Whether to print each rewording and each question from outside with its answer.
    wordings
        Whether to ask all questions of the data.
    """
    held_out = json.loads(HELD_OUT.read_text(encoding="utf-8"))
    answers, counts = answers_of(data.chat_training_data), dict[str, int]()

    def tell(name: str, right: int, of: int) -> None:
        counts[name] = right
        print(f"  {name}: {share(right, of)}", flush=True)

    questions = [question for question, _ in first_questions(data.chat_training_data)]

    def wrong(asked: Iterable[str], mean: Iterable[str]) -> list[str]:
        return [q for q, one in zip(asked, mean, strict=True) if ask(model, q) not in answers[one]]

    missed = wrong(questions, questions)
    tell("word for word", len(questions) - len(missed), len(questions))
    forms = zip(*(variants(q, i) for i, q in enumerate(questions)), strict=True)
    for name, asked in zip(VARIANTS, forms, strict=True):
        tell(name, len(questions) - len(wrong(asked, questions)), len(questions))
    if wordings:
        others = wrong(answers, answers)
        missed += others
        tell("all wordings", len(answers) - len(others), len(answers))
    if missed:
        print("    missed:", *missed[:5], sep="\n      ")
    rewordings = [
        (item["question"], ask(model, item["question"]), answers.get(item["means"], set()))
        for item in held_out["rewordings"]
        if item["means"] in answers
    ]
    tell("rewordings", sum(given in those for _, given, those in rewordings), len(rewordings))
    language = {"zh" if is_chinese(question) else "en" for question in answers}
    outside = [
        (question, ask(model, question), UNKNOWN[name])
        for question in held_out["outside"]
        if (name := "zh" if is_chinese(question) else "en") in language
    ]
    tell("outside", sum(bool(re.search(form, a)) for _, a, form in outside), len(outside))
    if show:
        for question, given, those in rewordings:
            print(f"    {'right' if given in those else 'WRONG'} {question} -> {given}")
        for question, given, form in outside:
            print(f"    {'right' if re.search(form, given) else 'WRONG'} {question} -> {given}")
    known = [text.removesuffix("</s>").strip() for text in data.pretraining_data]
    some = [known[i * len(known) // STATEMENTS] for i in range(STATEMENTS)]
    tell("statements", sum(goes_on(model, text, {*known}) for text in some), len(some))
    text = model.generate("", max_new_tokens=model.max_seq_len).strip()
    counts["empty prompt"] = int(text in known)
    print(f"  an empty prompt: {text!r} ({'a' if text in known else 'no'} statement of the data)")
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", help="the folder of a model that is trained already")
    parser.add_argument("--seeds", type=int, default=1, help="trainings (default: 1)")
    parser.add_argument("--first-seed", type=int, default=0, help="of these (default: 0)")
    parser.add_argument("--language", default="all", choices=["all", "en", "zh"])
    parser.add_argument("--threads", type=int, default=0, help="0: one a processor (default)")
    parser.add_argument("--show", action="store_true", help="print each held-out question's answer")
    parser.add_argument("--wordings", action="store_true", help="ask all questions of the data")
    arguments = parser.parse_args()
    data = rustgpt.Dataset.bundled(arguments.language)
    if arguments.model:
        measure(rustgpt.LLM.load(arguments.model), data, arguments.show, arguments.wordings)
        return
    totals: dict[str, list[int]] = defaultdict(list)
    for seed in range(arguments.first_seed, arguments.first_seed + arguments.seeds):
        began = time.perf_counter()
        model = rustgpt.LLM.from_dataset(data, rustgpt.ModelConfig(seed=seed))
        config = rustgpt.TrainConfig(seed=seed, threads=arguments.threads)
        trainer = rustgpt.Trainer(model, for_data(config, data))
        trainer.pretrain(data.pretraining_data)
        trainer.instruction_tune(data.tuning_data, statements=data.pretraining_data)
        print(f"seed {seed}: trained in {time.perf_counter() - began:.1f} s", flush=True)
        for name, right in measure(model, data, arguments.show, arguments.wordings).items():
            totals[name].append(right)
    if arguments.seeds > 1:
        print(f"smallest and largest of {arguments.seeds} trainings:")
        for name, rights in totals.items():
            print(f"  {name}: {min(rights)} to {max(rights)}")


if __name__ == "__main__":
    main()
