"""Mixtures: counts, shares, order and ids, the same for the same seed."""

from collections import Counter
from pathlib import Path

import pytest

from betakd_stages.data import load_samples
from betakd_stages.data.sample import SampleSet
from betakd_stages.errors import DataError

TRANSFER, TEST = "digits:transfer?types=which", "digits:test?types=which"  # 500 and 447 samples


def mixture(folder: Path, text: str) -> SampleSet:
    (folder / "mix.yaml").write_text(text, encoding="utf-8")
    return load_samples(f"mixture:{folder}/mix.yaml")


def names(samples: SampleSet) -> Counter[str]:
    return Counter(sample.sample_id.partition("/")[0] for sample in samples)


def test_sources_are_whole_counted_or_shared_out_by_weight(tmp_path: Path) -> None:
    whole = mixture(tmp_path, f"sources: [{{name: a, data: '{TRANSFER}'}}, {{name: b, data: '{TEST}', count: 10}}]")
    assert names(whole) == {"a": 500, "b": 10}
    shared = mixture(
        tmp_path,
        f"""
        total: 101
        sources:
          - {{name: a, data: '{TRANSFER}', weight: 2}}
          - {{name: b, data: '{TEST}', weight: 1}}
          - {{name: c, data: '{TEST}', count: 7}}
        """,
    )
    assert names(shared) == {"a": 67, "b": 34, "c": 7}  # 67.33 and 33.67: the larger remainder is rounded up


def test_ids_carry_the_source_and_lead_to_its_samples(tmp_path: Path) -> None:
    samples = mixture(
        tmp_path, f"sources: [{{name: a, data: '{TEST}', count: 5}}, {{name: b, data: '{TEST}', count: 447}}]"
    )
    originals = {sample.sample_id: sample for sample in load_samples(TEST)}
    assert len({sample.sample_id for sample in samples}) == 452
    for sample in samples:
        original = originals[sample.sample_id.partition("/")[2]]
        assert (sample.turns, sample.image, sample.category) == (original.turns, original.image, "which")


def test_a_sample_without_a_category_gets_the_name_of_its_source(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"question": "q", "answer": "a"}')
    samples = mixture(tmp_path, f"sources: [{{name: text, data: 'table:{tmp_path}/rows.jsonl'}}]")
    assert [(sample.sample_id, sample.category) for sample in samples] == [("text/0", "text")]


def test_the_seed_decides_draw_and_order_and_another_source_leaves_the_draw_alone(tmp_path: Path) -> None:
    one = f"{{name: a, data: '{TRANSFER}', count: 100}}"
    other = f"{{name: b, data: '{TEST}', count: 100}}"
    first, again, another = (mixture(tmp_path, f"{{seed: {seed}, sources: [{one}]}}") for seed in (1, 1, 2))
    assert first.fingerprint == again.fingerprint != another.fingerprint
    both = mixture(tmp_path, f"{{seed: 1, sources: [{other}, {one}]}}")
    drawn = {sample.sample_id for sample in first}
    assert {sample.sample_id for sample in both if sample.sample_id.startswith("a/")} == drawn
    assert 20 < names(both[:100])["a"] < 80  # mixed, not one after the other: five standard deviations
    assert drawn != {sample.sample_id for sample in another}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a", "the file: Input should be a valid dictionary"),
        ("sources: []", "sources: Tuple should have at least 1 item"),
        ("sources: [{name: a, data: x, wieght: 2}]", "sources.0.wieght: Extra inputs are not permitted"),
        ("sources: [{name: a/b, data: x}]", "sources.0.name: String should match pattern"),
        ("sources: [{name: a, data: x, weight: -1}]", "sources.0.weight: Input should be greater than 0"),
        (
            "sources: [{name: a, data: x}, {name: a, data: y}]",
            "the file: two sources are named 'a': names lead",
        ),
        ("{total: 9, sources: [{name: a, data: x, weight: 1, count: 1}]}", "the file: a source has both count and"),
        ("sources: [{name: a, data: x, weight: 1}]", "the file: total and weights need each other"),
        ("{total: 9, sources: [{name: a, data: x}]}", "the file: total and weights need each other"),
    ],
)
def test_a_wrong_mixture_is_refused_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError) as caught:
        mixture(tmp_path, text)
    assert str(caught.value).startswith(f"mixture {tmp_path}/mix.yaml: {message}")
    assert str(caught.value).endswith("Expected sources: a list of {name, data, count or weight}, with seed and total")
    assert "\n" not in str(caught.value)


def test_files_that_are_not_mixtures_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="mixture .*none.yaml cannot be read \\(No such file or directory\\): check"):
        load_samples(f"mixture:{tmp_path}/none.yaml")
    with pytest.raises(DataError, match="mix.yaml is not YAML \\(while parsing"):
        mixture(tmp_path, "sources: [")
    with pytest.raises(DataError, match="mix.yaml is not YAML \\(key 'count' is given twice"):
        mixture(tmp_path, f"sources: [{{name: a, data: '{TEST}', count: 1, count: 2}}]")
    with pytest.raises(DataError, match="option 'seed' in 'mixture:.*' is unknown: mixture takes no options"):
        load_samples(f"mixture:{tmp_path}/mix.yaml?seed=1")


def test_too_few_samples_and_a_mixture_in_a_mixture_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        mixture(tmp_path, f"sources: [{{name: a, data: '{TEST}', count: 448}}]")
    assert str(caught.value) == (
        f"{tmp_path}/mix.yaml: source 'a' shall give 448 samples and has 447: ask for fewer, a cache holds each sample "
        "once"
    )
    with pytest.raises(DataError, match="source 'a' is itself a mixture: name its sources here"):
        mixture(tmp_path, f"sources: [{{name: a, data: 'mixture:{tmp_path}/mix.yaml'}}]")
