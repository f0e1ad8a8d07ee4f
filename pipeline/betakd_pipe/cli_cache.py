"""`betakd-pipe cache ...`: looking after caches."""

import typer

cache_app = typer.Typer(no_args_is_help=True, help="Look into a teacher cache and check it.", rich_markup_mode="rich")
