"""Frames: what stands around methods, headers and bodies on the wire."""

from __future__ import annotations

from collections.abc import Iterator

from pamqp import commands, frame
from pamqp.base import Frame

from evworker.broker.embedded.content import BASIC_CLASS, Content
from evworker.broker.embedded.refusals import Code, Refusal

METHOD, HEADER, BODY, HEARTBEAT = 1, 2, 3, 8

FRAME_HEADER = 7
"""Bytes before the payload: its type, its channel, its size."""

FRAME_END = 0xCE
FRAME_OVERHEAD = FRAME_HEADER + 1

_START = BASIC_CLASS.to_bytes(2) + b"\x00\x00"


def decoded_method(payload: bytes) -> Frame:
    """The method that a frame carries. Raises Refusal if it is none."""
    kind: type[Frame] | None = commands.INDEX_MAPPING.get(int.from_bytes(payload[:4]))
    if kind is None:
        raise Refusal(Code.COMMAND_INVALID, "unknown method")
    method = kind.__new__(kind)  # its arguments are what comes
    try:
        method.unmarshal(payload[4:])
    except Exception as error:  # whatever bytes make pamqp raise
        raise Refusal(Code.FRAME_ERROR, f"cannot decode {payload[4:24]!r}") from error
    return method


def frames_of(
    number: int, method: Frame, content: Content | None, body: bytes, *, frame_max: int
) -> Iterator[bytes]:
    """A method for a channel, and the message that belongs to it."""
    yield frame.marshal(method, number)
    if content is not None:
        yield _framed(HEADER, number, _START + len(body).to_bytes(8) + content.raw)
        room = frame_max - FRAME_OVERHEAD
        for at in range(0, len(body), room):
            yield _framed(BODY, number, body[at : at + room])


def _framed(kind: int, number: int, payload: bytes) -> bytes:
    head = bytes((kind,)) + number.to_bytes(2) + len(payload).to_bytes(4)
    return b"".join((head, payload, b"\xce"))
