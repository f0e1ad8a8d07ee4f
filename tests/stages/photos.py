"""Samples with photographs, for students of families whose images have any size."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

NUM_SAMPLES = 12


def write_photos(folder: Path) -> str:
    """The data specification of photos of several shapes; every second sample has two turns, every third no image."""
    photos = folder / "photos"
    photos.mkdir(parents=True)
    entries = []
    for number in range(NUM_SAMPLES):
        pixels = np.random.default_rng(number).integers(0, 256, (20 + number, 30 - number, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(photos / f"{number}.png")
        mark, image = ("<image>\n", {"image": f"{number}.png"}) if number % 3 else ("", {})
        texts = [f"{mark}What is it?", "A cat.", "Colour?", f"Black {number}."][: 2 + 2 * (number % 2)]
        values = [{"from": ("human", "gpt")[place % 2], "value": text} for place, text in enumerate(texts)]
        entries.append({"id": str(number), **image, "conversations": values})
    (folder / "data.json").write_text(json.dumps(entries), encoding="utf-8")
    return f"llava:{folder / 'data.json'}?images={photos}"
