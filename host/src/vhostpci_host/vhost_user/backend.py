# SPDX-License-Identifier: Apache-2.0
"""The back-end of the vhost-user protocol, without any input or output.

Theory of operation.  `receive` takes one message and returns what the caller must do.
An `Answer` has the bytes to send back, which may be none.  A `Quiesce` names rings that
the slave's agent must stop touching before there is an answer: the caller stops the
agent, and then calls `resume`; until then it must not pass in another message.  A
message that breaks the protocol raises ProtocolError, and the caller closes the
connection.  If the front-end asked for an acknowledgement, the message is instead
answered with a refusal, and the connection goes on, unless it is a confined master's
and its memory was refused.  It goes on, too, if only the rings cannot be served: then
they do not run.

`HANDLERS` has one handler for each request, which is named like the request.  The
handlers are in one file for each subject: negotiation, the device as a whole, memory,
vrings.  All of them change one `FrontEndSetup`, which the device reads.  A handler that
may have to wait is a generator that yields its Quiesce.  So a whole session runs in a
test as a list of calls.
"""

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any

from vhostpci_shared import vhost_user as vu
from vhostpci_shared.errors import Said
from vhostpci_shared.position import Position
from vhostpci_shared.vhost_user import ProtocolFeature, Request
from vhostpci_shared.virtio import Feature
from vhostpci_shared.wire import ProtocolError

from ..features import OFFERED
from ..memory.regions import Windows
from . import device_requests, memory_requests, negotiation, vring_requests
from .front_end_setup import FrontEndSetup, Quiesce, Steps
from .message import Message
from .vring import NOT_ALL_SHARED, Unservable


@dataclass(frozen=True, slots=True)
class Answer:
    """The reply to send, if one is due; and why the request was refused, if it was."""

    reply: bytes = b""
    refusal: str = ""


class Backend:
    """Serve the requests of one front-end, from its connect to its disconnect.

    Args:
        queue_pairs: how many the device has; with several it offers multiqueue.
        windows: the windows in which the front-end's memory may lie.
        position, origin, offer, confined, outside: see `FrontEndSetup`.
    """

    def __init__(
        self,
        queue_pairs: int,
        windows: Windows,
        position: Callable[[int], Position] = lambda _: Position(),
        origin: Callable[[int], int] = lambda _: 0,
        offer: Callable[[], Feature] = lambda: OFFERED,
        *,
        confined: bool = False,
        outside: str = NOT_ALL_SHARED,
    ) -> None:
        self.setup = FrontEndSetup(
            *(queue_pairs, windows, position, origin, offer),
            confined=confined,
            outside=outside,
        )
        self._pending: Generator[Quiesce, None, Answer] | None = None

    @property
    def waiting(self) -> bool:
        """Whether a Quiesce is not yet answered by `resume`."""
        return self._pending is not None

    def receive(self, message: Message) -> Answer | Quiesce:
        """Serve one message, whose descriptors the back-end takes over.

        Raises:
            ProtocolError: the front-end broke the protocol: close its connection.
        """
        assert not self.waiting, "a message before the last one's answer"
        self._pending = self._serve(message)
        return self.resume()

    def resume(self) -> Answer | Quiesce:
        """Go on with the message: the agent has stopped the rings of the last Quiesce.

        Raises:
            ProtocolError: the front-end broke the protocol: close its connection.
        """
        assert self._pending is not None, "nothing is waiting"
        # Nothing is pending while the message is served: if it raises, none stays.
        steps, self._pending = self._pending, None
        try:
            quiesce = next(steps)
        except StopIteration as end:
            answer: Answer = end.value
            return answer
        self._pending = steps
        return quiesce

    def close(self) -> None:
        """Release everything, because the front-end is gone."""
        # A message that waits still has descriptors; to end its generator closes them.
        if self._pending is not None:
            self._pending.close()
            self._pending = None
        self.setup.close()

    def _serve(self, message: Message) -> Generator[Quiesce, None, Answer]:
        header = message.header
        # Close the descriptors that the handler did not take, however it ends.
        with message:
            try:
                payload = yield from self._dispatch(message)
            except ProtocolError as error:
                text = Said(f"{header.name}: {error}", error.code)
                if self._must_end(header, error):
                    raise ProtocolError(text, code=error.code) from error
                if not self._wants_ack(header):
                    return Answer(refusal=text)
                return Answer(vu.reply(header.request, vu.U64(1)), text)
        if payload is None and self._wants_ack(header):
            payload = vu.U64(0)
        return Answer(b"" if payload is None else vu.reply(header.request, payload))

    def _must_end(self, header: vu.Header, error: ProtocolError) -> bool:
        """Whether the connection ends because of a request that is refused."""
        if isinstance(error, Unservable):
            return False
        # Without an acknowledgement the front-end would go on as if the request had
        # worked.
        return not self._wants_ack(header) or self.setup.has_to_go

    def _dispatch(self, message: Message) -> Steps:
        try:
            request = Request(message.header.request)
            handler = HANDLERS[request]
        except (ValueError, KeyError):
            raise ProtocolError("a request that we don't offer", code="P045") from None
        payload = message.parse(vu.SHAPES[request])
        if request is not Request.SET_VRING_ENABLE:
            yield from self.setup.finish_disabling()
        result = handler(self.setup, payload, message)
        if isinstance(result, Generator):
            result = yield from result
        return result

    def _wants_ack(self, header: vu.Header) -> bool:
        """Whether the front-end waits for an acknowledgement: 0, or not 0."""
        # Call this after the request is served: User Mode Linux asks for an
        # acknowledgement with the very SET_PROTOCOL_FEATURES that negotiates REPLY_ACK.
        # A request that always has a reply gets that one reply only.
        acks = ProtocolFeature.REPLY_ACK in self.setup.protocol_features
        return acks and header.need_reply and header.request not in vu.REPLIES


HANDLERS: dict[
    Request, Callable[[FrontEndSetup, Any, Message], vu.Payload | Steps | None]
] = {
    Request.GET_FEATURES: negotiation.get_features,
    Request.SET_FEATURES: negotiation.set_features,
    Request.SET_OWNER: device_requests.set_owner,
    Request.RESET_OWNER: device_requests.reset_owner,
    Request.SET_MEM_TABLE: memory_requests.set_mem_table,
    Request.SET_VRING_NUM: vring_requests.set_vring_num,
    Request.SET_VRING_ADDR: vring_requests.set_vring_addr,
    Request.SET_VRING_BASE: vring_requests.set_vring_base,
    Request.GET_VRING_BASE: vring_requests.get_vring_base,
    Request.SET_VRING_KICK: vring_requests.set_vring_kick,
    Request.SET_VRING_CALL: vring_requests.set_vring_call,
    Request.SET_VRING_ERR: vring_requests.set_vring_err,
    Request.GET_PROTOCOL_FEATURES: negotiation.get_protocol_features,
    Request.SET_PROTOCOL_FEATURES: negotiation.set_protocol_features,
    Request.GET_QUEUE_NUM: negotiation.get_queue_num,
    Request.SET_VRING_ENABLE: vring_requests.set_vring_enable,
    Request.SEND_RARP: device_requests.send_rarp,
    Request.NET_SET_MTU: device_requests.net_set_mtu,
    Request.SET_BACKEND_REQ_FD: device_requests.set_backend_req_fd,
    Request.RESET_DEVICE: device_requests.reset_device,
    Request.GET_MAX_MEM_SLOTS: memory_requests.get_max_mem_slots,
    Request.ADD_MEM_REG: memory_requests.add_mem_reg,
    Request.REM_MEM_REG: memory_requests.rem_mem_reg,
}
