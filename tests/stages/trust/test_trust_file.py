"""`cache trust` on a real cache: what it writes, that it leaves the cache alone, and everything it refuses."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from tests.world import World

from betakd_cache import derive, merge, open_cache, verify
from betakd_stages.caching.run import cache_teacher
from betakd_stages.distillation.preparation import prepare
from betakd_stages.errors import ConfigError, MismatchError, UserError
from betakd_stages.progress import SilentProgress
from betakd_stages.settings import CacheTeacherSettings, DistillSettings, TrustSettings
from betakd_stages.trust.file import METADATA, read_trust, trust_path
from betakd_stages.trust.report import TrustReport
from betakd_stages.trust.run import fit_trust

QUICK = {"num_folds": 2, "num_fits": 1, "smallest_group": 5}


def fit(cache: Path, data: str, **settings: object) -> TrustReport:
    values = {"cache": str(cache), "data": data, **QUICK, **settings}
    return fit_trust(TrustSettings.model_validate(values), num_clashes=3, progress=SilentProgress())


@pytest.fixture
def cache(world: World, tmp_path: Path) -> Path:
    """A copy of the world's cache, beside which nothing lies."""
    return Path(shutil.copytree(world.cache, tmp_path / "cache"))


@pytest.fixture(scope="module")
def trust_file(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The world's trust file, somewhere else."""
    return Path(fit(world.cache, world.data, out=str(tmp_path_factory.mktemp("trust") / "trust.parquet")).path)


@pytest.fixture
def beside(trust_file: Path, cache: Path) -> Path:
    """The trust file beside the copy of the cache."""
    return Path(shutil.copy(trust_file, trust_path(cache)))


def test_every_sample_gets_a_trust_and_the_cache_stays_sound(world: World, cache: Path) -> None:
    report = fit(cache, world.data)
    assert report.path == f"{cache}.trust.parquet"
    assert report.num_samples == sum(row.num_samples for row in report.groups) == sum(report.histogram["counts"]) == 48
    assert verify(cache).ok
    trust = read_trust(Path(report.path), open_cache(cache), world.data)
    assert ((trust >= 0) & (trust <= 1)).all()
    table = pq.read_table(report.path)
    assert table.column_names == ["sample_id", "group", "pi", "trust"]
    rows = {row["sample_id"]: row for row in table.to_pylist()}
    for index, sample_id in enumerate(open_cache(cache).sample_ids.to_pylist()):
        assert rows[sample_id]["trust"] == trust[index]
        assert rows[sample_id]["group"].startswith(sample_id.rsplit("-", 1)[1])


def test_the_clashes_are_the_labels_farthest_below_the_teachers_own_answers(world: World, cache: Path) -> None:
    report = fit(cache, world.data)
    opened = open_cache(cache)
    gaps = {}
    for index in range(len(opened)):
        record = opened.record(index)
        gaps[record.sample_id] = float(record.gold_gap.sum())
    worst = sorted(gaps, key=lambda sample_id: -gaps[sample_id])[:3]
    assert [clash.sample_id for clash in report.clashes] == worst
    assert report.clashes[0].nats == pytest.approx(gaps[worst[0]])
    assert report.clashes[0].question


def test_the_same_seed_gives_the_same_bytes_and_another_order_of_the_cache_the_same_trust(
    world: World, cache: Path, trust_file: Path, tmp_path: Path
) -> None:
    first = trust_file.read_bytes()
    assert Path(fit(cache, world.data).path).read_bytes() == first
    ids = open_cache(cache).sample_ids.to_pylist()
    parts = []
    for number, chosen in enumerate((ids[30:], ids[:30])):
        derive(cache, tmp_path / f"part-{number}", sample_ids=chosen)
        parts.append(tmp_path / f"part-{number}")
    merge(parts, tmp_path / "turned")
    turned = open_cache(tmp_path / "turned")
    assert turned.sample_ids.to_pylist() == ids[30:] + ids[:30]
    again = read_trust(Path(fit(turned.path, world.data).path), turned, world.data)
    before = read_trust(trust_path(cache), open_cache(cache), world.data)
    np.testing.assert_allclose(again[turned.index_of(ids)], before, atol=1e-5)


def test_the_file_says_of_which_cache_data_and_settings_it_is(world: World, cache: Path) -> None:
    path = fit(cache, world.data, seed=4).path
    identity = json.loads(pq.read_schema(path).metadata[METADATA])
    assert identity["data"]["specification"] == "digits:transfer?count=48&label_noise=0.2&seed=3"
    assert identity["settings"]["seed"] == 4
    assert identity["settings"]["num_folds"] == 2
    assert len(identity["cache"]) == 64


def refusal(function: object, *arguments: object) -> str:
    with pytest.raises(UserError) as caught:
        function(*arguments)  # type: ignore[operator]
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_other_data_are_refused(world: World, cache: Path) -> None:
    relabelled = world.data.replace("0.2", "0.6")
    assert "its question or answer differs from what the teacher was given" in refusal(fit, cache, relabelled)
    assert not trust_path(cache).exists()


def test_a_cache_of_answers_that_the_teacher_wrote_is_refused(world: World, tmp_path: Path) -> None:
    values = {"teacher": str(world.teacher), "data": "digits:transfer?count=4", "targets": ["generate"]}
    settings = CacheTeacherSettings.model_validate({**values, "generation": {"max_new_tokens": 2}})
    cache_teacher(settings, tmp_path / "written", progress=SilentProgress())
    message = refusal(fit, tmp_path / "written", "digits:transfer?count=4")
    assert "holds only answers that the teacher wrote" in message


def distil_settings(world: World, cache: Path, **settings: object) -> DistillSettings:
    values = {"student": str(world.student), "cache": str(cache), "data": world.data}
    training = {"steps": 1, "batch_size": 4, "num_threads": 1}
    return DistillSettings.model_validate({**values, "training": training, "weighting": {"name": "robust"}, **settings})


def test_without_a_trust_file_robust_weighting_says_which_command_writes_one(
    world: World, cache: Path, tmp_path: Path
) -> None:
    message = refusal(prepare, distil_settings(world, cache), tmp_path / "run")
    assert message.startswith(f"there is no {cache}.trust.parquet")
    assert message.endswith(f"`betakd-pipe cache trust {cache} --data '{world.data}'`")
    assert not (tmp_path / "run").exists()


def test_the_trust_of_another_cache_is_refused(world: World, cache: Path, beside: Path, tmp_path: Path) -> None:
    derive(cache, tmp_path / "small", top_k=2)
    beside.rename(trust_path(tmp_path / "small"))
    message = refusal(prepare, distil_settings(world, tmp_path / "small"), tmp_path / "run")
    assert "was fitted to another cache" in message
    assert f"`betakd-pipe cache trust {tmp_path / 'small'} --data" in message


def test_samples_without_trust_are_refused_by_name_and_number(
    world: World, cache: Path, trust_file: Path, tmp_path: Path
) -> None:
    path = tmp_path / "part.parquet"
    pq.write_table(pq.read_table(trust_file).slice(0, 40), path)
    message = refusal(prepare, distil_settings(world, cache, trust=str(path)), tmp_path / "run")
    assert re.search(r"part.parquet has no trust in sample 'digits-transfer-\d+-\w+' \(8 of 48 are missing\)", message)
    assert message.endswith(f"--data '{world.data}' --out {path}`")


def test_what_is_no_trust_file_is_refused(world: World, cache: Path, beside: Path) -> None:
    pq.write_table(pq.read_table(beside).replace_schema_metadata(None), beside)
    with pytest.raises(MismatchError, match="is not a trust file, it does not say of which cache"):
        read_trust(beside, open_cache(cache), world.data)
    beside.write_bytes(b"PAR1")
    with pytest.raises(MismatchError, match="cannot be read as a trust file .*write it again with"):
        read_trust(beside, open_cache(cache), world.data)


def test_a_file_of_another_version_is_refused(world: World, cache: Path, beside: Path) -> None:
    table = pq.read_table(beside)
    identity = {**json.loads(table.schema.metadata[METADATA]), "format_version": 9}
    pq.write_table(table.replace_schema_metadata({METADATA: json.dumps(identity)}), beside)
    with pytest.raises(MismatchError, match="is a trust file of version 9, this program reads version 1"):
        read_trust(beside, open_cache(cache), world.data)


def test_beside_a_cache_in_an_object_store_no_file_is_looked_for() -> None:
    assert trust_path("s3://bucket/cache", "here.parquet") == Path("here.parquet")
    with pytest.raises(ConfigError) as caught:
        trust_path("s3://bucket/cache")
    assert str(caught.value) == (  # also of several caches, with which distill refuses trust=FILE
        "s3://bucket/cache is in an object store, beside which no trust file is looked for: copy that cache to a local "
        "folder or, where it is the only one, name a local file (cache trust --out FILE, distill --set trust=FILE)"
    )


def test_robust_weighting_without_a_cache_is_refused(world: World, tmp_path: Path) -> None:
    values = {"student": str(world.student), "data": world.data, "objective": {}, "weighting": {"name": "robust"}}
    message = refusal(prepare, DistillSettings.model_validate(values), tmp_path / "run")
    assert message == "the weighting needs the trust in a teacher, but no cache is given: name one (--cache DIR)"
