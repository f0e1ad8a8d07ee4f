"""Names of what belongs to one of several teachers, in a run and in the cache of their mixture."""

from betakd_stages.ensemble.names import in_its_cache, numbered, of_all_teachers, owner, plain, stored


def test_a_number_is_put_on_and_taken_off_again() -> None:
    name = numbered("prompt", 1)
    assert (name, stored(name)) == ("prompt@2", "prompt_2")
    assert [plain(name), plain(stored(name)), plain("skew_fkl"), plain("vision")] == [
        "prompt",
        "prompt",
        "skew_fkl",
        "vision",
    ]
    assert (owner(name), owner(stored(name)), owner("prompt")) == (1, 0, 0)


def test_the_cache_of_a_mixture_beside_another_cache_keeps_its_names() -> None:
    name = numbered("prompt_1", 1)
    assert (in_its_cache(name), plain(name), owner(name), stored(name)) == ("prompt_1", "prompt", 1, "prompt_1_2")


def test_a_name_without_a_number_stands_for_all_teachers_of_a_mixture() -> None:
    assert of_all_teachers("prompt", ["vision_1", "prompt_1", "prompt_2"]) == ["prompt_1", "prompt_2"]
    assert of_all_teachers("prompt_2", ["prompt_1", "prompt_2"]) == ["prompt_2"]
    assert of_all_teachers("prompt", ["prompt"]) == ["prompt"]
