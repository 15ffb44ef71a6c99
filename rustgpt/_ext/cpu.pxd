"""What a kernel asks of the processor before it runs."""

cdef bint multiplies_bfloat16() noexcept nogil
