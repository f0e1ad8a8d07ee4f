"""What the tests with a real engine start from, and how two caches are compared field by field."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from betakd_cache import TeacherCache, TeacherRecord, open_cache
from betakd_pipe.cli import main
from betakd_stages.data import load_samples

NUM_IMAGES = 20
STATISTICS = ("gold_gap", "tail_lse", "tail_energy", "logit_max", "logit_mean", "logit_std")


@dataclass(frozen=True, slots=True)
class EngineWorld:
    """A tiny LLaVA, samples with and without images and with one and two turns, and where its exact cache is."""

    folder: Path
    teacher: Path
    data: str

    @property
    def exact_hf(self) -> Path:
        """The cache that transformers makes, in full precision."""
        return self.folder / "exact-hf"

    def arguments(self, out: Path, *without: str) -> list[str]:
        """Those of `cache-teacher` for an exact cache at `out`."""
        options = {
            "--teacher": str(self.teacher),
            "--data": self.data,
            "--out": str(out),
            "--top-k": "12",
            "--temperatures": "0.5,1,2",
            "--set": "exact=true",
        }
        return [word for name, value in options.items() if name not in without for word in (name, value)]


def command(*arguments: str) -> int:
    """The exit code of `betakd-pipe` with these arguments, run in this process."""
    return main(list(arguments))


def write_conversations(folder: Path) -> str:
    """The specification of samples in LLaVA's form: digits with one turn, some with two, and text alone."""
    images = folder / "images"
    images.mkdir(parents=True)
    rows = []
    for number, sample in enumerate(load_samples(f"digits:transfer?count={NUM_IMAGES}&seed=3")):
        (turn,) = sample.turns
        messages = [{"from": "human", "value": f"<image>\n{turn.question}"}, {"from": "gpt", "value": turn.answer}]
        if number % 4 == 0:
            messages += [{"from": "human", "value": "is it even ?"}, {"from": "gpt", "value": "no 1 2 3"}]
        row: dict[str, object] = {"id": f"sample {number}", "conversations": messages}
        if number % 5 == 1:
            messages[0]["value"] = turn.question
        else:
            assert sample.image is not None
            sample.image.load().pixels.save(images / f"{number}.png")
            row["image"] = f"{number}.png"
        rows.append(row)
    (folder / "train.json").write_text(json.dumps(rows), encoding="utf-8")
    return f"llava:{folder}/train.json?images={images}"


def assert_same_caches(left: Path, right: Path, *, tolerance: float = 1e-4, everything: bool = True) -> None:
    """The same samples, tokens and ids (but for such whose gaps are at the boundary of what is kept) and, within the
    tolerance in nats, log probabilities; with `everything` every statistic and feature."""
    caches = (open_cache(left), open_cache(right))
    assert sorted(caches[0].sample_ids.to_pylist()) == sorted(caches[1].sample_ids.to_pylist())
    for sample_id in caches[0].sample_ids.to_pylist():
        one, other = (cache.record(int(cache.index_of([sample_id])[0])) for cache in caches)
        np.testing.assert_array_equal(one.token_ids, other.token_ids)
        for token in range(len(one.token_ids)):
            entries = (_log_probabilities(one, caches[0], token), _log_probabilities(other, caches[1], token))
            _assert_same_entries(*entries, tolerance)
        if everything:
            for name in STATISTICS:
                np.testing.assert_allclose(getattr(one, name), getattr(other, name), atol=tolerance, err_msg=name)
            assert set(one.features) == set(other.features)
            for name, feature in one.features.items():
                np.testing.assert_allclose(feature, other.features[name], atol=tolerance, err_msg=name)
        assert one.row == other.row


def _log_probabilities(record: TeacherRecord, cache: TeacherCache, token: int) -> dict[int, float]:
    """Those of the kept ids of one token at temperature 1."""
    stop = int(record.entry_counts[: token + 1].sum())
    entries = slice(stop - int(record.entry_counts[token]), stop)
    tail_lse = float(record.tail_lse[token, cache.manifest.token_rule.temperatures.index(1.0)])
    gaps = record.gaps[entries].astype(np.float64)
    log_partition = np.log(np.exp(-gaps).sum() + np.exp(tail_lse))
    return dict(zip(record.ids[entries].tolist(), (-gaps - log_partition).tolist(), strict=True))


def _assert_same_entries(left: dict[int, float], right: dict[int, float], tolerance: float) -> None:
    for one, other in ((left, right), (right, left)):
        for id in one.keys() - other.keys():
            assert one[id] - min(one.values()) < tolerance, f"id {id} is kept in one cache only"
    for id in left.keys() & right.keys():
        assert abs(left[id] - right[id]) < tolerance
