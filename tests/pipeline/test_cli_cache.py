"""`betakd-pipe cache`: what it says about a cache."""

import json
from pathlib import Path

import numpy as np
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


def test_info_prints_counts_identity_and_histograms(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cache", "info", str(cache)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {"state: complete", "num_samples: 6", "num_tokens: 18", "identity.teacher.name: simulated"} <= set(lines)
    assert "token_rule.top_k: 8" in lines
    assert "the teacher's mean entropy per sample, nats" in lines


def test_info_as_json_counts_every_sample_in_its_histograms(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cache", "info", str(cache), "--json"]) == 0
    description = json.loads(capsys.readouterr().out)
    assert sum(description["histograms"]["entropy"]["counts"]) == 6
    assert description["size_bytes"] == sum(path.stat().st_size for path in cache.rglob("*") if path.is_file())
    assert description["bytes_per_token"] == description["size_bytes"] / 18


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
