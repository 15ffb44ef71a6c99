"""Owns the count of questions answered word for word after training, over several seeds.

Of data that ask the same in several ways, each answer's first question counts. By default they are
the bundled ones, with the default settings. `--rustgpt` trains on 25 statements and 53 dialogues of
them with RustGPT's sizes and epochs: 100 + 100, one head, no output projection in the attention;
`--rates` takes its rates, 5e-4 and 1e-4, as well (with `--batch-size 8`, say).
"""

import argparse
import time

import rustgpt
from rustgpt.plan import for_data
from rustgpt.text.dialogue import split_chat


def first_questions(dialogues: list[str]) -> list[tuple[str, str]]:
    """Return each answer's first question, and the answer: the others are rewordings of it."""
    found: dict[str, str] = {}
    for question, answer in map(split_chat, dialogues):
        found.setdefault(answer.strip(), question)
    return [(question, answer) for answer, question in found.items()]


def ask(model: rustgpt.LLM, question: str) -> str:
    """Return the answer to the first question of a chat."""
    return model.chat(max_new_tokens=model.max_seq_len).send(question)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=20, help="trainings (default: 20)")
    parser.add_argument("--language", default="all", choices=["all", "en", "zh"])
    parser.add_argument("--threads", type=int, default=0, help="0: one a processor (default)")
    parser.add_argument("--rustgpt", action="store_true", help="its sizes, epochs, kind of data")
    parser.add_argument("--rates", action="store_true", help="with --rustgpt: its rates too")
    parser.add_argument("--batch-size", type=int, default=64, help="with --rustgpt (default: 64)")
    arguments = parser.parse_args()
    data = rustgpt.Dataset.bundled(arguments.language)
    shape, settings = {}, {}
    if arguments.rustgpt:
        data = rustgpt.Dataset(data.pretraining_data[:25], data.chat_training_data[:53])
        shape = {"n_heads": 1, "attention_projection": False}
        settings = {"pretrain_epochs": 100, "tune_epochs": 100, "batch_size": arguments.batch_size}
        settings |= {"tune_replay": 0.0, "tune_join": 0.0}
        if arguments.rates:
            settings |= {"pretrain_rate": 5e-4, "tune_rate": 1e-4, "schedule": "constant"}
    asked = first_questions(data.chat_training_data)
    perfect = 0
    for seed in range(arguments.seeds):
        model = rustgpt.LLM.from_dataset(data, rustgpt.ModelConfig(seed=seed, **shape))
        config = rustgpt.TrainConfig(seed=seed, threads=arguments.threads, **settings)
        trainer = rustgpt.Trainer(model, for_data(config, data) if data.is_bundled else config)
        began = time.perf_counter()
        trainer.pretrain(data.pretraining_data)
        trainer.instruction_tune(data.chat_training_data, statements=data.pretraining_data)
        seconds = time.perf_counter() - began
        wrong = [question for question, answer in asked if ask(model, question) != answer]
        perfect += not wrong
        print(
            f"seed {seed}: {len(asked) - len(wrong)} of {len(asked)} right, {seconds:.1f} s "
            f"{wrong[:3] or ''}",
            flush=True,
        )
    print(f"every question answered word for word in {perfect} of {arguments.seeds} trainings")


if __name__ == "__main__":
    main()
