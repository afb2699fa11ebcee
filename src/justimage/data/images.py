"""Decode an image file, as a photograph or as torchvision does, and crop it at its centre as ADM and the authors' code do."""

import io
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image, ImageOps

FORMATS = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".jpe", ".jfif"}
PILLOW_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
MAX_PIXELS = 2**27
"""Pixels of the largest image: four bytes each in memory, and twice that while it is cropped."""
MODES = {1: "L", 3: "RGB", 4: "RGBA"}
TOO_SMALL = "smaller than the model's"
Decode = Literal["photo", "torchvision"]


@dataclass(frozen=True)
class Crop:
    """How an image file is decoded and cropped."""

    size: tuple[int, int]
    """height and width"""
    channels: int = 3
    """1, 3 or 4"""
    upscale: bool = False
    """scale up images smaller than `size`; otherwise they are an error"""
    decode: Decode = "photo"
    """photo: upright by EXIF, transparency on white, 16 bits scaled to 8; torchvision: Pillow's `convert` and no more, as
    torchvision's `pil_loader` and so the authors' code read ImageNet"""

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.channels, *self.size


def decode(file: io.BytesIO, crop: Crop) -> np.ndarray:
    """Decode an image file to (channels, height, width) uint8, cropped at its centre.

    ValueError for an image smaller than the crop, unless the crop upscales, and for one of more than MAX_PIXELS.
    """
    image = Image.open(file, formats=PILLOW_FORMATS)
    if image.width * image.height > MAX_PIXELS:
        raise ValueError(f"{image.width} x {image.height} pixels; at most {MAX_PIXELS:,} in all are decoded")
    if crop.decode == "photo":
        image = ImageOps.exif_transpose(image)
    height, width = crop.size
    if not crop.upscale and (image.height < height or image.width < width):
        raise ValueError(f"{image.width} x {image.height} pixels, {TOO_SMALL} {width} x {height} (allowed with --upscale)")
    mode = MODES[crop.channels]
    image = center_crop(convert_mode(image, mode) if crop.decode == "photo" else image.convert(mode), crop.size)
    return np.ascontiguousarray(np.atleast_3d(np.array(image)).transpose(2, 0, 1))


def convert_mode(image: Image.Image, mode: str) -> Image.Image:
    """Convert an image to L, RGB or RGBA: 16 bits to 8, and transparency to white unless the mode is RGBA."""
    if image.mode == "F":
        raise ValueError("pixels are floats; allowed: 8 or 16 bits")
    if image.mode.startswith("I"):  # 16-bit grey, which Pillow would clip at 255
        pixels = np.asarray(image).astype(np.int64)
        if pixels.min() < 0 or pixels.max() > 65535:
            raise ValueError("pixels have more than 16 bits; allowed: 8 or 16")
        image = Image.fromarray((pixels / 257).round().astype(np.uint8))
    if mode != "RGBA" and image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == mode else image.convert(mode)


def center_crop(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Crop the largest centred rectangle of the target's aspect, scaled to (height, width), as ADM and the authors' code do.

    Halve with a box filter while both sides are at least twice the target, then scale (bicubic), also upwards. ValueError for
    an image so narrow that it would be scaled to more than MAX_PIXELS.
    """
    height, width = size
    while image.width >= 2 * width and image.height >= 2 * height:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = max(width / image.width, height / image.height)
    scaled = round(image.width * scale), round(image.height * scale)
    if scaled[0] * scaled[1] > MAX_PIXELS:
        raise ValueError(f"{image.width} x {image.height} pixels, of which a crop would be scaled to {scaled[0]} x {scaled[1]}")
    image = image.resize(scaled, Image.Resampling.BICUBIC)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Height and width of an image as it is shown, by its EXIF orientation."""
    turned = image.getexif().get(0x0112, 1) >= 5
    width, height = image.size
    return (width, height) if turned else (height, width)
