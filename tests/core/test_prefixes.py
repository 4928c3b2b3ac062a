import numpy as np

from csrm_guard.prefixes import PrefixCache

PROMPT = tuple(range(10))


def past(tokens: int, value: float = 1.0):
    return [np.full((2, tokens, 4), value, np.float32) for _ in range(4)]


BYTES = sum(a.nbytes for a in past(10))


def test_a_prompt_is_wanted_from_its_second_sight_on():
    cache = PrefixCache(10 * BYTES)
    assert [cache.wants(PROMPT), cache.wants(PROMPT), cache.wants(PROMPT[1:])] == [False, True, False]


def test_only_the_prompts_own_columns_are_kept():
    cache = PrefixCache(10 * BYTES)
    cache.put(PROMPT, past(25))
    found = cache.get(PROMPT)
    assert found is not None
    assert [a.shape for a in found] == [(2, 10, 4)] * 4
    assert cache.nbytes == BYTES


def test_what_is_kept_outlives_a_change_of_the_arrays_given():
    cache, given = PrefixCache(10 * BYTES), past(25)
    cache.put(PROMPT, given)
    given[0][:] = 7.0
    found = cache.get(PROMPT)
    assert found is not None
    assert (found[0] == 1.0).all()


def test_the_least_recently_used_prompt_goes_first():
    cache = PrefixCache(2 * BYTES)
    prompts = [tuple(range(i, i + 10)) for i in range(3)]
    cache.put(prompts[0], past(10))
    cache.put(prompts[1], past(10))
    cache.get(prompts[0])
    cache.put(prompts[2], past(10))
    assert [cache.get(p) is not None for p in prompts] == [True, False, True]
    assert cache.nbytes == 2 * BYTES


def test_a_cache_of_no_bytes_wants_and_keeps_nothing():
    cache = PrefixCache(0)
    cache.put(PROMPT, past(10))
    assert cache.get(PROMPT) is None
    assert [cache.wants(PROMPT) for _ in range(2)] == [False, False]


def test_a_prompt_over_the_limit_is_not_kept():
    cache = PrefixCache(BYTES - 1)
    cache.put(PROMPT, past(10))
    assert cache.get(PROMPT) is None
    assert cache.nbytes == 0
