"""Events: immutable, typed, and sure of their topic and version."""

import pytest

from evworker.broker import ConfigurationError, Envelope, Event, InvalidEventError
from evworker.broker import InvalidTopicError as TopicError


class OrderPlaced(Event, topic="orders.placed", version=2):
    order_id: str
    total: int = 0


class Cancelled(OrderPlaced, topic="orders.cancelled"):
    why: str = ""


class PlacedAgain(OrderPlaced, version=3):
    pass


class Family(Event):
    shared: str


class Member(Family, topic="family.member"):
    own: int


def test_an_event_knows_its_topic_and_version() -> None:
    assert OrderPlaced.__topic__ == "orders.placed"
    assert OrderPlaced.__version__ == 2
    assert OrderPlaced(order_id="42").__topic__ == "orders.placed"


def test_a_new_topic_starts_at_version_1() -> None:
    assert (Cancelled.__topic__, Cancelled.__version__) == ("orders.cancelled", 1)


def test_a_subclass_without_topic_inherits_it() -> None:
    assert (PlacedAgain.__topic__, PlacedAgain.__version__) == ("orders.placed", 3)
    assert OrderPlaced.__version__ == 2


def test_a_family_shares_fields_through_a_parent_without_topic() -> None:
    member = Member(shared="s", own=1)
    assert (member.shared, member.own, Member.__topic__) == ("s", 1, "family.member")
    assert Family.__topic__ == ""


def test_an_event_can_not_be_changed() -> None:
    event = OrderPlaced(order_id="42")
    with pytest.raises(AttributeError, match="immutable"):
        event.order_id = "43"  # type: ignore[misc]
    assert event == OrderPlaced(order_id="42")
    assert hash(event) == hash(OrderPlaced(order_id="42"))


def test_an_event_type_can_not_be_declared_mutable() -> None:
    with pytest.raises(ConfigurationError, match="Mutable can't be mutable"):

        class Mutable(Event, topic="a", frozen=False):
            pass


def test_fields_are_given_by_name() -> None:
    with pytest.raises(TypeError, match="positional"):
        OrderPlaced("42")  # type: ignore[call-arg]


def test_a_field_may_be_called_topic_or_version() -> None:
    class Published(Event, topic="books.published", version=4):
        topic: str
        version: str

    event = Published(topic="gardening", version="second edition")
    envelope = Envelope.wrap(event, source="test")
    assert (envelope.topic, envelope.version) == ("books.published", 4)
    assert envelope.decode(Published) == event


def test_msgspecs_own_options_still_work() -> None:
    class Renamed(Event, topic="a", rename="camel", forbid_unknown_fields=True):
        order_id: str

    envelope = Envelope.wrap(Renamed(order_id="1"), source="test")
    assert envelope.data == b'{"orderId":"1"}'
    with pytest.raises(InvalidEventError, match="unknown field `more`"):
        Envelope.parse(b'{"orderId":"1","more":1}', topic="a").decode(Renamed)


@pytest.mark.parametrize("topic", ["", "a..b", "a.*", "#", "orders placed", 7])
def test_an_invalid_topic_is_refused_in_the_class_statement(topic: str) -> None:
    with pytest.raises(TopicError, match="topic"):

        class Wrong(Event, topic=topic):
            pass


@pytest.mark.parametrize("version", [0, -1, "2", 1.5])
def test_an_invalid_version_is_refused_in_the_class_statement(version: int) -> None:
    with pytest.raises(ConfigurationError, match="a version is a number from 1 up"):

        class Wrong(Event, topic="a", version=version):
            pass


def test_an_event_without_topic_can_not_be_put_into_an_envelope() -> None:
    with pytest.raises(InvalidEventError, match=r"Family has no topic .* class Family\(Event"):
        Envelope.wrap(Family(shared="s"), source="test")
