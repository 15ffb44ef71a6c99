"""Owns the word tokenizer's way from text to tokens; `WordTokenizer.encode_plain` spells it out.

A unit's tokens are found in a trie (a tree whose branches are characters), in one walk: the last
node on the way that ends a token is the longest token.
"""
from libc.stdint cimport int64_t, uint8_t, uint32_t

from rustgpt._ext.pairs cimport Pairs, near_value_of, pairs_of

cdef enum:
    # Kinds of characters, in the order of `rustgpt.text.units.KINDS`
    WORD = 0
    DIGIT = 1
    MARK = 2
    SPACE = 3
    NEWLINE = 4
    OTHER_SPACE = 5
    QUOTE = 6
    POINT = 7
    NUMBER_POINT = 8
    GLUED = 9
    OPEN = 10
    CLOSE = 11
    N_KINDS = 16
    # Tokens
    JOIN = 1
    SPACE_MARK = 2
    FIRST_BYTE = 3
    CODES = 0x110000

cdef struct Trie:
    Pairs children              # of a node and a character: the node behind it
    const int* tokens           # that end at each node, or -1
    Py_ssize_t nodes            # 0 is where a word begins, 1 where a piece does that continues it

cdef struct State:
    int last                    # kind
    int quoted


def words_encode(
    const uint32_t[::1] codes not None,        # IN (n,): code points of the text
    Py_ssize_t start,                          # IN: where to begin; what is before was encoded
    int state,                                 # IN: of `Spacing`, twice the last kind + quoted
    const uint8_t[::1] kinds not None,         # IN (0x110000,): of each code point
    const uint8_t[:, ::1] spaces not None,     # IN (16, 16): whether a space is between two kinds
    const int64_t[:, ::1] children not None,   # IN: of a node and a character, the node behind it
    const int[::1] tokens not None,            # IN: that end at each node, or -1
    int[::1] ids not None,                     # OUT (5 n,): tokens
):
    """Encode text; return (number of tokens, state), or (-1, state) if a character has no kind yet.
    """
    cdef Py_ssize_t n = codes.shape[0], i, written = 0
    cdef Trie trie
    cdef State now
    if (
        kinds.shape[0] != CODES or spaces.shape[0] != N_KINDS or spaces.shape[1] != N_KINDS
        or tokens.shape[0] < 2 or ids.shape[0] < 5 * n
    ):
        raise ValueError(
            f"kinds must have the length {CODES}, spaces the shape ({N_KINDS}, {N_KINDS}), tokens "
            f"the length 2 and ids {5 * n} at least"
        )
    if not (0 <= start <= n and 0 <= state < 2 * N_KINDS):
        raise ValueError(f"start must be from 0 to {n} and state from 0 to {2 * N_KINDS - 1}")
    trie.children = pairs_of(children)
    trie.tokens = &tokens[0]
    trie.nodes = tokens.shape[0]
    now.last, now.quoted = state >> 1, state & 1
    for i in range(n):
        if codes[i] >= CODES:
            raise ValueError(f"codes[{i}] is {codes[i]}, which is no code point")
        if kinds[codes[i]] >= N_KINDS:
            return -1, state
    if start < n:
        with nogil:
            written = encode(&trie, &now, &codes[0], start, n, &kinds[0], spaces, &ids[0])
    return written, 2 * now.last + now.quoted


cdef Py_ssize_t encode(
    const Trie* trie, State* now, const uint32_t* codes, Py_ssize_t start, Py_ssize_t n,
    const uint8_t* kinds, const uint8_t[:, ::1] spaces, int* ids,
) noexcept nogil:
    """Write the tokens of the units from `start` on; return how many."""
    cdef Py_ssize_t i = start, j, end, made, written = 0
    cdef int first
    cdef bint spaced
    while i < n:
        spaced = (
            kinds[codes[i]] == SPACE and 0 < i < n - 1
            and not is_white(kinds[codes[i - 1]]) and not is_white(kinds[codes[i + 1]])
        )
        i += spaced
        first = kinds[codes[i]]
        end = i + 1
        while first <= MARK and end < n and kinds[codes[end]] <= MARK:
            end += 1
        made = spell(trie, &codes[i], end - i, &ids[written + 1])  # room is left for a mark
        if FIRST_BYTE <= ids[written + 1] < FIRST_BYTE + 256:
            first = GLUED               # a reader knows the kind only after the last byte
        if spaced != space_before(now, first, spaces):
            ids[written] = SPACE_MARK if spaced else JOIN
            now.last = SPACE
            written += made + 1
        else:
            for j in range(written, written + made):
                ids[j] = ids[j + 1]
            written += made
        advance(now, kinds[codes[end - 1]])
        i = end
    return written


cdef inline bint is_white(int kind) noexcept nogil:
    return SPACE <= kind <= OTHER_SPACE


cdef inline bint space_before(
    const State* now, int first, const uint8_t[:, ::1] spaces
) noexcept nogil:
    """Say whether a unit whose first character has this kind comes after a space."""
    if first == QUOTE:
        first = CLOSE if now.quoted else OPEN
    return spaces[now.last, first]


cdef inline void advance(State* now, int last) noexcept nogil:
    """Step over a unit whose last character has this kind."""
    if last == QUOTE:
        last = CLOSE if now.quoted else OPEN
        now.quoted = not now.quoted
    elif last == POINT and now.last == DIGIT:
        last = NUMBER_POINT
    elif last == NEWLINE:
        now.quoted = False
    now.last = last


cdef Py_ssize_t spell(
    const Trie* trie, const uint32_t* unit, Py_ssize_t n, int* ids
) noexcept nogil:
    """Write a unit as its longest known parts, from left to right; return how many."""
    cdef Py_ssize_t at = 0, end = 0, j, written = 0
    cdef int64_t node
    cdef int token
    if n == 1 and unit[0] == c" ":
        ids[0] = SPACE_MARK
        return 1
    while at < n:
        node, token = at > 0, -1
        for j in range(at, n):
            node = near_value_of(&trie.children, node, unit[j])
            if not 0 <= node < trie.nodes:
                break
            if trie.tokens[node] >= 0:
                token, end = trie.tokens[node], j + 1
        if token >= 0:
            ids[written] = token
            written += 1
            at = end
        else:
            written += spell_bytes(unit[at], &ids[written])
            at += 1
    return written


cdef inline int spell_bytes(uint32_t code, int* ids) noexcept nogil:
    """Write a character as the bytes of its UTF-8; return how many."""
    if code < 0x80:
        ids[0] = FIRST_BYTE + code
        return 1
    if code < 0x800:
        ids[0] = FIRST_BYTE + (0xC0 | code >> 6)
        ids[1] = FIRST_BYTE + (0x80 | code & 0x3F)
        return 2
    if code < 0x10000:
        ids[0] = FIRST_BYTE + (0xE0 | code >> 12)
        ids[1] = FIRST_BYTE + (0x80 | code >> 6 & 0x3F)
        ids[2] = FIRST_BYTE + (0x80 | code & 0x3F)
        return 3
    ids[0] = FIRST_BYTE + (0xF0 | code >> 18)
    ids[1] = FIRST_BYTE + (0x80 | code >> 12 & 0x3F)
    ids[2] = FIRST_BYTE + (0x80 | code >> 6 & 0x3F)
    ids[3] = FIRST_BYTE + (0x80 | code & 0x3F)
    return 4
