"""The page as a reader's browser gets it: complete, self-contained, escaped, the same for the same inputs."""

import base64
import csv
import html
import io
import json
import re
import shutil
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.pipeline.report.fixture_folders import METHODS, make_scenario, write_lines

from betakd_pipe.ablation.rows import ResultRow
from betakd_pipe.report import ReportScenario, write_report
from betakd_stages.data import load_samples

CE_ONLY = {"ce": METHODS["ce"]}
VOID_TAGS = {"meta", "img", "br", "link", "input"}


class Outline(HTMLParser):
    """Attributes, ids, visible text and open tags of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.attributes: list[tuple[str, str, str]] = []
        self.text: list[str] = []
        self.open: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID_TAGS:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data: str) -> None:
        if not {"style", "script"} & set(self.open):
            self.text.append(data)

    def values(self, attribute: str) -> list[str]:
        return [value for _, name, value in self.attributes if name == attribute]


@pytest.fixture(scope="module")
def scenarios(tmp_path_factory: pytest.TempPathFactory) -> list[ReportScenario]:
    root = tmp_path_factory.mktemp("ablations")
    return [make_scenario(root, "D1"), make_scenario(root, "D2", seeds=(5,))]


@pytest.fixture(scope="module")
def page(scenarios: list[ReportScenario], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(
        tmp_path_factory.mktemp("out") / "report.html", "Beta-KD", ["One sentence.", "Another."], scenarios
    )


@pytest.fixture
def small(tmp_path: Path) -> ReportScenario:
    """A scenario that a test may damage."""
    return make_scenario(tmp_path / "runs", methods=CE_ONLY, seeds=(0,), num_steps=60, num_questions=12)


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def with_row(scenario: ReportScenario, row: ResultRow) -> ReportScenario:
    return replace(scenario, rows=[row])


def test_the_page_is_well_formed_and_its_ids_are_unique(page: Path) -> None:
    outline = Outline(read(page))
    assert not outline.open
    assert not [name for name, count in Counter(outline.values("id")).items() if count > 1]


def test_the_page_refers_to_nothing_outside_itself(page: Path) -> None:
    text = read(page)
    outline = Outline(text)
    ids = set(outline.values("id"))
    assert outline.values("src")
    assert all(source.startswith("data:image/png;base64,") for source in outline.values("src"))
    targets = outline.values("href") + outline.values("xlink:href")
    assert targets
    assert all(target.startswith("#") and target[1:] in ids for target in targets)
    assert all(target in ids for target in re.findall(r"url\(#(.*?)\)", text))
    without_images = re.sub(r"data:image/png;base64,[\w+/=]+", "", html.unescape(text))
    assert not re.findall(r"https?:|//\w|url\((?!#)|@import|srcset|<link|<iframe|<object", without_images)


def test_every_method_and_every_number_of_the_rows_appears(page: Path, scenarios: list[ReportScenario]) -> None:
    shown = {piece.strip() for piece in Outline(read(page)).text}
    for scenario in scenarios:
        for row in scenario.rows:
            numbers = [row.accuracy, row.agreement, row.expected_calibration_error, row.seconds]
            numbers += [*row.accuracy_by_category.values(), *row.betas.values(), row.validation_accuracy]
            assert {row.method, *(f"{number:.6g}" for number in numbers)} <= shown


def test_the_table_shows_mean_and_sample_deviation_over_seeds(page: Path, scenarios: list[ReportScenario]) -> None:
    shown = {piece.strip() for piece in Outline(read(page)).text}
    for method in METHODS:
        accuracies = np.array([row.accuracy for row in scenarios[0].rows if row.method == method])
        deviation = np.sqrt(np.sum((accuracies - accuracies.mean()) ** 2) / 2)
        assert f"{accuracies.mean():.1f} ± {deviation:.1f}" in shown
        (alone,) = [row.accuracy for row in scenarios[1].rows if row.method == method]
        assert f"{alone:.1f}" in shown


def test_title_summary_and_description_are_shown(page: Path, scenarios: list[ReportScenario]) -> None:
    shown = Outline(read(page)).text
    assert shown.count("Beta-KD") == 2  # of the tab and of the page
    assert {"One sentence.", "Another."} <= set(shown)
    assert scenarios[0].description in shown


def test_the_teacher_of_every_seed_is_shown_beside_the_students(page: Path, scenarios: list[ReportScenario]) -> None:
    folders = [scenarios[0].folder / f"seed-{seed}" / "teacher-evaluation" for seed in (0, 1, 2)]
    accuracies = [json.loads(read(folder / "scores.json"))["accuracy"] for folder in folders]
    assert f"{np.mean(accuracies):.1f} ± {np.std(accuracies, ddof=1):.1f}" in Outline(read(page)).text


def test_the_best_student_is_marked_and_the_teacher_never(page: Path, scenarios: list[ReportScenario]) -> None:
    means = {method: np.mean([row.accuracy for row in scenarios[0].rows if row.method == method]) for method in METHODS}
    best = max(means, key=lambda method: means[method])
    lines = read(page).split("<tbody>")[1].split("</tbody>")[0].split("<tr")[1:]
    marks = [f'class="best" title="best mean">{means[best]:.1f} ±' in line for line in lines]
    assert marks == [False, *(method == best for method in METHODS)]  # the first line is the teacher's
    assert "best" not in lines[0]


def test_the_same_inputs_give_the_same_bytes(page: Path, scenarios: list[ReportScenario], tmp_path: Path) -> None:
    again = write_report(tmp_path / "report.html", "Beta-KD", ["One sentence.", "Another."], scenarios[1:])
    sections = [read(path).partition('<section id="D2">')[2] for path in (page, again)]
    assert sections[0] == sections[1]
    files = [sorted(path.relative_to(root) for path in root.rglob("D2-*")) for root in (page.parent, tmp_path)]
    assert files[0] == files[1]
    assert len(files[0]) > 20
    assert all((page.parent / name).read_bytes() == (tmp_path / name).read_bytes() for name in files[0])


def test_every_figure_is_in_the_page_and_lies_beside_it_as_png_and_svg(page: Path) -> None:
    kinds = ["accuracy-by-type", "beta-fkl", "cross_entropy", "energy-fkl", "entropy_correlation-fkl"]
    kinds += ["log-probabilities", "reliability", "selective-accuracy", "weight-by-entropy"]
    names = [f"{name}-{kind}" for name in ("D1", "D2") for kind in kinds]
    figures = page.parent / "figures"
    assert sorted(path.name for path in figures.iterdir()) == sorted(
        f"{name}{end}" for name in names for end in (".png", ".svg")
    )
    for name in names:
        with Image.open(figures / f"{name}.png") as image:
            image.verify()
        assert "<svg" in read(figures / f"{name}.svg")
    assert read(page).count("<figure") == len(names)


def test_every_table_lies_beside_the_page_as_markdown_and_csv(page: Path, scenarios: list[ReportScenario]) -> None:
    kinds = ["caches", "calibration", "cost", "distances", "methods", "quartiles", "runs", "settings", "setup"]
    kinds += ["weights"]
    names = {f"{name}-{kind}{end}" for name in ("D1", "D2") for kind in kinds for end in (".md", ".csv")}
    assert {path.name for path in (page.parent / "tables").iterdir()} == names
    lines = read(page.parent / "tables" / "D1-methods.md").splitlines()
    assert [line.split("|")[1].strip() for line in lines[2 : 3 + len(METHODS)]] == ["teacher", *METHODS]
    rows = list(csv.DictReader(read(page.parent / "tables" / "D1-methods.csv").splitlines()))
    accuracies = np.array([row.accuracy for row in scenarios[0].rows if row.method == "fkl-task"])
    (found,) = [row for row in rows if row["method"] == "fkl-task"]
    assert float(found["accuracy %"]) == pytest.approx(accuracies.mean(), rel=1e-12)
    assert float(found["accuracy %, deviation"]) == pytest.approx(accuracies.std(ddof=1), rel=1e-12)


def test_labels_alone_leave_no_empty_figure_and_no_empty_table(small: ReportScenario, tmp_path: Path) -> None:
    (small.rows[0].run / "probe.jsonl").unlink()  # as of an older version
    page = write_report(tmp_path / "report.html", "CE", [], [small])
    figures = sorted(path.name for path in (tmp_path / "figures").glob("*.png"))
    kinds = ("accuracy-by-type", "cross_entropy", "reliability", "selective-accuracy")
    assert figures == [f"D1-{kind}.png" for kind in kinds]
    assert "What β did" not in read(page)
    assert "Distance to the teacher" not in read(page)


def test_an_ablation_without_teacher_evaluation_is_shown_without_teacher(small: ReportScenario, tmp_path: Path) -> None:
    shutil.rmtree(small.folder / "seed-0" / "teacher-evaluation")
    text = read(write_report(tmp_path / "report.html", "CE", [], [small]))
    assert 'class="teacher"' not in text
    assert "the teacher.</figcaption>" not in text


def test_rows_of_the_teacher_are_only_listed_among_the_runs(small: ReportScenario, tmp_path: Path) -> None:
    teacher = replace(small.rows[0], method="teacher", run=small.folder / "seed-0" / "teacher", accuracy=12.34567)
    text = read(write_report(tmp_path / "report.html", "CE", [], [replace(small, rows=[teacher, *small.rows])]))
    assert text.count("12.3457") == 1
    assert "12.3 " not in text


def test_ampersands_and_angle_brackets_in_data_are_escaped(small: ReportScenario, tmp_path: Path) -> None:
    hostile = "<img src=x onerror=alert(1)> & $x_1$ 'q' \"d\""
    shutil.rmtree(small.folder / "seed-0" / "teacher-evaluation")
    row = small.rows[0]
    predictions = [json.loads(line) for line in read(row.run / "evaluation" / "predictions.jsonl").splitlines()]
    write_lines(
        row.run / "evaluation" / "predictions.jsonl",
        [
            {**each, "question": hostile, "label": hostile, "answer": hostile, "category": hostile}
            for each in predictions
        ],
    )
    scores = {**row.accuracy_by_category, hostile: 50.0}
    shown = replace(row, method=hostile, accuracy_by_category=scores)
    scenario = replace(with_row(small, shown), name=hostile, description=hostile)
    page = write_report(tmp_path / "report.html", hostile, [hostile], [scenario])
    outline = Outline(read(page))
    assert not outline.open
    assert hostile in outline.text
    assert not outline.values("onerror")
    assert "<img src=x" not in read(page)


def test_sample_images_are_enlarged_without_smoothing(small: ReportScenario, tmp_path: Path) -> None:
    scores = json.loads(read(small.rows[0].run / "evaluation" / "scores.json"))
    images = {sample.sample_id: sample.image for sample in load_samples(scores["benchmark"])}
    page = read(write_report(tmp_path / "report.html", "CE", [], [small]))
    shown = re.findall(r'<img src="data:image/png;base64,([^"]+)" alt="the image of ([^"]+)"', page)
    assert len(shown) == 12
    for encoded, sample_id in shown:
        pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded))).convert("RGB"))
        image = images[sample_id]
        assert image is not None
        enlarged = np.kron(np.asarray(image.load().pixels), np.ones((20, 20, 1), dtype=np.uint8))
        np.testing.assert_array_equal(pixels, enlarged)


def test_configurations_and_cache_identities_are_shown(page: Path, scenarios: list[ReportScenario]) -> None:
    text = html.unescape(read(page))
    for row in scenarios[0].rows:
        seed_0 = row.run.parent.parent.parent / "seed-0" / "runs" / row.method
        assert read(seed_0 / "config.yaml").rstrip() in text
    for seed in (0, 1, 2, 5):
        assert f"weights_sha256: '{f'{seed}' * 64}'" in text


def test_the_page_says_so_where_a_cache_is_gone(small: ReportScenario, tmp_path: Path) -> None:
    shutil.rmtree(small.folder / "seed-0" / "cache")
    assert "The cache is no longer at this path." in read(write_report(tmp_path / "report.html", "CE", [], [small]))


def test_the_table_of_runs_has_the_columns_of_results_csv(page: Path, scenarios: list[ReportScenario]) -> None:
    table = read(page).split("Every run, every figure")[1].split("</table>")[0]
    titles = re.findall(r"<button>(.*?)</button>", table)
    records = [row.columns(scenarios[0].folder) for row in scenarios[0].rows]
    assert set(titles) == {name for record in records for name in record}
    assert table.count("<tr>") == 1 + len(records)
