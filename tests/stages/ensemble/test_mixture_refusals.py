"""Caches that are no mixture: every refusal in one line, before anything is written."""

from pathlib import Path
from typing import Any

import pytest
from tests.stages.ensemble.mixture_world import SHARED, merged, write_teacher

from betakd_cache import CacheError, TokenRule
from betakd_stages.errors import ConfigError, MismatchError, UserError

OTHER_DATA = {**SHARED["data"], "fingerprint": "f1"}
HOT = TokenRule(top_k=6, temperatures=(3.0,))
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "tokenizer": ({"identity": {"tokenizer": {"sha256": "t1"}}}, 'a has tokenizer.sha256 = "t0", .*b has "t1": mix'),
    "prompt": ({"identity": {"prompt": {"template": "p1"}}}, 'has prompt.template = "p0", .*b has "p1": mix only'),
    "data": ({"identity": {"data": OTHER_DATA}}, 'has data.fingerprint = "f0", .*b has "f1": mix only caches of one'),
    "text": ({"row": {"content_sha256": "x"}}, r"'s3': its question or answer is another in .*a \(c3\) than in .*b"),
    "image": ({"row": {"image_sha256": "x"}}, r"'s3': its image is another in .*a \(i3\) than in .*b \(x\): mix only"),
    "tokens": ({"answers_of": 1}, "sample 's0': its answer is other tokens in .*b than in a cache before it: mix"),
    "written": ({"identity": {"targets": {"kinds": ["generate"]}}}, "b holds answers that its teacher wrote, which"),
    "one id": ({"rule": TokenRule(top_k=1)}, "b keeps one id per token, which need not be its teacher's first: mix"),
    "grid": (
        {"rule": HOT},
        r"do not reach \(.*a: 0.5, 1, 2; .*b: 3\): cache the teachers with the",
    ),
    "tower": ({"identity": {"tower": {}}}, "b holds what a vision tower says about images, expected was what a teach"),
}


@pytest.mark.parametrize("difference", REFUSED)
def test_caches_that_do_not_belong_together_are_refused_before_anything_is_written(
    tmp_path: Path, difference: str
) -> None:
    changed, message = REFUSED[difference]
    sources = [write_teacher(tmp_path / "a", 0), write_teacher(tmp_path / "b", 1, **changed)]
    with pytest.raises(MismatchError, match=message) as caught:
        merged(tmp_path / "mixed", *sources)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "mixed").exists()


def test_one_cache_an_unfinished_one_and_a_damaged_one_are_refused(tmp_path: Path) -> None:
    sources = [write_teacher(tmp_path / "a", 0), write_teacher(tmp_path / "b", 1)]
    with pytest.raises(ConfigError, match="a mixture is of two caches or more, given are 1: name them all"):
        merged(tmp_path / "mixed", sources[0])
    manifest = sources[1] / "manifest.json"
    content = manifest.read_text()
    manifest.write_text(content.replace('"complete"', '"open"'))
    with pytest.raises(CacheError, match="damaged or was edited"):
        merged(tmp_path / "mixed", *sources)
    manifest.write_text(content)
    (sources[1] / "shard-000000.parquet").write_bytes(b"PAR1")
    with pytest.raises(CacheError, match="cannot be read .*run `betakd-pipe cache verify`"):
        merged(tmp_path / "mixed", *sources)
    assert not (tmp_path / "mixed").exists()


def test_trust_without_its_files_says_how_to_fit_them(tmp_path: Path) -> None:
    sources = [write_teacher(tmp_path / "a", 0), write_teacher(tmp_path / "b", 1)]
    with pytest.raises(UserError, match="there is no .*a.trust.parquet, .*cache trust .*a --data 'digits:transfer"):
        merged(tmp_path / "mixed", *sources, weighting="trust")
    assert not (tmp_path / "mixed").exists()


def test_learned_weights_of_other_data_are_refused(tmp_path: Path) -> None:
    sources = [write_teacher(tmp_path / "a", 0), write_teacher(tmp_path / "b", 1)]
    with pytest.raises(
        MismatchError, match=r"is not the data that .*a was made from \(fingerprint .* against f0\): giv"
    ):
        merged(tmp_path / "mixed", *sources, weighting="learned")


def test_only_a_mixture_can_be_one_cache(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match="combine is prior, but one cache is of one teacher: leave it out, or name the"
    ):
        merged(tmp_path / "mixed", tmp_path / "a", tmp_path / "b", combine="prior")
