# SPDX-License-Identifier: Apache-2.0
"""What the tests of a file share, and how the next test gets an intact one."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Generic, Self, TypeVar

T = TypeVar("T")


class Shared(Generic[T]):
    """Something that is started once, and again after a test that has changed it.

    Args:
        start: starts one; it ends with the block.
        unchanged: fails after a block that does not leave one as it found it.
    """

    def __init__(
        self,
        start: Callable[[], AbstractContextManager[T]],
        unchanged: Callable[[T], AbstractContextManager[None]],
    ) -> None:
        self._start = start
        self._unchanged = unchanged
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self._one = self._stack.enter_context(self._start())
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @contextmanager
    def lent(self) -> Iterator[T]:
        """Have it for one test.

        It is started again at once, not before the next test: that one's check for open
        descriptors would find those of a lab that starts after the check has begun.
        """
        try:
            with self._unchanged(self._one):
                yield self._one
        except BaseException:
            self._stack.close()
            self._one = self._stack.enter_context(self._start())
            raise
