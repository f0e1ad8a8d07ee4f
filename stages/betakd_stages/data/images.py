"""Images that come from data: read when needed, confined to their folder, bounded, decoded by few codecs."""

import hashlib
import io
import stat
import struct
import warnings
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from betakd_stages.data.sample import LoadedImage
from betakd_stages.errors import DataError

IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
MAX_PIXELS = 100_000_000
MAX_BYTES = 512 * 2**20

DECODER_ERRORS = (
    *(OSError, SyntaxError, ValueError, Image.DecompressionBombError),
    *(EOFError, struct.error, IndexError, KeyError, TypeError, OverflowError),
)
"""What Pillow raises on broken files; the second line has escaped the decoders of one version or another."""


@dataclass(frozen=True, slots=True)
class ImageFile:
    """An image file inside a folder that it may not leave."""

    folder: str
    name: str

    def load(self) -> LoadedImage:
        """The file's image as RGB. Raises DataError for a path that leaves the folder and for an unreadable image."""
        path, content = self._read()
        return LoadedImage(decode_image(content, str(path)), hashlib.sha256(content).hexdigest())

    def sha256(self) -> str:
        """The file's sha256. Raises DataError for a path that leaves the folder and for an unreadable file."""
        return hashlib.sha256(self._read()[1]).hexdigest()

    def _read(self) -> tuple[Path, bytes]:
        path = self._confined()
        try:
            found = path.stat()
            if not stat.S_ISREG(found.st_mode):
                raise DataError(f"image {path} is not a file: expected an image file, correct its name in the data")
            if found.st_size > MAX_BYTES:
                raise DataError(f"image {path} has {found.st_size:,} bytes: at most {MAX_BYTES:,}, shrink it")
            return path, path.read_bytes()
        except OSError as error:
            raise DataError(f"image {path} cannot be read ({error.strerror}): check images=DIR and the file") from None

    def _confined(self) -> Path:
        try:
            folder = Path(self.folder).resolve()
            path = (folder / self.name).resolve()
        except (OSError, RuntimeError, ValueError) as error:  # too long, links in a circle, a zero byte
            raise DataError(f"image {self.name!r} is no path ({error}): correct it in the data") from None
        if not path.is_relative_to(folder):
            raise DataError(f"image {self.name!r} leaves the image folder {self.folder}: use paths inside it")
        return path


def decode_image(content: bytes, name: str) -> Image.Image:
    """The RGB image in `content`. Raises DataError naming `name` for a broken, foreign or oversized image."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # MAX_PIXELS below is the bound
            warnings.simplefilter("ignore", UserWarning)  # broken EXIF, odd palettes: the pixels decide
            image = Image.open(io.BytesIO(content), formats=IMAGE_FORMATS)
            if image.width * image.height > MAX_PIXELS:
                raise DataError(
                    f"image {name} has {image.width} x {image.height} pixels: at most {MAX_PIXELS:,}, shrink it"
                )
            if image.mode.startswith(("I", "F")):  # Pillow clips these to white
                raise DataError(f"image {name} has more than 8 bits per colour ({image.mode}): save it with 8")
            return image.convert("RGB")
    except DataError:
        raise
    except UnidentifiedImageError:
        raise DataError(f"image {name} is none of {', '.join(IMAGE_FORMATS)}, or corrupt: replace the file") from None
    except DECODER_ERRORS as error:
        raise DataError(f"image {name} is corrupt ({error}): replace the file") from None
