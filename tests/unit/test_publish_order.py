from worker.publish.order import OrderCounter


def test_events_of_one_time_are_counted_for_each_document() -> None:
    order: OrderCounter[str] = OrderCounter()
    assert order.next(5, "a", "db.x", b"1") == 0
    assert order.next(5, "b", "db.x", b"2") == 0
    assert order.next(5, "c", "db.x", b"1") == 1
    assert order.next(5, "d", "db.y", b"1") == 0
    assert order.next(6, "e", "db.x", b"1") == 0


def test_counting_goes_on_across_batches() -> None:
    order: OrderCounter[str] = OrderCounter()
    assert order.next(5, "a", "db.x", b"1") == 0
    order.batch_ended(5, "a")
    assert order.next(5, "b", "db.x", b"1") == 1


def test_no_token_inside_a_cluster_time_is_safe() -> None:
    order: OrderCounter[str] = OrderCounter()
    order.next(5, "a", "db.x", b"1")
    order.batch_ended(5, "a")
    assert order.safe is None
    order.next(5, "b", "db.x", b"2")
    order.next(6, "c", "db.x", b"1")
    assert order.safe == "b"
    order.control(7, "d")
    assert order.safe == "c"


def test_the_token_after_a_batch_is_safe_when_time_has_passed() -> None:
    order: OrderCounter[str] = OrderCounter()
    order.batch_ended(4, "idle")
    assert order.safe == "idle"
    order.next(5, "a", "db.x", b"1")
    assert order.safe == "idle"
    order.batch_ended(5, "a")
    assert order.safe == "idle"
    order.batch_ended(6, "later")
    assert order.safe == "later"
    assert order.next(7, "b", "db.x", b"1") == 0


def test_a_resumed_stream_gives_the_same_orders_from_every_safe_token() -> None:
    times = [1, 2, 2, 2, 3, 4, 4, 4, 4, 5]
    documents = [b"1", b"1", b"2", b"1", b"1", b"2", b"2", b"1", b"2", b"1"]
    order: OrderCounter[int] = OrderCounter()
    expected: list[int] = []
    safe: set[int] = set()
    for place, (time, key) in enumerate(zip(times, documents, strict=True)):
        expected.append(order.next(time, place, "db.x", key))
        if order.safe is not None:
            safe.add(order.safe)
    assert safe == {0, 3, 4, 8}
    for start in safe:
        again: OrderCounter[int] = OrderCounter()
        for place in range(start + 1, len(times)):
            assert again.next(times[place], place, "db.x", documents[place]) == expected[place]
