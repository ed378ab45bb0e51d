"""Growth as a tree: the places of stacks, their weights, and the other counts."""

from __future__ import annotations

import pytest
from flames import built, difference, every, sizes
from hypothesis import given
from hypothesis import strategies as st
from samples import BLOG, FIND, MAIN, PROPERTY, QUERY, SHOP, request

from tracer.analysis.flame.growth_table import GrowthByStack
from tracer.analysis.flame.node import Kind
from tracer.facts import GIVEN_BACK, NO_PHP, STACK_LOST, TRUNCATED, UNREADABLE, Frame, Metric, Request

SCRIPT = "/srv/www/index.php"
HELP = Frame("user", "help", "/srv/app/help.php", 7)
CLOSURE = Frame("user", "{closure}", "/srv/app/Repo.php", None)
STACKS = [(MAIN,), (MAIN, FIND), (MAIN, FIND, QUERY), (MAIN, HELP), (NO_PHP,)]
# Growth of a request in some of these stacks.
GROWN = st.lists(
    st.tuples(st.sampled_from(STACKS), st.integers(-1009, 1009), st.integers(0, 13)), max_size=7
)  # fmt: skip


def keeps(kept: int, **changed: object) -> Request:
    """A request that kept that natively."""
    return request(**{"native_kept": kept, **changed})


def uncounted(**changed: object) -> Request:
    """A request whose allocations were not counted."""
    return request(native_kept=None, native_alloc_calls=None, native_free_calls=None, **changed)


def tree(*requests: tuple[Request, GrowthByStack], metric: Metric = Metric.RSS, kept: bool = False) -> dict[str, int]:
    """Bytes of each node, by the labels of the path to it."""
    return sizes(built(*requests, metric=metric, retained=kept).finish())


def test_growth_stands_below_its_route_its_script_and_its_callers():
    grown = [((MAIN, FIND, QUERY), 101, 3), ((MAIN, FIND), 7, 1)]

    assert tree((request(uri="/user/7?x=1"), grown)) == {
        "/user/{n}": 108,
        "/user/{n} > /srv/www/index.php": 108,
        "/user/{n} > /srv/www/index.php > <main> index.php:3": 108,
        "/user/{n} > /srv/www/index.php > <main> index.php:3 > Repo::find Repo.php:89": 108,
        "/user/{n} > /srv/www/index.php > <main> index.php:3 > Repo::find Repo.php:89 > PDO::query": 101,
    }


def test_a_node_states_its_kind_and_has_the_whole_path_of_its_file():
    root = built((request(), [((MAIN, QUERY), 2, 1), ((NO_PHP,), 3, 1), ((CLOSURE,), 5, 1)])).finish()

    assert (root.label, root.kind, root.bytes, root.samples) == ("all", Kind.ROOT, 10, 3)
    assert {(node.label, node.detail, node.kind) for node in every(root).values()} == {
        ("/index.php", "/index.php", Kind.ROUTE),
        (SCRIPT, SCRIPT, Kind.SCRIPT),
        ("<main> index.php:3", "<main> /srv/www/index.php:3", Kind.USER),
        ("PDO::query", "PDO::query", Kind.INTERNAL),
        ("[no php]", "[no php]", Kind.MARK),
        ("{closure} Repo.php", "{closure} /srv/app/Repo.php", Kind.USER),
    }


def test_files_of_one_name_in_two_folders_are_two_nodes():
    other = FIND._replace(file="/srv/other/Repo.php")

    root = built((request(), [((FIND,), 2, 1), ((other,), 3, 1)])).finish()

    [script] = root.children["/index.php"].children.values()
    assert [(node.label, node.bytes) for node in script.children.values()] == [
        ("Repo::find Repo.php:89", 3), ("Repo::find Repo.php:89", 2)
    ]  # fmt: skip


def test_requests_of_one_route_fall_together_and_of_several_do_not():
    requests = [(request(uri=uri), [((NO_PHP,), size, 1)]) for uri, size in (("/u/2", 3), ("/u/5", 7), ("/v/2", 11))]

    found = tree(*requests)

    assert (found["/u/{n}"], found["/v/{n}"]) == (10, 11)


def test_a_request_without_uri_or_script_has_a_place_too():
    assert tree((request(uri=None, script=None), [((NO_PHP,), 3, 1)])) == {
        "(unknown uri)": 3,
        "(unknown uri) > (no script)": 3,
        "(unknown uri) > (no script) > [no php]": 3,
    }


def test_callees_are_in_the_order_of_their_bytes_and_equals_by_name():
    stacks = [(HELP, 5), (QUERY, 7), (FIND, 5), (Frame("internal", "abs", None, None), 5), (MAIN, 11)]

    root = built((request(), [((frame,), size, 1) for frame, size in stacks])).finish()

    [script] = root.children["/index.php"].children.values()
    assert [node.label.split()[0] for node in script.children.values()] == [
        "<main>", "PDO::query", "Repo::find", "abs", "help",
    ]  # fmt: skip


def test_memory_given_back_in_a_place_takes_no_bytes_from_others_and_is_counted():
    builder = built((request(), [((MAIN, FIND), -101, 1), ((MAIN, FIND, QUERY), 13, 1), ((MAIN,), 7, 1)]))

    root = builder.finish()

    assert sizes(root)["/index.php"] == 20
    assert sizes(root)["/index.php > /srv/www/index.php > <main> index.php:3 > Repo::find Repo.php:89"] == 13
    assert builder.given_back == 101


def test_memory_that_a_request_gives_back_where_it_was_added_is_taken_off():
    builder = built((request(), [((MAIN,), 101, 1), ((MAIN,), -13, 1)]))

    assert (builder.finish().bytes, builder.given_back) == (88, 0)


def test_memory_that_one_request_gives_back_does_not_reduce_the_growth_of_another():
    builder = built((request(), [((MAIN,), 101, 1)]), (request(), [((MAIN,), -13, 1)]))

    assert (builder.finish().bytes, builder.given_back) == (101, 13)


def test_a_place_at_which_more_was_given_back_than_added_is_not_shown():
    assert "[given back]" not in str(tree((request(), [((GIVEN_BACK,), -101, 0), ((MAIN,), 13, 1)])))


def test_samples_are_added_up_through_the_callers():
    root = built((request(), [((MAIN, FIND), 101, 3), ((MAIN,), 7, 5), ((MAIN, FIND), 2, 7)])).finish()

    [main] = [node for name, node in every(root).items() if name.endswith("<main> index.php:3")]
    assert (root.samples, main.samples, main.own, main.own_samples) == (15, 15, 7, 5)


@PROPERTY
@given(st.lists(GROWN, max_size=7))
def test_a_node_has_what_was_added_in_it_and_in_all_it_called(requests):
    nets: list[int] = []
    for grown in requests:
        expected: dict[tuple[str, ...], int] = {}
        for stack, size, _ in grown:
            names = tuple(frame.name for frame in stack)
            expected[names] = expected.get(names, 0) + size
        nets += expected.values()
    builder = built(*((request(), grown) for grown in requests))

    root = builder.finish()

    assert root.bytes == sum(size for size in nets if size > 0)
    assert builder.given_back == -sum(size for size in nets if size < 0)
    assert sum(node.own for node in every(root).values()) == root.bytes
    for node in (root, *every(root).values()):
        assert node.bytes == max(0, node.own) + sum(child.bytes for child in node.children.values())


def test_growth_of_zends_heap_that_no_look_saw_is_not_sampled():
    builder = built(
        (request(zend_used_end=1_009), [((MAIN,), 503, 3), ((MAIN, FIND), -13, 1)]),
        (request(zend_used_end=211), []),
        metric=Metric.ZEND,
    )

    found = sizes(builder.finish())

    assert found["/index.php > /srv/www/index.php > [not sampled]"] == 1_009 - 490 + 211
    assert builder.unsampled == 730


def test_looks_that_saw_all_leave_nothing_unsampled():
    assert "[not sampled]" not in str(
        tree((request(zend_used_end=503), [((MAIN,), 503, 3)]), metric=Metric.ZEND)
    )  # fmt: skip


def test_looks_that_saw_more_than_was_there_at_the_end_leave_nothing_unsampled():
    builder = built((request(zend_used_end=503), [((MAIN,), 1_009, 3)]), metric=Metric.ZEND)

    builder.finish()

    assert (builder.unsampled, builder.given_back) == (0, 506)


def test_growth_of_zends_heap_of_which_the_end_is_unknown_is_what_was_seen():
    assert tree((request(zend_used_end=None), [((MAIN,), 503, 3)]), metric=Metric.ZEND)["/index.php"] == 503


@pytest.mark.parametrize("metric", [Metric.RSS, Metric.MAPPED])
def test_only_zends_heap_is_known_to_have_been_unsampled(metric):
    assert tree((request(zend_used_end=1_009), [((MAIN,), 503, 3)]), metric=metric)["/index.php"] == 503


def test_kept_bytes_are_shared_out_in_proportion_to_added_bytes():
    grown = [((MAIN,), 700, 3), ((MAIN, FIND), 300, 5), ((NO_PHP,), -5_003, 7)]
    builder = built((keeps(97), grown), retained=True)

    root = builder.finish()

    assert {node.label: node.own for node in every(root).values() if node.own} == {
        "<main> index.php:3": 67, "Repo::find Repo.php:89": 30
    }  # fmt: skip
    assert (root.bytes, root.samples, builder.requests, builder.requests_kept) == (97, 8, 1, 1)


@PROPERTY
@given(st.integers(1, 1 << 40), st.lists(st.tuples(st.sampled_from(STACKS), st.integers(1, 1 << 40), st.just(1))))
def test_all_shares_together_are_what_was_kept(kept, grown):
    assert built((keeps(kept), grown), retained=True).finish().bytes == kept


@pytest.mark.parametrize(
    "one",
    [
        keeps(0),
        keeps(-101),
        uncounted(anon_end=None),
        uncounted(zend_real_before=None),
    ],
)
def test_a_request_that_kept_nothing_or_of_which_that_is_unknown_adds_nothing(one):
    builder = built((one, [((MAIN,), 503, 3)]), retained=True)

    assert (builder.finish().bytes, builder.requests, builder.requests_kept) == (0, 1, 0)


def test_bytes_kept_by_a_request_without_samples_are_not_sampled():
    builder = built((keeps(101), []), (keeps(103), [((MAIN,), -7, 1)]), retained=True)

    found = sizes(builder.finish())

    assert found["/index.php > /srv/www/index.php > [not sampled]"] == builder.unsampled == 204


def test_growth_stands_for_kept_bytes_where_allocations_were_not_counted():
    one = uncounted(anon_before=0, anon_end=97, zend_real_before=0, zend_real_end=0)

    assert built((one, [((MAIN,), 503, 3)]), retained=True).finish().bytes == 97


def test_bytes_that_a_later_request_freed_were_not_kept():
    one = keeps(1_009, native_released=906)

    assert built((one, [((MAIN,), 503, 3)]), retained=True).finish().bytes == 103


def test_only_requests_that_were_counted_kept_sampled_blocks():
    grew = uncounted(anon_before=0, anon_end=97, zend_real_before=0, zend_real_end=0)
    builder = built((grew, []), (keeps(1_009), [((MAIN,), 503, 3)]), metric=Metric.RETAINED, retained=True)

    assert (builder.finish().bytes, builder.requests_kept, builder.requests_counted) == (1_009, 1, 1)


@pytest.mark.parametrize("metric", [Metric.RETAINED, Metric.NATIVE])
def test_few_samples_stand_for_all_that_the_requests_of_their_script_kept(metric):
    kept = [keeps(1_072, nth=nth) for nth in range(1, 8)]
    grown = [[], [((MAIN, FIND), 8_193, 1)], [], [((MAIN, FIND), 8_193, 1), ((MAIN, QUERY), 8_193, 1)], [], [], []]
    builder = built(*zip(kept, grown, strict=True), metric=metric, retained=True)

    root = builder.finish()

    assert {node.label: (node.own, node.own_samples) for node in every(root).values() if node.own} == {
        "Repo::find Repo.php:89": (5_002, 2), "PDO::query": (2_502, 1)
    }  # fmt: skip
    assert (root.bytes, builder.requests_kept, builder.unsampled) == (7 * 1_072, 7, 0)


def test_bytes_that_one_request_of_a_script_frees_of_another_are_not_kept():
    builder = built(
        (keeps(1_009), [((MAIN, FIND), 8_193, 1)]),
        (keeps(-1_007), []),
        (keeps(-5, uri="/other"), [((MAIN,), 8_193, 1)]),
        metric=Metric.RETAINED,
        retained=True,
    )

    assert {node.label: node.own for node in every(builder.finish()).values() if node.own} == {
        "Repo::find Repo.php:89": 2
    }


def test_a_script_that_kept_bytes_of_which_none_was_sampled_says_so():
    builder = built((keeps(101), []), metric=Metric.RETAINED, retained=True)

    found = sizes(builder.finish())

    assert found["/index.php > /srv/www/index.php > [not sampled]"] == builder.unsampled == 101


def test_blocks_of_requests_that_were_not_counted_do_not_grow_what_others_kept():
    one = uncounted(anon_before=0, anon_end=1_009, zend_real_before=0, zend_real_end=0)
    builder = built((one, [((MAIN,), 503, 3)]), (keeps(97), []), metric=Metric.RETAINED, retained=True)

    assert (builder.finish().bytes, builder.requests, builder.requests_counted) == (97, 2, 1)


@PROPERTY
@given(st.lists(st.tuples(st.integers(-997, 997), GROWN, st.sampled_from(("/a", "/b"))), max_size=13))
def test_each_script_has_the_bytes_that_its_requests_kept_together(requests):
    builder = built(
        *((keeps(kept, uri=uri), [one for one in grown if one[1] > 0]) for kept, grown, uri in requests),
        metric=Metric.RETAINED, retained=True,
    )  # fmt: skip

    found = sizes(builder.finish())

    for route in ("/a", "/b"):
        assert found.get(route, 0) == max(0, sum(kept for kept, _, uri in requests if uri == route))


def test_bytes_whose_stack_could_not_be_read_to_its_end_or_was_lost_are_counted():
    grown = [((UNREADABLE, FIND), 101, 1), ((UNREADABLE,), 2, 1), ((STACK_LOST,), 103, 1), ((MAIN, STACK_LOST), 107, 1),
             ((TRUNCATED, FIND), 109, 1)]  # fmt: skip
    builder = built((request(), grown))

    builder.finish()

    assert builder.unreadable == 313


def test_bytes_of_a_lost_stack_within_an_unreadable_one_are_counted_once():
    builder = built((request(), [((UNREADABLE, STACK_LOST, FIND), 101, 1), ((MAIN, STACK_LOST, UNREADABLE), 7, 1)]))

    builder.finish()

    assert builder.unreadable == 108


def test_a_difference_has_the_bytes_before_and_after():
    builder = difference([(request(), [((MAIN, FIND), 101, 3), ((MAIN,), 7, 1)])], [(request(), [((MAIN,), 13, 5)])])

    root = builder.finish()

    assert {node.label: (node.before, node.bytes) for node in (root, *every(root).values())} == {
        "all": (108, 13), "/index.php": (108, 13), SCRIPT: (108, 13), "<main> index.php:3": (108, 13),
        "Repo::find Repo.php:89": (101, 0),
    }  # fmt: skip
    assert root.samples == 5


def test_bytes_before_are_scaled_to_as_many_requests_as_after():
    builder = difference([(request(), [((MAIN,), 30, 1)])] * 3, [(request(), [((MAIN,), 7, 1)])] * 2)

    root = builder.finish()

    assert (root.before, root.bytes) == (60, 14)
    assert (builder.requests_before, builder.requests) == (3, 2)


def test_memory_only_given_back_before_was_nothing_before():
    root = difference([(request(), [((FIND,), -30, 1), ((QUERY,), 7, 1)])], [(request(), [((FIND,), 7, 1)])]).finish()

    assert root.before == 7
    assert {node.label: node.before for node in every(root).values() if node.kind is Kind.USER} == {
        "Repo::find Repo.php:89": 0
    }


def test_a_difference_to_an_empty_recording_is_all_gone():
    root = difference([(request(), [((MAIN,), 30, 1)])], []).finish()

    assert (root.before, root.bytes) == (30, 0)
    assert root.children != {}


def test_a_difference_from_an_empty_recording_is_all_new():
    root = difference([], [(request(), [((MAIN,), 7, 1)])]).finish()

    assert {(node.before, node.bytes) for node in (root, *every(root).values())} == {(0, 7)}


def test_bytes_of_unreadable_stacks_in_a_difference_are_the_greater_of_both_sides():
    before = [((STACK_LOST,), 103, 1), ((MAIN, UNREADABLE), 2, 1)]
    builder = difference([(request(), before)], [(request(), [((STACK_LOST,), 7, 1), ((MAIN, UNREADABLE), 11, 1)])])

    builder.finish()

    assert builder.unreadable == 114


def test_requests_of_the_recording_compared_with_are_not_among_those_that_kept_something():
    grown = [((MAIN,), 7, 1)]

    builder = difference(
        [(keeps(97), grown), (keeps(89), grown)], [(keeps(83), grown), (keeps(0), grown)], retained=True
    )

    assert (builder.requests_before, builder.requests, builder.requests_kept) == (2, 2, 1)


def test_a_flame_without_a_difference_has_no_before():
    root = built((request(), [((MAIN,), 30, 1)])).finish()

    assert {node.before for node in (root, *every(root).values())} == {None}


def test_nothing_is_a_root_alone():
    root = built().finish()

    assert (root.bytes, root.children) == (0, {})


def test_a_stack_of_5003_frames_is_a_path():
    root = built((request(), [((MAIN, *[FIND] * 5002), 7, 1)])).finish()

    depth, node = 0, root
    while node.children:
        [node] = node.children.values()
        depth += 1
    assert (depth, node.own, root.bytes) == (5005, 7, 7)


def test_a_script_that_two_containers_have_is_two_nodes():
    grown = [(request(**place._asdict()), [((MAIN,), size, 1)]) for place, size in ((SHOP, 7), (BLOG, 11), (SHOP, 13))]

    assert {path: size for path, size in tree(*grown).items() if "main" not in path} == {
        "/index.php": 31,
        f"/index.php > shop: {SCRIPT}": 20,
        f"/index.php > blog: {SCRIPT}": 11,
    }


def test_a_container_that_was_made_anew_is_compared_by_its_name():
    old = [(request(**place._asdict()), [((MAIN,), 7, 1)]) for place in (SHOP, BLOG)]
    new = [(request(**place._replace(container_id="77" * 32)._asdict()), [((MAIN,), 11, 1)]) for place in (SHOP, BLOG)]

    found = difference(old, new).finish()

    scripts = {path: (node.before, node.bytes) for path, node in every(found).items() if node.kind is Kind.SCRIPT}
    assert scripts == {f"/index.php > {name}: {SCRIPT}": (7, 11) for name in ("shop", "blog")}
