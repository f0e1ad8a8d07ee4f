"""What a model card finds out about base model, data and licence, and its code for families that no run is made of."""

import contextlib
import io
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tests.stages.models.world import folder_of

from betakd_pipe.card_loading import LOADING_TITLE, adapter_section, loading_section, with_loading_section
from betakd_pipe.final_metrics import without_spread
from betakd_pipe.model_card import base_card, hub_id, without_directories


@pytest.mark.parametrize(
    ("text", "kind", "expected"),
    [
        ("/home/me/.cache/hub/models--mtgv--MobileVLM_V2-1.7B/snapshots/0a1b", "model", "mtgv/MobileVLM_V2-1.7B"),
        ("llava:/hub/datasets--me--photos/snapshots/1/a.json?images=/tmp/b", "dataset", "me/photos"),
        ("/hub/datasets--me--photos/snapshots/1", "model", None),
        ("/data/models--mine/student", "model", None),
        ("student", "model", None),
    ],
)
def test_ids_of_the_hub_are_known_from_folders_of_its_cache_alone(text: str, kind: str, expected: str | None) -> None:
    assert hub_id(text, kind) == expected


def test_paths_are_cut_to_their_last_part() -> None:
    assert without_directories("llava:/a b/c/d.json?images=/e/f,g/h") == "llava:d.json?images=f,h"
    assert without_directories("digits:transfer?count=8") == "digits:transfer?count=8"


def test_quantiles_and_quartiles_are_left_out_where_there_is_little_room() -> None:
    spread = ("beta/fkl/q10", "cross_entropy/quartile1", "energy/feature:vision/quartile4")
    names = ("objective", "cross_entropy", "beta/fkl", "energy/feature:vision", "entropy_correlation/fkl")
    assert without_spread(dict.fromkeys((*spread, *names), 1.0)) == dict.fromkeys(names, 1.0)


@pytest.mark.parametrize("inside", [".", "model"])
def test_a_students_licence_is_that_of_its_own_card_or_of_the_run_it_comes_from(tmp_path: Path, inside: str) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "README.md").write_text("---\nlicense: other\nlicense_name: mine\n---\n# A run\n", encoding="utf-8")
    data = base_card(tmp_path / inside)
    assert [data.get(name) for name in ("license", "license_name", "base_model")] == ["other", "mine", None]


@pytest.mark.parametrize(
    "content", ["# No front matter\n", "---\n: : :\n- broken\n---\n", "---\n- a list\n---\n", None]
)
def test_a_card_that_says_nothing_or_is_broken_is_as_good_as_none(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "README.md").write_text(content, encoding="utf-8")
    assert base_card(tmp_path).get("license") is None


def test_the_code_of_a_family_with_a_processor_of_its_own_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    section = loading_section(folder_of("gemma3"), str(folder_of("gemma3")))
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (30, 20)).save("photo.jpg")
    names: dict[str, Any] = {}
    with contextlib.redirect_stdout(io.StringIO()):
        exec(section.partition("```python\n")[2].removesuffix("```"), names)
    assert names["answer"].shape[1] > names["inputs"]["input_ids"].shape[1]


def test_a_family_that_also_takes_videos_is_said_to_need_torchvision() -> None:
    assert "need torchvision" in loading_section(folder_of("qwen2_5_vl"), ".")
    assert "torchvision" not in loading_section(folder_of("gemma3"), ".")


def test_only_the_section_on_loading_is_replaced() -> None:
    before, after = "# A run\n\nText.\n\n", "\n\n## Recipe\n\nYAML\n"
    card = f"{before}{LOADING_TITLE}\n\nOld \\1.\n\n```python\nold\n```{after}"
    section = adapter_section("me/base", "me/adapter") + " \\1"
    assert with_loading_section(card, section) == f"{before}{LOADING_TITLE}\n\n{section}{after}"
    assert with_loading_section(before, section) == before
