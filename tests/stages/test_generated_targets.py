"""Answers that the teacher writes: what it writes, what is cached about it, and what a student learns from it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.stages.test_caching import as_files, settings
from tests.stages.test_caching_batches import of_many_lengths
from tests.world import World

from betakd_cache import CacheError, TeacherCache, TeacherRecord, open_cache
from betakd_stages.caching.estimation import estimate
from betakd_stages.caching.rescoring import rescore
from betakd_stages.caching.run import cache_teacher
from betakd_stages.data import load_samples
from betakd_stages.data.asked import SUFFIX
from betakd_stages.models.loading import LoadedModel, load_model
from betakd_stages.progress import SilentProgress
from betakd_stages.settings import CacheTeacherSettings
from betakd_stages.teachers.hf import HuggingFaceTeacher

SAMPLED = {"max_new_tokens": 16, "temperature": 3.0, "top_p": 0.95, "seed": 5}
"""Hot enough for an untrained teacher to end some of its answers."""
NUMBERS = ("token_ids", "entry_counts", "ids", "gaps", "gold_gap", "tail_lse", "tail_energy", "logit_max", "logit_std")


def generating(world: World, **changes: object) -> CacheTeacherSettings:
    return settings(world, **{"targets": ["generate"], "generation": SAMPLED, **changes})


def make(some: CacheTeacherSettings, out: Path) -> TeacherCache:
    cache_teacher(some, out, progress=SilentProgress())
    return open_cache(out)


def by_id(cache: TeacherCache) -> dict[str, TeacherRecord]:
    records = [cache.record(index) for index in range(len(cache))]
    return {record.sample_id: record for record in records}


def written_ids(cache: TeacherCache) -> dict[str, tuple[list[int], object]]:
    """The ids of every record and the lengths of its answers, which are None where the data's are meant."""
    return {key: (one.token_ids.tolist(), one.row.get("answer_lengths")) for key, one in by_id(cache).items()}


@pytest.fixture(scope="module")
def both(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of both targets, made in batches of 8."""
    out = tmp_path_factory.mktemp("both") / "cache"
    make(generating(world, targets=["generate", "data"], batch_size=8), out)
    return out


@pytest.fixture(scope="module")
def conversations(world: World, tmp_path_factory: pytest.TempPathFactory) -> str:
    """One to four turns, some without an image."""
    return of_many_lengths(world, tmp_path_factory.mktemp("conversations"))


@torch.inference_mode()
def logits_behind(loaded: LoadedModel, ids: list[int], images: dict[str, torch.Tensor]) -> np.ndarray:
    """Of the whole model, at the last of these ids, float64 [V]."""
    logits: torch.Tensor = loaded.model(input_ids=torch.tensor([ids]), **images).logits
    return logits[0, -1].double().numpy()


def test_greedy_answers_and_their_distributions_are_those_of_the_model_step_by_step(
    world: World, conversations: str, tmp_path: Path
) -> None:
    """One id after the other by hand, each of all ids so far; answers of four ids that never end, in up to 3 turns."""
    some = generating(world, data=conversations, limit=9, generation={"max_new_tokens": 4}, exact=True, batch_size=4)
    records, loaded = by_id(make(some, tmp_path / "cache")), load_model(world.teacher)
    encoder = loaded.encoder
    words = encoder.tokenizer.get_vocab()
    forbidden = [words[token] for token in ("<pad>", "<unk>", "<image>")]
    num_turns = set()
    for sample in load_samples(conversations)[:9]:
        record = records[sample.sample_id + SUFFIX]
        images = dict(encoder.encode(sample).image_inputs)
        place, ids = 0, list[int]()
        expected: list[int] = []
        for turn, (text, is_answer) in enumerate(encoder.segments(sample.turns, sample.image is not None)):
            if not is_answer:
                repeats = encoder.num_image_tokens or 0
                for word in text.split():
                    ids += [words[word]] * (repeats if word == "<image>" else 1)
                continue
            for _ in range(4):
                logits = logits_behind(loaded, ids, images)
                count = record.entry_counts[len(expected)]
                held = slice(place, place + count)
                np.testing.assert_allclose(logits.max() - logits[record.ids[held]], record.gaps[held], atol=2e-5)
                place += count
                logits[forbidden] = -np.inf
                expected.append(int(logits.argmax()))
                ids.append(expected[-1])
                assert expected[-1] != words["</s>"]
            ids.append(words["</s>"])
            num_turns.add(turn // 2)
        assert record.token_ids.tolist() == expected
        assert record.row["answer_lengths"] == ",".join(["4+"] * len(sample.turns))
    assert num_turns >= {0, 1, 2}


def test_the_distribution_over_a_written_answer_is_that_over_the_same_answer_as_data(
    world: World, both: Path, tmp_path: Path
) -> None:
    as_files(world, tmp_path / "data", 48)
    encoder = load_model(world.teacher).encoder
    records, entries = by_id(open_cache(both)), []
    plain = json.loads((tmp_path / "data" / "data.json").read_text())
    for entry, sample in zip(plain, load_samples(world.data), strict=True):
        record = records[sample.sample_id + SUFFIX]
        if not str(record.row["answer_lengths"]).endswith("+") and len(record.token_ids) > 1:
            text = encoder.tokenizer.decode(record.token_ids[:-1])
            entry["conversations"][1]["value"] = text
            entries.append({**entry, "id": sample.sample_id})
    assert len(entries) > 5
    (tmp_path / "data" / "data.json").write_text(json.dumps(entries))
    data = f"llava:{tmp_path}/data/data.json?images={tmp_path}/data/images"
    for sample_id, as_data in by_id(make(settings(world, data=data, batch_size=8), tmp_path / "cache")).items():
        written = records[sample_id + SUFFIX]
        assert written.token_ids.tolist() == as_data.token_ids.tolist()
        for name in ("gold_gap", "tail_lse", "logit_max"):  # stored codes of other gaps may differ by one step
            np.testing.assert_allclose(getattr(written, name), getattr(as_data, name), rtol=2e-3, atol=2e-4)
        np.testing.assert_allclose(written.features["prompt"], as_data.features["prompt"], rtol=2e-3, atol=2e-3)


def test_both_targets_live_in_one_cache_and_the_datas_records_are_those_of_a_cache_of_their_own(
    world: World, both: Path, tmp_path: Path
) -> None:
    cache = open_cache(both)
    data_ids = [sample.sample_id for sample in load_samples(world.data)]
    assert cache.sample_ids.to_pylist() == [*data_ids, *(sample_id + SUFFIX for sample_id in data_ids)]
    assert cache.manifest.identity["targets"] == {
        "kinds": ["data", "generate"],
        "generation": {**SAMPLED, "max_length": None},
    }
    alone = make(settings(world, batch_size=8), tmp_path / "alone")
    assert "targets" not in alone.manifest.identity
    records = by_id(cache)
    for sample_id, record in by_id(alone).items():
        for name in NUMBERS:
            found, expected = getattr(records[sample_id], name), getattr(record, name)
            np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5, err_msg=name)  # batches differ at the end
    found = rescore(both, str(world.teacher), world.data, 24)
    assert (found.ok, found.num_samples) == (True, 24)


def test_what_is_sampled_depends_neither_on_batches_nor_on_parts_nor_on_the_other_target(
    world: World, both: Path, tmp_path: Path
) -> None:
    expected = {key: value for key, value in written_ids(open_cache(both)).items() if key.endswith(SUFFIX)}
    lengths = [len(ids) for ids, _ in expected.values()]
    assert min(lengths) < 16 == max(lengths)
    one_by_one = written_ids(make(generating(world, batch_size=1, limit=6), tmp_path / "single"))
    assert one_by_one == {key: expected[key] for key in list(expected)[:6]}
    for number in (1, 0):
        some = generating(world, batch_size=5, limit=16)
        cache_teacher(some, tmp_path / "parts", part=(number, 2), progress=SilentProgress())
    in_parts = written_ids(open_cache(tmp_path / "parts"))
    assert in_parts == {key: expected[key] for key in list(expected)[:16]}
    other_seed = make(generating(world, generation={**SAMPLED, "seed": 6}, limit=4), tmp_path / "other")
    assert all(expected[key][0] != ids for key, (ids, _) in written_ids(other_seed).items())


def test_an_estimate_writes_answers_too(world: World) -> None:
    some = generating(world, targets=["data", "generate"], generation={"max_new_tokens": 8})
    found = estimate(some, num_scored=6, progress=SilentProgress())
    assert (found.num_scored, found.num_samples) == (6, 96)
    assert found.tokens_per_sample == (3 * 2 + 3 * 8) / 6  # a word and an end, and answers that do not end


def test_no_control_token_is_ever_written(world: World, tmp_path: Path) -> None:
    hot = make(generating(world, generation={**SAMPLED, "temperature": 100.0, "top_p": 1.0}), tmp_path / "cache")
    encoder = load_model(world.teacher).encoder
    assert encoder.tokenizer.convert_ids_to_tokens(encoder.control_token_ids) == ["<pad>", "<unk>", "<image>"]
    ids = np.concatenate([one.token_ids for one in by_id(hot).values()])
    assert set(ids.tolist()) == set(range(34)) - set(encoder.control_token_ids)


def test_an_interrupted_run_goes_on_and_writes_what_an_uninterrupted_one_does(
    world: World, both: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    some = generating(world, targets=["data", "generate"], batch_size=8, bucket_window=1, shard_samples=12, limit=24)
    original, calls = HuggingFaceTeacher.write, []

    def interrupted(self: HuggingFaceTeacher, *arguments: object) -> object:
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(HuggingFaceTeacher, "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make(some, tmp_path / "cache")
    monkeypatch.undo()
    kept = len(open_cache(tmp_path / "cache", allow_incomplete=True))
    assert 24 < kept < 48
    found = cache_teacher(some, tmp_path / "cache", progress=SilentProgress())
    assert (found.is_complete, found.num_new, found.num_generated) == (True, 48 - kept, 24)
    whole = written_ids(open_cache(both))
    resumed = written_ids(open_cache(tmp_path / "cache"))
    assert len(resumed) == 48
    assert resumed == {key: whole[key] for key in resumed}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"generation": {**SAMPLED, "seed": 6}},
            "targets.generation.seed = 5, this run has 6; use the cache's setting",
        ),
        ({"targets": ["generate"]}, r'targets.kinds = \["data", "generate"\], this run has \["generate"\]; use'),
        ({"targets": ["data"], "generation": {}}, "targets = .*, this run has nothing; use the cache's setting"),
        ({"max_length": 60}, "targets.generation.max_length = null, this run has 60; use the cache's setting"),
    ],
)
def test_a_cache_is_not_continued_with_other_targets_or_another_way_to_write(
    world: World, both: Path, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(CacheError, match=message):
        make(generating(world, **{"targets": ["data", "generate"], **changes}), both)
