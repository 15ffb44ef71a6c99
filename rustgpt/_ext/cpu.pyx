"""Owns what the processor can do: which instruction sets a kernel may be chosen for."""

cdef extern from *:
    """
    #if (defined(__x86_64__) || defined(__i386__)) && (defined(__GNUC__) || defined(__clang__))
    static int has_avx2(void) {
        __builtin_cpu_init();
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    }
    static int has_avx512(void) {
        __builtin_cpu_init();
        return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw")
            && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    }
    #elif defined(_MSC_VER) && defined(_M_X64)
    #include <intrin.h>
    #include <immintrin.h>
    /* Bits of leaves 1 and 7, and of XCR0: whether the system keeps the wide registers. */
    static int has(int leaf1_ecx, int leaf7_ebx, unsigned long long xcr0) {
        int one[4], seven[4];
        __cpuidex(one, 1, 0);
        __cpuidex(seven, 7, 0);
        return (one[2] & (1 << 27)) && (_xgetbv(0) & xcr0) == xcr0
            && (one[2] & leaf1_ecx) == leaf1_ecx && (seven[1] & leaf7_ebx) == leaf7_ebx;
    }
    static int has_avx2(void) { return has((1 << 28) | (1 << 12), 1 << 5, 0x6); }
    static int has_avx512(void) {
        return has_avx2() && has(0, (int)0xC0030000u, 0xE6);
    }
    #else
    static int has_avx2(void) { return 0; }
    static int has_avx512(void) { return 0; }
    #endif
    /* Where the compiler knows AVX512-BF16: bit 5 of EAX of the second part of leaf 7. */
    #if defined(__x86_64__) && (defined(__clang__) ? __clang_major__ >= 9 : __GNUC__ >= 10)
    #include <cpuid.h>
    static int has_avx512_bf16(void) {
        unsigned a, b, c, d;
        return has_avx512() && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & 1u << 5);
    }
    #else
    static int has_avx512_bf16(void) { return 0; }
    #endif
    """
    bint has_avx2()
    bint has_avx512()
    bint has_avx512_bf16()

# Asked once: in a virtual machine the question takes microseconds.
cdef bint BFLOAT16 = has_avx512_bf16()


cpdef bint has_bfloat16() noexcept nogil:
    """Whether this processor has AVX512-BF16, as the kernels for AVX-512 can use it."""
    return BFLOAT16


def instruction_sets():
    """The names of the faster instruction sets that this processor has, the best first."""
    found = []
    if has_avx512():
        found.append("avx512")
    if has_avx2():
        found.append("avx2")
    return found
