"""`betakd-pipe cache info`: the figure, and the warning where top_k cuts too many tokens short."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.cache.records import make_records, write_cache

from betakd_cache import TokenRule, open_cache
from betakd_pipe.cache_info import write_histograms
from betakd_pipe.cli import main


def make_cache(path: Path, rule: TokenRule) -> Path:
    write_cache(path, make_records(20, 300, rule), rule, 300)
    return path


def test_info_draws_the_histograms_into_a_png(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = make_cache(tmp_path / "cache", TokenRule(top_k=200))
    assert main(["cache", "info", str(path), "--png", str(tmp_path / "histograms.png")]) == 0
    with Image.open(tmp_path / "histograms.png") as image:
        assert (image.format, image.size) == ("PNG", (1200, 432))
        drawn = np.asarray(image.convert("RGB"))
    assert (drawn == (0x44, 0x77, 0xAA)).all(axis=2).any()


def test_bars_are_as_high_as_their_counts(tmp_path: Path) -> None:
    histogram = {"edges": [0, 1, 2, None], "counts": [0, 50, 100], "mean": 2.0}
    write_histograms(tmp_path / "x.png", {"entropy": histogram, "kept_mass": histogram})
    with Image.open(tmp_path / "x.png") as image:
        left = np.asarray(image.convert("RGB"))[:, :600]
    heights = (left == (0x44, 0x77, 0xAA)).all(axis=2).sum(axis=0)
    runs = sorted({int(height) for height in heights if height > 10})
    assert runs[-1] / runs[0] == pytest.approx(2, rel=0.03)


def test_a_folder_that_does_not_exist_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = make_cache(tmp_path / "cache", TokenRule(top_k=200))
    target = tmp_path / "absent" / "x.png"
    assert main(["cache", "info", str(path), "--png", str(target)]) == 2
    assert capsys.readouterr().err == f"betakd-pipe: {target}: No such file or directory; check the path\n"


def test_info_warns_where_more_than_a_fifth_of_the_tokens_are_at_the_cap(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = make_cache(tmp_path / "cache", TokenRule(top_k=16))
    counts = np.concatenate([open_cache(path).record(index).entry_counts for index in range(20)])
    share = float((counts == 16).mean())
    assert share > 0.2
    assert main(["cache", "info", str(path), "--json"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["share_at_cap"] == pytest.approx(share)
    assert printed.err == (
        f"betakd-pipe: warning: {path}: {share:.0%} of the tokens keep 16 entries, as many as top_k allows, and may "
        "fall short of top_p 0.999: cache with a larger top_k, or let the tail stand for the rest\n"
    )


@pytest.mark.parametrize("rule", [TokenRule(top_k=16, top_p=1), TokenRule(top_k=255, top_p=0.5)])
def test_info_is_silent_where_the_cap_cuts_nothing_short(
    rule: TokenRule, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["cache", "info", str(make_cache(tmp_path / "cache", rule))]) == 0
    assert capsys.readouterr().err == ""
