"""The fast lane: deliveries and confirms read straight off the byte stream.

::

    frames.py           a byte stream, taken apart into frames            pure
    tap.py              sits on the socket, and leaves the rest to aiormq
    consuming.py        deliveries, on settling.py                        pure
    publishing.py       publishes, many in one write
    confirms.py         and what the broker says of each                  pure
    content_header.py   properties, decoded when they are asked for       pure
    switch.py           EVWORKER_FAST_LANE=0 leaves everything to aiormq

It can mean nothing else than the library does: the tests that talk to a broker run on both.
"""
