"""Owns the Llama that rustgpt is measured against, written as users of PyTorch write it."""

import torch
from torch import Tensor, nn
from torch.nn import functional


def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:  # (B, H, T, D) -> (B, H, T, D)
    """Return queries or keys, turned by their positions."""
    a, b = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-b, a], dim=-1) * sin


class Attention(nn.Module):
    """Causal grouped-query attention with rotary positions."""

    def __init__(self, dim: int, n_heads: int, n_kv_heads: int) -> None:
        super().__init__()
        self.heads = (n_heads, n_kv_heads, n_kv_heads)
        self.head_dim = dim // n_heads
        self.qkv = nn.Linear(dim, sum(self.heads) * self.head_dim, bias=False)
        self.projection = nn.Linear(dim, dim, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:  # (B, T, C) -> (B, T, C)
        B, T, C = x.shape
        q, k, v = (
            part.view(B, T, -1, self.head_dim).transpose(1, 2)
            for part in self.qkv(x).split([h * self.head_dim for h in self.heads], dim=2)
        )  # (B, H, T, D), (B, K, T, D), (B, K, T, D)
        heads = functional.scaled_dot_product_attention(
            turned(q, cos, sin), turned(k, cos, sin), v, is_causal=True, enable_gqa=True
        )
        projected: Tensor = self.projection(heads.transpose(1, 2).reshape(B, T, C))
        return projected


class FeedForward(nn.Module):
    """SwiGLU, gate and up as one product."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.gate_up = nn.Linear(dim, 2 * hidden_dim, bias=False)
        self.down = nn.Linear(hidden_dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:  # (B, T, C) -> (B, T, C)
        gate, up = self.gate_up(x).chunk(2, dim=-1)  # (B, T, F) each
        out: Tensor = self.down(functional.silu(gate) * up)
        return out


class Block(nn.Module):
    """Attention and feed-forward, each with an RMS norm before it and a residual sum."""

    def __init__(self, dim: int, n_heads: int, n_kv_heads: int, hidden_dim: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.RMSNorm(dim, 1e-5), nn.RMSNorm(dim, 1e-5)
        self.attention = Attention(dim, n_heads, n_kv_heads)
        self.feed_forward = FeedForward(dim, hidden_dim)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:  # (B, T, C) -> (B, T, C)
        x = x + self.attention(self.norm1(x), cos, sin)
        x = x + self.feed_forward(self.norm2(x))
        return x


class Llama(nn.Module):
    """Llama with tied embeddings; `forward` returns the mean cross-entropy."""

    def __init__(
        self, n_layers: int, n_heads: int, n_kv_heads: int, dim: int, hidden_dim: int,
        vocab_size: int, context: int,
    ) -> None:  # fmt: skip
        super().__init__()
        self.tokens = nn.Embedding(vocab_size, dim)
        self.blocks = nn.ModuleList(
            [Block(dim, n_heads, n_kv_heads, hidden_dim) for _ in range(n_layers)]
        )
        self.norm = nn.RMSNorm(dim, 1e-5)
        self.output = nn.Linear(dim, vocab_size, bias=False)
        self.output.weight = self.tokens.weight
        frequencies = 10_000.0 ** (-torch.arange(0, dim // n_heads, 2) / (dim // n_heads))
        angles = (torch.arange(context)[:, None] * frequencies).repeat(1, 2)  # (S, D)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)
        self.apply(self._initialise)

    def _initialise(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)

    def forward(self, ids: Tensor, targets: Tensor) -> Tensor:  # (B, T), (B, T) -> ()
        T = ids.shape[1]
        x, cos, sin = self.tokens(ids), self.cos[:T], self.sin[:T]  # (B, T, C), (T, D), (T, D)
        for block in self.blocks:
            x = block(x, cos, sin)
        logits = self.output(self.norm(x))  # (B, T, V)
        return functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
