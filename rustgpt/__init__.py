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
    from rustgpt.backend import ops as ops
    from rustgpt.backend import use_backend as use_backend
    from rustgpt.config import ModelConfig as ModelConfig
    from rustgpt.config import TrainConfig as TrainConfig
    from rustgpt.errors import CheckpointError as CheckpointError
    from rustgpt.errors import ConfigError as ConfigError
    from rustgpt.errors import DataError as DataError
    from rustgpt.errors import RustGPTError as RustGPTError
    from rustgpt.errors import TokenizerError as TokenizerError
    from rustgpt.errors import TrainingError as TrainingError
    from rustgpt.generation.engine import Engine as Engine
    from rustgpt.generation.sampling_config import SamplingConfig as SamplingConfig
    from rustgpt.gradient_check import gradcheck as gradcheck
    from rustgpt.layers.cache import Cache as Cache
    from rustgpt.layers.context import Context as Context
    from rustgpt.layers.dropout import Dropout as Dropout
    from rustgpt.layers.embeddings import Embeddings as Embeddings
    from rustgpt.layers.feed_forward import FeedForward as FeedForward
    from rustgpt.layers.gpt import build_layers as build_layers
    from rustgpt.layers.gradients import Gradients as Gradients
    from rustgpt.layers.layer import Layer as Layer
    from rustgpt.layers.layer_norm import LayerNorm as LayerNorm
    from rustgpt.layers.output_projection import OutputProjection as OutputProjection
    from rustgpt.layers.rms_norm import RMSNorm as RMSNorm
    from rustgpt.layers.rotary import Rotary as Rotary
    from rustgpt.layers.self_attention import SelfAttention as SelfAttention
    from rustgpt.layers.transformer import TransformerBlock as TransformerBlock
    from rustgpt.llm import LLM as LLM
    from rustgpt.plan import train as train
    from rustgpt.text.dataset import Dataset as Dataset
    from rustgpt.text.tokenizer import Tokenizer as Tokenizer
    from rustgpt.text.tokenizer import WordTokenizer as WordTokenizer
    from rustgpt.trainer import Trainer as Trainer
    from rustgpt.training_state import TrainingState as TrainingState

# Where each public name lives; it is imported when it is first asked for, so that importing the
# package costs next to nothing.
_HOMES = {
    name: module
    for module, names in {
        "backend": "ops use_backend",
        "config": "ModelConfig TrainConfig",
        "errors": "CheckpointError ConfigError DataError RustGPTError TokenizerError TrainingError",
        "generation.engine": "Engine",
        "generation.sampling_config": "SamplingConfig",
        "gradient_check": "gradcheck",
        "layers.cache": "Cache",
        "layers.context": "Context",
        "layers.dropout": "Dropout",
        "layers.embeddings": "Embeddings",
        "layers.feed_forward": "FeedForward",
        "layers.gpt": "build_layers",
        "layers.gradients": "Gradients",
        "layers.layer": "Layer",
        "layers.layer_norm": "LayerNorm",
        "layers.output_projection": "OutputProjection",
        "layers.rms_norm": "RMSNorm",
        "layers.rotary": "Rotary",
        "layers.self_attention": "SelfAttention",
        "layers.transformer": "TransformerBlock",
        "llm": "LLM",
        "plan": "train",
        "text.dataset": "Dataset",
        "text.tokenizer": "Tokenizer WordTokenizer",
        "trainer": "Trainer",
        "training_state": "TrainingState",
    }.items()
    for name in names.split()
}
__all__ = [*_HOMES]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'rustgpt' has no attribute {name!r}")
    import importlib

    value = getattr(importlib.import_module(f"rustgpt.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
