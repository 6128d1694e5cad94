import io
import struct
import sys
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from cond_pipelines.data.images import convert, crop, num_channels, open_image, read_header, resize, to_array

MODES = {1: "L", 3: "RGB", 4: "RGBA"}
RED, WHITE = (255, 0, 0), (255, 255, 255)


def encoded(image, format="PNG", **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def through_file(image, format="PNG", **options):
    return open_image({"bytes": encoded(image, format, **options), "path": None})


def two_pixels(mode, left, right):
    image = Image.new(mode, (2, 1), left)
    image.putpixel((1, 0), right)
    return image


def seen_on_white(array):
    """What a person sees: (H, W, C) with or without alpha to RGB on white."""
    array = np.broadcast_to(array, (*array.shape[:2], 3)) if array.shape[2] == 1 else array
    if array.shape[2] == 3:
        return array.astype(float)
    alpha = array[..., 3:] / 255.0
    return array[..., :3] * alpha + 255 * (1 - alpha)


@pytest.mark.parametrize("channels", MODES)
@pytest.mark.parametrize(
    "image",
    [
        Image.new("1", (5, 3), 1),
        Image.new("L", (5, 3), 77),
        Image.new("LA", (5, 3), (77, 100)),
        Image.new("La", (5, 3)),
        Image.new("P", (5, 3), 2),
        Image.new("PA", (5, 3)),
        Image.new("RGB", (5, 3), RED),
        Image.new("RGBA", (5, 3), (255, 0, 0, 9)),
        Image.new("RGBa", (5, 3)),
        Image.new("CMYK", (5, 3)),
        Image.new("YCbCr", (5, 3)),
        Image.new("HSV", (5, 3)),
        Image.new("I", (5, 3), 40_000),
        Image.new("I;16", (5, 3), 40_000),
        Image.new("I;16B", (5, 3), 40_000),
        Image.new("F", (5, 3), 0.5),
    ],
    ids=lambda image: image.mode,
)
def test_every_mode_becomes_the_channels_asked_for(image, channels):
    assert convert(image, channels).mode == MODES[channels]
    array = to_array(image, channels, 3)
    assert array.shape == (3, 5, channels)
    assert array.dtype == np.uint8


# -------------------------------------------------------------------------------------------------------- alpha
@pytest.mark.parametrize("channels", [1, 3])
def test_alpha_is_composited_on_white(channels):
    """Half-transparent black on white is mid-gray; dropping the alpha would leave it black."""
    image = through_file(two_pixels("RGBA", (0, 0, 0, 128), (0, 0, 0, 0)))
    half, clear = to_array(image, channels, 1)[0]
    assert np.abs(half.astype(int) - 127).max() <= 1
    assert (clear == 255).all()


def test_alpha_is_kept_with_four_channels():
    image = through_file(two_pixels("RGBA", (10, 20, 30, 128), (0, 0, 0, 0)))
    assert to_array(image, 4, 1)[0, 0].tolist() == [10, 20, 30, 128]


def test_gray_with_alpha():
    image = through_file(two_pixels("LA", (0, 255), (0, 0)))
    assert to_array(image, 1, 1)[0, :, 0].tolist() == [0, 255]
    assert to_array(image, 3, 1)[0].tolist() == [[0] * 3, [255] * 3]
    assert to_array(image, 4, 1)[0, :, 3].tolist() == [255, 0]


def test_opaque_images_are_opaque_with_four_channels():
    assert (to_array(Image.new("RGB", (2, 2), RED), 4, 2) == [*RED, 255]).all()


# ------------------------------------------------------------------------------------------------------ palette
def palette_image():
    image = Image.new("P", (2, 1), 0)
    image.putpalette([*RED, 0, 0, 255])
    image.putpixel((1, 0), 1)
    return image


def test_palette_is_resolved():
    image = through_file(palette_image())
    assert image.mode == "P"
    assert to_array(image, 3, 1)[0].tolist() == [list(RED), [0, 0, 255]]


@pytest.mark.parametrize("transparency", [1, bytes([255, 0])], ids=["index", "table"])
@pytest.mark.parametrize("channels", MODES)
def test_palette_with_transparency(channels, transparency):
    image = through_file(palette_image(), transparency=transparency)
    assert image.mode == "P"
    array = to_array(image, channels, 1)
    assert seen_on_white(array)[0, 1].tolist() == list(WHITE)
    assert (seen_on_white(array)[0, 0] < 255).any()
    if channels == 4:
        assert array[0, :, 3].tolist() == [255, 0]


def test_rgb_with_a_transparent_colour():
    image = through_file(two_pixels("RGB", RED, (0, 0, 255)), transparency=(0, 0, 255))
    assert to_array(image, 3, 1)[0].tolist() == [list(RED), list(WHITE)]


# --------------------------------------------------------------------------------------------------- bit depths
@pytest.mark.parametrize("channels", MODES)
def test_16_bits_are_scaled_not_cut(channels):
    ramp = np.linspace(0, 65535, 256).round().astype(np.uint16)[None]
    image = through_file(Image.fromarray(ramp))
    assert image.mode.startswith("I")
    array = to_array(image, channels, 1)[0]
    assert np.abs(array[:, 0].astype(int) - np.arange(256)).max() <= 1


def test_16_bit_values_below_256_stay_dark():
    """A file says 16 bits, so 255 is nearly black, whatever its neighbours are."""
    assert to_array(through_file(Image.fromarray(np.full((2, 2), 255, np.uint16))), 1, 2).max() == 1


def test_one_bit():
    image = through_file(two_pixels("1", 0, 1))
    assert image.mode == "1"
    assert to_array(image, 1, 1)[0, :, 0].tolist() == [0, 255]
    assert to_array(image, 3, 1)[0].tolist() == [[0] * 3, [255] * 3]


def test_floats_in_the_unit_interval():
    image = through_file(Image.fromarray(np.array([[0.0, 0.5, 1.0]], np.float32)), "TIFF")
    assert to_array(image, 1, 1)[0, :, 0].tolist() == [0, 128, 255]


@pytest.mark.parametrize(("channels", "expected"), [(1, [76]), (3, [255, 0, 0]), (4, [255, 0, 0, 255])])
def test_cmyk(channels, expected):
    image = through_file(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=100)
    assert image.mode == "CMYK"
    assert np.abs(to_array(image, channels, 8).astype(int) - expected).max() <= 2


def test_gray_modes():
    assert all(num_channels(Image.new(mode, (1, 1))) == 1 for mode in ("1", "L", "I;16", "I", "F"))
    assert all(num_channels(Image.new(mode, (1, 1))) == 3 for mode in ("P", "RGB", "RGBA", "CMYK", "LA"))


# --------------------------------------------------------------------------------------------------------- EXIF
def test_exif_rotation_is_applied():
    stored = two_pixels("RGB", RED, (0, 0, 255))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned 90 degrees clockwise
    image = through_file(stored, exif=exif)
    assert image.size == (1, 2)
    assert to_array(image, 3, 1)[:, 0].tolist() == [list(RED), [0, 0, 255]]


# ---------------------------------------------------------------------------------------------------- bad files
def photo(side=64):
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8))


def bomb():
    """A PNG that claims 60,000 x 60,000 pixels."""
    good = encoded(Image.new("L", (1, 1)))
    header = good[12:16] + struct.pack(">II", 60_000, 60_000) + good[24:29]
    return good[:12] + header + struct.pack(">I", zlib.crc32(header)) + good[33:]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (encoded(photo(), "JPEG")[:-500], "truncated"),
        (encoded(photo(), "PNG")[:-3000], "truncated"),
        (encoded(photo(), "PNG")[:30], None),
        (encoded(photo(), "JPEG")[:20], None),
        (encoded(photo(), "GIF")[:40], None),
        (encoded(photo(), "WEBP")[:200], None),
        (b"", "empty"),
        (b"this is text", "no format"),
        (b"\x89PNG\r\n\x1a\n" + b"\x00" * 64, None),
        (bomb(), "exceeds"),
    ],
    ids=["jpeg", "png", "png-header", "jpeg-header", "gif", "webp", "empty", "text", "signature", "bomb"],
)
def test_a_broken_file_is_an_oserror_with_a_reason(data, reason, tmp_path):
    with pytest.raises(OSError, match=reason) as error:
        open_image({"bytes": data, "path": "x.png"})
    assert str(error.value)
    assert "BytesIO" not in str(error.value)
    path = tmp_path / "broken.png"
    path.write_bytes(data)
    with pytest.raises(OSError, match=reason):
        open_image({"bytes": None, "path": str(path)})


@pytest.mark.parametrize("value", [None, {"bytes": None, "path": None}, {"bytes": None, "path": "nowhere.png"}])
def test_a_missing_image_is_an_oserror(value):
    with pytest.raises(OSError, match=r"there is none|No such file"):
        open_image(value)


def test_decoded_images_bytes_and_arrays_are_taken_too():
    image = photo(8)
    for value in (image, encoded(image), np.asarray(image), {"bytes": encoded(image)}):
        assert (np.asarray(open_image(value)) == np.asarray(image)).all()


# ---------------------------------------------------------------------------------------------- resize and crop
@pytest.mark.parametrize("size", [(40, 20), (20, 40), (33, 21), (7, 100), (5, 5), (3, 2)])
@pytest.mark.parametrize("resolution", [8, 21, 64])
def test_shorter_side_is_the_resolution(size, resolution):
    array = to_array(Image.new("RGB", size), 3, resolution)
    assert min(array.shape[:2]) == resolution
    width, height = size
    assert abs(array.shape[1] / array.shape[0] - width / height) <= 0.51 * max(width, height) / min(size) / resolution


def test_an_image_of_the_right_size_is_not_touched():
    image = photo(16)
    assert resize(image, 16) is image
    assert (to_array(image, 3, 16) == np.asarray(image)).all()


def test_interpolation_modes_differ():
    nearest = np.asarray(resize(photo(64), 8, "nearest"))
    assert {tuple(p) for p in nearest.reshape(-1, 3)} <= {tuple(p) for p in np.asarray(photo(64)).reshape(-1, 3)}
    assert np.asarray(resize(photo(64), 8, "box")).std() < nearest.std()


def test_centre_crop():
    array = np.arange(5 * 9).reshape(5, 9, 1)
    assert (crop(array, 5, None) == array[:, 2:7]).all()
    assert (crop(array.transpose(1, 0, 2), 5, None) == array.transpose(1, 0, 2)[2:7]).all()
    assert crop(array, 5, None).shape == (5, 5, 1)


def test_random_crop_reaches_every_place_and_nothing_else():
    array = np.arange(9)[None, :, None] + np.zeros((3, 1, 1), int)
    rng = np.random.default_rng(0)
    assert {int(crop(array, 3, rng)[0, 0, 0]) for _ in range(300)} == set(range(7))


# --------------------------------------------------------------------------------- other formats, profiles, frames
@pytest.mark.parametrize("format", ["AVIF", "HEIF"])
def test_avif_and_heic(format):
    if format == "HEIF":
        pillow_heif = pytest.importorskip("pillow_heif")
        pillow_heif.register_heif_opener()
    image = Image.new("RGB", (64, 64), RED)
    assert np.abs(to_array(through_file(image, format), 3, 8).astype(int) - RED).max() <= 8


def test_heic_without_its_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(OSError, match="it is HEIC or HEIF: pip install pillow-heif"):
        open_image(b"\0\0\0\x18ftypheix" + bytes(40))


def test_the_first_frame_of_an_animation():
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, WHITE, (0, 0, 255))]
    for format in ("GIF", "WEBP", "PNG"):
        data = encoded(frames[0], format, save_all=True, append_images=frames[1:], **{"lossless": True})
        assert read_header(data).num_frames == 3
        assert np.abs(to_array(open_image(data), 3, 8).astype(int) - RED).max() <= 2


def test_a_profile_of_other_colours_becomes_srgb():
    """Full red of sRGB, written in a profile with red and green exchanged."""
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
    image = Image.new("RGB", (4, 4), RED)
    assert to_array(through_file(image, icc_profile=srgb.tobytes()), 3, 4)[0, 0].tolist() == list(RED)
    swapped = bytearray(srgb.tobytes())
    swapped = bytes(swapped).replace(b"rXYZ", b"tmp!").replace(b"gXYZ", b"rXYZ").replace(b"tmp!", b"gXYZ")
    swapped = swapped.replace(b"s\0R\0G\0B", b"m\0I\0N\0E").replace(b"sRGB", b"mine")
    green = to_array(through_file(image, icc_profile=swapped), 3, 4)[0, 0].tolist()
    assert green[1] > 250 and green[0] < 30, green
    assert to_array(through_file(image, icc_profile=b"damaged"), 3, 4)[0, 0].tolist() == list(RED)


def png_16(values):
    """A PNG of several channels of 16 bits, which Pillow does not write."""
    height, width, channels = values.shape
    header = struct.pack(">IIBBBBB", width, height, 16, {2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    lines = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(lines)), (b"IEND", b""))
    parts = (struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_png_of_16_bits_and_several_channels(channels):
    """Pillow reads 8 of the 16 bits: right as an image of 8 bits, refused where its values are declared."""
    values = np.full((4, 4, channels), 40_000)
    assert abs(int(to_array(open_image(png_16(values)), 4, 4)[0, 0, 0]) - 40_000 / 257) <= 1
    with pytest.raises(OSError, match=r"several channels of 16 bits, of which Pillow reads 8: save it as TIFF or .npy"):
        open_image(png_16(values), deep=True)


def test_tiff_of_16_bits_and_three_channels_keeps_them():
    import tifffile

    file, values = io.BytesIO(), np.random.default_rng(0).integers(0, 65536, (8, 8, 3)).astype(np.uint16)
    tifffile.imwrite(file, values, photometric="rgb")
    array = to_array(open_image(file.getvalue(), deep=True), 3, 8, value_range=(0, 65535))
    assert np.abs((array + 1) / 2 * 65535 - values).max() < 0.1


def test_a_bomb_says_how_to_allow_it():
    with pytest.raises(OSError, match=r"exceeds limit .*; COND_PIPELINES_MOST_PIXELS=3600000000 allows it"):
        open_image(bomb())
