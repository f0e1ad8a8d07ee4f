"""Images from data: confined to their folder, bounded, decoded by few codecs, and refused in one line."""

import hashlib
import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from betakd_stages.data import images
from betakd_stages.data.images import ImageFile, decode_image
from betakd_stages.errors import DataError


def image_error(folder: Path, name: str) -> str:
    with pytest.raises(DataError) as caught:
        ImageFile(f"{folder}/images", name).load()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def saved(image: Image.Image, form: str = "PNG", **options: object) -> bytes:
    content = io.BytesIO()
    image.save(content, form, **options)
    return content.getvalue()


def test_an_image_is_loaded_with_the_hash_of_its_file(folder: Path) -> None:
    loaded = ImageFile(f"{folder}/images", "a.png").load()
    assert loaded.pixels.getpixel((0, 0)) == (1, 2, 3)
    assert loaded.sha256 == hashlib.sha256((folder / "images" / "a.png").read_bytes()).hexdigest()


def test_a_hash_needs_no_decoding_and_is_confined_as_loading_is(folder: Path) -> None:
    (folder / "images" / "broken.png").write_bytes(b"no image")
    assert ImageFile(f"{folder}/images", "broken.png").sha256() == hashlib.sha256(b"no image").hexdigest()
    image = ImageFile(f"{folder}/images", "a.png")
    assert image.sha256() == image.load().sha256
    (folder / "secret.png").write_bytes(b"secret")
    with pytest.raises(DataError, match="leaves the image folder"):
        ImageFile(f"{folder}/images", "../secret.png").sha256()


def test_images_stay_inside_their_folder(folder: Path) -> None:
    Image.new("RGB", (2, 2)).save(folder / "secret.png")
    (folder / "images" / "link.png").symlink_to(folder / "secret.png")
    (folder / "images" / "up").symlink_to(folder)
    for name in ("../secret.png", str(folder / "secret.png"), "link.png", "up/secret.png", "../images2/a.png"):
        assert f"image {name!r} leaves the image folder" in image_error(folder, name)


def test_a_link_inside_the_folder_and_a_folder_that_is_a_link_are_followed(folder: Path) -> None:
    (folder / "images" / "b.png").symlink_to("a.png")
    (folder / "linked").symlink_to(folder / "images")
    assert ImageFile(f"{folder}/linked", "b.png").load().pixels.size == (20, 10)


def test_what_is_no_path_or_no_file_is_refused(folder: Path) -> None:
    (folder / "images" / "circle").symlink_to("circle")
    os.mkfifo(folder / "images" / "pipe.png")
    assert "image 'a\\x00.png' is no path (embedded null byte): correct it" in image_error(folder, "a\0.png")
    assert "image 'circle' is no path (Symlink loop" in image_error(folder, "circle")
    assert "cannot be read (File name too long): check images=DIR" in image_error(folder, "a" * 300)
    assert "pipe.png is not a file: expected an image file" in image_error(folder, "pipe.png")
    assert "images is not a file: expected an image file" in image_error(folder, ".")
    assert "none.png cannot be read (No such file or directory)" in image_error(folder, "none.png")


def test_broken_and_foreign_images_are_refused(folder: Path) -> None:
    content = saved(Image.effect_noise((200, 100), 50))
    (folder / "images" / "text.png").write_text("not an image")
    (folder / "images" / "cut.png").write_bytes(content[: len(content) // 2])
    (folder / "images" / "vector.png").write_bytes(saved(Image.new("RGB", (2, 2)), "EPS"))
    assert "text.png is none of JPEG, PNG" in image_error(folder, "text.png")
    assert "cut.png is corrupt" in image_error(folder, "cut.png")
    assert "vector.png is none of JPEG, PNG" in image_error(folder, "vector.png")


def test_an_image_of_too_many_pixels_or_bytes_is_refused_before_it_is_decoded(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "MAX_PIXELS", 199)
    assert "a.png has 20 x 10 pixels: at most 199, shrink it" in image_error(folder, "a.png")
    monkeypatch.setattr(images, "MAX_BYTES", 10)
    assert f"a.png has {(folder / 'images' / 'a.png').stat().st_size} bytes: at most 10" in image_error(folder, "a.png")


def test_sixteen_bits_are_refused_where_pillow_would_clip_them_to_white() -> None:
    gray = Image.fromarray(np.arange(256, dtype=np.uint16).reshape(16, 16) * 256)
    with pytest.raises(DataError, match="image deep has more than 8 bits per colour \\(I;16\\): save it with 8"):
        decode_image(saved(gray), "deep")


def test_a_palette_with_transparency_keeps_its_colours() -> None:
    palette = Image.new("RGB", (4, 4), (200, 100, 50)).convert("P", palette=Image.Palette.ADAPTIVE)
    decoded = decode_image(saved(palette, transparency=bytes(range(200))), "palette")
    assert decoded.mode == "RGB"
    assert decoded.getpixel((1, 1)) == palette.convert("RGB").getpixel((1, 1))


@pytest.mark.parametrize("form", images.IMAGE_FORMATS)
def test_damaged_images_end_in_pixels_or_in_a_data_error(form: str) -> None:
    generator = np.random.default_rng(0)
    whole = np.frombuffer(saved(Image.fromarray(generator.integers(0, 255, (24, 20, 3), np.uint8)), form), np.uint8)
    num_refused = 0
    for _ in range(150):
        damaged = whole.copy()
        damaged[generator.integers(0, min(400, len(whole)), 4)] = generator.integers(0, 256, 4)
        try:
            assert decode_image(damaged.tobytes(), "damaged").mode == "RGB"
        except DataError:
            num_refused += 1
    assert num_refused > 0
