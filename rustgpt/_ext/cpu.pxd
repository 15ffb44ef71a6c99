"""What a kernel asks of the processor before it runs."""

cpdef bint has_bfloat16() noexcept nogil
