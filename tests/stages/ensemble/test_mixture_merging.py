"""A mixture written as a cache: the dense mixture in NumPy, the one mixed while reading, and all that is refused."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.cache.records import record_of, writer_for
from tests.stages.ensemble.mixture_world import (
    EVERYTHING,
    EXACT,
    NUM_SAMPLES,
    RULE,
    SAMPLE_IDS,
    SHARED,
    VOCABULARY,
    labels_of,
    logits_of,
    merged,
    write_teacher,
)

from betakd_cache import CacheError, FeatureLayout, TokenRule, open_cache, verify
from betakd_stages.distillation.cached_targets import decode_batch
from betakd_stages.ensemble.capping import capped, kept_gold
from betakd_stages.ensemble.merging import merge_mixture
from betakd_stages.ensemble.mixing import mix_targets
from betakd_stages.ensemble.rules import teacher_weights
from betakd_stages.progress import SilentProgress
from betakd_stages.settings import EnsembleSettings, MixtureSettings
from betakd_stages.targets import TeacherTargets
from betakd_stages.trust.file import TrustIdentity, cache_fingerprint, trust_path, write_trust
from betakd_stages.trust.groups import make_groups


def targets_at(path: Path, name: str) -> TeacherTargets:
    """What a cache holds of one sample, in float64."""
    cache = open_cache(path)
    targets = decode_batch(cache.batch(cache.index_of([name])), cache.manifest, torch.device("cpu")).targets
    return in_float64(targets)


def in_float64(targets: TeacherTargets) -> TeacherTargets:
    names = ("logits", "gold_logit", "tail_lse", "tail_energy")
    fields = {field: getattr(targets, field) for field in targets.__slots__}
    doubled = {name: fields[name].double() for name in names if fields[name] is not None}
    return TeacherTargets(**fields | doubled)


def softmax(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    weights = np.exp((logits - logits.max(axis=-1, keepdims=True)) / temperature)
    return weights / weights.sum(axis=-1, keepdims=True)


def assert_alike(found: TeacherTargets, expected: TeacherTargets, tolerance: float) -> None:
    """The same distribution at every temperature: entries by id, gold, tail, entropy."""
    assert found.temperatures == expected.temperatures
    for temperature in found.temperatures:
        dense = []
        for targets in (found, expected):
            table = torch.zeros(targets.num_tokens, VOCABULARY, dtype=torch.float64)
            table.scatter_add_(1, targets.ids, targets.log_probabilities(temperature).exp())
            tail, entropy = targets.tail_log_probability(temperature).exp(), targets.entropy(temperature)
            dense.append(torch.cat([table, tail[:, None], entropy[:, None]], dim=1))
        torch.testing.assert_close(*dense, atol=tolerance, rtol=0)
        golds = [targets.gold_log_probability(temperature).exp() for targets in (found, expected)]
        torch.testing.assert_close(*golds, atol=tolerance, rtol=0)


def test_with_everything_kept_the_cache_holds_the_dense_mixture(tmp_path: Path) -> None:
    sources = [write_teacher(tmp_path / str(teacher), teacher, EVERYTHING) for teacher in range(3)]
    found = merged(tmp_path / "mixed", *sources)
    assert verify(tmp_path / "mixed").ok
    assert found.mean_weights == pytest.approx([1 / 3] * 3)
    for place, name in enumerate(SAMPLE_IDS):
        targets = targets_at(tmp_path / "mixed", name)
        expected = np.mean([softmax(logits_of(teacher, place)) for teacher in range(3)], axis=0)
        for temperature in (1.0, 2.0):
            dense = np.zeros_like(expected)
            np.put_along_axis(dense, targets.ids.numpy(), targets.log_probabilities(temperature).exp().numpy(), axis=1)
            np.testing.assert_allclose(dense, softmax(np.log(expected), temperature), atol=1e-6)
        np.testing.assert_array_equal(targets.gold_ids, labels_of(place))


@pytest.mark.parametrize(
    ("rule", "tolerance", "settings"),
    [
        (EXACT, 1e-6, {}),
        (EXACT, 1e-6, {"weighting": "entropy", "entropy_scale": 0.5}),
        (EXACT, 1e-6, {"weighting": "confidence", "per": "token"}),
        (RULE, 5e-3, {"weighting": "confidence"}),
    ],
)
def test_reading_it_gives_what_mixing_while_reading_gives(
    tmp_path: Path, rule: TokenRule, tolerance: float, settings: dict[str, Any]
) -> None:
    sources = [write_teacher(tmp_path / str(teacher), teacher, rule) for teacher in range(2)]
    merged(tmp_path / "mixed", *sources, **settings)
    assert open_cache(tmp_path / "mixed").manifest.token_rule.exact == rule.exact
    options = {"per_token": settings.get("per") == "token", "entropy_scale": settings.get("entropy_scale", 1.0)}
    for name in SAMPLE_IDS:
        teachers = [targets_at(source, name) for source in sources]
        held = torch.ones(1, 2, dtype=torch.bool)
        weights = teacher_weights(settings.get("weighting", "uniform"), teachers, held, **options)
        assert_alike(targets_at(tmp_path / "mixed", name), mix_targets(teachers, weights), tolerance)


def test_a_sample_that_one_cache_lacks_is_carried_by_the_others_and_counted(tmp_path: Path) -> None:
    first = write_teacher(tmp_path / "a", 0, EXACT, lacks=[2], rejects={4: "too long", 5: "too long"})
    second = write_teacher(tmp_path / "b", 1, EXACT, lacks=[7], rejects={5: "no image"})
    found = merged(tmp_path / "mixed", first, second)
    mixed = open_cache(tmp_path / "mixed")
    assert (found.num_samples, found.num_carried, found.num_rejected) == (11, 3, 1)
    assert mixed.rejected == {"s5": "too long; no image"}
    assert_alike(targets_at(mixed.path, "s2"), targets_at(second, "s2"), 1e-6)
    assert_alike(targets_at(mixed.path, "s4"), targets_at(second, "s4"), 1e-6)
    assert_alike(targets_at(mixed.path, "s7"), targets_at(first, "s7"), 1e-6)
    rows = {row["sample_id"]: row for row in mixed.rows().to_pylist()}
    assert [(rows[name]["weight_1"], rows[name]["weight_2"]) for name in ("s1", "s2", "s7")] == [
        (0.5, 0.5),
        (0.0, 1.0),
        (1.0, 0.0),
    ]
    assert rows["s2"]["content_sha256"] == "c2"
    assert found.mean_weights == pytest.approx([5 / 11, 6 / 11])


def test_of_a_mixture_that_is_mixed_again_the_former_weights_are_dropped(tmp_path: Path) -> None:
    sources = [write_teacher(tmp_path / str(teacher), teacher, EXACT) for teacher in range(4)]
    merged(tmp_path / "three", *sources[:3])
    found = merged(tmp_path / "again", tmp_path / "three", sources[3])
    rows = open_cache(tmp_path / "again").rows()
    assert [name for name in rows.column_names if name.startswith("weight_")] == ["weight_1", "weight_2"]
    assert rows["weight_1"].to_pylist() == [0.5] * NUM_SAMPLES
    assert rows["category"].to_pylist() == ["kind"] * NUM_SAMPLES
    assert found.mean_weights == pytest.approx([0.5, 0.5])


def test_every_teachers_features_keep_their_numbers_and_layouts(tmp_path: Path) -> None:
    first = write_teacher(tmp_path / "a", 0, EXACT, lacks=[1], feature_sizes={"vision": 3, "prompt": 4})
    second = write_teacher(tmp_path / "b", 1, EXACT, feature_sizes={"prompt": 2})
    merged(tmp_path / "mixed", first, second)
    mixed, sources = open_cache(tmp_path / "mixed"), [open_cache(path) for path in (first, second)]
    assert dict(mixed.manifest.feature_sizes) == {"vision_1": 3, "prompt_1": 4, "prompt_2": 2}
    for name in SAMPLE_IDS:
        record = mixed.record(int(mixed.index_of([name])[0]))
        expected: dict[str, Any] = {}
        for number, cache in enumerate(sources, 1):
            if name in cache.sample_ids.to_pylist():
                own = cache.record(int(cache.index_of([name])[0])).features
                expected |= {f"{key}_{number}": value for key, value in own.items()}
        assert record.features.keys() == expected.keys()
        for key, value in expected.items():
            np.testing.assert_array_equal(record.features[key], value)
    np.testing.assert_allclose(
        mixed.manifest.feature_statistics["prompt_2"].mean, sources[1].manifest.feature_statistics["prompt"].mean
    )


def test_the_manifest_says_whose_mixture_it_is(tmp_path: Path) -> None:
    narrow = TokenRule(top_k=3, top_p=0.9, temperatures=(1.0, 2.0, 4.0))
    sources = [write_teacher(tmp_path / "a", 0, RULE), write_teacher(tmp_path / "b", 1, narrow)]
    merged(tmp_path / "mixed", *sources, weighting="entropy", entropy_scale=2.0)
    manifest = open_cache(tmp_path / "mixed").manifest
    teacher = manifest.identity["teacher"]
    assert teacher["weighting"] == {"rule": "entropy", "per": "sample", "entropy_scale": 2.0}
    assert [part["teacher"]["weights_sha256"] for part in teacher["mixture"]] == ["w0", "w1"]
    assert len({part["cache"] for part in teacher["mixture"]}) == 2
    assert {key: manifest.identity[key] for key in SHARED} == SHARED
    assert manifest.token_rule == TokenRule(top_k=9, top_p=0.9, temperatures=(1.0, 2.0))
    assert not manifest.rules.logit_moments


def test_without_the_tail_energies_of_one_there_are_none(tmp_path: Path) -> None:
    sources = [write_teacher(tmp_path / "a", 0, EXACT)]
    rule = TokenRule(top_k=6, top_p=1.0, temperatures=(1.0,), exact=True)
    identity = {"teacher": {"weights_sha256": "w1"}, **SHARED}
    none: dict[str, Any] = {"tail_energy": None, "logit_max": None, "logit_mean": None, "logit_std": None}
    with writer_for(
        tmp_path / "b", rule, VOCABULARY, identity=identity, feature_sizes={}, logit_moments=False, tail_energies=False
    ) as writer:
        for place, name in enumerate(SAMPLE_IDS):
            row = {"content_sha256": f"c{place}", "image_sha256": f"i{place}"}
            record = record_of(name, logits_of(1, place), labels_of(place), rule, row=row)
            writer.append(dataclasses.replace(record, **none))
        writer.complete()
    merged(tmp_path / "mixed", *sources, tmp_path / "b")
    rules = open_cache(tmp_path / "mixed").manifest.rules
    assert not rules.tail_energies
    assert rules.token_rule.temperatures == (1.0,)


class StoppingProgress(SilentProgress):
    """Stops what it watches after so many blocks."""

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks

    def advance(self, num_units: int = 1, **shown: float | str) -> None:
        self.num_blocks -= 1
        if not self.num_blocks:
            raise KeyboardInterrupt


def test_interrupted_it_goes_on_and_ends_with_the_same_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("betakd_stages.ensemble.merging.BLOCK_SAMPLES", 5)
    sources = [write_teacher(tmp_path / str(teacher), teacher, lacks=[teacher]) for teacher in range(2)]
    settings = MixtureSettings(caches=tuple(map(str, sources)), shard_samples=4)
    merge_mixture(settings, str(tmp_path / "whole"), progress=SilentProgress())
    with pytest.raises(KeyboardInterrupt):
        merge_mixture(settings, str(tmp_path / "parts"), progress=StoppingProgress(2))
    assert len(open_cache(tmp_path / "parts", allow_incomplete=True)) == 8
    monkeypatch.setattr("betakd_stages.ensemble.merging.BLOCK_SAMPLES", 3)
    merge_mixture(settings, str(tmp_path / "parts"), progress=SilentProgress())
    assert verify(tmp_path / "parts").ok
    whole, parts = (open_cache(tmp_path / name) for name in ("whole", "parts"))
    batches = [cache.batch(np.arange(NUM_SAMPLES)) for cache in (whole, parts)]
    for name, values in batches[0].arrays.items():
        np.testing.assert_allclose(values, batches[1].arrays[name], rtol=1e-6, err_msg=name)
    assert parts.manifest.counts == whole.manifest.counts
    before = (tmp_path / "parts" / "manifest.json").read_bytes()
    merge_mixture(settings, str(tmp_path / "parts"), progress=SilentProgress())
    assert (tmp_path / "parts" / "manifest.json").read_bytes() == before
    other = settings.model_copy(update={"ensemble": EnsembleSettings(weighting="confidence")})
    with pytest.raises(CacheError, match=r"was written with teacher.weighting.rule = \"uniform\", this run has \"conf"):
        merge_mixture(other, str(tmp_path / "parts"), progress=SilentProgress())


def test_by_trust_teachers_count_in_proportion_and_alike_where_none_is_trusted(tmp_path: Path) -> None:
    sources = [write_teacher(tmp_path / "a", 0), write_teacher(tmp_path / "b", 1, lacks=[5])]
    trusts = np.random.default_rng(0).random((2, NUM_SAMPLES)).astype(np.float32)
    trusts[:, 3] = 0
    for source, trust in zip(sources, trusts, strict=True):
        cache = open_cache(source)
        names = cache.sample_ids.to_pylist()
        held = trust[[SAMPLE_IDS.index(name) for name in names]]
        identity = TrustIdentity(cache_fingerprint(cache), {}, {})
        write_trust(trust_path(source), names, make_groups(names, 50), held, held, identity)
    merged(tmp_path / "mixed", *sources, weighting="trust")
    rows = open_cache(tmp_path / "mixed").rows(["sample_id", "weight_1"]).to_pydict()
    found = dict(zip(rows["sample_id"], rows["weight_1"], strict=True))
    expected = np.where(trusts.sum(axis=0) > 0, trusts[0] / np.maximum(trusts.sum(axis=0), 1e-9), 0.5)
    expected[5] = 1
    np.testing.assert_allclose([found[name] for name in SAMPLE_IDS], expected, rtol=1e-6)


def test_places_of_a_feature_and_those_in_focus_are_kept(tmp_path: Path) -> None:
    layout, paths = FeatureLayout("tokens", 3, 2), [tmp_path / "a", tmp_path / "b"]
    for teacher, path in enumerate(paths):
        identity = {"teacher": {"weights_sha256": f"w{teacher}"}, **SHARED}
        with writer_for(
            path, RULE, VOCABULARY, identity=identity, feature_sizes={"vision": 2}, feature_layouts={"vision": layout}
        ) as writer:
            feature = np.arange(6, dtype=np.float32).reshape(3, 2) + teacher
            row = {"content_sha256": "c0", "image_sha256": "i0"}
            record = record_of("s0", logits_of(teacher, 0), labels_of(0), RULE, {"vision": feature}, row)
            writer.append(dataclasses.replace(record, focus={"vision": np.array([2, teacher])}))
            writer.complete()
    merged(tmp_path / "mixed", *paths)
    mixed = open_cache(tmp_path / "mixed")
    assert mixed.manifest.rules.feature_layouts == {"vision_1": layout, "vision_2": layout}
    record = mixed.record(0)
    for teacher in range(2):
        expected = np.arange(6).reshape(3, 2) + teacher
        np.testing.assert_array_equal(record.features[f"vision_{teacher + 1}"], expected)
        np.testing.assert_array_equal(record.focus[f"vision_{teacher + 1}"], [2, teacher])


@pytest.mark.parametrize("top_k", [1, 4, 9])
def test_entries_beyond_the_cap_join_the_tail_as_if_they_had_never_been_kept(top_k: int) -> None:
    generator = np.random.default_rng(3)
    logits = torch.from_numpy(generator.normal(scale=3, size=(50, VOCABULARY)))
    gold = torch.from_numpy(generator.integers(0, VOCABULARY, 50))
    options: dict[str, Any] = {"temperatures": (0.5, 1.0, 2.0)}
    found = capped(TeacherTargets.from_logits(logits, gold, top_k=9, **options), top_k)
    expected = TeacherTargets.from_logits(logits, gold, top_k=top_k, **options)
    assert found.ids.shape == (50, top_k)
    torch.testing.assert_close(found.ids, expected.ids)
    for name in ("logits", "tail_lse", "tail_energy"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), atol=1e-9, rtol=0)


def test_with_everything_kept_the_cap_makes_the_tail_and_leaves_tokens_below_it_alone() -> None:
    logits = torch.from_numpy(np.random.default_rng(4).normal(size=(5, 6)))
    gold = torch.zeros(5, dtype=torch.int64)
    whole = TeacherTargets.from_logits(logits, gold)
    torch.testing.assert_close(
        capped(whole, 2).tail_lse, TeacherTargets.from_logits(logits, gold, top_k=2).tail_lse, atol=1e-12, rtol=0
    )
    assert capped(whole, 6) is whole


def test_the_gold_logit_is_that_of_its_entry_to_the_last_bit() -> None:
    logits = torch.from_numpy(np.random.default_rng(5).normal(size=(9, 6)))
    targets = TeacherTargets.from_logits(logits, logits.argmin(dim=1), top_k=3)
    off = dataclasses.replace(targets, gold_logit=targets.gold_logit + 1e-9)
    torch.testing.assert_close(kept_gold(off).gold_logit, targets.gold_logit, atol=0, rtol=0)
