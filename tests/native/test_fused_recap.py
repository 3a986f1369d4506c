"""The dense recap's CUDA kernel without a card: its numbers by Triton's interpreter, and its compilation."""

import os
import subprocess
import sys

import pytest

pytest.importorskip("triton", reason="Triton comes with PyTorch's builds for CUDA")
pytestmark = pytest.mark.parity


def test_the_kernel_gives_the_condition_and_every_gradient():
    """In another process: Triton decides at import whether it interprets."""
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "builders.fused_recap"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=250)
    assert done.returncode == 0, done.stderr
    cases, forward, gradient = done.stdout.split()
    assert int(cases) == 32 and float(forward) <= 1e-5 and float(gradient) <= 1e-5


@pytest.mark.parametrize("dtype, precision", [("fp32", "ieee"), ("fp32", "tf32"), ("bf16", "tf32")])
def test_the_kernel_compiles_for_hopper(dtype, precision, tmp_path, monkeypatch):
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from diva_rs.native.recap import BLOCKS, JOINS, condition_kernel

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    flags = dict.fromkeys(("chosen", "normal", "weighted", "biased", "shifted"), True)
    constants = {**flags, "join": JOINS["mean"], "precision": precision, **BLOCKS}
    pointers = ("tokens", "weight", "bias", "matrix", "offset", "text", "out")
    kinds = {**dict.fromkeys(pointers, f"*{dtype}"), "choice": "*i64", "eps": "fp32"}
    signature = {
        name: "constexpr" if name in constants else kinds.get(name, "i32")
        for name in condition_kernel.arg_names
    }
    source = ASTSource(fn=condition_kernel, signature=signature, constexprs=constants)
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32))
    assert ".target sm_90" in compiled.asm["ptx"] and compiled.asm["cubin"]
    assert compiled.metadata.shared <= 232_448  # bytes that a block of sm_90 has
