"""Owns `rustgpt train` and the whole job: data, model, two phases of training, the model saved."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Final

from rustgpt.cli.chat import DEFAULT_MODEL, converse
from rustgpt.cli.checks import check_folder, check_memory
from rustgpt.cli.interrupts import Interrupts
from rustgpt.cli.options import add_sampling, path
from rustgpt.cli.settings import add_settings, read_settings
from rustgpt.cli.terminal import Progress, note, say
from rustgpt.errors import ConfigError, DataError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rustgpt.config import ModelConfig, TrainConfig
    from rustgpt.llm import LLM
    from rustgpt.text.dataset import Dataset
    from rustgpt.trainer import Trainer

LANGUAGES: Final = ("en", "zh", "all")
QUESTION: Final = "How do mountains form?"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `rustgpt train`."""
    group = parser.add_argument_group("data and model")
    group.add_argument(
        "--language", choices=LANGUAGES, help="which of the bundled data to learn (default: all)"
    )
    for flag, what in (("--pretrain", "statements"), ("--chat", "dialogues")):
        group.add_argument(
            flag,
            type=path,
            metavar="FILE",
            help=f"your own {what} instead: .json (a list of texts), .csv or plain text",
        )
    group.add_argument(
        "--out",
        type=path,
        default=DEFAULT_MODEL,
        metavar="DIR",
        help="the folder for the model; an older model there is replaced (default: %(default)s)",
    )
    add_settings(parser)


def add_job_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the whole job."""
    add_sampling(parser, seed=False)
    add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Train and save a model."""
    return _train(args)[1]


def run_job(args: argparse.Namespace) -> int:
    """Train and save a model, then talk to it."""
    model, status = _train(args)
    if status:
        return status
    say("\n=== CHAT ===\nType a prompt and press Enter; 'exit' ends the chat.")
    return converse(
        model.chat(args.max_new_tokens, args.temperature, getattr(args, "seed", model.config.seed))
    )


def _train(args: argparse.Namespace) -> tuple[LLM, int]:
    """Return the model, trained and saved, and the exit status."""
    model_config, train_config = read_settings(args)
    check_folder(args.out)
    dataset = _read_data(args)
    question = _example(dataset.chat_training_data, args.chat)
    model = _new_model(dataset, model_config, train_config)

    from rustgpt.trainer import Trainer

    trainer = Trainer(model, train_config)
    _describe(model, dataset, train_config)
    say("\n=== BEFORE TRAINING ===")
    _show(model, question, dataset)
    with Interrupts(trainer.stop) as interrupts:
        _phases(trainer, dataset, args.out)
    say(f"\nThe model is saved in {args.out}.")
    if not interrupts.status:
        say("\n=== AFTER TRAINING ===")
        _show(model, question, dataset)
    return model, interrupts.status


def _read_data(args: argparse.Namespace) -> Dataset:
    from rustgpt.text.dataset import Dataset

    if args.pretrain is None and args.chat is None:
        return Dataset.bundled(args.language or "all")
    if args.language:
        raise ConfigError(
            "--language chooses among the bundled data: leave it out with --pretrain and --chat"
        )
    return Dataset.load(args.pretrain, args.chat)


def _example(dialogues: Sequence[str], file: str | None) -> str:
    """Return a question to show what the model has learned; "" if there are no dialogues."""
    from rustgpt.text.dataset import split_chat

    questions = []
    wrong: DataError | None = None
    for text in dialogues:
        try:
            questions.append(split_chat(text)[0])
        except DataError as error:
            wrong = wrong or error
    if dialogues and not questions:
        raise DataError(f"{file!r} holds no dialogue: {wrong}")
    if len(questions) < len(dialogues):
        note(
            f"rustgpt: {len(dialogues) - len(questions)} of {len(dialogues)} texts for the chat "
            "are not of the form 'User: ... Assistant: ...'; they are learned as they are"
        )
    return QUESTION if QUESTION in questions else next(iter(questions), "")


def _new_model(dataset: Dataset, config: ModelConfig, training: TrainConfig) -> LLM:
    """Return an untrained model, unless it would not fit into memory."""
    from rustgpt.llm import LLM
    from rustgpt.text.tokenizer import WordTokenizer

    tokenizer = WordTokenizer.train([*dataset.pretraining_data, *dataset.chat_training_data])
    check_memory(config, tokenizer.vocab_size)
    return LLM(config, tokenizer)


def _describe(model: LLM, dataset: Dataset, config: TrainConfig) -> None:
    """Print what is going to be trained, on what and with what."""
    from rustgpt.backend import kernels_in_use
    from rustgpt.workers import available_threads

    say("=== MODEL INFORMATION ===")
    say(model.describe())
    say(f"Vocabulary: {model.tokenizer.vocab_size:,} tokens; context: {model.max_seq_len:,} tokens")
    say(
        f"Texts: {len(dataset.pretraining_data):,} for pre-training, "
        f"{len(dataset.chat_training_data):,} for instruction tuning"
    )
    say(f"Kernels: {kernels_in_use()}; threads: {config.threads or available_threads()}")


def _show(model: LLM, question: str, dataset: Dataset) -> None:
    """Print a question and the model's answer, or without a question how it continues a text."""
    try:
        if question:
            prompt, answer = question, model.chat().send(question)
        else:
            beginning = model.tokenizer.encode(dataset.pretraining_data[0])[:3]
            prompt = model.tokenizer.decode(beginning)
            answer = model.generate(prompt)
    except DataError as error:  # the context is too short for the question
        prompt, answer = question, f"none: {error}"
    say(f"Input: {prompt}\nOutput: {answer.strip()}")


def _phases(trainer: Trainer, dataset: Dataset, folder: str) -> None:
    """Train in two phases, and save after each; one without texts or epochs is left out.

    What there is to tell goes to standard error, which may break without the training being lost.
    """
    config = trainer.config
    for phase, learn, texts, epochs in (
        ("pre-training", trainer.pretrain, dataset.pretraining_data, config.pretrain_epochs),
        (
            "instruction tuning",
            trainer.instruction_tune,
            dataset.chat_training_data,
            config.tune_epochs,
        ),
    ):
        if not texts or not epochs:
            note(f"\n{phase}: left out, for there are no {'epochs' if texts else 'texts'}")
        elif not trainer.stopped:
            note(f"\n{phase}: {len(texts):,} texts, {epochs:,} epochs")
            with Progress(phase, epochs) as progress:
                trainer.on_epoch = progress.show
                learn(texts)
            if trainer.split_texts:
                note(f"rustgpt: {trainer.split_texts:,} texts longer than the context were cut")
        trainer.model.save(folder)
