"""Owns `rustgpt train`: data, model, two phases of training, the model saved."""

from __future__ import annotations

import argparse
from itertools import islice, takewhile
from typing import TYPE_CHECKING, Final

from rustgpt.cli.chat import DEFAULT_MODEL
from rustgpt.cli.checks import check_memory, check_space, own_folder
from rustgpt.cli.data import add_data, read_data, short_report
from rustgpt.cli.interrupts import Interrupts
from rustgpt.cli.keeper import Keeper
from rustgpt.cli.options import LONGEST_TIME, add_number, add_path, duration
from rustgpt.cli.settings import add_settings, read_settings
from rustgpt.cli.terminal import note, progress, say
from rustgpt.cli.tokenizer_flags import add_tokenizer, chosen_tokenizer
from rustgpt.errors import DataError, TrainingError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rustgpt.config import TrainConfig
    from rustgpt.llm import LLM
    from rustgpt.text.dataset import Dataset
    from rustgpt.text.tokenizer import Tokenizer
    from rustgpt.trainer import Trainer
    from rustgpt.training_state import Step

SAVE_EVERY: Final = 300.0  # seconds
LOOKED_AT: Final = 2**22  # bytes of text of which the report tells
QUESTION: Final = "How do mountains form?"


def add_arguments(parser: argparse.ArgumentParser, positional: bool = True) -> None:
    """Add the arguments of `rustgpt train`; `positional` if data may be named without a flag."""
    add_data(parser.add_argument_group("data"), positional)
    group = parser.add_argument_group("model")
    text = "the folder for the model (default: %(default)s)"
    add_path(group, "--out", "DIR", text, DEFAULT_MODEL)
    add_tokenizer(group)
    group.add_argument(
        "--overwrite",
        action="store_true",
        default=None,
        help="replace a model that is in that folder; without, it is left alone",
    )
    text = (
        "save the model so often within a phase, such as 30s, 5m or 1h, and 0 for never; "
        f"after each phase it is saved in any case (default: {SAVE_EVERY // 60:g}m)"
    )
    add_number(group, "--save-every", (0, LONGEST_TIME), text, read=duration)
    add_settings(parser)


def run(args: argparse.Namespace) -> int:
    """Train and save a model."""
    return trained(args)[1]


def trained(args: argparse.Namespace) -> tuple[LLM, int]:
    """Return the model, trained and saved, and the exit status."""
    model_config, train_config = read_settings(args)
    with own_folder(args.out, args.overwrite) as folder:
        dataset = read_data(args)
        question = _example(dataset, args.chat)

        from rustgpt.llm import LLM
        from rustgpt.trainer import Trainer

        tokenizer = chosen_tokenizer(args, dataset)
        check_memory(model_config, tokenizer.vocab_size)
        model = LLM(model_config, tokenizer)
        check_space(args.out, model.parameters.nbytes + len(tokenizer.to_json().encode()))
        trainer = Trainer(model, train_config)
        _report(dataset, tokenizer, model.max_seq_len)
        _describe(model, dataset, train_config)
        say("\n=== BEFORE TRAINING ===")
        _show(model, question, dataset)
        every = SAVE_EVERY if args.save_every is None else args.save_every
        keeper = Keeper(trainer, folder, every)
        with Interrupts(trainer.stop) as interrupts:
            _phases(trainer, dataset, keeper, interrupts)
    if interrupts.status:
        return model, interrupts.status
    say(f"\nThe model is saved in {args.out}.\n\n=== AFTER TRAINING ===")
    _show(model, question, dataset)
    return model, 0


def _report(dataset: Dataset, tokenizer: Tokenizer, context: int) -> None:
    """Tell what was read of one's own data, and warn of what cannot work."""
    from rustgpt.text.summary import summarize

    if not dataset.is_bundled:
        summary = summarize(dataset, tokenizer, context, most_bytes=LOOKED_AT)
        for line in short_report(dataset, summary):
            note(f"rustgpt: {line}")


def _example(dataset: Dataset, files: Sequence[str] | None) -> str:
    """Return a question to show what the model has learned; "" if there are no dialogues."""
    questions = [dialogue.question for dialogue in dataset.dialogues if dialogue]
    others = len(dataset.dialogues) - len(questions)
    if files and not questions:
        raise DataError(
            f"{', '.join(map(repr, files))} holds no dialogue: one must be "
            "'User: ... Assistant: ...', or an object with question and answer"
        )
    if others:
        note(
            f"rustgpt: {others} of {len(dataset.dialogues)} texts for the chat are not of the form "
            "'User: ... Assistant: ...'; they are learned as they are"
        )
    return QUESTION if QUESTION in questions else next(iter(questions), "")


def _describe(model: LLM, dataset: Dataset, config: TrainConfig) -> None:
    """Print what is going to be trained, on what and with what."""
    from rustgpt.backend import kernels_in_use
    from rustgpt.parallel.data_parallel import available_threads

    say(
        f"=== MODEL INFORMATION ===\n{model.describe()}\nVocabulary: "
        f"{model.tokenizer.vocab_size:,} tokens; context: {model.max_seq_len:,} tokens\n"
        f"Texts: {len(dataset.pretraining_data):,} for pre-training, "
        f"{len(dataset.chat_training_data):,} for instruction tuning\n"
        f"Kernels: {kernels_in_use()}; threads: {config.threads or available_threads()}"
    )


def _show(model: LLM, question: str, dataset: Dataset) -> None:
    """Print a question and the model's answer, or without a question how it continues a text."""
    try:
        if question:
            prompt, answer = question, model.chat().send(question)
        else:
            ids = model.tokenizer.encode(dataset.pretraining_data[0][:1000], allow_special=True)
            words = takewhile(lambda i: i != model.tokenizer.end_id, ids)
            prompt = model.tokenizer.decode([*islice(words, 3)])
            answer = model.generate(prompt)
    except DataError as error:  # the context is too short for the question
        prompt, answer = question, f"none: {error}"
    say(f"Input: {prompt}\nOutput: {answer.strip()}")


def _phases(trainer: Trainer, dataset: Dataset, keeper: Keeper, interrupts: Interrupts) -> None:
    """Train in two phases, and save after each; one without texts or epochs is left out.

    What there is to tell goes to standard error, which may break without the training being lost.
    """

    def after_step(step: Step) -> None:
        if interrupts.status:  # the signal may have come before there was anything to stop
            trainer.stop()
        keeper.after_step(step)

    trainer.on_step = after_step
    statements, dialogues = dataset.pretraining_data, dataset.chat_training_data
    for phase, learn, texts, epochs in (
        ("pre-training", trainer.pretrain, statements, trainer.config.pretrain_epochs),
        ("instruction tuning", trainer.instruction_tune, dialogues, trainer.config.tune_epochs),
    ):
        if not texts or not epochs:
            note(f"\n{phase}: left out, for there are no {'epochs' if texts else 'texts'}")
        elif not interrupts.status:
            note(f"\n{phase}: {len(texts):,} texts, {epochs:,} epochs")
            with progress(phase, epochs) as trainer.on_epoch:
                try:
                    learn(texts)
                except TrainingError as error:
                    raise TrainingError(f"{error}; {keeper.on_disk()}") from error
                except Exception:  # no memory for a larger batch, say: the model is not lost
                    keeper.finish()
                    note(f"rustgpt: {keeper.on_disk()}")
                    raise
            if trainer.split_texts:
                note(f"rustgpt: {trainer.split_texts:,} texts longer than the context were cut")
            if not interrupts.status:
                keeper.save(f"after the {phase}")
    if interrupts.status and not trainer.steps:
        note(f"rustgpt: stopped before the first step; {keeper.on_disk()}")
        return
    keeper.finish()
    if interrupts.status:
        note(f"rustgpt: stopped; {keeper.on_disk()}")
