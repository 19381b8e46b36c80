# SPDX-License-Identifier: Apache-2.0
"""Frames of text on a terminal's alternate screen, or one below the other without it.

The terminal is put back as it was, however this ends: by `q`, Ctrl-C, SIGTERM, or an
error.  A signal's handler only wakes the loop: the loop does the rest.
"""

import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType

from .terminal import AUTO, Terminal

Frame = Callable[[Terminal], list[str]]
"""Makes the lines of one frame."""

# ECMA-48 and xterm: the alternate screen, the cursor's visibility, and its place.
_ENTER, _LEAVE = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"
_HOME, _CLEAR_LINE, _CLEAR_BELOW = "\x1b[H", "\x1b[K", "\x1b[J"
# Not Escape: an arrow key sends it, too.
_QUIT = (b"q", b"Q", b"\x03", b"\x04")
_END = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_REDRAW = (signal.SIGWINCH, signal.SIGCONT)


def run(frame: Frame, interval: float, count: int | None, color: str = AUTO) -> None:
    """Show frames until the user ends it.

    Args:
        frame: makes each of them.
        interval: seconds between two.
        count: after how many to end, printed one below the other; None: on the screen
            if there is one, without end.
        color: as of the option `--color`.
    """
    terminal = Terminal.of(color=color)
    if count is not None or terminal.width is None or not sys.stdin.isatty():
        _print(frame, interval, count, terminal)
    else:
        _show(frame, interval, color)


def _print(
    frame: Frame, interval: float, count: int | None, terminal: Terminal
) -> None:
    """Print frames one below the other."""
    shown = 0
    try:
        while count is None or shown < count:
            # The first one, too: a rate needs two looks.
            time.sleep(interval)
            lines = frame(terminal)
            print("\n".join([*([""] if shown else []), *lines]), flush=True)
            shown += 1
    except KeyboardInterrupt:
        return  # the usual end


def _show(frame: Frame, interval: float, color: str) -> None:
    with ExitStack() as undo:
        wake, ended = undo.enter_context(_signals())
        set_keys = undo.enter_context(_screen())
        due, empty = 0.0, 0
        lines: list[str] = []
        while not ended():
            now = time.monotonic()
            terminal = Terminal.of(color=color)
            if now >= due:
                lines, due = frame(terminal), now + interval
            _draw(lines, terminal)
            ready, _, _ = select.select([sys.stdin, wake], (), (), due - now)
            if sys.stdin in ready:
                key = os.read(sys.stdin.fileno(), 1)
                # Nothing, twice: the terminal is gone.
                empty = 0 if key else empty + 1
                if empty > 1 or key in _QUIT:
                    return
            if wake in ready:
                wake.recv(4096)
                # The window has another size, or we go on after Ctrl-Z.
                set_keys()
                due = 0.0


def _draw(lines: list[str], terminal: Terminal) -> None:
    """Write one frame over the one before, without flicker."""
    rows = os.get_terminal_size(sys.stdout.fileno()).lines or 24
    shown = lines[: rows - 1]
    if len(shown) < len(lines):
        shown[-1:] = [f"... and {len(lines) - rows + 2} lines more"]
    text = "".join(f"{line}{_CLEAR_LINE}\r\n" for line in shown)
    sys.stdout.write(f"{_HOME}{text}{_CLEAR_BELOW}")
    sys.stdout.flush()


@contextmanager
def _screen() -> Iterator[Callable[[], None]]:
    """Use the alternate screen, and take single keys; yield what sets both again."""
    # Here, as only a terminal needs it.
    import termios
    import tty

    stdin = sys.stdin.fileno()
    before = termios.tcgetattr(stdin)

    def enter() -> None:
        # Ctrl-C and Ctrl-Z stay signals.  At once, as what was typed is not thrown
        # away then: the loop may be about to read it.
        tty.setcbreak(stdin, termios.TCSANOW)
        # Ctrl-C throws away what was typed, behind the back of who is about to read it:
        # no read may wait.
        mode = termios.tcgetattr(stdin)
        mode[6][termios.VMIN] = 0
        termios.tcsetattr(stdin, termios.TCSANOW, mode)
        sys.stdout.write(_ENTER)
        sys.stdout.flush()

    try:
        enter()
        yield enter
    finally:
        sys.stdout.write(_LEAVE)
        sys.stdout.flush()
        termios.tcsetattr(stdin, termios.TCSADRAIN, before)


@contextmanager
def _signals() -> Iterator[tuple[socket.socket, Callable[[], bool]]]:
    """Yield a socket that is readable after a signal, and what says whether to end."""
    ending = False

    def end(_number: int, _frame: FrameType | None) -> None:
        nonlocal ending
        ending = True

    def redraw(_number: int, _frame: FrameType | None) -> None:
        """Nothing: the socket wakes the loop."""

    read, write = socket.socketpair()
    with ExitStack() as undo:
        undo.enter_context(read)
        undo.enter_context(write)
        write.setblocking(False)
        undo.callback(signal.set_wakeup_fd, signal.set_wakeup_fd(write.fileno()))
        for number in _END:
            undo.callback(signal.signal, number, signal.signal(number, end))
        for number in _REDRAW:
            undo.callback(signal.signal, number, signal.signal(number, redraw))
        yield read, lambda: ending
