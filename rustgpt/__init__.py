"""rustgpt: a small GPT from scratch, on Cython kernels over SciPy's BLAS.

import rustgpt

dataset = rustgpt.Dataset.bundled("en")
model = rustgpt.LLM.from_dataset(dataset)
trainer = rustgpt.Trainer(model)
trainer.pretrain(dataset.pretraining_data)
trainer.instruction_tune(dataset.chat_training_data)
print(model.chat().send("How do mountains form?"))
"""

# Little is imported here, since all that comes before `rustgpt.__main__` has its first word delays
# the moment from which Ctrl-C is handled. (A type checker takes this name for true.)
import os
import sys

TYPE_CHECKING = False

# In a checkout that is not built in place, `rustgpt._ext` is found in the installed package.
__path__ += [
    folder
    for folder in (os.path.join(entry, "rustgpt") for entry in sys.path)
    if folder not in __path__ and os.path.isfile(os.path.join(folder, "__init__.py"))
]

__version__ = "0.1.0"

if TYPE_CHECKING:
    from rustgpt.backend import ops, use_backend
    from rustgpt.config import ModelConfig, TrainConfig
    from rustgpt.errors import (
        CheckpointError,
        ConfigError,
        DataError,
        RustGPTError,
        TokenizerError,
        TrainingError,
    )
    from rustgpt.gradient_check import gradcheck
    from rustgpt.layers.cache import Cache
    from rustgpt.layers.context import Context
    from rustgpt.layers.embeddings import Embeddings
    from rustgpt.layers.feed_forward import FeedForward
    from rustgpt.layers.gpt import build_layers
    from rustgpt.layers.gradients import Gradients
    from rustgpt.layers.layer import Layer
    from rustgpt.layers.layer_norm import LayerNorm
    from rustgpt.layers.output_projection import OutputProjection
    from rustgpt.layers.self_attention import SelfAttention
    from rustgpt.layers.transformer import TransformerBlock
    from rustgpt.llm import LLM
    from rustgpt.text.dataset import Dataset
    from rustgpt.text.tokenizer import Tokenizer, WordTokenizer
    from rustgpt.trainer import Trainer
    from rustgpt.training_state import TrainingState

# Where each public name lives; it is imported when it is first asked for, so that importing the
# package costs next to nothing.
_HOMES = {
    "Cache": "layers.cache",
    "CheckpointError": "errors",
    "ConfigError": "errors",
    "Context": "layers.context",
    "DataError": "errors",
    "Dataset": "text.dataset",
    "Embeddings": "layers.embeddings",
    "FeedForward": "layers.feed_forward",
    "Gradients": "layers.gradients",
    "LLM": "llm",
    "Layer": "layers.layer",
    "LayerNorm": "layers.layer_norm",
    "ModelConfig": "config",
    "OutputProjection": "layers.output_projection",
    "RustGPTError": "errors",
    "SelfAttention": "layers.self_attention",
    "Tokenizer": "text.tokenizer",
    "TokenizerError": "errors",
    "TrainConfig": "config",
    "Trainer": "trainer",
    "TrainingError": "errors",
    "TrainingState": "training_state",
    "TransformerBlock": "layers.transformer",
    "WordTokenizer": "text.tokenizer",
    "build_layers": "layers.gpt",
    "gradcheck": "gradient_check",
    "ops": "backend",
    "use_backend": "backend",
}

__all__ = [
    "LLM",
    "Cache",
    "CheckpointError",
    "ConfigError",
    "Context",
    "DataError",
    "Dataset",
    "Embeddings",
    "FeedForward",
    "Gradients",
    "Layer",
    "LayerNorm",
    "ModelConfig",
    "OutputProjection",
    "RustGPTError",
    "SelfAttention",
    "Tokenizer",
    "TokenizerError",
    "TrainConfig",
    "Trainer",
    "TrainingError",
    "TrainingState",
    "TransformerBlock",
    "WordTokenizer",
    "build_layers",
    "gradcheck",
    "ops",
    "use_backend",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'rustgpt' has no attribute {name!r}")
    import importlib

    value = getattr(importlib.import_module(f"rustgpt.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
