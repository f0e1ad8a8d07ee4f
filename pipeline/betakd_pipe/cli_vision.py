"""The command cache-vision: a student's frozen vision tower run once over all images."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from betakd_pipe.cli_options import Config, Debug, DryRun, Set, examples, part_of_work

if TYPE_CHECKING:
    from betakd_stages.caching.vision import VisionSummary
    from betakd_stages.caching.vision_estimation import VisionEstimate

vision_commands = typer.Typer()


@vision_commands.command(
    "cache-vision",
    epilog=examples(
        "betakd-pipe cache-vision --student student --data 'llava:train.json?images=photos' --out vision --dry-run",
        "betakd-pipe cache-vision --student student --data 'llava:train.json?images=photos' --out vision",
        "betakd-pipe cache-vision --student student --data digits:transfer --out vision --part 0/2  (beside 1/2)",
        "betakd-pipe cache-vision --config vision.yaml --out vision --set batch_size=128 --set precision=bf16",
        "betakd-pipe distill --config recipe.yaml --out run --vision-cache vision",
    ),
)
def cache_vision(
    out: Annotated[str, typer.Option(help="Folder of the vision cache.")],
    student: Annotated[str | None, typer.Option(help="Folder of the student whose tower it is.")] = None,
    data: Annotated[str | None, typer.Option(help="NAME:SPLIT[?key=value&...], such as digits:transfer.")] = None,
    limit: Annotated[int | None, typer.Option(help="Only the images of the first so many samples.")] = None,
    exact: Annotated[bool, typer.Option("--exact", help="Store fp32, twice the size, not float16.")] = False,
    part: Annotated[str, typer.Option(metavar="I/N", help="One of N processes that fill a cache together.")] = "0/1",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Delete what is in the folder first.")] = False,
    dry_run: DryRun = False,
    config: Config = None,
    set_: Set = None,
    debug: Debug = False,
) -> None:
    """Run a student's frozen vision tower once over every image, for all distill runs to come (--vision-cache).

    A second call goes on where the first was interrupted, or adds the images of other data.
    """
    from betakd_pipe import stage_runs
    from betakd_pipe.config import load_settings
    from betakd_pipe.progress import terminal_progress
    from betakd_stages.settings import CacheVisionSettings

    flags: dict[str, Any] = {"student": student, "data": data, "limit": limit, "exact": exact or None}
    settings = load_settings(CacheVisionSettings, config, flags, set_ or ())
    piece, progress = part_of_work(part), terminal_progress()
    if dry_run:
        _print_estimate(out, stage_runs.estimate_vision(settings, out, progress=progress))
        return
    summary = stage_runs.cache_vision(settings, out, part=piece, overwrite=overwrite, progress=progress)
    print(f"{out}: {_describe(summary)}")
    if piece != (0, 1):
        others = "and so is the cache" if summary.is_complete else "other parts of the cache are not"
        print(f"{out}: part {part} is complete, {others}")


def _describe(summary: "VisionSummary") -> str:
    new = f"{summary.num_new} new" if summary.num_new else "all there before"
    skipped = f", {summary.num_skipped} samples passed over" if summary.num_skipped else ""
    return f"{summary.num_images} images ({new}{skipped}), {summary.size_bytes / 1e6:.2f} MB"


def _print_estimate(out: str, found: "VisionEstimate") -> None:
    print(f"{out}: {found.num_images} images of {found.num_samples} samples, by {found.num_timed} of them")
    print(
        f"{found.total_bytes / 1e9:.3g} GB at {found.bytes_per_image / 1e6:.3g} MB an image; "
        f"{found.free_bytes / 1e9:.3g} GB are free there"
    )
    print(
        f"{found.hours:.3g} hours at {found.seconds_per_image:.3g} s an image; "
        f"at most {found.hours_saved_per_epoch:.3g} hours saved in every epoch"
    )
