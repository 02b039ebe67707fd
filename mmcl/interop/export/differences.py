"""What becomes of images under the preprocessing of another library."""

from __future__ import annotations

from mmcl.preprocess import Backend, CropRounding, Preprocess

_BACKENDS = {"pillow": "Pillow", "torchvision": "torchvision", "torchvision_float": "torchvision"}


def image_differences(preprocess: Preprocess, *, backend: Backend, crop_rounding: CropRounding, fill: int) -> list[str]:
    """Returns what a library does differently, one line each.

    Args:
        preprocess: preprocessing in training.
        backend: how the library resizes.
        crop_rounding: how it rounds the offset of a crop; "truncate" and "floor" are the same where pixels are cropped.
        fill: what it pads with.
    """
    keeps_aspect = preprocess.resize != "squash"
    crops = keeps_aspect or preprocess.resize_size not in (None, preprocess.size)
    rounds_alike = (preprocess.crop_rounding == "round") == (crop_rounding == "round")
    fills_alike = set(preprocess.fill if isinstance(preprocess.fill, tuple) else (preprocess.fill,)) == {fill}
    lines = {
        f"images are resized by {_BACKENDS[backend]} there, whose levels differ by up to 2 of 255": preprocess.backend
        != backend,
        "images of which an odd number of pixels is cropped may be shifted by one pixel": crops and not rounds_alike,
        f"images that are padded are filled with {fill} there": keeps_aspect and not fills_alike,
        "JPEG files are decoded at full size there": preprocess.shrink_on_load,
        "images of more than 8 bits have no range of intensity there": preprocess.intensity is not None,
    }
    return [line for line, applies in lines.items() if applies]
