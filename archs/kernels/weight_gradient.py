"""Weight and bias gradient of a depthwise convolution on a CPU: an LLVM kernel for one kernel size and one dtype.

    dw[i, j, c] = sum over b, h, w of g[b, h, w, c] x[b, h + i - K // 2, w + j - K // 2, c]
    db[c] = sum over b, h, w of g[b, h, w, c]

oneDNN 3.11 has such a kernel up to 3 x 3. Above it takes the one for dense groups, which computes 16 x 16 channels of
which it keeps the diagonal, and so uses some 2 % of the processor (scripts/bench/depthwise.py).

LANES channels are one vector. Per image and vector of channels, x and g are widened to float32 in a padded scratch map;
then, row of taps by row of taps, K vectors of sums stay in registers while a band of rows passes, K multiply-adds a
place. Bands are short, so that x and g stay in the first-level cache, and that sums are added in two steps: float32
keeps six digits.

llvmlite is what numba compiles with. A kernel is written in its vectors and not in numba, because LLVM does not
vectorise the loop there (a tenth of the speed), and because there is nothing to be kept on disk: a tenth of a second
compiles it, where importing numba takes seconds.
"""

import ctypes
import functools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import llvmlite.binding as llvm
import torch
from llvmlite import ir
from torch import Tensor

LANES = 16
BAND = 64  # places of a band, in rows, at least one
INT, FLOAT, HALF = ir.IntType(64), ir.FloatType(), ir.IntType(16)
FLOATS, HALVES, WORDS = (ir.VectorType(kind, LANES) for kind in (FLOAT, HALF, ir.IntType(32)))
ZEROS = ir.Constant(FLOATS, [0.0] * LANES)


def weight_gradient(x_BHWC: Tensor, g_BHWC: Tensor, kernel_size: int, threads: int = 1) -> tuple[Tensor, Tensor]:
    """Gradients of weights (C, 1, K, K) and bias (C), in float32: stride 1, odd K, zeros beyond the border.

    Args:
        x_BHWC: what was convolved, contiguous, float32 or bfloat16, at least LANES channels.
        g_BHWC: gradient of what came out, alike.
        threads: they share the channels, so the result does not depend on how many there are.
    """
    batch, height, width, chans = x_BHWC.shape
    assert x_BHWC.is_contiguous() and g_BHWC.is_contiguous() and x_BHWC.shape == g_BHWC.shape
    assert x_BHWC.dtype == g_BHWC.dtype and kernel_size % 2 and chans >= LANES
    run = _compiled(kernel_size, x_BHWC.dtype == torch.bfloat16)
    blocks, taps = -(-chans // LANES), kernel_size**2
    found = torch.zeros(blocks, taps + 1, LANES)

    def share(first: int, last: int) -> None:
        pad = kernel_size - 1
        scratch = torch.zeros((height + pad) * (width + pad) * LANES), torch.empty(height * width * LANES)
        pointers = (tensor.data_ptr() for tensor in (x_BHWC, g_BHWC, *scratch, found))
        run(*pointers, batch, height, width, chans, first, last)

    bounds = [blocks * i // threads for i in range(threads + 1)]
    if threads == 1:
        share(0, blocks)
    else:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(share, bounds[:-1], bounds[1:]))
    sums_CT = found.transpose(1, 2).flatten(0, 1)
    if over := blocks * LANES - chans:  # the last block ends with the last channel, so it overlaps the one before
        sums_CT = torch.cat([sums_CT[: chans - LANES + over], sums_CT[over - LANES :]])
    return sums_CT[:, :taps].reshape(chans, 1, kernel_size, kernel_size), sums_CT[:, taps].clone()


@functools.cache
def _compiled(kernel_size: int, bfloat16: bool) -> Callable[..., None]:
    """The kernel for this processor; calls release the interpreter's lock."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    module = llvm.parse_assembly(_source(kernel_size, bfloat16))
    module.verify()
    target = llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=llvm.get_host_cpu_features().flatten(), opt=3
    )
    passes = llvm.create_pass_builder(target, llvm.create_pipeline_tuning_options(speed_level=2))
    passes.getModulePassManager().run(module, passes)
    engine = llvm.create_mcjit_compiler(module, target)
    engine.finalize_object()
    call = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 5, *[ctypes.c_int64] * 6)(engine.get_function_address("kernel"))
    call.engine = engine  # which owns the code
    return call


def _source(kernel_size: int, bfloat16: bool) -> str:
    """kernel(x, g, x_scratch, g_scratch, found, batch, height, width, chans, first, last): blocks first to last of
    `found` (blocks, K * K + 1, LANES), to which it adds."""
    module, numbers = ir.Module(), HALF if bfloat16 else FLOAT
    pointers = [numbers.as_pointer()] * 2 + [FLOAT.as_pointer()] * 3
    kernel = ir.Function(module, ir.FunctionType(ir.VoidType(), pointers + [INT] * 6), "kernel")
    x, g, x_map, g_map, found, batch, height, width, chans, first, last = kernel.args
    for pointer in kernel.args[:5]:
        pointer.add_attribute("noalias")
    b = ir.IRBuilder(kernel.append_basic_block())
    multiply_add = ir.Function(module, ir.FunctionType(FLOATS, [FLOATS] * 3), f"llvm.fma.v{LANES}f32")
    *sums, whole = [b.alloca(FLOATS) for _ in range(kernel_size + 1)]  # LLVM puts them into registers
    lanes, pad = INT(LANES), INT(kernel_size // 2)
    g_row = b.mul(width, lanes)
    x_row = b.mul(b.add(width, INT(kernel_size - 1)), lanes)
    band = _max(b, b.sdiv(INT(BAND), width), INT(1))
    bands = b.sdiv(b.add(height, b.sub(band, INT(1))), band)

    with _loop(b, INT(0), batch) as image, _loop(b, first, last) as block:
        channel = _min(b, b.mul(block, lanes), b.sub(chans, lanes))
        own = b.mul(block, INT(kernel_size**2 + 1))
        b.store(ZEROS, whole)
        with _loop(b, INT(0), height) as h, _loop(b, INT(0), width) as w:
            row = b.add(b.mul(image, height), h)
            source = b.add(b.mul(b.add(b.mul(row, width), w), chans), channel)
            inner = b.add(b.mul(b.add(h, pad), x_row), b.mul(b.add(w, pad), lanes))
            _store(b, _load(b, x, source, bfloat16), x_map, inner)
            gradient = _load(b, g, source, bfloat16)
            _store(b, gradient, g_map, b.add(b.mul(h, g_row), b.mul(w, lanes)))
            b.store(b.fadd(b.load(whole), gradient), whole)
        _increase(b, found, b.mul(b.add(own, INT(kernel_size**2)), lanes), whole)
        with _loop(b, INT(0), bands) as number, _loop(b, INT(0), INT(kernel_size)) as i:
            top = b.mul(number, band)
            for each in sums:
                b.store(ZEROS, each)
            with _loop(b, top, _min(b, b.add(top, band), height)) as h, _loop(b, INT(0), width) as w:
                gradient = _load(b, g_map, b.add(b.mul(h, g_row), b.mul(w, lanes)))
                start = b.add(b.mul(b.add(h, i), x_row), b.mul(w, lanes))
                for j, each in enumerate(sums):
                    given = _load(b, x_map, b.add(start, INT(j * LANES)))
                    b.store(b.call(multiply_add, [gradient, given, b.load(each)]), each)
            tap = b.add(own, b.mul(i, INT(kernel_size)))
            for j, each in enumerate(sums):
                _increase(b, found, b.mul(b.add(tap, INT(j)), lanes), each)
    b.ret_void()
    return str(module)


@contextmanager
def _loop(b: ir.IRBuilder, start: ir.Value, stop: ir.Value) -> Iterator[ir.Value]:
    """What is built inside runs for each number from `start` up to `stop`."""
    before, head, body, after = b.block, *(b.append_basic_block() for _ in range(3))
    b.branch(head)
    b.position_at_end(head)
    counter = b.phi(INT)
    counter.add_incoming(start, before)
    b.cbranch(b.icmp_signed("<", counter, stop), body, after)
    b.position_at_end(body)
    yield counter
    counter.add_incoming(b.add(counter, INT(1)), b.block)
    b.branch(head)
    b.position_at_end(after)


def _load(b: ir.IRBuilder, array: ir.Value, index: ir.Value, bfloat16: bool = False) -> ir.Value:
    """LANES numbers in float32; a bfloat16 is the upper half of one."""
    kind = HALVES if bfloat16 else FLOATS
    vector = b.load(b.bitcast(b.gep(array, [index]), kind.as_pointer()), align=2 if bfloat16 else 4)
    if not bfloat16:
        return vector
    return b.bitcast(b.shl(b.zext(vector, WORDS), ir.Constant(WORDS, [16] * LANES)), FLOATS)


def _store(b: ir.IRBuilder, vector: ir.Value, array: ir.Value, index: ir.Value) -> None:
    b.store(vector, b.bitcast(b.gep(array, [index]), FLOATS.as_pointer()), align=4)


def _increase(b: ir.IRBuilder, array: ir.Value, index: ir.Value, by: ir.Value) -> None:
    _store(b, b.fadd(_load(b, array, index), b.load(by)), array, index)


def _min(b: ir.IRBuilder, left: ir.Value, right: ir.Value) -> ir.Value:
    return b.select(b.icmp_signed("<", left, right), left, right)


def _max(b: ir.IRBuilder, left: ir.Value, right: ir.Value) -> ir.Value:
    return b.select(b.icmp_signed("<", left, right), right, left)
