"""`betakd-pipe cache`: what it says about a cache."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from tests.cache.records import record_of, simulated_logits

from betakd_cache import CacheWriter, TokenRule
from betakd_pipe.cli import main

VOCABULARY_SIZE = 50


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """Six samples of three tokens."""
    generator = np.random.default_rng(0)
    rule = TokenRule(top_k=8)
    path = tmp_path / "cache"
    identity = {"teacher": {"name": "simulated"}}
    with CacheWriter.open(
        path, identity=identity, token_rule=rule, vocabulary_size=VOCABULARY_SIZE, feature_sizes={}
    ) as writer:
        for index in range(6):
            logits = simulated_logits(generator, 3, VOCABULARY_SIZE)
            writer.append(record_of(f"sample-{index}", logits, np.array([1, 2, 3]), rule))
        writer.complete()
    return path


def printed_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    """What `betakd-pipe cache ... --json` prints."""
    assert main(["cache", *arguments, "--json"]) == 0
    fields: dict[str, Any] = json.loads(capsys.readouterr().out)
    return fields


def test_info_prints_counts_identity_and_histograms(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cache", "info", str(cache)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {"state: complete", "counts.num_samples: 6", "counts.num_tokens: 18"} <= set(lines)
    assert {"token_rule.top_k: 8", "identity.teacher.name: simulated"} <= set(lines)
    titles = [line for line in lines if line.startswith("samples by")]
    assert [title.split(" (mean")[0] for title in titles] == [
        "samples by the teacher's mean entropy, nats",
        "samples by the mean probability kept",
    ]


def test_info_as_json_counts_every_sample_in_its_histograms(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fields = printed_json(capsys, "info", str(cache))
    assert sum(fields["entropy"]["counts"]) == sum(fields["kept_mass"]["counts"]) == 6
    assert fields["bytes_per_token"] == fields["counts"]["size_bytes"] / 18


def test_verify_says_that_a_sound_cache_is_sound(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cache", "verify", str(cache)]) == 0
    assert capsys.readouterr().out.startswith(f"{cache}: sound; ")


def test_verify_names_a_changed_file_and_fails(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    victim = max((path for path in cache.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(content)
    assert main(["cache", "verify", str(cache)]) == 1
    assert victim.name in capsys.readouterr().out
    assert main(["cache", "verify", str(cache), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["ok"] is False


@pytest.mark.parametrize("command", ["info", "verify"])
def test_a_folder_that_is_no_cache_is_one_line(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["cache", command, str(tmp_path / "absent")]) == 2
    assert capsys.readouterr().err.startswith(f"betakd-pipe: {tmp_path / 'absent'} does not exist; give the path")


def test_derive_narrows_the_rule_and_the_samples(
    cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ids = tmp_path / "ids.txt"
    ids.write_text("sample-1\nsample-4\n", encoding="utf-8")
    out = tmp_path / "small"
    flags = ["--out", str(out), "--top-k", "4", "--temperatures", "1", "--samples", str(ids)]
    assert printed_json(capsys, "derive", str(cache), *flags)["num_samples"] == 2
    fields = printed_json(capsys, "info", str(out))
    assert (fields["token_rule"]["top_k"], fields["token_rule"]["temperatures"]) == (4, [1.0])


def test_derive_refuses_what_the_source_cannot_give(
    cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["cache", "derive", str(cache), "--out", str(tmp_path / "big"), "--top-k", "9"]) == 2
    assert "top_k" in capsys.readouterr().err
    assert not (tmp_path / "big").exists()


def test_a_missing_file_of_sample_ids_is_named(cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ids = tmp_path / "absent.txt"
    assert main(["cache", "derive", str(cache), "--out", str(tmp_path / "x"), "--samples", str(ids)]) == 2
    assert capsys.readouterr().err == f"betakd-pipe: {ids}: No such file or directory; check the path\n"


def test_derived_parts_merge_into_a_cache_that_differs_in_nothing(
    cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for part in (0, 1):
        ids = tmp_path / f"ids-{part}.txt"
        ids.write_text("".join(f"sample-{3 * part + index}\n" for index in range(3)), encoding="utf-8")
        flags = ["--out", str(tmp_path / f"part-{part}"), "--samples", str(ids)]
        assert main(["cache", "derive", str(cache), *flags]) == 0
    parts = [str(tmp_path / f"part-{part}") for part in (0, 1)]
    assert main(["cache", "merge", *parts, "--out", str(tmp_path / "merged")]) == 0
    capsys.readouterr()
    fields = printed_json(capsys, "diff", str(cache), str(tmp_path / "merged"))
    assert (fields["num_shared"], fields["num_only_left"], fields["num_only_right"]) == (6, 0, 0)
    assert fields["id_agreement"] == 1.0
    assert fields["largest_log_prob_difference"] == 0.0


def test_export_writes_a_row_per_sample(cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert printed_json(capsys, "export", str(cache), "--out", str(tmp_path / "parquet"))["num_samples"] == 6
    tables = sorted((tmp_path / "parquet" / "data").glob("*.parquet"))
    assert sum(pq.read_table(table).num_rows for table in tables) == 6
