"""Kernels compiled for AVX512; `rustgpt._ext` imports them where the processor has it."""

import pkgutil

# As in `rustgpt._ext`: in a checkout, those of the installed package serve.
__path__ = pkgutil.extend_path(__path__, __name__)
