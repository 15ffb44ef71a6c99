"""Owns the GPT-2 that rustgpt is measured against, written as users of PyTorch write it."""

import argparse

import torch
from torch import Tensor, nn
from torch.nn import functional

Past = tuple[Tensor, Tensor] | None  # keys and values (B, H, T, D)


class Attention(nn.Module):
    """Causal multi-head self-attention by `scaled_dot_product_attention`."""

    def __init__(self, dim: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.projection = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:  # (B, T, C) -> (B, T, C)
        B, T, C = x.shape
        q, k, v = (
            part.view(B, T, self.n_heads, C // self.n_heads).transpose(1, 2)
            for part in self.qkv(x).split(C, dim=2)
        )  # (B, H, T, D)
        heads = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        projected: Tensor = self.projection(heads.transpose(1, 2).reshape(B, T, C))
        return projected

    def decode(self, x: Tensor, past: Past) -> tuple[Tensor, Past]:  # (B, T, C) -> (B, T, C)
        """Return the output, and keys and values with those before; several rows only at first."""
        B, T, C = x.shape
        q, k, v = (
            part.view(B, T, self.n_heads, C // self.n_heads).transpose(1, 2)
            for part in self.qkv(x).split(C, dim=2)
        )  # (B, H, T, D)
        if past is not None:
            k, v = torch.cat([past[0], k], dim=2), torch.cat([past[1], v], dim=2)
        heads = functional.scaled_dot_product_attention(q, k, v, is_causal=past is None)
        return self.projection(heads.transpose(1, 2).reshape(B, T, C)), (k, v)


class Block(nn.Module):
    """Attention and feed-forward, each with a norm before it and a residual sum."""

    def __init__(self, dim: int, n_heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention = Attention(dim, n_heads)
        self.feed_forward = nn.Sequential(
            nn.Linear(dim, 4 * dim), nn.GELU(approximate="tanh"), nn.Linear(4 * dim, dim)
        )

    def forward(self, x: Tensor) -> Tensor:  # (B, T, C) -> (B, T, C)
        x = x + self.attention(self.norm1(x))
        x = x + self.feed_forward(self.norm2(x))
        return x

    def decode(self, x: Tensor, past: Past) -> tuple[Tensor, Past]:  # (B, T, C) -> (B, T, C)
        heads, past = self.attention.decode(self.norm1(x), past)
        x = x + heads
        return x + self.feed_forward(self.norm2(x)), past


class GPT2(nn.Module):
    """GPT-2 with tied embeddings; `forward` returns the mean cross-entropy."""

    def __init__(self, n_layers: int, n_heads: int, dim: int, vocab_size: int, context: int):
        super().__init__()
        self.tokens = nn.Embedding(vocab_size, dim)
        self.places = nn.Embedding(context, dim)
        self.blocks = nn.Sequential(*[Block(dim, n_heads) for _ in range(n_layers)])
        self.norm = nn.LayerNorm(dim)
        self.output = nn.Linear(dim, vocab_size, bias=False)
        self.output.weight = self.tokens.weight
        self.apply(self._initialise)

    def _initialise(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)

    def forward(self, ids: Tensor, targets: Tensor) -> Tensor:  # (B, T), (B, T) -> ()
        x = self.tokens(ids) + self.places.weight[: ids.shape[1]]  # (B, T, C)
        logits = self.output(self.norm(self.blocks(x)))  # (B, T, V)
        return functional.cross_entropy(logits.flatten(0, 1), targets.flatten())

    def decode(self, ids: Tensor, cache: list[Past]) -> Tensor:  # (B, T) -> (B, V)
        """Return the logits of what follows texts that go on by some tokens, of one length all."""
        start = cache[0][0].shape[2] if cache[0] is not None else 0
        x = self.tokens(ids) + self.places.weight[start : start + ids.shape[1]]  # (B, T, C)
        for i, block in enumerate(self.blocks):
            x, cache[i] = block.decode(x, cache[i])
        logits: Tensor = self.output(self.norm(x[:, -1]))
        return logits


class Training:
    """One model, its optimizer, and a step of the two, as users of PyTorch write it.

    Parameters
    ----------
    kind
        "eager", "compile" or "bf16" (autocast).
    """

    def __init__(self, kind: str, model: nn.Module, settings: argparse.Namespace) -> None:
        torch.set_num_threads(settings.threads)
        self.kind = kind
        self.model = model
        self.run = torch.compile(model) if kind == "compile" else model
        self.max_norm = settings.max_norm
        self.optimizer = torch.optim.AdamW(
            model.parameters(), settings.rate, settings.betas, 1e-8, settings.decay, fused=True
        )

    def step(self, ids: Tensor, targets: Tensor) -> float:
        """Make one step on (B, T) ids and the tokens that follow them; return the loss."""
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.kind == "bf16"):
            loss = self.run(ids, targets)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.max_norm)
        self.optimizer.step()
        return float(loss.detach())
