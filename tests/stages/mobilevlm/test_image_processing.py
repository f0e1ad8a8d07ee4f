"""Both padding modes: where the image goes, in what colour, and what CLIP makes of it."""

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from tests.stages.mobilevlm.published import TINY_STUDENT, VECTORS, published_config

from betakd_stages.errors import ModelError
from betakd_stages.models.mobilevlm.configuration import MobileVlmConfig
from betakd_stages.models.mobilevlm.image_processing import (
    MobileVlmImageProcessor,
    load_image_processor,
    pad_to_square,
)

VECTOR = json.loads((VECTORS / "expand2square.json").read_text())
MEAN = np.array([0.48145466, 0.4578275, 0.40821073])
DEVIATION = np.array([0.26862954, 0.26130258, 0.27577711])


def processor(folder: Path, aspect_ratio: str) -> MobileVlmImageProcessor:
    config = MobileVlmConfig.from_dict(published_config(TINY_STUDENT, image_aspect_ratio=aspect_ratio))
    return load_image_processor(folder, config)


def photo(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(width * height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def normalised(pixels: Image.Image) -> NDArray[np.float64]:
    """The formula: to 0..1, minus CLIP's mean, over its deviation; [3, H, W]."""
    return ((np.asarray(pixels, dtype=np.float64) / 255 - MEAN) / DEVIATION).transpose(2, 0, 1)


@pytest.mark.parametrize("case", VECTOR["cases"], ids=lambda case: "x".join(map(str, case["size_wh"])))
def test_padding_places_the_image_as_the_published_code_does(case: dict) -> None:
    background = tuple(VECTOR["background_rgb"])
    square = pad_to_square(Image.new("RGB", case["size_wh"], (255, 0, 0)), background)
    assert list(square.size) == case["out_wh"]
    red = np.all(np.asarray(square) == (255, 0, 0), axis=2)
    left, top, right, bottom = case["red_bbox_ltrb_exclusive"]
    expected = np.zeros_like(red)
    expected[top:bottom, left:right] = True
    np.testing.assert_array_equal(red, expected)
    assert (np.asarray(square)[~red] == background).all()


def test_pad_keeps_the_whole_image_and_fills_with_clips_mean_colour(tmp_path: Path) -> None:
    image = photo(24, 12)
    pixels = processor(tmp_path, "pad")(image, return_tensors="np")["pixel_values"][0]
    expected = normalised(pad_to_square(image, (122, 116, 104)))  # 24 x 24 already: nothing is resized
    np.testing.assert_allclose(pixels, expected, atol=1e-6)


def test_square_resizes_the_shorter_edge_and_cuts_off_the_ends_of_the_longer(tmp_path: Path) -> None:
    image = photo(60, 12)
    pixels = processor(tmp_path, "square")(image, return_tensors="np")["pixel_values"][0]
    resized = image.resize((120, 24), Image.Resampling.BICUBIC).crop((48, 0, 72, 24))
    np.testing.assert_allclose(pixels, normalised(resized), atol=1e-6)


def test_square_images_are_the_same_in_both_modes(tmp_path: Path) -> None:
    image = photo(30, 30)
    padded = processor(tmp_path, "pad")(image, return_tensors="np")["pixel_values"]
    np.testing.assert_array_equal(padded, processor(tmp_path, "square")(image, return_tensors="np")["pixel_values"])


def test_grey_and_transparent_images_are_padded_in_colour(tmp_path: Path) -> None:
    grey = Image.new("L", (24, 12), 200)
    pixels = processor(tmp_path, "pad")(grey, return_tensors="np")["pixel_values"][0]
    np.testing.assert_allclose(pixels, normalised(pad_to_square(grey.convert("RGB"), (122, 116, 104))), atol=1e-6)


def test_the_published_sizes_give_336_pixels(tmp_path: Path) -> None:
    pixels = load_image_processor(tmp_path, MobileVlmConfig())(photo(20, 10), return_tensors="np")["pixel_values"]
    assert pixels.shape == (1, 3, 336, 336)


def test_a_preprocessor_config_may_repeat_the_settings_and_not_contradict_them(tmp_path: Path) -> None:
    processor(tmp_path, "pad").save_pretrained(tmp_path)
    assert processor(tmp_path, "pad").image_aspect_ratio == "pad"
    settings = json.loads((tmp_path / "preprocessor_config.json").read_text())
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**settings, "do_center_crop": False}))
    with pytest.raises(ModelError, match="says do_center_crop False in preprocessor_config.json, and config.json"):
        processor(tmp_path, "pad")


def test_an_unknown_aspect_ratio_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="config.json has image_aspect_ratio 'anyres': expected 'square' or 'pad'"):
        processor(tmp_path, "anyres")
