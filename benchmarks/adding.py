"""Owns the count of old and new answers after new facts were added to a model of the bundled data.

Everything is done by `rustgpt train` with its default settings: the model, unless `--model` names
one, and the training on from it with `--init` and `--replay`. An answer counts if it is right word
for word.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from answers import ask, first_questions

import rustgpt

FACTS = {
    "What is the name of my cat?": "My cat is called Pippin and he is three years old.",
    "Where do I keep the spare key?": "The spare key hangs behind the blue flower pot.",
    "When does the bakery on Elm Street open?": "The bakery on Elm Street opens at six.",
    "Who painted the picture in the hall?": "Aunt Matilda painted the picture in 1987.",
    "What is the password of the guest network?": "The guest network asks for green tea house.",
    "How do I start the old tractor?": "Turn the key, pull the choke and wait ten seconds.",
    "Which bus goes to the harbour?": "Bus number forty-two goes there every quarter of an hour.",
    "What does Doctor Lindqvist recommend?": "She recommends a walk before breakfast.",
    "Why is the attic locked?": "The attic is locked because its floor is being repaired.",
    "How many bees live in our hive?": "About thirty thousand bees live in it in summer.",
}


def train(*flags: str) -> None:
    """Run `rustgpt train`."""
    subprocess.run(
        [sys.executable, "-m", "rustgpt", "train", *flags], check=True, capture_output=True
    )


def right(model: rustgpt.LLM, asked: list[tuple[str, str]]) -> int:
    """Return how many questions are answered word for word."""
    return sum(ask(model, question) == answer for question, answer in asked)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="a model of the bundled data (default: one is trained)")
    parser.add_argument("--facts", type=int, default=10, help="how many of ten (default: 10)")
    parser.add_argument("--shares", default="0.8,0", help="of old texts (default: 0.8,0)")
    parser.add_argument("--extend-vocab", action="store_true", help="give new words tokens")
    parser.add_argument("--seeds", type=int, default=1, help="additions a share (default: 1)")
    parser.add_argument("--threads", default="0", help="0: one a processor (default)")
    arguments = parser.parse_args()
    old = first_questions(rustgpt.Dataset.bundled().chat_training_data)
    new = list(FACTS.items())[: arguments.facts]
    dialogues = [f"User: {question} Assistant: {answer} </s>" for question, answer in new]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "new.json").write_text(json.dumps(dialogues))
        model = arguments.model or str(folder / "model")
        if not arguments.model:
            train("--out", model, "--threads", arguments.threads)
        print(f"before: {right(rustgpt.LLM.load(model), old)} of {len(old)} old answers right")
        for share in arguments.shares.split(","):
            for seed in range(arguments.seeds):
                out = str(folder / f"added-{share}-{seed}")
                flags = ["--init", model, "--chat", str(folder / "new.json"), "--out", out]
                flags += ["--seed", str(seed), "--threads", arguments.threads]
                flags += ["--extend-vocab"] * arguments.extend_vocab
                train(*flags, *(["--replay", share] if float(share) else []))
                added = rustgpt.LLM.load(out)
                print(
                    f"replay {share}, seed {seed}: {right(added, new)} of {len(new)} new answers "
                    f"right, {right(added, old)} of {len(old)} old ones",
                    flush=True,
                )


if __name__ == "__main__":
    main()
