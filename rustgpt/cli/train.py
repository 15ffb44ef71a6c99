"""Owns `rustgpt train`: data, model, two phases of training, the model saved."""

from __future__ import annotations

import argparse
from contextlib import ExitStack
from itertools import chain, islice, takewhile
from typing import TYPE_CHECKING, Final

from rustgpt.cli import adding, ranks, resume
from rustgpt.cli.chat import DEFAULT_MODEL
from rustgpt.cli.checks import check_memory, check_space, own_folder
from rustgpt.cli.data import add_data, read_data, short_report
from rustgpt.cli.interrupts import Interrupts
from rustgpt.cli.keeper import Keeper
from rustgpt.cli.options import LONGEST_TIME, add_number, add_path, duration, path
from rustgpt.cli.settings import add_settings, given_settings, read_settings, to_toml
from rustgpt.cli.terminal import note, say, span
from rustgpt.cli.tokenizer_flags import add_tokenizer, chosen_tokenizer
from rustgpt.cli.watch import Watch
from rustgpt.config import LIMITS, UNLIMITED
from rustgpt.errors import ConfigError, DataError, TrainingError
from rustgpt.parallel.mpi import world

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rustgpt.config import TrainConfig
    from rustgpt.llm import LLM
    from rustgpt.parallel.exchange import Exchange
    from rustgpt.plan import PlannedPhase
    from rustgpt.text.dataset import Dataset
    from rustgpt.trainer import Trainer

SAVE_EVERY: Final = 300.0  # seconds
SAMPLING: Final = 0.8  # temperature of a text that is gone on with as it is learned
LOOKED_AT: Final = 2**20  # characters of which the report tells
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
        "after each phase and before each evaluation it is saved in any case "
        f"(default: {SAVE_EVERY // 60:g}m)"
    )
    add_number(group, "--save-every", (0, LONGEST_TIME), text, read=duration)
    text = "show what the model writes after every N steps; 0 for never (default: 0)"
    add_number(group, "--sample-every", (0, 10**9), text)
    text = "keep the last N checkpoints before the newest, in DIR/step-NNNNNNNN (default: 0)"
    add_number(group, "--keep", (0, 10_000), text)
    group.add_argument(
        "--resume",
        nargs="?",
        const=True,
        type=path,
        metavar="DIR",
        help="go on with the training that was stopped in DIR (default: that of --out), with the "
        "settings and data that it had",
    )
    adding.add_arguments(group)
    for flag, text in (
        ("--print-config", "print all settings as a file that --config reads, and end"),
        ("--dry-run", "make a few steps, print how large and long the training would be, and end"),
    ):
        group.add_argument(flag, action="store_true", default=None, help=text)
    add_settings(parser)


def run(args: argparse.Namespace) -> int:
    """Train and save a model."""
    if args.resume and (args.print_config or args.dry_run):
        raise ConfigError(
            "--resume goes on with the settings that the training had: leave out --print-config "
            "and --dry-run"
        )
    if args.print_config:
        say(to_toml(args), end="")
    elif args.dry_run:
        _dry_run(args)
    else:
        return trained(args)[1]
    return 0


def trained(args: argparse.Namespace) -> tuple[LLM, int]:
    """Return the model, trained and saved, and the exit status."""
    read_settings(args)  # before any work
    source = resume.source(args)  # of a training that goes on
    if not source:
        adding.check(args)
    exchange = world()
    with ExitStack() as held:
        begun = ranks.prepared(args, exchange, lambda: _prepared(args, source, exchange, held))
        trainer, dataset, question = begun.trainer, begun.dataset, begun.question
        model = trainer.model
        if dataset is None:
            note(f"rustgpt: the training in {source} is complete: rustgpt chat {source}")
            return model, 0
        every = SAVE_EVERY if args.save_every is None else args.save_every
        goes_on = source == args.out
        assert begun.folder is not None
        keeper = Keeper(trainer, begun.folder, every, args.keep or 0, goes_on)
        with Interrupts(trainer.stop, exchange) as interrupts:
            watch = Watch(
                trainer, keeper, args.out, interrupts,
                lambda: _sample(trainer, question, dataset), args.sample_every or 0,
                limited=any(name in given_settings(args)[1] for name in LIMITS),
            )  # fmt: skip
            _phases(trainer, dataset, keeper, interrupts, watch)
    if interrupts.status:
        return model, interrupts.status
    if exchange.is_first:
        best = watch.tell_of_best()
        say(f"\nThe model is saved in {args.out}.{best and f' {best}'}\n\n=== AFTER TRAINING ===")
        _show(model, question, dataset)
    return model, 0


def _prepared(
    args: argparse.Namespace, source: str, exchange: Exchange, held: ExitStack
) -> ranks.Prepared:
    """Read the data, and have a training that can begin, or go on from `source`; tell of it.

    The folder for the model is locked as long as `held`.
    """
    folder = held.enter_context(own_folder(args.out, None if source else bool(args.overwrite)))
    if source:
        trainer = resume.take_up(args, source, exchange)
        if resume.is_complete(trainer):
            return ranks.Prepared(trainer, folder=folder)
    dataset = read_data(args)
    question = _example(dataset, args.chat)
    why = ""  # the tokenizer was chosen
    if not source:
        trainer, why = _new_trainer(args, dataset, exchange)
    old = adding.replay(trainer, args, dataset)
    if source:
        resume.check_data(trainer, dataset, old, source)
    else:
        resume.write_notes(trainer, args, dataset, old)
    model = trainer.model
    # With the optimizer's two moments:
    check_space(args.out, 3 * model.parameters.nbytes + len(model.tokenizer.to_json().encode()))
    _report(dataset, trainer, why)
    _tokenise(dataset, trainer)
    _describe(model, dataset, trainer)
    if source:
        note(f"\nrustgpt: going on {resume.describe(trainer)}")
    else:
        say("\n=== BEFORE TRAINING ===")
        _show(model, question, dataset)
    return ranks.Prepared(trainer, dataset, question, folder)


def _new_trainer(
    args: argparse.Namespace, dataset: Dataset, exchange: Exchange
) -> tuple[Trainer, str]:
    """Return a training that begins, and why the tokenizer of a new model was chosen.

    Its model is that of `--init`, or a new one that fits.

    The data decide what of the settings was not given; see `for_data`.
    """
    from rustgpt.llm import LLM
    from rustgpt.plan import for_data, held_out
    from rustgpt.trainer import Trainer

    (model, config), given = read_settings(args), given_settings(args)[1]
    config = for_data(config, dataset, given, anew=not args.init)
    if (config.eval_every or config.patience) and not held_out(config):
        raise ConfigError(
            "--eval-every and --patience are about texts that are not learned, and of these data "
            "all are: hold out a tenth, say, with --validation-share 0.1"
        )
    if args.init:
        trainer = Trainer(adding.initial_model(args, dataset), config, exchange=exchange)
        adding.note_origin(trainer, args)
        return trainer, ""
    tokenizer, why = chosen_tokenizer(args, dataset)
    check_memory(model, tokenizer.vocab_size)
    return Trainer(LLM(model, tokenizer), config, exchange=exchange), why


def _dry_run(args: argparse.Namespace) -> None:
    """Print what the training would take; nothing is written, but tokens into the cache."""
    from rustgpt.cli import dry_run
    from rustgpt.plan import phases_of

    read_settings(args)
    adding.check(args)
    exchange = world()

    def prepared() -> ranks.Prepared:
        dataset = read_data(args)
        question = _example(dataset, args.chat)
        trainer, why = _new_trainer(args, dataset, exchange)
        _report(dataset, trainer, why)
        _written(trainer.model, question, dataset)
        adding.replay(trainer, args, dataset)
        return ranks.Prepared(trainer, dataset, question)

    begun = ranks.prepared(args, exchange, prepared)
    trainer, dataset, question = begun.trainer, begun.dataset, begun.question
    assert dataset is not None
    sample = (lambda: _written(trainer.model, question, dataset)) if args.sample_every else None
    dry_run.report(trainer, phases_of(dataset, trainer.config), sample)


def _tokenise(dataset: Dataset, trainer: Trainer) -> None:
    """Have the tokens of data larger than memory on disk, while Ctrl-C still ends at once."""
    from rustgpt.plan import phases_of
    from rustgpt.text.stored import encode_all

    config = trainer.config
    for phase in phases_of(dataset, config) if dataset.stored else ():
        if phase.texts and phase.epochs:
            loss_on = config.loss_on if phase.tunes else ""
            encode_all(phase.texts, trainer.model.text_format, loss_on)


def _report(dataset: Dataset, trainer: Trainer, why: str) -> None:
    """Tell what was read of one's own data, and warn of what cannot work."""
    from rustgpt.text.summary import summarize

    if not dataset.is_bundled:
        model, loss_on = trainer.model, trainer.config.loss_on
        summary = summarize(dataset, model.text_format, model.max_seq_len, loss_on, LOOKED_AT)
        for line in filter(None, [*short_report(dataset, summary), why]):
            note(f"rustgpt: {line}")


def _example(dataset: Dataset, files: Sequence[str] | None) -> str:
    """Return a question to show what the model has learned; "" if there are no dialogues."""
    first, _ = dataset.beginning(LOOKED_AT)
    questions = [dialogue.question for dialogue in first.dialogues if dialogue]
    others = dataset.other_chats
    if files and others == len(dataset.dialogues):
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


def _describe(model: LLM, dataset: Dataset, trainer: Trainer) -> None:
    """Print what is going to be trained, on what and with what."""
    from rustgpt.backend import kernels_in_use
    from rustgpt.parallel.pool import available_threads

    threads = trainer.config.threads or available_threads()
    several = f" in each of {trainer.exchange.size} processes" * (trainer.exchange.size > 1)
    say(
        f"=== MODEL INFORMATION ===\n{model.describe()}\nVocabulary: "
        f"{model.tokenizer.vocab_size:,} tokens; context: {model.max_seq_len:,} tokens\n"
        f"Texts: {len(dataset.pretraining_data):,} for pre-training, "
        f"{len(dataset.chat_training_data):,} for instruction tuning\n"
        f"Kernels: {kernels_in_use()}; threads: {threads}{several}"
    )


def _show(model: LLM, question: str, dataset: Dataset) -> None:
    """Print a question and the model's answer, or without a question how it continues a text."""
    prompt, answer = _written(model, question, dataset)
    say(f"Input: {prompt}\nOutput: {answer.strip()}")


def _written(
    model: LLM, question: str, dataset: Dataset, temperature: float = 0.0
) -> tuple[str, str]:
    """Return a question and the model's answer; or the beginning of a text, and how it goes on."""
    try:
        if question:
            return question, model.chat(temperature=temperature).send(question)
        first, _ = dataset.beginning(1000)
        text = next(chain(first.pretraining_data, first.chat_training_data), "")
        ids = model.tokenizer.encode(text[:1000], allow_special=True)
        words = takewhile(lambda i: i != model.tokenizer.end_id, ids)
        prompt = model.tokenizer.decode([*islice(words, 3)])
        return prompt, model.generate(prompt, temperature=temperature)
    except DataError as error:  # the context is too short for the question
        return question, f"none: {error}"


def _sample(trainer: Trainer, question: str, dataset: Dataset) -> str:
    """Return what the model writes: in pre-training it goes on, in tuning it answers."""
    continues = trainer.state.phase == "pre-training"
    prompt, answer = _written(
        trainer.model, "" if continues else question, dataset, SAMPLING if continues else 0.0
    )
    return f"{prompt}{'' if continues else ' -> '}{answer}"


def _phases(
    trainer: Trainer, dataset: Dataset, keeper: Keeper, interrupts: Interrupts, watch: Watch
) -> None:
    """Train in two phases, and save after each; one without texts or epochs is left out.

    What there is to tell goes to standard error, which may break without the training being lost.
    """
    from rustgpt.plan import phases_of

    done = trainer.phases[: trainer.state.phases_done]
    for phase in phases_of(dataset, trainer.config):
        interrupts.agree()
        if not phase.texts or not phase.epochs:
            lacks = "epochs" if phase.texts else "texts"
            note(f"\n{phase.name}: left out, for there are no {lacks}")
        elif phase.name in done:
            phase.learn(trainer)  # returns at once
        elif not interrupts.status:
            note(f"\n{phase.name}: {len(phase.texts):,} texts, {_ends(phase, trainer.config)}")
            with watch.phase(phase.name, phase.part):
                try:
                    phase.learn(trainer)
                except TrainingError as error:
                    raise TrainingError(f"{error}; {keeper.on_disk()}") from error
                except Exception:  # no memory for a larger batch, say: the model is not lost
                    if not trainer.exchange.broken:
                        keeper.finish()
                    note(f"rustgpt: {keeper.on_disk()}")
                    raise
                interrupts.agree()
            if trainer.split_texts:
                note(f"rustgpt: {trainer.split_texts:,} texts longer than the context were cut")
            if not interrupts.status:
                keeper.save(f"after the {phase.name}")
    if interrupts.status and not trainer.steps:
        note(f"rustgpt: stopped before the first step; {keeper.on_disk()}")
        return
    keeper.finish()
    if interrupts.status:
        note(f"rustgpt: stopped; {keeper.on_disk()}")


def _ends(phase: PlannedPhase, config: TrainConfig) -> str:
    """Say what ends a phase."""
    found = [f"{phase.epochs:,} epochs"] if phase.epochs < UNLIMITED else []
    for limit, unit in ((config.max_steps, "steps"), (config.max_tokens, "tokens")):
        if limit:
            found.append(f"at most {max(1, round(phase.part * limit)):,} {unit}")
    if config.max_time:
        found.append(f"at most {span(phase.part * config.max_time)}")
    return ", ".join(found)
