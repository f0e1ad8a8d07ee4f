"""Samples packed into one row: the same losses, features and gradients as in a padded batch."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from tests.stages.mobilevlm.published import TINY_STUDENT, TINY_TEACHER, write_published
from tests.stages.models.families import FAMILIES
from tests.stages.models.parts import save_clip, save_language_model

from betakd_cache import FeatureLayout
from betakd_stages.caching.run import cache_teacher
from betakd_stages.data import load_samples
from betakd_stages.distillation.preparation import prepare, require_packing
from betakd_stages.distillation.student import load_student
from betakd_stages.encoding import packed, supervised_tokens
from betakd_stages.errors import ConfigError
from betakd_stages.models.building import build_model
from betakd_stages.models.forward import answer_rows, prompt_positions
from betakd_stages.models.loading import load_model
from betakd_stages.progress import SilentProgress
from betakd_stages.settings import CacheTeacherSettings, DistillSettings

NUM_SAMPLES = 8


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Samples of many lengths; every third without image, every second with two turns."""
    folder = tmp_path_factory.mktemp("data")
    entries = []
    for number in range(NUM_SAMPLES):
        Image.effect_noise((24, 20), 60 + number).convert("RGB").save(folder / f"{number}.png")
        mark, image = ("<image>\n", {"image": f"{number}.png"}) if number % 3 else ("", {})
        texts = [f"{mark}What is {'it ' * number}?", "A cat.", "Colour?", f"Black {number}."][: 2 + 2 * (number % 2)]
        turns = [{"from": ("human", "gpt")[place % 2], "value": text} for place, text in enumerate(texts)]
        entries.append({"id": str(number), **image, "conversations": turns})
    (folder / "data.json").write_text(json.dumps(entries), encoding="utf-8")
    return f"llava:{folder / 'data.json'}?images={folder}"


@pytest.fixture(scope="module", params=["mobilevlm", "llava-qwen"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A teacher and a student."""
    folder = tmp_path_factory.mktemp("models")
    if request.param == "mobilevlm":
        teacher = write_published(folder / "teacher", TINY_TEACHER, seed=1)
        return teacher, write_published(folder / "student", TINY_STUDENT, seed=2)
    tower = save_clip(folder / "tower")
    wide = save_language_model(folder / "wide", seed=1, width=64, num_rows=352)
    narrow = save_language_model(folder / "narrow", seed=2, width=32, num_rows=320)
    return build_model(wide, tower, folder / "teacher").folder, build_model(narrow, tower, folder / "student").folder


def test_packed_samples_give_the_rows_and_features_of_padded_ones(pair: tuple[Path, Path], data: str) -> None:
    student = load_model(pair[1])
    batch = student.encoder.collate([student.encoder.encode(sample) for sample in load_samples(data)])
    row = packed(batch)
    assert row["input_ids"].shape == (1, int(batch["attention_mask"].sum()))
    assert torch.equal(supervised_tokens(row), supervised_tokens(batch))
    assert torch.equal(prompt_positions(row)[0], prompt_positions(batch)[batch["attention_mask"].bool()])
    layouts = {"vision": FeatureLayout(), "prompt": FeatureLayout()}
    one, many = (answer_rows(student.model, inputs, layouts) for inputs in (row, batch))
    assert torch.equal(one.gold_ids, many.gold_ids)
    assert torch.equal(one.sample_index, many.sample_index)
    torch.testing.assert_close(one.hidden, many.hidden, atol=1e-5, rtol=1e-5)
    for name, values in many.features.items():
        torch.testing.assert_close(one.features[name], values, atol=1e-5, rtol=1e-5)
        assert torch.equal(one.present[name], many.present[name])


def test_a_packed_step_gives_the_loss_and_gradients_of_a_padded_one(
    pair: tuple[Path, Path], data: str, tmp_path: Path
) -> None:
    teacher, student = pair
    cached = CacheTeacherSettings(teacher=str(teacher), data=data)
    cache_teacher(cached, tmp_path / "cache", progress=SilentProgress())
    gradients = {}
    for packing in (False, True):
        settings = DistillSettings.model_validate(
            {
                "student": str(student),
                "cache": str(tmp_path / "cache"),
                "data": data,
                "objective": {"energies": ["fkl"], "features": ["vision", "prompt"]},
                "weighting": {"name": "instance"},
                "training": {"steps": 1, "batch_size": NUM_SAMPLES, "packing": packing},
            }
        )
        prepared = prepare(settings, tmp_path)
        trainer = prepared.trainer(settings)
        batch = next(iter(trainer.get_train_dataloader()))
        count = trainer._get_num_items_in_batch([batch], trainer.args.device)
        assert int(count) == NUM_SAMPLES
        loss = trainer.training_step(prepared.distiller, batch, count)
        named = prepared.distiller.named_parameters()
        gradients[packing] = {"loss": loss, **{name: p.grad for name, p in named if p.grad is not None}}
    assert gradients[True].keys() == gradients[False].keys()
    for name, value in gradients[False].items():
        torch.testing.assert_close(gradients[True][name], value, atol=2e-5, rtol=1e-3, msg=name)


def test_any_attention_of_the_student_gives_the_same_rows(pair: tuple[Path, Path], data: str) -> None:
    rows = []
    for attention in ("eager", "sdpa"):
        settings = DistillSettings.model_validate(
            {
                "student": str(pair[1]),
                "data": data,
                "objective": {"energies": []},
                "training": {"attention": attention, "packing": True},
            }
        )
        student = load_student(settings)
        assert student.model.get_decoder().config._attn_implementation == attention
        batch = student.encoder.collate([student.encoder.encode(sample) for sample in load_samples(data)])
        rows.append(answer_rows(student.model, packed(batch)).hidden)
    torch.testing.assert_close(*rows, atol=1e-5, rtol=1e-5)


def test_attention_that_cannot_be_had_is_refused(pair: tuple[Path, Path], data: str) -> None:
    training = {"attention": "flash_attention_2"}
    settings = DistillSettings.model_validate(
        {"student": str(pair[1]), "data": data, "objective": {"energies": []}, "training": training}
    )
    with pytest.raises(
        ConfigError, match=r"attention flash_attention_2 needs .*precision bf16 \(found fp32\): add that"
    ):
        load_student(settings)


def test_families_with_positions_of_their_own_are_refused(data: str, tmp_path: Path) -> None:
    student = FAMILIES["qwen2_5_vl"].save(tmp_path / "student")
    settings = DistillSettings.model_validate(
        {"student": str(student), "data": data, "objective": {"energies": []}, "training": {"packing": True}}
    )
    with pytest.raises(ConfigError, match="model type 'qwen2_5_vl' were never seen to keep packed samples apart"):
        require_packing(settings, load_model(student))
