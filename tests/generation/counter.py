"""Owns a model that counts, for tests of whatever makes texts: after token t comes t + 1."""

import numpy as np

V, END = 10, 0


class Digits:
    """A tokenizer of ten signs, of which the first ends a text."""

    vocab_size, end_id = V, END

    def stream(self, skip_special=True, *, after=()):
        return CharStream()


class CharStream:
    def push(self, token_id):
        return str(token_id)

    def finish(self):
        return ""


class Counter:
    """Keeps what it was asked, and checks its cache."""

    weights_version, end_ids = 0, (END,)

    def __init__(self, max_seq_len=8, spread=0.0):
        self.tokenizer = Digits()
        self.max_seq_len = max_seq_len
        self.spread = spread
        self.calls = []

    def _decode(self, rows, cache, slots):
        assert len(set(slots)) == len(slots) == len(rows)
        call = []
        for row, slot in zip(rows, slots, strict=True):
            seen = cache.rows("tokens", "ids", 1, np.dtype(np.int32))
            length = int(cache.lengths[slot])
            call.append((slot, seen[slot, :length, 0].tolist(), row.tolist()))
            seen[slot, length : length + len(row), 0] = row
            cache.lengths[slot] += len(row)
            assert cache.lengths[slot] <= cache.capacity == self.max_seq_len
        self.calls.append(call)
        return np.stack([self.logits(row[-1]) for row in rows])

    def logits(self, token):
        logits = np.full(V, -50.0, np.float32)
        logits[(token + 1) % V] = 0
        return logits * (1 - self.spread)


class Endless(Counter):
    """Goes around without an end."""

    def logits(self, token):
        logits = super().logits(token)
        logits[END] = -np.inf
        logits[1 if token == V - 1 else token + 1] = 1
        return logits
