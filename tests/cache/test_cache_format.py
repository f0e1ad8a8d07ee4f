"""docs/cache-format.md is complete: a reader written from it alone agrees, and it names everything there is."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.cache.independent_reader import read_samples
from tests.cache.records import make_records, write_cache, writer_for

from betakd_cache import FeatureLayout, TokenRule, open_cache
from betakd_cache.layout import CacheRules, array_specs

DOCUMENT = (Path(__file__).parents[2] / "docs" / "cache-format.md").read_text()


@pytest.mark.parametrize("vocabulary_size", [300, 70_000])
@pytest.mark.parametrize("exact", [False, True])
def test_a_reader_written_from_the_document_sees_the_same_values(
    tmp_path: Path, vocabulary_size: int, exact: bool
) -> None:
    rule = TokenRule(top_k=9, top_p=0.99, exact=exact)
    records = make_records(7, vocabulary_size, rule)
    cache = write_cache(tmp_path / "cache", records, rule, vocabulary_size, shard_samples=3)
    samples = list(read_samples(tmp_path / "cache"))
    assert [sample["row"]["sample_id"] for sample in samples] == cache.sample_ids.to_pylist()
    for index, sample in enumerate(samples):
        record = cache.record(index)
        assert sample["tok_n"] == record.entry_counts.tolist()
        for name in ("token_ids", "ids", "gold_gap", "tail_lse", "tail_energy", "logit_max", "logit_mean", "logit_std"):
            assert sample[name] == getattr(record, name).tolist(), name
        np.testing.assert_allclose(sample["gaps"], record.gaps, rtol=1e-6, atol=1e-7)
        assert sample["features"] == {name: feature.tolist() for name, feature in record.features.items()}


def test_the_independent_reader_orders_the_parts_as_the_reader_does(tmp_path: Path) -> None:
    rule = TokenRule(top_k=9, top_p=0.99)
    records = make_records(9, 300, rule)
    parts = [(0, 1), (0, 3), (1, 3), (2, 3), (0, 12)]
    writers = [writer_for(tmp_path / "cache", rule, 300, shard_samples=1, part=part) for part in parts]
    for number, record in enumerate(records):
        writers[number % 5].append(record)
    for writer in writers:
        writer.flush()
        writer.close()
    with writer_for(tmp_path / "cache", rule, 300) as last:
        assert last.complete()
    found = [sample["row"]["sample_id"] for sample in read_samples(tmp_path / "cache")]
    assert found == open_cache(tmp_path / "cache").sample_ids.to_pylist()
    assert sorted(found) == sorted(record.sample_id for record in records)


def test_the_document_lists_every_array_with_its_type(tmp_path: Path) -> None:
    rows = re.findall(r"^\| `([\w/]+)` \| (\w+) \| (\w*) ?\| \[(.*?)\] \|", DOCUMENT, flags=re.MULTILINE)
    layouts = {"NAME": FeatureLayout("tokens", 4, 2)}
    listed = {name: (compact, exact or compact, shape) for name, compact, exact, shape in rows}
    axes = {"boundary": "S + 1", "sample": "S", "token": "T", "entry": "E"}
    for place, exact in enumerate((False, True)):
        rule = TokenRule(exact=exact)
        specs = {spec.name: spec for spec in array_specs(CacheRules(rule, 70_000, {"NAME": 8}, True, layouts))}
        if not exact:  # in int8 a feature has scales beside it
            in_int8 = {spec.name: spec for spec in array_specs(CacheRules(rule, 70_000, {"NAME": 8}, True, {}, "int8"))}
            assert in_int8["features/NAME"].dtype.name == "int8"
            specs["scales/NAME"] = in_int8["scales/NAME"]
        assert set(specs) == {name for name, row in listed.items() if row[place] != "absent"}
        for name, spec in specs.items():
            assert listed[name][place] == spec.dtype.name, name
            assert listed[name][2].split(", ")[0] == axes[spec.axis], name


def test_the_document_lists_every_field_of_the_manifest(tmp_path: Path) -> None:
    rule = TokenRule(temperatures=(1.0,))
    settings: dict[str, Any] = {"feature_layouts": {"vision": FeatureLayout("tokens", 4)}, "feature_dtype": "int8"}
    write_cache(tmp_path / "cache", [], rule, 300, tail_energies=False, **settings)
    fields = json.loads((tmp_path / "cache" / "manifest.json").read_text())
    names = [f"token_rule.{name}" for name in fields.pop("token_rule")] + list(fields)
    documented = re.findall(r"^\| `([\w.]+)` \| [^|]*\|$", DOCUMENT, flags=re.MULTILINE)
    assert sorted(names) == sorted(documented)
    for name in fields["counts"]:
        assert f"`{name}`" in DOCUMENT
