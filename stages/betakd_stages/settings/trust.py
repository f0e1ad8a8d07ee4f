"""The settings of what is fitted to caches and labels before any student exists: how far teachers can be believed."""

from pydantic import Field

from betakd_stages.settings.base import Settings


class FitSettings(Settings):
    """How the chances that labels came from a teacher, or from each of several, are fitted."""

    seed: int = 0
    group_words: int = Field(
        default=3, ge=0, description="samples of one category whose question begins with the same words are a group"
    )
    smallest_group: int = Field(default=50, ge=1, description="groups of fewer samples are put together")
    num_folds: int = Field(default=5, ge=2, description="each sample is judged by networks that were fitted without it")
    num_fits: int = Field(default=3, ge=1, description="initialisations that are averaged")
    weight_decay: float = Field(default=0.3, ge=0, description="of the network that is fitted")


class TrustSettings(FitSettings):
    """What `cache trust` fits to which cache."""

    cache: str = Field(description="folder or URL of the teacher cache")
    data: str = Field(description="the data specification that the cache was made from")
    out: str | None = Field(default=None, description="the file written; default: beside the cache")
