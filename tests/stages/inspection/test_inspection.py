"""What is shown of a sample against the two models themselves, called without any of our code but the encoder."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tests.world import World

from betakd_stages.data import load_samples
from betakd_stages.distillation.run import distill
from betakd_stages.errors import ConfigError, DataError
from betakd_stages.inspection import SampleView, inspect_samples
from betakd_stages.models.loading import load_model
from betakd_stages.progress import SilentProgress
from betakd_stages.settings import DistillSettings

SHORT = {"steps": 3, "batch_size": 8, "num_threads": 1}


def settings_of(world: World, **values: Any) -> DistillSettings:
    given = {"student": str(world.student), "cache": str(world.cache), "data": world.data, "training": SHORT, **values}
    return DistillSettings.model_validate(given)


@pytest.fixture(scope="module")
def run(world: World, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, DistillSettings]:
    out = tmp_path_factory.mktemp("inspected") / "run"
    settings = settings_of(
        world,
        objective={"energies": ["fkl", "mse_probs"], "features": ["vision"]},
        weighting={"name": "instance", "learning_rate": 0.5},
    )
    distill(settings, out, progress=SilentProgress())
    return out, settings


def answer_probabilities(folder: Path, world: World, sample_id: str) -> tuple[NDArray[np.float64], list[int]]:
    """A model's probabilities `[N, V]` at the supervised tokens of a sample, and the tokens."""
    loaded = load_model(str(folder))
    sample = next(sample for sample in load_samples(world.data) if sample.sample_id == sample_id)
    encoded = loaded.encoder.encode(sample)
    with torch.inference_mode():
        model = loaded.model.eval()
        logits = model(input_ids=encoded.input_ids[None], **encoded.image_inputs).logits[0].double().numpy()
    places = np.flatnonzero(encoded.labels.numpy() != -100)
    rows = logits[places - 1, : loaded.encoder.vocabulary_size]
    exponentials = np.exp(rows - rows.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True), encoded.input_ids[places].tolist()


def view_of(run: tuple[Path, DistillSettings], **asked: Any) -> SampleView:
    (view,) = inspect_samples(*run, **asked)
    return view


def test_both_sides_say_what_the_models_themselves_say(world: World, run: tuple[Path, DistillSettings]) -> None:
    view = view_of(run, num_guesses=4)
    student, labels = answer_probabilities(run[0] / "model", world, view.sample_id)
    teacher, _ = answer_probabilities(world.teacher, world, view.sample_id)
    tokenizer = load_model(str(world.student)).encoder.tokenizer
    assert [token.label for token in view.tokens] == [tokenizer.decode([label]) for label in labels]
    for place, token in enumerate(view.tokens):
        for guesses, rest, label, probabilities in (
            (token.teacher, token.teacher_rest, token.teacher_label_probability, teacher[place]),
            (token.student, token.student_rest, token.student_label_probability, student[place]),
        ):
            best = np.argsort(-probabilities)[:4]
            assert [guess.text for guess in guesses] == [tokenizer.decode([int(index)]) for index in best]
            np.testing.assert_allclose([guess.probability for guess in guesses], probabilities[best], rtol=2e-3)
            np.testing.assert_allclose(rest, 1 - probabilities[best].sum(), rtol=2e-3)
            assert label == pytest.approx(probabilities[labels[place]], rel=2e-3)


def test_energies_entropies_and_the_objective_follow_from_the_probabilities(
    world: World, run: tuple[Path, DistillSettings]
) -> None:
    view = view_of(run)
    student, labels = answer_probabilities(run[0] / "model", world, view.sample_id)
    teacher, _ = answer_probabilities(world.teacher, world, view.sample_id)
    divergences = (teacher * np.log(teacher / student)).sum(axis=1)
    np.testing.assert_allclose([token.energies["fkl"] for token in view.tokens], divergences, rtol=1e-2, atol=1e-4)
    cross_entropy = -np.log(student[np.arange(len(labels)), labels])
    np.testing.assert_allclose([token.cross_entropy for token in view.tokens], cross_entropy, rtol=1e-4)
    assert view.teacher_entropy == pytest.approx(-(teacher * np.log(teacher)).sum(axis=1).mean(), rel=1e-3)
    assert view.student_entropy == pytest.approx(-(student * np.log(student)).sum(axis=1).mean(), rel=1e-3)
    channels = {channel.name: channel for channel in view.channels}
    assert list(channels) == ["cross_entropy", "fkl", "mse_probs", "feature:vision"]
    assert channels["fkl"].value == pytest.approx(np.mean([token.energies["fkl"] for token in view.tokens]))
    total = sum(channel.value * channel.weight for channel in view.channels if channel.value and channel.weight)
    total -= 0.5 * sum(np.log(channel.weight) for channel in view.channels[1:] if channel.weight)
    assert view.objective == pytest.approx(total, rel=1e-5)


def test_samples_come_by_id_in_the_order_asked_and_each_has_weights_of_its_own(
    world: World, run: tuple[Path, DistillSettings]
) -> None:
    ids = [sample.sample_id for sample in load_samples(world.data)]
    views = inspect_samples(*run, sample_ids=[ids[7], ids[2]])
    assert [view.sample_id for view in views] == [ids[7], ids[2]]
    assert views[0].channels[1].weight != views[1].channels[1].weight
    assert [view.sample_id for view in inspect_samples(*run, count=3)] == ids[:3]


def test_the_text_marks_the_answer_and_counts_visual_tokens(world: World, run: tuple[Path, DistillSettings]) -> None:
    view = view_of(run)
    sample = load_samples(world.data)[0]
    supervised = "".join(piece for piece, is_supervised in view.text if is_supervised)
    assert supervised.split()[: len(sample.turns[0].answer.split())] == sample.turns[0].answer.split()
    assert view.text[0] == ("[4 visual tokens]", False)
    assert sample.turns[0].question in "".join(piece for piece, is_supervised in view.text if not is_supervised)
    assert view.image is not None


def test_a_run_without_a_teacher_has_nothing_of_one(world: World, tmp_path: Path) -> None:
    settings = settings_of(world, cache=None, objective={"energies": []}, weighting={"name": "fixed"})
    distill(settings, tmp_path / "run", progress=SilentProgress())
    view = view_of((tmp_path / "run", settings))
    assert view.teacher_entropy is None
    assert [(token.teacher, token.teacher_label_probability, token.energies) for token in view.tokens] == [
        ((), None, {})
    ] * len(view.tokens)
    assert [channel.name for channel in view.channels] == ["cross_entropy"]


def test_an_unknown_sample_is_named_with_one_that_is_known(run: tuple[Path, DistillSettings]) -> None:
    with pytest.raises(
        DataError, match=r"has no sample 'nine' \(its first is 'digits-transfer-\d+-\w+'\): name samples"
    ):
        inspect_samples(*run, sample_ids=["nine"])


def test_an_unfinished_run_is_refused(world: World, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"holds no model/, so its run is not finished: run distill again"):
        inspect_samples(tmp_path, settings_of(world))


def test_a_run_that_learned_from_shuffled_records_is_refused(world: World, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    with pytest.raises(ConfigError, match=r"learned from shuffled records, so what it saw is not the sample's own"):
        inspect_samples(tmp_path, settings_of(world, control={"shuffle_records": True}))
