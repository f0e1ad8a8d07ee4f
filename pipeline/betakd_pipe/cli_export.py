"""The command export: taking a student out of its run folder, and to the Hugging Face Hub."""

import logging
from pathlib import Path
from typing import Annotated

import typer

from betakd_pipe.cli_options import Debug, examples

export_commands = typer.Typer()


@export_commands.command(
    epilog=examples(
        "betakd-pipe export run --out student",
        "betakd-pipe export run --out student --dtype bf16 --max-shard-size 5GB",
        "betakd-pipe export run --out adapter --adapter",
        "betakd-pipe export run --out student --dtype bf16 --push-to me/my-student --private",
    )
)
def export(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run, or of a model.", metavar="RUN")],
    out: Annotated[Path, typer.Option(help="Folder that is written.")],
    format_: Annotated[
        str | None, typer.Option("--format", help="transformers or mobilevlm; default: the family's own.")
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="bf16, fp16 or fp32; default: as stored.")] = None,
    max_shard_size: Annotated[str | None, typer.Option(help="Largest file of weights, such as 5GB.")] = None,
    adapter: Annotated[bool, typer.Option("--adapter", help="The run's LoRA or DoRA adapter, not the model.")] = False,
    push_to: Annotated[str | None, typer.Option(metavar="REPO", help="Repository of the Hugging Face Hub.")] = None,
    private: Annotated[bool, typer.Option("--private", help="The repository is to be private.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a model that is in the folder.")] = False,
    debug: Debug = False,
) -> None:
    """Write a student's model with tokenizer, processor and model card to a folder, and push that if asked.

    MobileVLM V2 is written as its authors publish it, all other families as transformers reads them.
    """
    from betakd_pipe import stage_runs
    from betakd_pipe.export import Export, trains_projector
    from betakd_pipe.hub import push, require_login
    from betakd_stages.errors import ConfigError

    if private and push_to is None:
        raise ConfigError("--private is of the repository to push to: name it (--push-to me/my-student)")
    if push_to is not None:
        require_login(push_to)
    wanted = Export(format_, dtype, max_shard_size, adapter, push_to)
    size_bytes = stage_runs.export(run, out, wanted, overwrite=overwrite)
    print(f"{out}: {size_bytes / 1e6:.2f} MB")
    if adapter and trains_projector(run):
        logging.getLogger(__name__).warning(
            f"{run} trained the projector too, which is not in the adapter: without --adapter the model has it"
        )
    if push_to is not None:
        print(f"{out}: pushed to {push(out, push_to, private=private)}")
