"""Reading the official files: prompts, labels, images, ids, and what is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.stages.evaluation.official_files import (
    COGNITION,
    LETTER,
    PERCEPTION,
    PHRASE,
    WRITERS,
    write_gqa,
    write_image,
    write_json,
    write_lines,
    write_mmbench,
    write_mme,
    write_pope,
    write_scienceqa,
    write_textvqa,
)

from betakd_stages.data.json_rows import JsonRows
from betakd_stages.data.sample import Sample
from betakd_stages.errors import DataError
from betakd_stages.evaluation.benchmarks import BENCHMARKS, load_benchmark


def question(sample: Sample) -> str:
    return sample.turns[0].question


def refusal(specification: str) -> str:
    with pytest.raises(DataError) as error:
        load_benchmark(specification)
    assert "\n" not in str(error.value)
    return str(error.value)


def changed(path: Path, change: Callable[[Any], None]) -> None:
    """Rewrite a JSON file with a change."""
    value = json.loads(path.read_text(encoding="utf-8"))
    change(value)
    write_json(path, value)


@pytest.mark.parametrize("name", WRITERS)
def test_every_benchmark_has_distinct_ids_one_question_a_sample_and_images_that_load(name: str, tmp_path: Path) -> None:
    benchmark = load_benchmark(WRITERS[name](tmp_path))
    assert benchmark.name == name
    assert len({sample.sample_id for sample in benchmark.samples}) == len(benchmark.samples) == len(benchmark.rows)
    assert len({benchmark.key(row) for row in benchmark.rows}) == len(benchmark.rows)
    for sample in benchmark.samples:
        assert len(sample.turns) == 1
        if sample.image is not None:
            loaded = sample.image.load()
            assert loaded.pixels.size == (24, 18)
            assert loaded.sha256 == sample.image.sha256()
    assert any(sample.image is not None for sample in benchmark.samples)
    assert benchmark.samples.specification == f"{name}:{benchmark.samples.specification.partition(':')[2]}"


def test_scienceqa_asks_the_split_with_the_letters_instruction(tmp_path: Path) -> None:
    benchmark = load_benchmark(write_scienceqa(tmp_path))
    first, second = benchmark.samples[0], benchmark.samples[1]
    assert question(first) == f"Context: Look.\nWhich is 0?\nA. cat\nB. dog\n{LETTER}"
    assert question(second) == f"Which is 1?\nA. cat\nB. dog\nC. ant\n{LETTER}"
    assert [sample.turns[0].answer for sample in benchmark.samples] == ["A", "B", "A", "B"]
    assert benchmark.rows[0] == {"question_id": "5", "prompt": "<image>\n" + question(first)}
    assert benchmark.rows[1] == {"question_id": "6", "prompt": question(second)}
    assert len(load_benchmark(f"scienceqa={tmp_path}?split=train").samples) == 1


def test_scienceqa_takes_the_words_of_llavas_file(tmp_path: Path) -> None:
    specification, file = write_scienceqa(tmp_path), tmp_path / "questions.json"
    plain, given = load_benchmark(specification), load_benchmark(f"{specification}?questions={file}")
    assert [question(sample) for sample in given.samples] == [question(sample) for sample in plain.samples]
    changed(file, lambda rows: rows[0].update(conversations=[{"from": "human", "value": "<image>\nOther?"}]))
    changed(file, list.reverse)
    asked = load_benchmark(f"{specification}?questions={file}")
    assert [sample.sample_id for sample in asked.samples] == ["8", "7", "6", "5"]
    assert question(asked.samples[3]) == f"Other?\n{LETTER}"
    changed(file, list.pop)
    assert "questions.json lacks problem '5': give the questions of the whole split" in refusal(
        f"{specification}?questions={file}"
    )
    changed(file, lambda rows: rows.append({"id": "1", "conversations": []}))
    assert "row 4 of" in refusal(f"{specification}?questions={file}")
    assert "problem '1' is not of this split, or asked twice" in refusal(f"{specification}?questions={file}")


def test_scienceqa_without_its_files_is_refused(tmp_path: Path) -> None:
    assert f"{tmp_path} holds no problems.json: give ScienceQA's folder" in refusal(f"scienceqa={tmp_path}")


def test_gqa_asks_for_a_word_or_phrase(tmp_path: Path) -> None:
    specification = write_gqa(tmp_path)
    for variant in (
        specification,
        f"gqa={tmp_path}/testdev_balanced_questions.json",
        f"{specification}?images={tmp_path}/images",
    ):
        benchmark = load_benchmark(variant)
        assert question(benchmark.samples[1]) == f"What about 202?\n{PHRASE}"
        assert benchmark.samples[1].category == "query"
        assert benchmark.samples[1].image is not None
        assert benchmark.rows[1] == {"question_id": "202", "prompt": f"What about 202?\n{PHRASE}"}
    with_file = load_benchmark(f"{specification}?questions={tmp_path}/questions.jsonl")
    assert list(with_file.rows) == list(benchmark.rows)


def test_gqa_refuses_files_that_do_not_belong_together_or_lack_something(tmp_path: Path) -> None:
    specification, file = write_gqa(tmp_path), tmp_path / "questions.jsonl"
    rows = [dict(row) for row in JsonRows(file)]
    write_lines(file, rows[:3])
    assert "questions.jsonl lacks '201' of the benchmark's own file" in refusal(f"{specification}?questions={file}")
    write_lines(file, [*rows, {**rows[0], "question_id": "999"}])
    message = refusal(f"{specification}?questions={file}")
    assert f"row 5 of {file}: it asks '999', which the benchmark's own file lacks" in message
    changed(tmp_path / "testdev_balanced_questions.json", lambda value: value["203"].pop("types"))
    assert "question 203 of" in refusal(specification)
    assert "it lacks types or isBalanced" in refusal(specification)
    assert "absent/testdev.json cannot be read" in refusal(f"gqa={tmp_path}/absent/testdev.json")


def test_textvqa_says_whether_ocr_tokens_are_shown(tmp_path: Path) -> None:
    specification = write_textvqa(tmp_path)
    plain = load_benchmark(specification)
    shown = load_benchmark(f"{specification}?questions={tmp_path}/questions.jsonl")
    assert plain.asked == {"ocr_tokens": False}
    assert shown.asked == {"ocr_tokens": True}
    assert question(plain.samples[2]) == f"What brand?\n{PHRASE}"
    assert question(shown.samples[2]) == f"What brand?\nReference OCR token: NOKIA, 2\n{PHRASE}"
    assert plain.samples[2].turns[0].answer == "nokia"
    assert shown.rows[1] == {"question_id": "i1", "prompt": question(shown.samples[1])}
    assert [plain.key(row) for row in plain.rows] == [shown.key(row) for row in shown.rows]
    assert plain.key(plain.rows[2]) == ("i2", "what brand?")


def test_textvqa_refuses_annotations_without_ten_answers_and_foreign_prompts(tmp_path: Path) -> None:
    specification = write_textvqa(tmp_path)
    write_lines(tmp_path / "questions.jsonl", [{"question_id": "i1", "text": "What brand?"}])
    message = refusal(f"{specification}?questions={tmp_path}/questions.jsonl")
    assert "the prompt 'What brand?' has no question in one of TextVQA's forms" in message
    changed(tmp_path / "TextVQA_0.5.1_val.json", lambda value: value["data"][1].pop("answers"))
    assert "annotation 1 of" in refusal(specification)
    assert "it has not 10 answers: give the validation set, whose answers are public" in refusal(specification)


def test_pope_asks_its_three_sets_under_ids_of_set_and_number(tmp_path: Path) -> None:
    benchmark = load_benchmark(write_pope(tmp_path))
    assert benchmark.asked == {"num_lines": {"adversarial": 4, "popular": 4, "random": 4}}
    assert benchmark.samples[0].sample_id == "adversarial/1"
    assert benchmark.rows[0]["question_id"] == "adversarial/1"
    assert question(benchmark.samples[0]) == f"Is there a adversarial 1?\n{PHRASE}"
    assert [sample.turns[0].answer for sample in benchmark.samples[:4]] == ["no", "yes", "no", "yes"]
    asked = load_benchmark(f"pope={tmp_path}?questions={tmp_path}/questions.jsonl")
    assert asked.rows[0] == {"question_id": 2001, "prompt": question(benchmark.samples[0]), "category": "adversarial"}


def test_popes_longer_random_file_is_noticed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    specification, file = write_pope(tmp_path, num_lines=3000), tmp_path / "questions.jsonl"
    assert load_benchmark(specification).asked["num_lines"]["random"] == 3000
    assert (
        "its random set has 3,000 lines; published numbers use the version of the random file with 2,910" in caplog.text
    )
    rows = [dict(row) for row in JsonRows(file)]
    write_lines(file, [row for row in rows if row["category"] != "random" or row["question_id"] > 90])
    message = refusal(f"{specification}?questions={file}")
    assert (
        f"coco_pope_random.json has 3,000 lines and {file} asks 2,910 questions of random: they pair one by one"
        in message
    )
    write_lines(file, [{**row, "image": "COCO_9.jpg"} if row["question_id"] == 3 else row for row in rows])
    assert "question 3 of random is 'Is there a random 3?" in refusal(f"{specification}?questions={file}")
    write_lines(tmp_path / "coco_pope_popular.json", [{**rows[0], "label": "maybe"}])
    assert "its label is 'maybe': expected yes or no" in refusal(specification)


def test_mme_reads_all_layouts_of_a_task(tmp_path: Path) -> None:
    benchmark = load_benchmark(write_mme(tmp_path))
    assert len(benchmark.samples) == 14 * 4
    assert list(dict.fromkeys(sample.category for sample in benchmark.samples)) == [*PERCEPTION, *COGNITION]
    rows = {row["category"]: row for row in reversed(benchmark.rows)}
    assert rows["count"] == {"question_id": "count/0000.png", "prompt": f"Is it 0?\n{PHRASE}", "category": "count"}
    assert rows["OCR"]["question_id"] == "OCR/0000.png"
    assert rows["artwork"]["question_id"] == "artwork/0000.png"
    assert benchmark.samples[0].turns[0].answer == "Yes"
    assert question(benchmark.samples[1]) == f"Is it not?  existence\n{PHRASE}"
    official = {"question_id": "artwork/0000.png", "prompt": "Is it 0? Please answer yes or no."}
    assert benchmark.key(official) == benchmark.key(rows["artwork"])


def test_mme_without_cognition_is_perception_alone_but_tasks_in_part_are_refused(tmp_path: Path) -> None:
    write_mme(tmp_path, cognition=False)
    assert len(load_benchmark(f"mme={tmp_path}").samples) == 40
    (tmp_path / "OCR.txt").unlink()
    assert "has no lines of OCR: expected OCR.txt or a folder OCR" in refusal(f"mme={tmp_path}")
    (tmp_path / "OCR.txt").write_text("a.png\tIs it?\tYes\n", encoding="utf-8")
    assert "a.png of OCR has 1 lines in a row, 1 times: MME has 2 of every image, once" in refusal(f"mme={tmp_path}")
    pair = "a.png\tIs it?\tYes\na.png\tIs it not?\tNo\n"
    (tmp_path / "OCR.txt").write_text(pair + pair.replace("a.png", "b.png") + pair, encoding="utf-8")
    assert "a.png of OCR has 2 lines in a row, 2 times" in refusal(f"mme={tmp_path}")
    (tmp_path / "OCR.txt").write_text("Is it? Yes\n", encoding="utf-8")
    assert "line 1 of" in refusal(f"mme={tmp_path}")
    assert "'Is it? Yes': expected question and Yes or No" in refusal(f"mme={tmp_path}")


def test_an_image_outside_its_folder_is_refused(tmp_path: Path) -> None:
    write_mme(tmp_path / "mme")
    write_image(tmp_path / "secret.png", 0)
    (tmp_path / "mme" / "OCR.txt").write_text(
        "../../secret.png\tIs it?\tYes\n../../secret.png\tIs it not?\tNo\n", encoding="utf-8"
    )
    benchmark = load_benchmark(f"mme={tmp_path}/mme")
    outside = next(sample for sample in benchmark.samples if sample.category == "OCR")
    assert outside.image is not None
    with pytest.raises(DataError, match="leaves the image folder"):
        outside.image.load()


def test_mmbench_asks_every_rotation_with_its_hint_and_options(tmp_path: Path) -> None:
    benchmark = load_benchmark(write_mmbench(tmp_path))
    assert [sample.sample_id for sample in benchmark.samples][:5] == ["1", "1000001", "2000001", "3000001", "2"]
    first = "Look here.\nWhich of 1 is it?\nA. a red car\nB. a blue bus\nC. a dog\nD. a cat"
    assert question(benchmark.samples[0]) == f"{first}\n{LETTER}"
    assert question(benchmark.samples[5]) == f"Which of 2 is it?\nA. a blue bus\nB. a red car\n{LETTER}"
    assert question(benchmark.samples[6]).startswith('Which of "3" is it?\n')
    assert [sample.turns[0].answer for sample in benchmark.samples] == ["B", "A", "D", "C", "B", "A", "B", "A", "C"]
    assert benchmark.rows[0] == {
        "question_id": 1,
        "round_id": 0,
        "prompt": first,
        "options": ["a red car", "a blue bus", "a dog", "a cat"],
        "option_char": ["A", "B", "C", "D"],
    }
    images = [sample.image.sha256() for sample in benchmark.samples if sample.image is not None]
    assert images[4] == images[5] != images[0]


def test_mmbench_refuses_tables_it_cannot_score(tmp_path: Path) -> None:
    specification = write_mmbench(tmp_path)
    path = Path(specification.partition("=")[2])
    lines = path.read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join([lines[0], lines[1], lines[5]]), encoding="utf-8")
    assert "has no rotations, rows with an index above 1,000,000" in refusal(specification)
    path.write_text("\n".join([lines[0], lines[1].replace("\tB\tkind", "\tE\tkind")]), encoding="utf-8")
    assert "row 1 of" in refusal(specification)
    assert "its index is '1' and its answer 'E'" in refusal(specification)
    path.write_text("\n".join([lines[0], lines[6]]), encoding="utf-8")
    assert "its image is '2': expected base64, or the index of a row that has it" in refusal(specification)
    path.write_text("\n".join(lines).replace("answer", "nothing"), encoding="utf-8")
    assert "has no column 'answer': give the development set" in refusal(specification)
    path.write_text("", encoding="utf-8")
    assert "is no table with tabs between" in refusal(specification)
    assert "cannot be read" in refusal(f"mmbench={tmp_path}/absent.tsv")


def test_mmbench_refuses_an_image_that_is_no_base64(tmp_path: Path) -> None:
    specification = write_mmbench(tmp_path)
    path = Path(specification.partition("=")[2])
    path.write_text(path.read_text(encoding="utf-8").replace("iVBOR", "*****"), encoding="utf-8")
    image = load_benchmark(specification).samples[0].image
    assert image is not None
    with pytest.raises(DataError, match="image 1 of .*tsv is not base64"):
        image.load()


def test_a_benchmark_is_named_with_its_files(tmp_path: Path) -> None:
    assert refusal("vqav2=x") == f"benchmark 'vqav2' is unknown: use one of {', '.join(BENCHMARKS)}"
    assert refusal("gqa") == "benchmark 'gqa' names no files: expected gqa=PATH"
    assert "option 'image' in" in refusal(f"{write_gqa(tmp_path)}?image=x")
    assert len(load_benchmark("digits:validation?count=3").samples) == 3
    assert len(load_benchmark("digits?count=3").samples) == 3
