"""A capture on a GPU equals a capture on the CPU; run with -m gpu on a machine with a GPU."""

from pathlib import Path

import numpy as np
import pytest
import torch

from stratalens.plugin.capture.run import capture
from stratalens.store import verify_store
from support.models import bridge, save_checkpoint, table


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("positions", [("last", "entity_last"), "all"])
def test_a_capture_on_cuda_is_that_of_the_cpu(dtype: str, positions: str | tuple[str, ...], tmp_path: Path) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    save_checkpoint(tmp_path / "model")
    stages = {"only": tmp_path / "model"}
    cpu, gpu = (
        capture(stages, table(40), tmp_path / f"{d}.zarr", positions=positions, dtype=dtype, device=d, block_size=8)
        for d in ("cpu", "cuda")
    )
    assert verify_store(tmp_path / "cuda.zarr").ok
    assert (cpu.weights_fingerprint.values == gpu.weights_fingerprint.values).all()
    for name in cpu.data_vars:
        expected = cpu[name].values.astype(np.float64)
        np.testing.assert_allclose(gpu[name].values, expected, rtol=2e-2, atol=2e-2 * np.nanmax(np.abs(expected)))


@pytest.mark.gpu
def test_a_models_own_device_is_kept(tmp_path: Path) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    model = bridge("llama").to("cuda")
    capture(model, table(6), tmp_path / "run.zarr")
    assert next(model.parameters()).device.type == "cuda"
