"""Owns how the Cython kernels are compiled; everything else stands in pyproject.toml.

Each kernel file becomes one C file, compiled once for the plain instruction set of the
architecture and, on x86-64, once more for AVX2 and for AVX-512. `rustgpt._ext` chooses among
them when it is imported, so one wheel serves every processor of the family.

`RUSTGPT_DEBUG=1 pip install -e .` turns on bounds checks in every kernel.
`RUSTGPT_SANITIZE=1` builds with the address and undefined-behaviour sanitizers.
"""

import os
import platform
import sys
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

BUILD = Path("build/cython")
HEADERS = Path("rustgpt/_ext")
KERNELS = [
    "activations",
    "attention",
    "block",
    "cross_entropy",
    "decoder",
    "dropout",
    "embeddings",
    "layer_norm",
    "linear",
    "optimizer",
]
DEBUG = os.environ.get("RUSTGPT_DEBUG") == "1"
SANITIZE = os.environ.get("RUSTGPT_SANITIZE") == "1"

DIRECTIVES = {
    "language_level": 3,
    "binding": True,
    "embedsignature": False,
    "boundscheck": DEBUG,
    "wraparound": False,
    "initializedcheck": DEBUG,
    "cdivision": True,
    "freethreading_compatible": True,
}

if sys.platform == "win32":
    FLAGS = ["/O2"]
    LEVELS = {"avx2": ["/arch:AVX2"], "avx512": ["/arch:AVX512"]}
else:
    # Not -ffast-math: infinities and NaN keep their meaning and denormals are left alone. Only the
    # sums that rows.pxd marks with "omp simd" may be re-ordered; no OpenMP runtime is linked.
    FLAGS = [
        "-O3",
        "-g0",
        "-fno-math-errno",
        "-fno-trapping-math",
        "-fno-signed-zeros",
        "-ffp-contract=fast",
        "-fopenmp-simd",
    ]
    LEVELS = {
        "avx2": ["-mavx2", "-mfma"],
        "avx512": [
            "-mavx512f",
            "-mavx512bw",
            "-mavx512dq",
            "-mavx512vl",
            "-mavx2",
            "-mfma",
            "-mprefer-vector-width=512",
        ],
    }
    if SANITIZE:
        FLAGS = [
            "-O1",
            "-g",
            "-fno-omit-frame-pointer",
            "-fno-wrapv",
            "-fsanitize=address,undefined",
        ]
if platform.machine().lower() not in ("x86_64", "amd64") or "arm64" in os.environ.get(
    "ARCHFLAGS", ""
):
    LEVELS = {}

LINK = [] if sys.platform == "win32" else ["-lm"]
if SANITIZE:
    LINK.append("-fsanitize=address,undefined")
elif sys.platform == "linux":
    LINK.append("-Wl,-s")


def extension(name: str, source: str, flags: list[str]) -> Extension:
    return Extension(
        name, [source], include_dirs=[str(HEADERS)], depends=[*map(str, HEADERS.glob("*.h"))],
        extra_compile_args=flags, extra_link_args=LINK,
    )  # fmt: skip


def extensions() -> list[Extension]:
    """The plain modules, and for each faster level every kernel again with that level's flags."""
    plain = [
        extension(f"rustgpt._ext.{name}", f"rustgpt/_ext/{name}.pyx", FLAGS)
        for name in ["barrier", "blas", "bpe", "cpu", "words", *KERNELS]
    ]
    # The code that Cython needs for memoryviews is compiled once, not into every module.
    shared = extension("rustgpt._ext._memoryview", str(BUILD / "_memoryview.c"), FLAGS)
    BUILD.mkdir(parents=True, exist_ok=True)
    built = cythonize(
        [*plain, shared],
        build_dir=str(BUILD),
        compiler_directives=DIRECTIVES,
        shared_utility_qualified_name="rustgpt._ext._memoryview",
        show_all_warnings=False,
    )
    for level, flags in LEVELS.items():
        for name in KERNELS:
            # A C file of its own: two extensions with one source would share an object file. It
            # knows its own full name, or the import system would take it for the plain module,
            # and takes what it shares with other kernels from those of its own level.
            code = (BUILD / "rustgpt" / "_ext" / f"{name}.c").read_text("utf-8")
            for other in KERNELS:
                code = code.replace(f'"rustgpt._ext.{other}"', f'"rustgpt._ext.{level}.{other}"')
            copy = BUILD / level / f"{name}.c"
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_text(code, "utf-8")
            built.append(extension(f"rustgpt._ext.{level}.{name}", str(copy), FLAGS + flags))
    return built


class parallel_build_ext(build_ext):
    """Compiles on all processors unless told otherwise."""

    def finalize_options(self) -> None:
        super().finalize_options()
        self.parallel = self.parallel or os.cpu_count()


if __name__ == "__main__":
    setup(ext_modules=extensions(), cmdclass={"build_ext": parallel_build_ext})
