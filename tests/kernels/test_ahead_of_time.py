"""The Triton kernels compile for GPUs that this machine does not have, and keep their numbers in registers."""

import os
import re
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest

pytest.importorskip("triton")

CAPABILITIES = (80, 90, 100)
ONE_NUMBER = 8
"""Bytes of stack: ptxas may set one number aside so that more warps fit."""


SHAPES = [
    (10, 4096, False, 2, 1, "bf16"),
    (100, 4096, False, 2, 1, "fp32"),
    (1000, 4096, False, 2, 1, "fp32"),
    (1000, 4096, False, 2, 3, "bf16"),
    (32_000, 4096, False, 1, 0, "bf16"),
    (50_257, 4096, False, 2, 1, "fp32"),
    (50_257, 4096, False, 2, 2, "bf16"),
    (21, 16_384, True, 2, 1, "fp32"),
    (21, 16_384, True, 2, 3, "bf16"),
    (1000, 4096, False, 1, 1, "fp64"),
]
"""Classes, positions, whether these are adjacent, components, kind of prior (1 is uniform), dtype of the logits."""


def build(capability, classes, positions, adjacent, components, prior, dtype):
    """The machine code of the row kernel, forward and backward, with every field of the target as a tensor."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from composer_ls.kernels.triton import _row_kernel, tile

    rows, block, warps = tile(classes, positions, adjacent, prior)
    real = "*fp64" if dtype == "fp64" else "*fp32"
    types = dict.fromkeys(("x", "grad"), f"*{dtype}")
    types |= dict.fromkeys(("losses", "hard", "soft", "mass", "scale", "prior"), real)
    types |= {"classes": "*i64", "ignored": "*i1", "K": "i32", "S": "i32"}
    types |= {f"{field}_number": "fp32" for field in ("hard", "soft", "mass", "scale")}
    types |= {f"{one}_{axis}": "i32" for one in ("x", "grad") for axis in ("example", "class", "position")}
    constants = {"ONE_SCALE": True, "J": components, "PRIOR": prior, "ROWS": rows, "BLOCK": block}
    if prior < 2:
        constants["prior"] = None
    if prior == 0:
        constants["soft"] = None
    constants |= dict.fromkeys((f"{one}_{'position' if adjacent else 'class'}" for one in ("x", "grad")), 1)
    types = {name: kind for name, kind in types.items() if name not in constants}
    return compiled(_row_kernel, types, constants, GPUTarget("cuda", capability, 32), warps, triton, ASTSource)


def compiled(kernel, types, constants, target, warps, triton, source):
    signature = {name: types.get(name, "constexpr") for name in kernel.arg_names}
    made = source(kernel, signature, {(kernel.arg_names.index(name),): value for name, value in constants.items()})
    return triton.compile(made, target=target, options={"num_warps": warps}).asm["cubin"]


def build_scaling(capability):
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from composer_ls.kernels.triton import _scale_kernel

    types = {"values": "*bf16", "factor": "*fp32", "size": "i64"}
    return compiled(_scale_kernel, types, {"BLOCK": 4096}, GPUTarget("cuda", capability, 32), 4, triton, ASTSource)


def report():
    """Print the bytes of stack that each kernel takes."""
    import triton

    objdump = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    for capability, shape in product(CAPABILITIES, [*SHAPES, None]):
        cubin = Path(f"{capability}.cubin")
        cubin.write_bytes(build(capability, *shape) if shape else build_scaling(capability))
        usage = subprocess.run([objdump, "-res-usage", cubin], capture_output=True, text=True, check=True).stdout
        (stack,), (local,) = (re.findall(rf"{field}:(\d+)", usage) for field in ("STACK", "LOCAL"))
        print(int(stack) + int(local), capability, shape or "scaling")


@pytest.mark.slow
def test_triton_kernels_compile_without_spilled_registers(tmp_path):
    # A process of its own: tests define kernels for Triton's interpreter, which is read when they are defined.
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, __file__]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == len(CAPABILITIES) * (len(SHAPES) + 1)
    assert not [line for line in lines if int(line.split()[0]) > ONE_NUMBER]


if __name__ == "__main__":
    report()
