"""One image file as numbers: upright, in the wanted channels, cropped at its centre as the reference crops."""

import io

import numpy as np
from PIL import Image, ImageOps

FORMATS = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".jpe", ".jfif"}
PILLOW_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
PIXELS = 2**27
"""Of the largest picture: in memory four bytes each, and twice that while it is cropped."""
MODES = {1: "L", 3: "RGB", 4: "RGBA"}


def decode(file: io.BytesIO, size: tuple[int, int], channels: int, enlarge: bool = True) -> np.ndarray:
    """An image file as (channels, height, width) uint8: upright, in the wanted channels, cropped at its centre.

    ValueError for an image smaller than `size`, unless it may be enlarged, and for one of more than PIXELS.
    """
    image = Image.open(file, formats=PILLOW_FORMATS)
    if image.width * image.height > PIXELS:
        raise ValueError(f"{image.width} x {image.height} pixels; at most {PIXELS:,} in all are decoded")
    image = ImageOps.exif_transpose(image)
    if not enlarge and (image.height < size[0] or image.width < size[1]):
        raise ValueError(
            f"{image.width} x {image.height} pixels, smaller than the model's {size[1]} x {size[0]} (allowed with --enlarge)"
        )
    image = center_crop(in_mode(image, MODES[channels]), size)
    return np.ascontiguousarray(np.atleast_3d(np.array(image)).transpose(2, 0, 1))


def in_mode(image: Image.Image, mode: str) -> Image.Image:
    """Any picture in mode L, RGB or RGBA: 16 bits become 8, and what is transparent shows white unless RGBA is wanted."""
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
    """The largest centred part of the wanted shape, scaled to (height, width) as in ADM and the authors' code.

    Halved with a box filter while both sides are at least twice the target, then bicubic, also upwards.
    """
    height, width = size
    while image.width >= 2 * width and image.height >= 2 * height:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = max(width / image.width, height / image.height)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))
