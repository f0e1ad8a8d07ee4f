"""LLaVA-style JSON: a list of {"id", "image" (a path under the image folder, or absent), "conversations"}."""

import hashlib
import io
import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from betakd_stages.data.sample import LoadedImage, Sample, SampleSet, Turn
from betakd_stages.data.specification import DataSpecification
from betakd_stages.errors import DataError

IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
MAX_PIXELS = 100_000_000


@dataclass(frozen=True, slots=True)
class ImageFile:
    """An image file inside a folder that it may not leave."""

    folder: str
    name: str

    def load(self) -> LoadedImage:
        """The file's image as RGB. Raises DataError for a path that leaves the folder and for an unreadable image."""
        folder = Path(self.folder).resolve()
        path = (folder / self.name).resolve()
        if not path.is_relative_to(folder):
            raise DataError(f"image {self.name!r} leaves the image folder {self.folder}: use paths inside it")
        try:
            content = path.read_bytes()
        except OSError as error:
            raise DataError(f"image {path} cannot be read ({error.strerror}): check images=DIR and the file") from None
        return LoadedImage(decode_image(content, str(path)), hashlib.sha256(content).hexdigest())


def decode_image(content: bytes, name: str) -> Image.Image:
    """The RGB image in `content`. Raises DataError naming `name` for a broken, foreign or oversized image."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # MAX_PIXELS below is the bound
            image = Image.open(io.BytesIO(content), formats=IMAGE_FORMATS)
            if image.width * image.height > MAX_PIXELS:
                raise DataError(f"image {name} has {image.width} x {image.height} pixels: at most {MAX_PIXELS:,}")
            return image.convert("RGB")
    except UnidentifiedImageError:
        raise DataError(f"image {name} is none of {', '.join(IMAGE_FORMATS)}, or corrupt: replace the file") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"image {name} is corrupt ({error}): replace the file") from None


def load_llava_json(specification: DataSpecification) -> SampleSet:
    """The samples of `llava:FILE.json?images=DIR` (DIR: the file's own folder unless given).

    Raises DataError for a missing file, another structure, or an id that occurs twice.
    """
    path = Path(specification.argument)
    folder = specification.typed_options({"images": str(path.parent)})["images"]
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"data file {path} cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise DataError(f"data file {path} is not JSON ({error})") from None
    if not isinstance(entries, list):
        raise DataError(f"data file {path} holds a {type(entries).__name__}: expected a list of conversations")
    samples = tuple(_sample(entry, index, folder, path) for index, entry in enumerate(entries))
    seen: set[str] = set()
    for sample in samples:
        if sample.sample_id in seen:
            raise DataError(f"id {sample.sample_id!r} occurs twice in {path}: ids must be distinct")
        seen.add(sample.sample_id)
    return SampleSet(specification.canonical(), samples)


def _sample(entry: Any, index: int, folder: str, path: Path) -> Sample:
    try:
        values = [(message["from"], str(message["value"])) for message in entry["conversations"]]
        sample_id = str(entry["id"])
    except (KeyError, TypeError) as error:
        raise DataError(
            f'entry {index} of {path} lacks {error}: expected {{"id", "image", "conversations": [{{"from", "value"}}]}}'
        ) from None
    speakers = [speaker for speaker, _ in values]
    if not values or speakers != ["human", "gpt"] * (len(values) // 2):
        raise DataError(f"entry {index} of {path}: speakers are {speakers}, expected human and gpt in turn")
    turns = tuple(
        Turn(question.replace("<image>", "").strip(), answer.strip())
        for (_, question), (_, answer) in zip(values[::2], values[1::2], strict=True)
    )
    image = ImageFile(folder, str(entry["image"])) if entry.get("image") else None
    return Sample(sample_id, image, turns, category=str(entry.get("category", "")))
