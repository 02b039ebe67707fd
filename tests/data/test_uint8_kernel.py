"""The resize without torch against torchvision's, bit for bit."""

from __future__ import annotations

import platform
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from mmcl.data.images.resize import read_levels
from mmcl.data.images.tensors import read_pixels, resize_by_torchvision
from mmcl.data.images.uint8_kernel import resize_uint8
from mmcl.preprocess import TORCHVISION_LANCZOS, Backend, Interpolation, Preprocess, Resize
from tests.data.test_decode import noise

FLOAT_BILINEAR = torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512") and platform.machine() == "x86_64"
"""There torchvision interpolates linearly in float32, whose rounding differs by one level."""


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos"])
def test_levels_are_torchvisions(interpolation: Interpolation, channels: int) -> None:
    if interpolation == "lanczos" and torch.__version__ < TORCHVISION_LANCZOS:
        pytest.skip("this torchvision has no Lanczos for tensors")
    preprocess = Preprocess(size=1, interpolation=interpolation, backend="torchvision")
    draw = np.random.default_rng(0)
    for height, width, to_height, to_width in [*draw.integers(1, 90, (60, 4)).tolist(), (1, 300, 7, 2), (300, 1, 299, 1)]:
        levels = draw.integers(0, 256, (channels, height, width), np.uint8)
        expected = resize_by_torchvision(levels, (to_height, to_width), preprocess).astype(int)
        found = resize_uint8(levels, (to_height, to_width), preprocess)
        assert found.dtype == np.uint8
        assert np.abs(found - expected).max() <= (FLOAT_BILINEAR and interpolation == "bilinear"), (height, width)


@pytest.mark.parametrize("backend", ["pillow", "torchvision", "torchvision_float"])
@pytest.mark.parametrize("resize", ["shortest", "squash", "pad", "none"])
@pytest.mark.parametrize("channels", [1, 3])
def test_whole_images_are_read_alike(channels: int, resize: Resize, backend: Backend) -> None:
    preprocess = Preprocess(size=(20, 28), channels=channels, resize=resize, backend=backend, resize_size=24, fill=9)
    for height, width in ((50, 31), (31, 50), (20, 28), (7, 9)):
        image = Image.fromarray(noise(height, width))
        expected = read_pixels(image, preprocess).numpy()
        found = read_levels(image, preprocess, kernel=resize_uint8)
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)


def test_images_are_read_without_torch() -> None:
    code = """
import sys
import numpy as np
from mmcl.data.images.resize import read_levels
from mmcl.data.images.uint8_kernel import resize_uint8
from mmcl.encoders.tokenizers import clip_bpe
from mmcl.preprocess import Preprocess
image = np.zeros((9, 12, 3), np.uint8)
read_levels(image, Preprocess(size=6, backend="torchvision"), kernel=resize_uint8)
clip_bpe().arrays(["a cat"])
assert "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
