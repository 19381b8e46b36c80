# SPDX-License-Identifier: Apache-2.0
"""The status socket: it answers each connection with one JSON text, and closes it.

A client that has bound its socket to a name of `ASKS` asks something else than the
status: it sends one line with a JSON object, and its answer is one with the key
`result` or `error`.  An agent that does not know that answers with its status, so the
client sees that the agent is of an earlier version.

The agent's loop sends an answer, and must not wait for the client: that loop serves
every device.  An answer may be longer than the socket's buffer (212992 bytes by
default), and the client may be stopped by Ctrl-Z or a debugger.  So what does not fit
is sent in later rounds of the loop, up to a time limit.
"""

import json
import logging
import os
import select
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from vhostpci_shared.errors import Said, code_of, with_code
from vhostpci_shared.listening_socket import listen

from .errors import Refused, Unusable
from .held import Held

log = logging.getLogger(__name__)

RUN_DIR = Path("/run/vhostpci-guest")
_SUFFIX = ".sock"
_TIMEOUT = 1.0
"""Seconds that `ask` waits for the next bytes; the loop sends within milliseconds."""
RELOAD_TIMEOUT = 30.0
"""The same for `reload`: a helper may have to load a module, or to change many TAPs."""
ANSWER_TIME = 5.0
"""Seconds in which a client must read its whole answer, so that it is freed again."""
ASKS = "vhostpci-guest.asks."
"""How the abstract name of a client begins that asks for something by a line."""
LONGEST = 4096
"""Bytes of such a line."""
_MOST_FDS = 32
"""Descriptors in an answer: one for each queue pair."""
_BACKLOG = 128
MAX_ANSWERS = 16
"""How many answers may be under way; further clients wait in the socket's backlog."""

Status = list[dict[str, Any]]
Json = dict[str, Any]
Ask = Callable[[Json], Json | Held]
"""Answers a request; raises `Refused` with the reason if it cannot."""


def refuse_all(request: Json) -> Json:
    """Answer no request: the default of a `Control`."""
    raise Refused(f"no command {request.get('command')!r}", code="G109")


_ASKS = b"\0" + ASKS.encode()


class _Question:
    """A client that has not sent its whole line yet."""

    def __init__(self, connection: socket.socket, until: float) -> None:
        connection.setblocking(False)
        self.connection = connection
        self.until = until
        self._line = bytearray()

    def line(self, now: float) -> bytes | None:
        """Return the line when it is there; None before.

        Raises:
            OSError: it will never come.
        """
        with suppress(BlockingIOError):
            piece = self.connection.recv(LONGEST)
            self._line += piece
            if self._line.endswith(b"\n") and len(self._line) <= LONGEST:
                return bytes(self._line)
            if not piece or len(self._line) > LONGEST:
                raise OSError("it sent no line")
        if now >= self.until:
            raise OSError("it did not send its line in time")
        return None


class _Answer:
    """The rest of an answer that a client has not read yet."""

    def __init__(self, connection: socket.socket, text: bytes, until: float) -> None:
        connection.setblocking(False)
        self.connection = connection
        self.until = until
        self._rest = memoryview(text)

    def send(self, now: float) -> bool:
        """Send what fits into the socket's buffer; return whether the answer is over.

        It is over when everything is sent, the client is gone, or its time has passed.
        """
        try:
            # Repeated until the buffer is full: the kernel may take only a part even
            # where it has room for more.
            while self._rest:
                self._rest = self._rest[self.connection.send(self._rest) :]
        except BlockingIOError:
            if now < self.until:
                return False
            log.warning(
                "a client of the status socket did not read its answer within %g s: "
                "the last %d bytes are not sent",
                ANSWER_TIME,
                len(self._rest),
            )
        except OSError as error:
            # The user may end the client at any time, as with `status | head -1`.
            log.debug("a client of the status socket is gone: %s", error.strerror)
        return True


class Control:
    """Answers `vhostpci-guest status`.

    Args:
        directory: where the socket is made; created with mode 0700 if it is missing.
        now: a monotonic clock, in seconds.
        remove: removes the socket at the end, by which time only root may.

    Raises:
        OSError: the directory or the socket cannot be made.
    """

    def __init__(
        self,
        directory: Path = RUN_DIR,
        now: Callable[[], float] = time.monotonic,
        remove: Callable[[], None] | None = None,
    ) -> None:
        self._now = now
        self._answers: list[_Answer] = []
        self._questions: list[_Question] = []
        self._held: list[tuple[socket.socket, Held]] = []
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Remove the sockets of agents that were killed.
        for path in directory.glob(f"*{_SUFFIX}"):
            with suppress(OSError), socket.socket(socket.AF_UNIX) as sock:
                _connect(sock, path)
        self._path = path_of(os.getpid(), directory)
        self._undo = ExitStack()
        with ExitStack() as undo:
            unlink = partial(self._path.unlink, missing_ok=True)
            # Cleared: that of an earlier process with our PID.
            self._socket = undo.enter_context(
                listen(self._path, unlink, mode=0o600, backlog=_BACKLOG)
            )
            undo.callback(remove or unlink)
            self._undo = undo.pop_all()

    def events(self) -> Iterator[tuple[int, int]]:
        """Return the descriptors to poll for `look`, each with its poll() events."""
        # Not polled while `look` would accept nothing: the loop would never sleep.
        if self._has_room:
            yield self._socket.fileno(), select.POLLIN
        for question in self._questions:
            yield question.connection.fileno(), select.POLLIN
        for connection, _ in self._held:
            yield connection.fileno(), select.POLLIN
        for answer in self._answers:
            yield answer.connection.fileno(), select.POLLOUT

    @property
    def _has_room(self) -> bool:
        busy = len(self._answers) + len(self._held)
        return busy + len(self._questions) < MAX_ANSWERS

    def look(self, status: Callable[[], Status], ask: Ask = refuse_all) -> None:
        """Answer the connections that have arrived, and go on with earlier answers.

        Args:
            status: returns what a client without a name is told.
            ask: answers what a client with a name asks.
        """
        while self._has_room:
            try:
                connection, address = self._socket.accept()
            except BlockingIOError:
                break
            if isinstance(address, bytes) and address.startswith(_ASKS):
                until = self._now() + ANSWER_TIME
                self._questions.append(_Question(connection, until))
            else:
                self._answer(connection, status())
        for question in list(self._questions):
            self._read(question, ask)
        for connection, held in list(self._held):
            if held.is_over() or _has_ended(connection):
                self._held.remove((connection, held))
                _let_go(connection, held)
        for answer in list(self._answers):
            if answer.send(self._now()):
                self._answers.remove(answer)
                answer.connection.close()

    def _answer(self, connection: socket.socket, said: Status | Json) -> None:
        text = json.dumps(said).encode()
        self._answers.append(_Answer(connection, text, self._now() + ANSWER_TIME))

    def _read(self, question: _Question, ask: Ask) -> None:
        """Answer a question when its line is there."""
        try:
            line = question.line(self._now())
        except OSError as why:
            log.debug("a client of the status socket is gone: %s", why)
            self._questions.remove(question)
            question.connection.close()
            return
        if line is not None:
            self._questions.remove(question)
            reply = _reply(line, ask)
            if isinstance(reply, Held):
                self._hold(question.connection, reply)
            else:
                self._answer(question.connection, reply)

    def _hold(self, connection: socket.socket, held: Held) -> None:
        """Send an answer with descriptors, and wait for the client's end."""
        self._held.append((connection, held))
        line = json.dumps({"result": held.result}).encode() + b"\n"
        # It is short, and the first that this client is sent: it fits.
        with suppress(OSError):  # the client is gone, which the next look sees
            socket.send_fds(connection, [line], held.fds, socket.MSG_NOSIGNAL)

    def close(self) -> None:
        """Remove the socket, and end all answers."""
        for answer in self._answers:
            answer.connection.close()
        for question in self._questions:
            question.connection.close()
        while self._held:
            _let_go(*self._held.pop())
        self._undo.close()


def _has_ended(connection: socket.socket) -> bool:
    """Whether a client, which has nothing more to say, has closed its end."""
    try:
        return not connection.recv(LONGEST)
    except BlockingIOError:
        return False
    except OSError:
        return True


def _let_go(connection: socket.socket, held: Held) -> None:
    connection.close()
    held.end()


def _reply(line: bytes, ask: Ask) -> Json | Held:
    """Return the answer to one line."""
    try:
        request = json.loads(line)
    # RecursionError: json.loads() raises it for deeply nested brackets.
    except (ValueError, RecursionError):
        request = None
    if not isinstance(request, dict):
        why = Refused("a request is a line with one JSON object", code="G110")
        return {"error": str(why), "code": why.code}
    try:
        answer = ask(request)
        return answer if isinstance(answer, Held) else {"result": answer}
    except Refused as why:
        return {"error": str(why), "code": why.code}


def path_of(pid: int, directory: Path = RUN_DIR) -> Path:
    """Return the path of an agent's status socket."""
    return directory / f"{pid}{_SUFFIX}"


class Answers(NamedTuple):
    """What the agents of this machine have said of themselves."""

    links: Status
    """The status of all devices of the agents that answered."""
    problems: list[str]
    """For each agent that gave no status, why; with a code (`Said`)."""


def missing(problems: Sequence[str]) -> Unusable:
    """Return the error of a command to which not all agents have answered.

    Args:
        problems: at least one; each is a line.
    """
    *before, last = problems
    lines = [*(with_code(one, code_of(one)) for one in before), last]
    return Unusable("\nvhostpci-guest: ".join(lines), code=code_of(last))


def ask(directory: Path = RUN_DIR) -> Answers:
    """Ask all running agents for the status of their devices.

    An agent that hangs, or ends meanwhile, does not hide the others.

    Raises:
        Unusable: this user may not look into the directory of the agents' sockets.
    """
    answers = Answers([], [])
    for path in _sockets(directory):
        try:
            links = _ask(path)
        except (OSError, Unusable) as error:
            text = f"agent {path.stem}: {_reason(error)}"
            code = code_of(error) or "NEW"
            answers.problems.append(Said(text, code=code))
        else:
            answers.links.extend({"pid": int(path.stem), **link} for link in links)
    return answers


def agents(directory: Path = RUN_DIR) -> list[int]:
    """Return the process IDs of the agents that run, or were killed a moment ago.

    Raises:
        Unusable: this user may not look into the directory of the agents' sockets.
    """
    return [int(path.stem) for path in _sockets(directory)]


def request(
    pid: int, question: Json, directory: Path = RUN_DIR, timeout: float = _TIMEOUT
) -> Json:
    """Ask one agent something else than its status; return the result.

    Args:
        pid: of the agent.
        question: what it is asked.
        directory: of its socket.
        timeout: seconds to wait for the answer.

    Raises:
        Unusable: it refuses, is of an earlier version, or does not answer.
    """
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            _put(sock, pid, question, directory)
            sock.settimeout(timeout)
            return _result(pid, _parse(_all(sock)))
    except OSError as error:
        raise Unusable(f"agent {pid}: {_reason(error, timeout)}", code="G111") from None


def hold(
    pid: int, question: Json, directory: Path = RUN_DIR
) -> tuple[Json, list[int], socket.socket]:
    """Ask one agent for something that lasts as long as the connection.

    Returns:
        The result, descriptors, and the connection: all of these are the caller's.

    Raises:
        Unusable: it refuses, is of an earlier version, or does not answer.
    """
    text, fds = bytearray(), list[int]()
    with ExitStack() as undo:
        sock = undo.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        try:
            _put(sock, pid, question, directory)
            while not text.endswith(b"\n"):
                piece, more, _, _ = socket.recv_fds(sock, 65536, _MOST_FDS)
                for fd in more:
                    undo.callback(os.close, fd)
                fds += more
                if not piece:
                    break
                text += piece
        except OSError as error:
            raise Unusable(f"agent {pid}: {_reason(error)}", code="G112") from None
        result = _result(pid, _parse(text))
        undo.pop_all()
    return result, fds, sock


def _put(sock: socket.socket, pid: int, question: Json, directory: Path) -> None:
    """Connect to an agent, and send it a question."""
    # The kernel refuses a name that is taken, so it has a random part.
    sock.bind(_ASKS + os.urandom(8).hex().encode())
    if not _connect(sock, path_of(pid, directory)):
        raise Unusable(f"the agent with pid {pid} has ended", code="G113")
    # An agent of an earlier version may have answered and closed already.
    with suppress(BrokenPipeError):
        sock.sendall(json.dumps(question).encode() + b"\n")


def _result(pid: int, said: object) -> Json:
    """Return the result in an answer.

    Raises:
        Unusable: it is a refusal, or that of an agent of an earlier version.
    """
    match said:
        case {"result": dict(result)}:
            return result
        case {"error": str(why), "code": str(code)}:
            raise Unusable(why, code=code)
        case {"error": str(why)}:  # of an earlier version
            raise Unusable(why, code="")
    raise Unusable(
        f"the agent with pid {pid} is of an earlier version, which does not know this "
        "command: restart it",
        code="G114",
    )


def _sockets(directory: Path) -> list[Path]:
    # Path.glob() would find nothing in a directory that this user may not read, as if
    # no agent were running.
    try:
        names = os.listdir(directory)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise Unusable(
            f"cannot look into {directory}: {error.strerror}; run as root", code="G115"
        ) from None
    return [directory / name for name in sorted(names) if name.endswith(_SUFFIX)]


def _reason(error: OSError | Unusable, timeout: float | None = None) -> str:
    if isinstance(error, TimeoutError):
        seconds = _TIMEOUT if timeout is None else timeout
        return f"it does not answer within {seconds:g} s: it hangs, or is stopped"
    if isinstance(error, PermissionError):
        return "this user may not ask it; run as root"
    return str(error)


def _connect(sock: socket.socket, path: Path) -> bool:
    """Connect to an agent; remove the socket of one that was killed."""
    sock.settimeout(_TIMEOUT)
    try:
        sock.connect(str(path))
    except ConnectionRefusedError:
        path.unlink(missing_ok=True)
        return False
    return True


def _ask(path: Path) -> Status:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        if not _connect(sock, path):
            return []
        status: Status = _parse(_all(sock))
    return status


def _all(sock: socket.socket) -> bytearray:
    """Return what an agent sends until it closes the connection.

    Raises:
        TimeoutError: it has sent nothing.
    """
    text = bytearray()
    try:
        while piece := sock.recv(65536):
            text += piece
    except TimeoutError:
        if not text:
            raise
    except ConnectionResetError:
        pass  # the agent ended: what has arrived is not complete
    return text


def _parse(text: bytearray) -> Any:
    # The text is one JSON list or object: each part of it lacks the closing bracket,
    # and is not JSON, so a cut-off answer is never taken for a whole one.
    try:
        return json.loads(text)
    except ValueError:
        raise Unusable(
            f"its answer is cut off after {len(text)} bytes, because the "
            "agent ended or the answer took too long; ask again",
            code="G116",
        ) from None
