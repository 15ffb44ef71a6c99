"""Kernels compiled for AVX512; `rustgpt._ext` imports them where the processor has it."""
