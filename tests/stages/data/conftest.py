"""What the tests of data sources share: a folder of images, and no network."""

from pathlib import Path

import pytest
from PIL import Image


@pytest.fixture(autouse=True)
def offline_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`datasets` keeps its Arrow tables with the test, and stays off the network."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets-cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with an image, 20 x 10 pixels, at images/a.png."""
    (tmp_path / "images").mkdir()
    Image.new("RGB", (20, 10), (1, 2, 3)).save(tmp_path / "images" / "a.png")
    return tmp_path
