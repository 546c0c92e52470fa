"""Where an index stands is a pure function of it: stages follow each other, and views of a pair never share a batch."""

import pytest

from uniser_jax.data.schedule import Schedule, Stage, fixed

STAGES = Schedule((Stage(0, 32, 8), Stage(4, 48, 4), Stage(10, 64, 2)), reuse=2)


def test_batches_cover_all_indices_once() -> None:
    seen = [index for step in range(14) for index in STAGES.indices(step)]
    assert seen == list(range(4 * 8 + 6 * 4 + 4 * 2))
    assert [len(STAGES.indices(step)) for step in (3, 4, 9, 10, 10**6)] == [8, 4, 4, 2, 2]
    assert [STAGES.stage(step).size for step in (0, 3, 4, 10, 10**9)] == [32, 32, 48, 64, 64]


def test_an_index_knows_its_place() -> None:
    for step in range(20):
        for row, index in enumerate(STAGES.indices(step)):
            place = STAGES.place(index)
            assert (place.step, place.row, place.stage) == (step, row, STAGES.stage(step))
            assert place.view == step % 2
    for index in (0, 5, 31, 10**15):
        assert fixed(32, 8).place(index).pair == index  # without reuse a pair is an example


@pytest.mark.parametrize("reuse", [1, 2, 3, 4])
def test_pairs_are_numbered_without_a_gap_and_each_is_seen_in_as_many_batches_as_it_has_views(reuse: int) -> None:
    schedule = Schedule((Stage(0, 32, 6), Stage(12, 48, 4)), reuse)
    views: dict[int, list[tuple[int, int, int]]] = {}
    for step in range(24):
        for index in schedule.indices(step):
            place = schedule.place(index)
            views.setdefault(place.pair, []).append((place.view, place.step, place.row))
    assert list(views) == list(range((12 * 6 + 12 * 4) // reuse))
    for seen in views.values():
        assert [view for view, _, _ in seen] == list(range(reuse))
        assert [step - seen[0][1] for _, step, _ in seen] == list(range(reuse))
        assert len({row for _, _, row in seen}) == 1


@pytest.mark.parametrize(
    ("stages", "reuse", "message"),
    [
        ((), 1, "0 first, then ascending"),
        ((Stage(1, 8, 8),), 1, "0 first, then ascending"),
        ((Stage(0, 8, 8), Stage(5, 8, 8), Stage(5, 8, 8)), 1, r"\[0, 5, 5\]"),
        ((Stage(0, 8, 8), Stage(5, 8, 8)), 2, "step 5, no multiple of reuse = 2"),
        ((Stage(0, 8, 0),), 1, "at least 1"),
        ((Stage(0, 8, 8),), 0, "reuse = 0"),
    ],
)
def test_what_makes_no_schedule_is_refused(stages, reuse, message) -> None:
    with pytest.raises(ValueError, match=message):
        Schedule(stages, reuse)
