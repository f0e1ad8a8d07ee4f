"""The command export: what is in the folder, what its card says and whether that runs, and what is refused."""

import contextlib
import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from peft import PeftModel
from PIL import Image
from safetensors.torch import load_file, save_file
from tests.stages.mobilevlm.published import TINY_STUDENT, random_tensors, write_published
from tests.stages.photos import write_photos
from transformers import AutoModelForImageTextToText

from betakd_pipe.cli import main
from betakd_pipe.export import Export, export
from betakd_stages.models.tiny import STUDENT_SIZE, save_tiny_model

STEPS = ["--set", "training.steps=2", "--set", "training.batch_size=4", "--set", "training.num_threads=1"]
LORA = ["--adapter", "lora", "--set", "adapter.rank=4"]


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a card, as a model from the Hub has."""
    folder = save_tiny_model(tmp_path_factory.mktemp("models") / "student", STUDENT_SIZE, seed=0)
    (folder / "README.md").write_text("---\nlicense: mit\nbase_model: me/parent\n---\n# Tiny\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def run(student: Path) -> Path:
    """A finished run with an adapter, of labels alone, measured on held-out data."""
    out = student.parent / "run"
    data = ["--data", "digits:transfer", "--set", "validation=digits:validation?count=8"]
    assert main(["distill", "--student", str(student), *data, "--energy", "ce", "--out", str(out), *STEPS, *LORA]) == 0
    return out


@pytest.fixture(scope="module")
def mobilevlm_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mobilevlm")
    published = write_published(folder / "student", TINY_STUDENT, seed=2)
    data = write_photos(folder)
    flags = ["--student", str(published), "--data", data, "--energy", "ce", "--out", str(folder / "run"), *STEPS]
    assert main(["distill", *flags]) == 0
    return folder / "run"


def succeeds(*arguments: str | Path) -> None:
    assert main(["export", *map(str, arguments)]) == 0


def refused(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """The one line of a call that must have ended with 2."""
    capsys.readouterr()
    assert main(["export", *map(str, arguments)]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1, captured.err
    return captured.err.removeprefix("betakd-pipe: ").rstrip("\n")


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {name: value for file in folder.glob("*.safetensors") for name, value in load_file(file).items()}


def assert_same_bits(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []


def executed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[dict[str, Any], str]:
    """The names and the output of the first code in the card of a folder, run there beside an image."""
    code = re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert code
    monkeypatch.chdir(folder)
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)  # what a tiny model takes
    Image.fromarray(pixels).save(folder / "photo.jpg")
    names: dict[str, Any] = {}
    with contextlib.redirect_stdout(io.StringIO()) as output:
        exec(code[1], names)
    (folder / "photo.jpg").unlink()
    return names, output.getvalue()


def test_transformers_loads_the_export_and_the_code_in_its_card_answers_a_question(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    succeeds(run, "--out", tmp_path / "student")
    assert_same_bits(tensors(tmp_path / "student"), tensors(run / "model"))
    for folder in (run, tmp_path / "student"):
        names, output = executed(folder, monkeypatch)
        assert_same_bits(
            names["model"].state_dict(), AutoModelForImageTextToText.from_pretrained(run / "model").state_dict()
        )
        assert output.endswith("\n")
        assert names["answer"].shape[1] > names["inputs"]["input_ids"].shape[1]


def test_the_card_has_the_hubs_metadata_of_what_is_known_and_says_what_is_not(run: Path, student: Path) -> None:
    card = ModelCard.load(run / "README.md")
    data: Any = card.data
    assert (data.license, data.base_model, data.base_model_relation) == ("mit", "me/parent", "finetune")
    assert (data.pipeline_tag, data.library_name, data.datasets) == ("image-text-to-text", "transformers", None)
    assert data.tags == ["vision-language"]  # there was no teacher
    (result,) = data.eval_results
    assert (result.metric_type, result.dataset_name) == ("exact_match", "digits:validation?count=8")
    assert data.metrics == ["exact_match"]
    assert "Fine-tuned with betakd-pipe on labels alone, without a teacher.\n\nStudent: `student`." in card.text
    assert str(student.parent) not in card.content  # nothing of the machine
    assert "- The licence" not in card.text
    assert "- How the student does on benchmarks" in card.text


def test_a_student_without_a_card_has_no_licence_and_no_base_model(mobilevlm_run: Path) -> None:
    card = ModelCard.load(mobilevlm_run / "README.md")
    assert [card.data.get(name) for name in ("license", "base_model", "eval_results")] == [None] * 3
    assert card.data.get("library_name") == "betakd-pipe"
    assert "- The licence: the student's folder names none." in card.text
    assert "Data: `llava:data.json?images=photos`" in card.text
    assert "nothing was measured on held-out data" in card.text


@pytest.mark.parametrize(
    ("dtype", "kind"), [("bf16", torch.bfloat16), ("fp16", torch.float16), ("fp32", torch.float32)]
)
def test_weights_are_written_in_the_number_type_asked_for(
    run: Path, tmp_path: Path, dtype: str, kind: torch.dtype
) -> None:
    succeeds(run, "--out", tmp_path / "student", "--dtype", dtype)
    stored = {name: value.to(kind) for name, value in tensors(run / "model").items()}
    assert_same_bits(tensors(tmp_path / "student"), stored)
    assert AutoModelForImageTextToText.from_pretrained(tmp_path / "student").dtype == kind


def test_weights_are_written_in_files_of_the_size_asked_for(run: Path, tmp_path: Path) -> None:
    succeeds(run, "--out", tmp_path / "student", "--max-shard-size", "50KB")
    files = list((tmp_path / "student").glob("model-*.safetensors"))
    assert len(files) > 1
    assert all(file.stat().st_size < 60_000 for file in files)
    assert_same_bits(tensors(tmp_path / "student"), tensors(run / "model"))


def test_mobilevlm_is_written_as_published_and_read_back_bit_for_bit(
    mobilevlm_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "student"
    succeeds(mobilevlm_run, "--out", out, "--format", "mobilevlm")
    assert tensors(out).keys() == random_tensors(TINY_STUDENT, seed=2).keys()
    assert_same_bits(tensors(out), tensors(mobilevlm_run / "model"))
    assert (out / "tokenizer.model").is_file()
    names, _ = executed(out, monkeypatch)
    assert type(names["model"]).__name__ == "MobileVlmForConditionalGeneration"
    succeeds(out, "--out", tmp_path / "again")
    assert_same_bits(tensors(tmp_path / "again"), tensors(out))
    assert (tmp_path / "again" / "config.json").read_bytes() == (out / "config.json").read_bytes()


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_a_published_folder_in_16_bits_stays_as_it_is(tmp_path: Path, kind: torch.dtype) -> None:
    stored = {name: value.to(kind) for name, value in random_tensors(TINY_STUDENT, seed=3).items()}
    name = str(kind).removeprefix("torch.")
    published = write_published(tmp_path / "published", TINY_STUDENT, tensors=stored, torch_dtype=name)
    succeeds(published, "--out", tmp_path / "student")
    assert_same_bits(tensors(tmp_path / "student"), stored)
    succeeds(published, "--out", tmp_path / "wide", "--dtype", "fp32")
    assert_same_bits(tensors(tmp_path / "wide"), {name: value.float() for name, value in stored.items()})
    found = [json.loads((tmp_path / folder / "config.json").read_text()) for folder in ("student", "wide")]
    assert [config.pop("torch_dtype") for config in found] == [name, "float32"]
    assert found[0] == found[1]
    assert (found[0]["model_type"], found[0]["architectures"]) == ("mobilevlm", ["MobileLlamaForCausalLM"])


# peft's own constructor asks transformers by a name that is going away.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_an_adapter_is_exported_apart_with_a_card_and_a_warning_that_it_lacks_the_projector(
    run: Path, student: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "adapter"
    succeeds(run, "--out", out, "--adapter", "--dtype", "bf16")
    assert "trained the projector too, which is not in the adapter" in capsys.readouterr().err
    expected = {name: value.bfloat16() for name, value in tensors(run / "adapter").items()}
    assert_same_bits(tensors(out), expected)
    base = AutoModelForImageTextToText.from_pretrained(student)
    PeftModel.from_pretrained(base, str(out))
    card = ModelCard.load(out / "README.md")
    assert (card.data.get("library_name"), card.data.get("base_model_relation")) == ("peft", "adapter")
    assert 'PeftModel.from_pretrained(student, ".")' in card.text
    assert "The projector was trained as well" in card.text


def test_weights_beyond_fp16_are_refused_and_nothing_is_left(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "large"
    shutil.copytree(run / "model", folder)
    held = load_file(folder / "model.safetensors")
    name = next(name for name in held if name.endswith("model.norm.weight"))
    held[name] *= 1e7  # the model calls it otherwise
    save_file(held, folder / "model.safetensors", metadata={"format": "pt"})
    message = refused(capsys, folder, "--out", tmp_path / "out", "--dtype", "fp16")
    assert message.startswith(f"1 tensors of {folder}, such as ")
    assert message.endswith("norm.weight, are not finite as fp16: export it in bf16 (--dtype bf16)")
    assert [path.name for path in tmp_path.iterdir()] == ["large"]


def test_a_folder_in_use_is_replaced_only_if_asked_and_only_by_its_kind(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    succeeds(run, "--out", out)
    (out / "old").touch()
    assert refused(capsys, run, "--out", out) == (
        f"{out} is not empty: choose another --out, or replace it (--overwrite)"
    )
    succeeds(run, "--out", out, "--overwrite")
    assert not (out / "old").exists()
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").touch()
    message = refused(capsys, run, "--out", tmp_path / "thesis", "--overwrite")
    assert message.endswith(
        "holds none of config.json, adapter_config.json, so it is not replaced: choose another --out"
    )
    assert (tmp_path / "thesis" / "thesis.tex").is_file()
    message = refused(capsys, run, "--out", run / "model", "--overwrite")
    assert message.endswith("which is to be exported: choose another --out")
    assert (run / "model" / "config.json").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "thesis"]


def test_what_cannot_be_exported_is_one_line(
    run: Path, mobilevlm_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"

    def says(*arguments: str | Path) -> str:
        message = refused(capsys, *arguments, "--out", out)
        assert list(tmp_path.iterdir()) == []
        return message

    assert says(run, "--format", "mobilevlm") == (
        f"--format mobilevlm: {run / 'model'} is of model type 'llava', whose layout is transformers: leave --format "
        "out"
    )
    assert "'mobilevlm', whose layout is mobilevlm" in says(mobilevlm_run, "--format", "transformers")
    assert says(run, "--dtype", "int8").startswith("--dtype int8: choose bf16, fp16, fp32, or leave it out")
    assert says(run, "--max-shard-size", "5 GB").startswith("--max-shard-size 5 GB: expected a number and its unit")
    assert "has no adapter/, as finished runs have" in says(mobilevlm_run, "--adapter")
    assert says(run, "--adapter", "--format", "mobilevlm").startswith("--adapter has one format and one file")
    assert says(run, "--private").startswith("--private is of the repository to push to: name it")
    assert "does not exist: give a folder written by save_pretrained" in says(tmp_path / "absent")
    (run.parent / "half").mkdir()
    shutil.copy(run / "config.yaml", run.parent / "half")
    assert "the run is not finished, run the same command again first" in says(run.parent / "half")


def test_the_card_of_an_export_that_will_be_pushed_names_the_repository(
    run: Path, mobilevlm_run: Path, tmp_path: Path
) -> None:
    export(run, tmp_path / "a", Export(repository="me/tiny"))
    assert 'folder = "me/tiny"\n' in (tmp_path / "a" / "README.md").read_text(encoding="utf-8")
    export(mobilevlm_run, tmp_path / "b", Export(repository="me/vlm"))
    assert 'folder = snapshot_download("me/vlm")\n' in (tmp_path / "b" / "README.md").read_text(encoding="utf-8")
    export(run, tmp_path / "c", Export(repository="me/adapter", adapter=True))
    assert 'PeftModel.from_pretrained(student, "me/adapter")' in (tmp_path / "c" / "README.md").read_text("utf-8")
