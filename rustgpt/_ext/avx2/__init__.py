"""Kernels compiled for AVX2; `rustgpt._ext` imports them where the processor has it."""
