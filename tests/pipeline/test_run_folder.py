"""Run folders: what is in them, and what they refuse."""

import json
import logging
from pathlib import Path

import pytest
import yaml

from betakd_pipe.run_folder import check_configuration, run_folder
from betakd_stages.errors import ConfigError, DataError
from betakd_stages.settings import DistillSettings, TrainingSettings

SETTINGS = DistillSettings(student="s", cache="c", data="digits:transfer")


def started(folder: Path, settings: DistillSettings = SETTINGS) -> None:
    with run_folder(folder, settings) as path:
        (path / "metrics.jsonl").write_text("", encoding="utf-8")


def test_a_run_folder_holds_the_resolved_settings_and_the_environment(tmp_path: Path) -> None:
    started(tmp_path / "run")
    stored = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text(encoding="utf-8"))
    assert DistillSettings.model_validate(stored) == SETTINGS
    environment = json.loads((tmp_path / "run" / "environment.json").read_text(encoding="utf-8"))
    assert environment["packages"]["torch"].startswith("2.")
    assert environment["num_cores"] >= 1


def test_log_records_reach_the_log_and_stop_there_afterwards(tmp_path: Path) -> None:
    with run_folder(tmp_path / "run", SETTINGS):
        logging.getLogger("betakd_stages.somewhere").info("seen")
        (tmp_path / "run" / "metrics.jsonl").touch()
    logging.getLogger("betakd_stages.somewhere").warning("not seen")
    log = (tmp_path / "run" / "log.txt").read_text(encoding="utf-8")
    assert "INFO betakd_stages.somewhere: seen" in log
    assert "not seen" not in log


def test_the_same_settings_open_the_folder_again(tmp_path: Path) -> None:
    started(tmp_path / "run")
    before = (tmp_path / "run" / "environment.json").stat().st_mtime_ns
    started(tmp_path / "run")
    assert (tmp_path / "run" / "environment.json").stat().st_mtime_ns == before
    assert "continued" in (tmp_path / "run" / "log.txt").read_text(encoding="utf-8")


def test_other_settings_are_refused_naming_the_first_difference(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    started(folder)
    other = SETTINGS.model_copy(update={"seed": 5, "training": TrainingSettings(steps=9)})
    with pytest.raises(ConfigError) as caught, run_folder(folder, other):
        pass
    assert str(caught.value) == (
        f"{folder}: was started with seed = 0, now it is 5: choose another --out, or delete that folder to start again"
    )


def test_the_same_folder_by_another_name_is_the_same_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "student").mkdir()
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path)
    started(tmp_path / "run", SETTINGS.model_copy(update={"student": "student"}))
    check_configuration(tmp_path / "run", SETTINGS.model_copy(update={"student": str(tmp_path / "student")}))
    with pytest.raises(ConfigError, match="was started with student = 'student'"):
        check_configuration(tmp_path / "run", SETTINGS.model_copy(update={"student": str(tmp_path / "other")}))


def test_true_is_not_one(tmp_path: Path) -> None:
    started(tmp_path / "run", SETTINGS.model_copy(update={"seed": 1}))
    config = tmp_path / "run" / "config.yaml"
    config.write_text(config.read_text(encoding="utf-8").replace("seed: 1", "seed: true"), encoding="utf-8")
    with pytest.raises(ConfigError, match="seed = True, now it is 1"):
        check_configuration(tmp_path / "run", SETTINGS.model_copy(update={"seed": 1}))


def drop_from_config(folder: Path, *keys: str) -> None:
    """Leave the folder as a version left it that did not know these settings, each `group` or `group.key`."""
    config = folder / "config.yaml"
    stored = yaml.safe_load(config.read_text(encoding="utf-8"))
    for key in keys:
        *groups, last = key.split(".")
        at = stored
        for group in groups:
            at = at[group]
        del at[last]
    config.write_text(yaml.safe_dump(stored, sort_keys=False), encoding="utf-8")


def test_settings_that_are_newer_than_the_folder_had_their_defaults_there(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    started(folder)
    drop_from_config(folder, "ensemble", "max_length", "training.accumulation")
    started(folder)
    other = SETTINGS.model_copy(update={"training": TrainingSettings(accumulation=4)})
    with pytest.raises(ConfigError, match=r"was started with training.accumulation = 1, now it is 4: choose another"):
        check_configuration(folder, other)


def test_a_setting_that_there_is_no_more_is_named_in_one_line(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    started(folder)
    drop_from_config(folder, "ensemble")
    config = folder / "config.yaml"
    config.write_text(config.read_text(encoding="utf-8") + "momentum: 0.9\n", encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        check_configuration(folder, SETTINGS)
    assert str(caught.value) == (
        f"{folder}: was started with momentum = 0.9, now it is nothing: choose another --out, or delete that folder to "
        "start again"
    )


def test_a_setting_that_was_absent_is_shown_as_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    started(folder)
    other = SETTINGS.model_copy(
        update={"weighting": SETTINGS.weighting.model_copy(update={"options": {"initial_beta": 2.0}})}
    )
    with pytest.raises(ConfigError, match=r"weighting.options = \{\}, now it is nothing"):
        check_configuration(folder, other)


def test_a_folder_of_something_else_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("work", encoding="utf-8")
    with pytest.raises(ConfigError) as caught, run_folder(tmp_path, SETTINGS):
        pass
    assert (
        str(caught.value) == f"{tmp_path}: holds files but no config.yaml, so it is no run folder: choose another --out"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "run"
    file.touch()
    with pytest.raises(ConfigError, match="is a file; expected a folder for the run"), run_folder(file, SETTINGS):
        pass


def test_a_user_error_before_the_stage_wrote_leaves_nothing_behind(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "seed-0" / "run"
    with pytest.raises(DataError, match="no such split"), run_folder(folder, SETTINGS):
        raise DataError("no such split")
    assert list(tmp_path.iterdir()) == []


def test_a_user_error_leaves_an_empty_folder_of_the_user_empty(tmp_path: Path) -> None:
    with pytest.raises(DataError), run_folder(tmp_path, SETTINGS):
        raise DataError("no such split")
    assert list(tmp_path.iterdir()) == []


def test_a_user_error_after_the_stage_wrote_keeps_everything_and_is_logged(tmp_path: Path) -> None:
    folder = tmp_path / "run"

    def stage() -> None:
        (folder / "metrics.jsonl").touch()
        raise DataError("image 7 is broken")

    with pytest.raises(DataError), run_folder(folder, SETTINGS):
        stage()
    assert "stopped: image 7 is broken" in (folder / "log.txt").read_text(encoding="utf-8")
    assert (folder / "config.yaml").is_file()


def test_a_bug_keeps_the_folder_and_its_traceback(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with pytest.raises(ZeroDivisionError), run_folder(folder, SETTINGS):
        raise ZeroDivisionError
    log = (folder / "log.txt").read_text(encoding="utf-8")
    assert "stopped by ZeroDivisionError" in log
    assert "Traceback" in log


def test_two_processes_cannot_write_one_run(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with run_folder(folder, SETTINGS):
        with pytest.raises(ConfigError) as caught, run_folder(folder, SETTINGS):
            pass
        assert str(caught.value) == f"{folder}: another process is writing this run: wait for it, or end it"
        assert (folder / "config.yaml").is_file()


def test_what_a_crash_left_before_the_settings_were_written_does_not_block_the_folder(tmp_path: Path) -> None:
    (tmp_path / "log.txt").touch()
    (tmp_path / ".tmp-17-config.yaml").touch()
    started(tmp_path)
    assert (tmp_path / "config.yaml").is_file()
