"""Owns what each of several processes does in test_trainer_ranks.py."""

import json
import sys

import numpy as np

import rustgpt
from rustgpt.optim.optimizer import Optimizer
from rustgpt.parallel.mpi import world
from rustgpt.text.tokenizer import tokenizer_for

exchange = world()
out, settings = sys.argv[1], json.loads(sys.argv[2])
rng = np.random.default_rng(1)
# Of unequal length; the last step of an epoch has one text.
texts = ["".join(rng.choice([*"abcdefgh "], length)) for length in rng.integers(2, 60, 46)]
losses, moments = [], []


class Momentum:
    """Another optimizer, whose array has a number for each parameter on every rank."""

    def __init__(self, model: rustgpt.LLM, _: rustgpt.TrainConfig) -> None:
        self.parameters = model.parameters
        self.m = np.zeros_like(model.parameters)

    def begin_step(self) -> None:
        pass

    def update(self, gradients, rate, gradient_scale, part) -> None:
        self.m[part] = 0.9 * self.m[part] + gradient_scale * gradients[part]
        self.parameters[part] -= rate * self.m[part]

    def state(self) -> dict:
        return {"m": self.m}

    def take_up(self, state) -> None:
        self.m[...] = state["m"]


def after(step) -> None:
    losses.append(step.loss)
    moments.append(len(trainer.state.optimizer["m"]))
    if step.number == settings.get("stop"):
        trainer.save(settings["folder"])
        trainer.stop()


def new() -> rustgpt.Trainer:
    model = rustgpt.LLM(
        rustgpt.ModelConfig(
            embedding_dim=32, hidden_dim=64, n_layers=2, n_heads=2, max_seq_len=32,
            dtype=settings["dtype"], attention_bias=True,
        ),
        tokenizer_for(texts, "char", None),
    )  # fmt: skip
    config = rustgpt.TrainConfig(
        batch_size=8, max_steps=50, validation_share=0.1, dropout=0.1, threads=1,
        max_grad_norm=0.5, weight_decay=0.1,
    )  # fmt: skip
    return rustgpt.Trainer(model, config, after, exchange=exchange, **optimizer)


optimizer: dict[str, type[Optimizer]] = {"optimizer": Momentum} if settings.get("momentum") else {}
if settings.get("resume"):
    trainer = rustgpt.Trainer.resume(settings["folder"], exchange=exchange, **optimizer)
else:
    trainer = new()
trainer.on_epoch, trainer.on_step = None, after
trainer.fit(texts, 1000, 1e-3, "test")
held = exchange.meet("end", max(moments))
if exchange.is_first:
    named = trainer.model.named_parameters()
    evaluations = [one.loss for one in trainer.evaluations]
    np.savez(out, losses=losses, evaluations=evaluations, held=[n for (n,) in held], **named)
