# SPDX-License-Identifier: Apache-2.0
"""Pings of which none may be lost, on a machine that may be busy.

With -c alone, ping waits for the last reply for an interval, or as long as two round
trips took: too short where this process, or what replies, waits for a processor.  With
-w as well it sends until it has all replies, or its time is over.  So none is lost if
the replies that came have no number missing between them.
"""

import re
import signal

from tests.process.program import Program
from tests.vm.traffic import reports
from tests.waiting import wait_for

PATIENT = ("-w", "60")
"""Words by which ping has time for the last reply."""


def ping(count: int, *options: str) -> tuple[str, ...]:
    """Return a command that pings until so many replies came: all but one at once.

    The last one comes when everything has fallen asleep again.  With options that say
    more, none are sent together: large ones might not find room.
    """
    together = () if options else ("-i", "0.2", "-l", str(max(count - 1, 1)))
    basis = ("ping", "-n", "-i", "0.1", *PATIENT)
    return (*basis, *together, "-c", str(count), *options)


def came_back(output: str, count: int) -> int:
    """Return how many of the first `count` came back, by what ping has printed."""
    assert " packets transmitted" in output, output
    answered = _answered(output)
    if len(answered) < count:
        return len(answered)
    return count - len(_missing(answered))


def unbroken(output: str) -> int:
    """Return how many came back; none that was sent before one of them may be missing.

    Some may have come twice: a packet that was sent, but not yet reported as used, is
    sent again when another agent goes on.
    """
    answered = _answered(output)
    assert not _missing(answered), f"lost: {sorted(_missing(answered))}\n{output}"
    return len(answered)


def lost(output: str) -> int:
    """Return how many were lost: a later one came back, and they did not."""
    return len(_missing(_answered(output)))


def wait_late_replies(pings: Program) -> None:
    """Wait until a ping without an end has a reply to what it sends after this.

    Where many replies come at once, as after a pause, it may have yet to read them.
    """
    before = len(reports(pings.log))
    pings.send(signal.SIGQUIT)  # it reports how many it has sent
    wait_for(lambda: len(reports(pings.log)) > before, lambda: pings.log)
    sent = reports(pings.log)[-1]
    wait_for(lambda: max(_answered(pings.log), default=0) > sent, lambda: pings.log)


def _answered(output: str) -> set[int]:
    found = re.findall(r"bytes from .*icmp_seq=(\d+)", output)
    return {int(number) for number in found}


def _missing(answered: set[int]) -> set[int]:
    return set(range(1, max(answered, default=0))) - answered
