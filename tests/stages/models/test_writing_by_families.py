"""Written answers of a family whose own processor makes the prompt: positions in three dimensions, images by shape."""

import json
from pathlib import Path

import numpy as np
from PIL import Image
from tests.stages.models.families import FAMILIES

from betakd_cache import open_cache
from betakd_stages.caching.rescoring import rescore
from betakd_stages.caching.run import cache_teacher
from betakd_stages.models.loading import load_encoder
from betakd_stages.progress import SilentProgress
from betakd_stages.settings import CacheTeacherSettings


def conversations(folder: Path) -> str:
    """Six conversations: images of several shapes, one without an image, one to three turns."""
    entries = []
    for number in range(6):
        pixels = np.random.default_rng(number).integers(0, 256, (20 + number, 30 - number, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        image = {"image": f"{number}.png"} if number else {}
        talk = [{"from": "human", "value": f"Question {number}?"}, {"from": "gpt", "value": "A cat."}]
        entries.append({"id": str(number), **image, "conversations": talk * (1 + number % 3)})
    (folder / "data.json").write_text(json.dumps(entries), encoding="utf-8")
    return f"llava:{folder / 'data.json'}?images={folder}"


def test_every_written_id_is_the_likeliest_that_may_be_written_when_the_conversation_is_scored(tmp_path: Path) -> None:
    """Generation, with its cache of keys and padding on the left, and scoring in one pass agree at every token."""
    teacher, data = FAMILIES["qwen2_5_vl"].save(tmp_path / "teacher", seed=1, num_rows=352), conversations(tmp_path)
    settings = CacheTeacherSettings.model_validate(
        {
            "teacher": str(teacher),
            "data": data,
            "targets": ["generate"],
            "generation": {"max_new_tokens": 6},
            "batch_size": 4,
            "exact": True,
            "top_k": 300,
        }
    )
    assert cache_teacher(settings, tmp_path / "cache", progress=SilentProgress()).num_generated == 6
    cache, forbidden = open_cache(tmp_path / "cache"), load_encoder(teacher).control_token_ids
    for record in map(cache.record, range(6)):
        starts = np.cumsum(record.entry_counts) - record.entry_counts
        for token_id, start, count in zip(record.token_ids, starts, record.entry_counts, strict=True):
            allowed = [entry for entry in record.ids[start : start + count] if entry not in forbidden]
            assert allowed[0] == token_id
    assert rescore(tmp_path / "cache", str(teacher), data, 6).ok
