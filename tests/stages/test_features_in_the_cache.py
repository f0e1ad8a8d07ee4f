"""Features of every layout, from the teacher through the cache to the student's objective."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.world import World
from transformers import LlavaForConditionalGeneration

from betakd_cache import TeacherCache, open_cache
from betakd_pipe.cli import main
from betakd_stages.caching.estimation import estimate
from betakd_stages.caching.rescoring import rescore
from betakd_stages.caching.run import cache_teacher
from betakd_stages.data import load_samples
from betakd_stages.distillation.cached_targets import decode_batch, decoded_by_numpy, decoded_on
from betakd_stages.distillation.distiller import Distiller
from betakd_stages.distillation.run import distill
from betakd_stages.errors import ConfigError, MismatchError
from betakd_stages.features import FeatureStatistics
from betakd_stages.models.forward import answer_rows
from betakd_stages.models.loading import load_encoder, load_model
from betakd_stages.models.tiny import STUDENT_SIZE, tiny_model
from betakd_stages.objective_building import build_objective
from betakd_stages.progress import SilentProgress
from betakd_stages.settings import CacheTeacherSettings, DistillSettings
from betakd_stages.teachers.hf import HuggingFaceTeacher

NUM_TOKENS = 4  # of one image of the world's teacher and student
NUM_FOCUS = 3


def settings(world: World, **changes: object) -> CacheTeacherSettings:
    return CacheTeacherSettings.model_validate({"teacher": str(world.teacher), "data": world.data, **changes})


def cached(world: World, path: Path, **changes: object) -> TeacherCache:
    cache_teacher(settings(world, **changes), path, progress=SilentProgress())
    return open_cache(path)


def projector_outputs(world: World) -> dict[str, np.ndarray]:
    """The teacher's visual tokens `[T, D]` of every sample, each run on its own."""
    model = LlavaForConditionalGeneration.from_pretrained(world.teacher).eval()
    captured: list[torch.Tensor] = []
    model.model.multi_modal_projector.register_forward_hook(lambda *args: captured.append(args[-1]))
    encoder = load_encoder(world.teacher)
    found = {}
    for sample in load_samples(world.data):
        encoded = encoder.encode(sample)
        assert encoded.image_inputs
        with torch.no_grad():
            model(input_ids=encoded.input_ids[None], **encoded.image_inputs)
        found[sample.sample_id] = captured.pop()[0].double().numpy()
    return found


@pytest.fixture(scope="module")
def tokens(world: World, tmp_path_factory: pytest.TempPathFactory) -> TeacherCache:
    """An exact cache of all visual tokens, three of them in focus."""
    features = ("vision:tokens", "prompt")
    return cached(world, tmp_path_factory.mktemp("tokens") / "c", features=features, vision_focus=NUM_FOCUS, exact=True)


def test_visual_tokens_and_grids_are_the_projectors_output(world: World, tokens: TeacherCache, tmp_path: Path) -> None:
    grid = cached(world, tmp_path / "grid", features=["vision:grid:1x2"], exact=True)
    assert tokens.manifest.feature_sizes.keys() == {"vision", "prompt"}
    assert grid.manifest.feature_sizes.keys() == {"vision"}
    for sample_id, expected in projector_outputs(world).items():
        assert expected.shape[0] == NUM_TOKENS
        found = tokens.record(int(tokens.index_of([sample_id])[0]))
        np.testing.assert_allclose(found.features["vision"], expected, atol=2e-5)
        cells = grid.record(int(grid.index_of([sample_id])[0])).features["vision"]
        columns = np.stack([expected[[0, 2]].mean(axis=0), expected[[1, 3]].mean(axis=0)])
        np.testing.assert_allclose(cells, columns, atol=2e-5)


def test_the_focus_is_what_the_first_layer_attends_to_most_from_the_question(
    world: World, tokens: TeacherCache
) -> None:
    """Against the attention of all layers that transformers hands out, sample by sample without padding."""
    model = LlavaForConditionalGeneration.from_pretrained(world.teacher, attn_implementation="eager").eval()
    encoder = load_encoder(world.teacher)
    orders = set()
    for sample in load_samples(world.data):
        encoded = encoder.encode(sample)
        assert encoded.image_inputs
        with torch.no_grad():
            output = model(input_ids=encoded.input_ids[None], **encoded.image_inputs, output_attentions=True)
        weights = output.attentions[0][0].double().numpy()  # [heads, L, L]
        ids = encoded.input_ids.numpy()
        is_visual = ids == model.config.image_token_id
        before_answer = np.arange(len(ids)) < int((encoded.labels >= 0).nonzero()[0, 0])
        received = weights[:, before_answer & ~is_visual][:, :, is_visual].mean(axis=(0, 1))
        found = tokens.record(int(tokens.index_of([sample.sample_id])[0])).focus["vision"]
        assert found.tolist() == np.argsort(-received)[:NUM_FOCUS].tolist()
        orders.add(tuple(found.tolist()))
    assert len(orders) > 3  # an order that is always the same would prove little


def test_the_identity_says_that_a_teacher_with_focus_ran_with_eager_attention(
    world: World, tokens: TeacherCache
) -> None:
    assert tokens.manifest.identity["teacher"]["attention"] == "eager"
    assert open_cache(world.cache).manifest.identity["teacher"]["attention"] == "sdpa"


def test_a_sample_without_an_image_between_others_has_neither_vision_nor_focus(
    world: World, tokens: TeacherCache
) -> None:
    loaded = load_model(world.teacher)
    teacher = HuggingFaceTeacher(loaded, tokens.manifest.token_rule, ("vision:tokens", "prompt"), NUM_FOCUS)
    samples = list(load_samples(world.data)[:3])
    samples[1] = dataclasses.replace(samples[1], image=None)
    records = teacher.score([loaded.encoder.encode(sample) for sample in samples]).records
    assert records[1].features.keys() == {"prompt"}
    assert records[1].focus == {}
    for number in (0, 2):
        expected = tokens.record(int(tokens.index_of([samples[number].sample_id])[0]))
        np.testing.assert_allclose(records[number].features["vision"], expected.features["vision"], atol=2e-5)
        assert records[number].focus["vision"].tolist() == expected.focus["vision"].tolist()


def test_rescoring_runs_a_teacher_with_focus_as_it_was_run(world: World, tokens: TeacherCache) -> None:
    found = rescore(tokens.path, str(world.teacher), world.data, 4)
    assert found.ok
    assert dict(found.changed_environment) == {}


@pytest.mark.parametrize("changes", [{"vision_focus": 2}, {"feature_dtype": "int8"}])
def test_decoding_on_a_device_gives_places_focus_and_int8_as_decoding_in_numpy(
    world: World, tmp_path: Path, changes: dict[str, Any]
) -> None:
    cache = cached(world, tmp_path / "cache", features=["vision:tokens", "prompt"], **changes)
    batch = cache.batch([5, 0, 40])
    (_, expected, _), (_, found, _) = decoded_by_numpy(batch), decoded_on(torch.device("cpu"), batch)
    assert found.keys() == expected.keys()
    assert ("vision_focus" in found) == ("vision_focus" in changes)
    assert found["vision"].shape == (3, NUM_TOKENS, 64)
    for name, values in expected.items():
        assert torch.equal(found[name], values)
        assert found[name].dtype == values.dtype


def distilled(world: World, cache: Path | str, out: Path, features: list[Any], student: Path | None = None) -> dict:
    """The last logged row of a few steps with these features."""
    chosen = DistillSettings.model_validate(
        {
            "student": str(student or world.student),
            "cache": str(cache),
            "data": world.data,
            "objective": {"energies": ["fkl"], "features": features},
            "training": {"steps": 3, "batch_size": 8, "num_threads": 1, "log_every_steps": 1},
        }
    )
    out.mkdir()
    distill(chosen, out, progress=SilentProgress())
    return json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])


def finer_student(world: World, folder: Path) -> Path:
    """A student that cuts the same images into patches of half the side."""
    config: Any = tiny_model(STUDENT_SIZE, seed=4).config
    config.vision_config.patch_size //= 2
    config.image_seq_length *= 4
    LlavaForConditionalGeneration(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "preprocessor_config.json"):
        shutil.copy(world.student / name, folder / name)
    return folder


@pytest.mark.parametrize("features", [["vision"], [{"name": "vision", "options": {"focus": True}}, "prompt"]])
def test_a_student_distils_the_layout_that_the_cache_holds(
    world: World, tokens: TeacherCache, tmp_path: Path, features: list[Any]
) -> None:
    row = distilled(world, tokens.path, tmp_path / "run", features)
    assert 0.5 < row["energy/feature:vision"] < 20


def test_a_student_with_other_visual_tokens_distils_a_grid_and_is_refused_all_tokens(
    world: World, tokens: TeacherCache, tmp_path: Path
) -> None:
    student = finer_student(world, tmp_path / "student")
    num_tokens = load_encoder(student).num_image_tokens
    assert num_tokens == 4 * NUM_TOKENS
    grid = cached(world, tmp_path / "grid", features=["vision:grid:2x2", "prompt"])
    row = distilled(world, grid.path, tmp_path / "run", ["vision"], student)
    assert 0.5 < row["energy/feature:vision"] < 20
    with pytest.raises(MismatchError) as caught:
        distilled(world, tokens.path, tmp_path / "refused", ["vision"], student)
    assert str(caught.value) == (
        f"the cache holds vision at {NUM_TOKENS} visual tokens, the student has {num_tokens}: cache a grid, which "
        "every student has (--features vision:grid:4x4,prompt), or leave the feature out"
    )
    assert not list((tmp_path / "refused").iterdir())


def test_a_batch_without_any_image_has_no_vision_on_either_side(
    world: World, tokens: TeacherCache, tmp_path: Path
) -> None:
    student = load_model(world.student)
    objective = build_objective(
        energies=[("fkl", {})],
        features=["vision"],
        teacher_features={"vision": FeatureStatistics(torch.zeros(64), torch.ones(64))},
        student_feature_sizes={"vision": 32, "prompt": 32},
    )
    distiller = Distiller(student.model, objective, student.encoder.vocabulary_size, tokens.manifest).train()
    batch: dict[str, Any] = student.encoder.collate([student.encoder.encode(s) for s in load_samples(world.data)[:3]])
    del batch["pixel_values"]
    batch["input_ids"] = batch["input_ids"].masked_fill(batch["input_ids"] == student.model.config.image_token_id, 5)
    batch["has_image"] = torch.zeros(3, dtype=torch.bool)
    batch["teacher"] = tokens.batch([0, 1, 2])
    output = distiller(batch)
    assert output.energies[:, 1].tolist() == [0.0, 0.0, 0.0]
    assert not output.present[:, 1].any()
    assert output.present[:, 0].all()
    output.total.backward()


def test_features_nobody_asked_for_are_not_computed(world: World) -> None:
    student = load_model(world.student)
    batch = student.encoder.collate([student.encoder.encode(s) for s in load_samples(world.data)[:3]])
    with torch.no_grad():
        rows = answer_rows(student.model, batch)
    assert rows.features == rows.present == {}
    assert len(rows.hidden) == len(rows.gold_ids)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"features": ["sound"]},
            r"unknown feature 'sound': choose vision, vision:grid:ROWSxCOLUMNS, vision:tokens",
        ),
        ({"features": ["prompt:tokens"]}, r"unknown feature 'prompt:tokens': choose vision"),
        ({"features": ["vision:grid:4"]}, r"unknown feature layout 'grid:4': choose pooled, tokens, or a grid such as"),
        ({"features": ["vision", "vision:tokens"]}, r"found vision, vision:tokens, expected each feature once"),
        ({"vision_focus": 16}, r"vision_focus is 16, but the cache holds vision, prompt: places in focus need every"),
        ({"features": [], "vision_focus": 1}, r"vision_focus is 1, but the cache holds no feature: places in focus"),
        ({"exact": True, "feature_dtype": "int8"}, r"exact stores features in fp32: leave feature_dtype out"),
    ],
)
def test_features_that_no_cache_can_have_are_refused(world: World, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        settings(world, **changes)


def test_more_places_in_focus_than_there_are_leave_no_cache(world: World, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"vision_focus is 5, but an image is 4 visual tokens of this teacher: "):
        cached(world, tmp_path / "cache", features=["vision:tokens"], vision_focus=5)
    assert not (tmp_path / "cache").exists()


def test_the_command_line_takes_features_and_info_shows_them(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["cache-teacher", "--teacher", str(world.teacher), "--data", world.data, "--out", str(tmp_path / "c")]
    flags = ["--features", "vision:tokens,prompt", "--vision-focus", "2", "--feature-dtype", "int8"]
    assert main([*command, *flags]) == 0
    capsys.readouterr()
    assert main(["cache", "info", str(tmp_path / "c")]) == 0
    shown = capsys.readouterr().out.splitlines()
    for line in ("vision.layout: tokens", "vision.num_places: 4", "vision.num_focus: 2", "prompt.dtype: int8"):
        assert f"feature_layouts.{line}" in shown
    assert main([*command, "--features", "vision:grid:2x2"]) == 2
    assert "this run has" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "bytes_per_sample"),
    [
        ({"features": ["vision:tokens", "prompt"]}, (NUM_TOKENS + 1) * 64 * 2 + 2),
        ({"features": ["vision:grid:1x2"]}, 2 * 64 * 2 + 1),
        ({"features": ["vision:tokens"], "vision_focus": 3}, NUM_TOKENS * 64 * 2 + 3 * 2 + 1),
        ({"features": ["vision:tokens"], "feature_dtype": "int8"}, NUM_TOKENS * (64 + 2) + 1),
        ({"features": []}, 0),
    ],
)
def test_an_estimate_counts_the_features_as_they_are_stored(
    world: World, changes: dict[str, Any], bytes_per_sample: int
) -> None:
    found = estimate(settings(world, **changes), num_scored=48, progress=SilentProgress())
    assert found.bytes_per_sample["features"] == pytest.approx(bytes_per_sample, abs=0.5)


def test_the_batch_of_a_student_holds_the_focus_beside_the_feature(tokens: TeacherCache) -> None:
    found = decode_batch(tokens.batch([0, 1]), tokens.manifest, torch.device("cpu")).features
    assert (found["vision_focus"].shape, found["vision_focus"].dtype) == ((2, NUM_FOCUS), torch.int64)
