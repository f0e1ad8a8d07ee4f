"""Stage two on answers that the teacher wrote, through the commands: labels, controls and refusals."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.stages.test_caching_batches import of_many_lengths
from tests.world import World

from betakd_cache import open_cache
from betakd_pipe.cli import main
from betakd_stages.data import load_samples
from betakd_stages.data.asked import SUFFIX
from betakd_stages.data.sample import SampleSet
from betakd_stages.distillation.dataset import EncodedSamples, shuffled_within_lengths
from betakd_stages.distillation.matching import match_cache
from betakd_stages.models.loading import load_encoder, load_model

GENERATION = ("--set", "generation.max_new_tokens=6", "--set", "generation.temperature=3")


@pytest.fixture(scope="module")
def data(world: World, tmp_path_factory: pytest.TempPathFactory) -> str:
    """24 conversations of one to four turns, some without an image."""
    return of_many_lengths(world, tmp_path_factory.mktemp("conversations"))


@pytest.fixture(scope="module")
def cache(world: World, data: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both targets over 24 conversations."""
    out = tmp_path_factory.mktemp("written") / "cache"
    inputs = ["--teacher", str(world.teacher), "--data", data, "--out", str(out)]
    assert main(["cache-teacher", *inputs, "--targets", "data,generate", *GENERATION]) == 0
    return out


def distil(world: World, cache: Path, data: str, out: Path, *more: str) -> int:
    inputs = ["--student", str(world.student), "--cache", str(cache), "--data", data, "--out", str(out)]
    steps = ["--set", "training.steps=1", "--set", "training.batch_size=24", "--set", "training.num_threads=1"]
    return main(["distill", *inputs, *steps, *more])


def cross_entropies(world: World, cache: Path, data: str) -> list[float]:
    """The untrained student's mean nats over the tokens of each conversation as the teacher wrote it, by hand."""
    held, student = open_cache(cache), load_model(world.student)
    encoder, found = student.encoder, []
    words = encoder.tokenizer.get_vocab()
    for sample in load_samples(data):
        record = held.record(int(held.index_of([sample.sample_id + SUFFIX])[0]))
        written, places = record.token_ids.tolist(), list[int]()
        ids: list[int] = []
        lengths = iter(str(record.row["answer_lengths"]).split(","))
        for text, is_answer in encoder.segments(sample.turns, sample.image is not None):
            if is_answer:
                length = next(lengths)
                for _ in range(int(length.removesuffix("+"))):
                    places.append(len(ids))
                    ids.append(written.pop(0))
                ids += [words["</s>"]] if length.endswith("+") else []
            else:
                ids += [words[word] for word in text.split() for _ in range(4 if word == "<image>" else 1)]
        images = encoder.encode(sample).image_inputs
        with torch.inference_mode():
            logits = student.model(input_ids=torch.tensor([ids]), **images).logits[0].double().numpy()
        chosen = logits[np.array(places) - 1]
        scores = chosen[np.arange(len(places)), [ids[place] for place in places]]
        found.append(float((np.log(np.exp(chosen).sum(axis=1)) - scores).mean()))
        assert not written
    return found


def test_the_labels_are_the_ids_that_the_teacher_wrote(world: World, cache: Path, data: str, tmp_path: Path) -> None:
    assert distil(world, cache, data, tmp_path / "run", "--targets", "generated", "--energy", "fkl") == 0
    metrics = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])
    by_hand = cross_entropies(world, cache, data)
    assert metrics["cross_entropy"] == pytest.approx(np.mean(by_hand), rel=1e-5)


def test_the_datas_own_answers_play_no_part_and_shuffled_records_keep_the_labels(
    world: World, cache: Path, data: str
) -> None:
    held, encoder, samples = open_cache(cache), load_encoder(world.student), load_samples(data)
    matched = match_cache(held, samples, encoder, "stop", targets="generated")
    assert matched.samples[3].sample_id == "3" + SUFFIX
    encoded = EncodedSamples(matched.samples, encoder, matched.image_sha256, matched.answers)
    shuffled = shuffled_within_lengths(matched, held, seed=0)
    assert (shuffled != matched.cache_indices).any()
    of_data = match_cache(held, samples, encoder, "stop")
    assert not set(of_data.cache_indices) & set(matched.cache_indices)
    assert of_data.answers is None
    for place, index in enumerate(matched.cache_indices):
        assert encoded[place][1].answer_ids.tolist() == held.record(int(index)).token_ids.tolist()
        tokens, others = (len(held.record(int(one)).token_ids) for one in (index, shuffled[place]))
        assert tokens == others
    part = SampleSet(samples.specification, samples[4:9])
    some = match_cache(held, part, encoder, "stop", targets="generated")
    assert some.answers is not None
    assert matched.answers is not None
    assert [some.answers[place] for place in range(5)] == [matched.answers[place] for place in range(4, 9)]


def test_a_conversation_that_a_student_cannot_take_with_these_answers_is_named_or_dropped(
    world: World, cache: Path, data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    held, encoder, samples = open_cache(cache), load_encoder(world.student), load_samples(data)
    matched = match_cache(held, samples, encoder, "stop", targets="generated")
    encoded = EncodedSamples(matched.samples, encoder, matched.image_sha256, matched.answers)
    lengths = sorted(len(encoded[place][1].input_ids) for place in range(24))
    limit = ("--set", f"max_length={lengths[-1] - 1}", "--targets", "generated")
    assert distil(world, cache, data, tmp_path / "run", *limit) == 2
    assert f"#generated is {lengths[-1]} tokens long, at most {lengths[-1] - 1} are taken" in capsys.readouterr().err
    assert distil(world, cache, data, tmp_path / "run", *limit, "--on-mismatch", "drop") == 0
    metrics = json.loads((tmp_path / "run" / "result.json").read_text())["metrics"]
    assert metrics["num_dropped"] == lengths.count(lengths[-1])


def test_a_cache_without_the_answers_asked_for_is_refused_with_the_remedy(
    world: World, data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert distil(world, world.cache, world.data, tmp_path / "run", "--targets", "generated") == 2
    assert capsys.readouterr().err == (
        f"betakd-pipe: {world.cache} holds the data's answers only, asked for are those that the teacher writes: run "
        "cache-teacher with --targets generate (or data,generate), or distil with --targets data\n"
    )
    only = tmp_path / "only"
    inputs = ["--teacher", str(world.teacher), "--data", data, "--out", str(only), "--limit", "4"]
    assert main(["cache-teacher", *inputs, "--targets", "generate", *GENERATION]) == 0
    capsys.readouterr()
    assert distil(world, only, data, tmp_path / "run") == 2
    assert capsys.readouterr().err == (
        f"betakd-pipe: {only} holds only answers that the teacher wrote, asked for are the data's: distil with "
        "--targets generated, or run cache-teacher with --targets data (or data,generate)\n"
    )
    assert not (tmp_path / "run").exists()


def test_cache_teacher_and_info_say_how_many_answers_were_written_and_cut(
    world: World, cache: Path, data: str, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = open_cache(cache).rows(["answer_lengths"])["answer_lengths"].to_pylist()
    num_cut = sum(text.count("+") for text in rows if text)
    assert 24 < num_cut < 60
    capsys.readouterr()
    inputs = ["--teacher", str(world.teacher), "--data", data, "--out", str(cache)]
    assert main(["cache-teacher", *inputs, "--targets", "generate,data", *GENERATION]) == 0
    assert capsys.readouterr().out.startswith(
        f"{cache}: 48 samples (all there before), 24 with answers the teacher wrote, {num_cut} cut off by "
        "generation.max_new_tokens or the context, "
    )
    assert main(["cache", "info", str(cache), "--json"]) == 0
    counts = json.loads(capsys.readouterr().out)["counts"]
    assert (counts["num_generated"], counts["num_cut_answers"]) == (24, num_cut)
    assert main(["cache", "info", str(world.cache)]) == 0
    assert "counts.num_generated: 0\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("command", "flags", "message"),
    [
        (
            "cache-teacher",
            ["--targets", "data,data"],
            "targets: found data, data, expected data, generate or both, each",
        ),
        ("cache-teacher", ["--targets", "generated"], "targets.0: found 'generated', expected 'data' or 'generate'"),
        ("cache-teacher", ["--set", "generation.seed=1"], "but targets is data: add it (--targets generate), or leave"),
        (
            "cache-teacher",
            ["--targets", "generate", "--set", "generation.top_p=0.5"],
            "generation: top_p is 0.5, but temperature 0 always takes the likeliest token: give a temperature",
        ),
        (
            "cache-teacher",
            ["--targets", "generate", "--set", "backend=vllm", "--set", "generation.temperature=3"],
            "generation.temperature is 3, vLLM samples at 2 at most: lower it, or use backend hf",
        ),
        ("distill", ["--targets", "generate"], "targets: found 'generate', expected 'data' or 'generated'"),
        (
            "distill",
            ["--targets", "generated", "--energy", "ce"],
            "targets is generated but no cache is given, which holds such answers: name one (--cache DIR)",
        ),
    ],
)
def test_settings_that_do_not_fit_are_one_line(
    world: World,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    command: str,
    flags: list[str],
    message: str,
) -> None:
    role = "--teacher" if command == "cache-teacher" else "--student"
    arguments = [command, role, str(world.student), "--data", world.data, "--out", str(tmp_path / "out"), *flags]
    assert main(arguments) == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert printed.count("\n") == 1
    assert not (tmp_path / "out").exists()
