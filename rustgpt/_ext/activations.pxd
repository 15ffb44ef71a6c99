"""What decoding shares with the activations: GELU of one number."""
from cython cimport floating

from rustgpt._ext.rows cimport tanh_of


cdef inline floating gelu_of(floating v) noexcept nogil:
    """0.5 v (1 + tanh(sqrt(2 / pi) (v + 0.044715 v^3)))."""
    cdef floating root = 0.7978845608028654, cubic = 0.044715, half = 0.5, one = 1
    return half * v * (one + tanh_of(root * (v + cubic * v * v * v)))
