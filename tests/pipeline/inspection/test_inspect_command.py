"""The command inspect: what it prints, the page it writes, and what it refuses."""

import io
import re
from pathlib import Path

import pytest
import yaml
from PIL import Image
from rich.console import Console
from tests.world import World

from betakd_pipe.cli import main
from betakd_pipe.inspection.page import write_page
from betakd_pipe.inspection.terminal import image_text, print_samples
from betakd_stages.distillation.run import distill
from betakd_stages.inspection import ChannelView, Guess, SampleView, TokenView
from betakd_stages.progress import SilentProgress
from betakd_stages.settings import DistillSettings

TOKEN = TokenView(
    label="<b>no</b>",
    teacher_label_probability=0.25,
    student_label_probability=0.5,
    teacher=(Guess("yes", 0.7), Guess("<b>no</b>", 0.25)),
    teacher_rest=0.05,
    student=(Guess("<b>no</b>", 0.5),),
    student_rest=0.5,
    energies={"fkl": 1.234},
)
VIEW = SampleView(
    sample_id="sample-[red]1",
    category="even",
    image=Image.new("RGB", (8, 6), (255, 0, 16)),
    text=(("is [bold]it & <i>even</i> ?", False), ("<b>no</b>", True)),
    tokens=(TOKEN,),
    channels=(ChannelView("cross_entropy", 0.5, 2.0), ChannelView("feature:vision", None, None)),
    objective=1.0,
    teacher_entropy=0.125,
    student_entropy=0.25,
)


def printed(view: SampleView) -> str:
    text = io.StringIO()
    print_samples([view], Console(file=text, width=100, color_system=None))
    return text.getvalue()


def test_the_terminal_shows_everything_of_a_sample_and_reads_no_markup_in_it() -> None:
    text = printed(VIEW)
    for expected in ("sample-[red]1 (even)", "8 x 6 pixels", "is [bold]it & <i>even</i> ?", "0.700", "1.234", "0.250"):
        assert expected in text
    assert re.search(r"\(all others\) +0\.050", text)
    assert re.search(r"cross_entropy +0\.5000 +2 +1\.0000", text)
    assert re.search(r"feature:vision +- +- +-", text)
    assert "teacher 0.125, student 0.250" in text


def test_an_image_is_drawn_with_two_pixels_to_a_character() -> None:
    lines = image_text(Image.new("RGB", (64, 32), (255, 0, 16))).split("\n")
    assert [line.plain for line in lines] == ["▀" * 32] * 8
    assert str(lines[0].spans[0].style) == "#ff0010 on #ff0010"


def test_the_page_stands_alone_and_escapes_what_the_sample_says(tmp_path: Path) -> None:
    write_page(tmp_path / "pages" / "one.html", "one & only", [VIEW])
    page = (tmp_path / "pages" / "one.html").read_text(encoding="utf-8")
    assert "http" not in page
    assert "data:image/png;base64," in page
    assert "&lt;b&gt;no&lt;/b&gt;" in page
    assert "<b>no</b>" not in page
    assert "one &amp; only" in page


@pytest.fixture(scope="module")
def run(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("shown") / "run"
    out.mkdir()
    training = {"steps": 2, "batch_size": 4, "num_threads": 1}
    given = {"student": str(world.student), "cache": str(world.cache), "data": world.data, "training": training}
    settings = DistillSettings.model_validate(given)
    distill(settings, out, progress=SilentProgress())
    (out / "config.yaml").write_text(yaml.safe_dump(settings.model_dump(mode="json")), encoding="utf-8")
    return out


def test_the_command_prints_a_sample_of_a_run(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(run), "--top", "2"]) == 0
    text = capsys.readouterr().out
    assert "digits-transfer-" in text
    assert "fkl" in text


def test_the_command_writes_a_page(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(run), "--count", "2", "--html", str(tmp_path / "page.html")]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'page.html'}: 2 samples\n"
    assert (tmp_path / "page.html").read_text(encoding="utf-8").count("<section>") == 2


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(tmp_path)]) == 2
    assert capsys.readouterr().err == (
        f"betakd-pipe: {tmp_path} holds no config.yaml: name the folder of a run of distill\n"
    )


def test_a_cache_that_was_moved_is_named_with_the_command(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", str(run), "--cache", str(tmp_path / "away")]) == 2
    assert str(tmp_path / "away") in capsys.readouterr().err
