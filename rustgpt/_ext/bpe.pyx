"""Owns GPT-2's cut of text into pieces, and byte-level BPE of those that are not long.

A piece of n bytes takes n look-ups, and for each merge two more and one pass over what is left of
it; pieces have some six bytes on average, and few are longer than twenty.
"""
from libc.limits cimport INT_MAX
from libc.stdint cimport int64_t, uint8_t
from libc.string cimport memmove

from rustgpt._ext.pairs cimport Pairs, pairs_of, value_of

cdef enum:
    UNKNOWN = 0
    LETTER = 1
    NUMBER = 2
    WHITE = 3
    OTHER = 4
    CODES = 0x110000
    LONGEST = 512               # bytes of a piece that is merged here

cdef struct Text:
    const uint8_t* utf8
    Py_ssize_t n
    const uint8_t* kinds


def bpe_pieces(
    const uint8_t[::1] utf8 not None,          # IN (n,): text in UTF-8
    Py_ssize_t start,                          # IN: where to begin, at a piece
    const uint8_t[::1] kinds not None,         # IN (0x110000,): of each code point
    int[::1] ends not None,                    # OUT (n,): where pieces end, n at most
):
    """Cut text into pieces; return (where, how many): at its end, or where a kind is unknown."""
    cdef Py_ssize_t end = start, found = 0
    cdef Text text = text_of(utf8, start, kinds)
    if ends.shape[0] < text.n or text.n > INT_MAX:
        raise ValueError(f"ends must have a length of {text.n} at least, and this below 2**31")
    with nogil:
        while start < text.n:
            end = piece_end(&text, start)
            if end == start:
                break
            ends[found] = <int> end
            found += 1
            start = end
    return start, found


def bpe_encode(
    const uint8_t[::1] utf8 not None,          # IN (n,): text in UTF-8
    Py_ssize_t start,                          # IN: where to begin, at a piece
    const uint8_t[::1] kinds not None,         # IN (0x110000,): of each code point
    const int[::1] byte_ids not None,          # IN (256,): the token of each byte
    const int64_t[:, ::1] merges not None,     # IN: of a pair of tokens, (rank << 32) + their token
    int[::1] ids not None,                     # OUT (n,): tokens, n at most
):
    """Encode pieces until one is for somebody else; return (where, its end, tokens written).

    At the end of the text, both are n. If its end is where it begins, a code point of it has no
    kind yet; otherwise the piece is longer than 512 bytes.
    """
    cdef Py_ssize_t end = start, written = 0
    cdef Pairs pairs = pairs_of(merges)
    cdef Text text = text_of(utf8, start, kinds)
    if byte_ids.shape[0] != 256 or ids.shape[0] < text.n:
        raise ValueError(
            f"byte_ids and ids must have the lengths 256 and {text.n} at least, got "
            f"{byte_ids.shape[0]} and {ids.shape[0]}"
        )
    with nogil:
        while start < text.n:
            end = piece_end(&text, start)
            if end == start or end - start > LONGEST:
                break
            written += merge(
                text.utf8 + start, <int> (end - start), &byte_ids[0], &pairs, &ids[written]
            )
            start = end
    return start, end, written


cdef Text text_of(const uint8_t[::1] utf8, Py_ssize_t start, const uint8_t[::1] kinds) except *:
    """Raise ValueError unless this can be a text, and a place in it."""
    cdef Py_ssize_t n = utf8.shape[0]
    cdef Text text
    if kinds.shape[0] != CODES:
        raise ValueError(f"kinds must have the length {CODES}, got {kinds.shape[0]}")
    if not 0 <= start <= n:
        raise ValueError(f"start must be from 0 to {n}, got {start}")
    text.utf8 = &utf8[0] if n else NULL
    text.n = n
    text.kinds = &kinds[0]
    return text


# Where pieces end


cdef inline int kind_at(const Text* text, Py_ssize_t i, Py_ssize_t* after) noexcept nogil:
    """Return the kind of the character at i, and where the next one begins; OTHER at the end."""
    cdef int first = text.utf8[i], code = first, more = 0
    after[0] = i + 1
    if first < 0x80:
        return text.kinds[first]
    if first >= 0xF0:
        code, more = first & 0x07, 3
    elif first >= 0xE0:
        code, more = first & 0x0F, 2
    else:
        code, more = first & 0x1F, 1
    for i in range(i + 1, min(i + 1 + more, text.n)):
        code = code << 6 | text.utf8[i] & 0x3F
        after[0] = i + 1
    return text.kinds[code] if code < CODES else OTHER


cdef Py_ssize_t piece_end(const Text* text, Py_ssize_t start) noexcept nogil:
    """Return where the piece ends that begins at start; start itself if a kind is unknown.

    's|'t|'re|'ve|'m|'ll|'d| ?letters| ?numbers| ?others|white(?!other than white)|white
    """
    cdef Py_ssize_t i = start, after
    cdef int first, kind
    if text.utf8[i] == c"'":
        i += contraction(text.utf8 + i, text.n - i)
        if i > start:
            return i
    elif text.utf8[i] == c" " and i + 1 < text.n:
        i += 1
    first = kind = kind_at(text, i, &after)
    if first == WHITE:
        return white_end(text, start)
    while kind == first and kind != UNKNOWN:
        i = after
        if i == text.n:
            return i
        kind = kind_at(text, i, &after)
    return start if kind == UNKNOWN else i


cdef Py_ssize_t white_end(const Text* text, Py_ssize_t start) noexcept nogil:
    """Return the end of white space at start: its last character stays with what comes behind."""
    cdef Py_ssize_t i = start, last = start, after
    cdef int kind
    while i < text.n:
        kind = kind_at(text, i, &after)
        if kind == UNKNOWN:
            return start
        if kind != WHITE:
            return last if last > start else i
        last, i = i, after
    return text.n


cdef inline int contraction(const uint8_t* s, Py_ssize_t n) noexcept nogil:
    """Return the length of 's, 't, 'm, 'd, 're, 've or 'll at the beginning; 0 if there is none."""
    if n >= 2 and (s[1] == c"s" or s[1] == c"t" or s[1] == c"m" or s[1] == c"d"):
        return 2
    if n >= 3 and (
        (s[1] == c"r" and s[2] == c"e")
        or (s[1] == c"v" and s[2] == c"e")
        or (s[1] == c"l" and s[2] == c"l")
    ):
        return 3
    return 0


# Merges


cdef inline int64_t ranked(const Pairs* pairs, int left, int right) noexcept nogil:
    """Return the rank of a pair and its token; the worst of all if it does not merge."""
    cdef int64_t value = value_of(pairs, <unsigned int> left, <unsigned int> right)
    return value if value >= 0 else <int64_t> INT_MAX << 32


cdef int merge(
    const uint8_t* piece, int n, const int* byte_ids, const Pairs* pairs, int* ids
) noexcept nogil:
    """Merge the pair of the lowest rank, the first of equals, until none merges; return how many.
    """
    cdef int64_t[LONGEST] ranks     # of each token and the next
    cdef int64_t best
    cdef int i, at
    for i in range(n):
        ids[i] = byte_ids[piece[i]]
    for i in range(n - 1):
        ranks[i] = ranked(pairs, ids[i], ids[i + 1])
    while n > 1:
        at, best = 0, ranks[0]
        for i in range(1, n - 1):
            if ranks[i] < best:
                at, best = i, ranks[i]
        if best >> 32 == INT_MAX:
            break
        ids[at] = <int> (best & INT_MAX)
        n -= 1
        memmove(&ids[at + 1], &ids[at + 2], (n - at - 1) * sizeof(int))
        memmove(&ranks[at], &ranks[at + 1], (n - at - 1) * sizeof(int64_t))
        if at > 0:
            ranks[at - 1] = ranked(pairs, ids[at - 1], ids[at])
        if at < n - 1:
            ranks[at] = ranked(pairs, ids[at], ids[at + 1])
    return n
