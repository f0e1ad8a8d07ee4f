"""A reader of docs/cache-format.md in plain Python: nothing of betakd_cache, no NumPy, no Zarr."""

import hashlib
import json
import math
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

CODES = {"int8": "b", "uint8": "B", "uint16": "H", "uint32": "I", "uint64": "Q", "float16": "e", "float32": "f"}


def read_samples(path: Path) -> Iterator[dict[str, Any]]:
    """Every sample of a cache as a dict of lists, in the cache's order."""
    manifest = checked_manifest(path)
    for journal in sorted((p for p in path.iterdir() if re.fullmatch(r"shards.*\.jsonl", p.name)), key=journal_order):
        for line in journal.read_text().split("\n")[:-1]:
            entry = json.loads(line)
            if "shard" in entry:
                yield from read_shard(path, manifest, entry)


def checked_manifest(path: Path) -> dict[str, Any]:
    """The manifest, once its own hash agrees."""
    content = (path / "manifest.json").read_bytes()
    manifest = json.loads(content)
    before = content[: content.rindex(b'  "sha256"')]
    assert manifest["sha256"] == hashlib.sha256(before).hexdigest()
    assert (manifest["format"], manifest["format_version"], manifest["state"]) == ("betakd-cache", 1, "complete")
    return manifest


def journal_order(journal: Path) -> tuple[int, int]:
    """shards.jsonl first, then by N and I."""
    numbers = [int(number) for number in re.findall(r"\d+", journal.name)]
    return (numbers[1], numbers[0]) if numbers else (0, 0)


def read_array(group: Path, name: str, kind: str, *row_shape: int) -> list[Any]:
    """An array as a list, or as a list of rows of this shape, lists themselves."""
    content = group.joinpath(name, "c", *"0" * (1 + len(row_shape))).read_bytes()[:-4]
    numbers = [number for (number,) in struct.iter_unpack("<" + CODES[kind], content)]
    for width in reversed(row_shape):
        numbers = [numbers[at : at + width] for at in range(0, len(numbers), width)]
    return numbers


def read_feature(group: Path, manifest: dict[str, Any], name: str) -> list[Any]:
    """A feature of every sample: a list of numbers, or one list per place."""
    size, layout = manifest["feature_sizes"][name], manifest.get("feature_layouts", {}).get(name)
    places = [layout["num_places"]] if layout else []
    if manifest["token_rule"]["exact"]:
        return read_array(group, f"features/{name}", "float32", *places, size)
    if manifest.get("feature_dtype") != "int8":
        return read_array(group, f"features/{name}", "float16", *places, size)
    codes = read_array(group, f"features/{name}", "int8", *places, size)
    scales = read_array(group, f"scales/{name}", "float16", *places, -(-size // 64))
    return multiply_groups(codes, scales)


def multiply_groups(codes: list[Any], scales: list[Any]) -> list[Any]:
    """The codes, however deep their lists, times the scale of their group of 64."""
    if isinstance(codes[0], list):
        return [multiply_groups(*pair) for pair in zip(codes, scales, strict=True)]
    return [code * scales[at // 64] for at, code in enumerate(codes)]


def read_shard(path: Path, manifest: dict[str, Any], entry: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The samples of a shard."""
    for name, (size_bytes, sha256) in entry["files"].items():
        content = (path / name).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (size_bytes, sha256)
    rule, wide = manifest["token_rule"], manifest["vocabulary_size"] > 65536
    exact, brief = rule["exact"], "float32" if rule["exact"] else "float16"
    num_temperatures = len(rule["temperatures"])
    group = path / f"{entry['shard']}.zarr"
    tokens = {
        "token_ids": read_ids(group, "token_ids", wide),
        "tok_n": read_array(group, "tok_n", "uint32" if exact else "uint8"),
        "gold_gap": read_array(group, "gold_gap", brief),
        "tail_lse": read_array(group, "tail_lse", "float32", num_temperatures),
    }
    if manifest.get("tail_energies", True):
        tokens["tail_energy"] = read_array(group, "tail_energy", brief, num_temperatures)
    if manifest["logit_moments"]:
        kinds = {"logit_max": "float32", "logit_mean": "float32", "logit_std": brief}
        tokens |= {name: read_array(group, name, kind) for name, kind in kinds.items()}
    ids, gaps = read_ids(group, "ids", wide), read_array(group, "gap", "float32" if exact else "uint8")
    if not exact:
        gaps = decode_gaps(gaps, ids, read_array(group, "gap_top", "uint8", 3), tokens)
    token_bounds, entry_bounds = (read_array(group, *of) for of in (("sample_ptr", "uint32"), ("entry_ptr", "uint64")))
    rows = pq.read_table(path / f"{entry['shard']}.parquet").to_pylist()
    features = {name: read_feature(group, manifest, name) for name in manifest["feature_sizes"]}
    layouts = {name: layout for name, layout in manifest.get("feature_layouts", {}).items() if layout["num_focus"]}
    focus = {name: read_array(group, f"{name}_focus", "uint16", of["num_focus"]) for name, of in layouts.items()}
    for place, row in enumerate(rows):
        token_slice, entry_slice = (slice(*bounds[place : place + 2]) for bounds in (token_bounds, entry_bounds))
        sample = {name: values[token_slice] for name, values in tokens.items()}
        present = {name for name in features if read_array(group, f"present/{name}", "uint8")[place]}
        yield sample | {
            "row": row,
            "ids": ids[entry_slice],
            "gaps": gaps[entry_slice],
            "features": {name: features[name][place] for name in present},
            "focus": {name: places[place] for name, places in focus.items() if name in present},
        }


def read_ids(group: Path, name: str, wide: bool) -> list[int]:
    """Ids of one or two planes."""
    low = read_array(group, name, "uint16")
    high = read_array(group, f"{name}_high", "uint8") if wide else [0] * len(low)
    return [a + 65536 * b for a, b in zip(low, high, strict=True)]


STEPS = [round(2048 * -2 * math.log(1 - code / 255 * (1 - math.exp(-16 / 2)))) for code in range(256)]


def decode_gaps(codes: list[int], ids: list[int], low: list[list[int]], tokens: dict[str, list[Any]]) -> list[float]:
    """The gaps of all entries of a compact shard."""
    gaps: list[float] = []
    for number, count in enumerate(tokens["tok_n"]):
        start, units = len(gaps), 0
        for rank in range(count):
            code = codes[start + rank]
            if rank >= 4:
                units += STEPS[code]
            elif rank >= 1:
                units = 256 * code + low[number][rank - 1]
            is_gold = ids[start + rank] == tokens["token_ids"][number]
            gaps.append(tokens["gold_gap"][number] if is_gold else units / 2048)
    return gaps
