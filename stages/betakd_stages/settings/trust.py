"""The settings of `cache trust`: how far a teacher can be believed, from its cache and the labels."""

from pydantic import Field

from betakd_stages.settings.base import Settings


class TrustSettings(Settings):
    """What is fitted to which cache."""

    cache: str = Field(description="folder or URL of the teacher cache")
    data: str = Field(description="the data specification that the cache was made from")
    out: str | None = Field(default=None, description="the file written; default: beside the cache")
    seed: int = 0
    group_words: int = Field(
        default=3, ge=0, description="samples of one category whose question begins with the same words are a group"
    )
    smallest_group: int = Field(default=50, ge=1, description="groups of fewer samples are put together")
    num_folds: int = Field(default=5, ge=2, description="each sample is judged by networks that were fitted without it")
    num_fits: int = Field(default=3, ge=1, description="initialisations that are averaged")
    weight_decay: float = Field(default=0.3, ge=0, description="of the network that is fitted")
