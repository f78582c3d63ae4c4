"""What ends a run from outside: a signal, or the time while a system call does not return.

SIGTERM, SIGINT and SIGHUP become a Failure in the main thread, wherever it waits, so what was done is undone and
told as after any failure. Never while a failure is being handled already, nor once the run is settled: the undo and
the commit are not torn.

A thread sleeps until just before the end. The kernel can keep a process in a call that no signal ends (a device
that is suspended, a file system whose server hangs); then this thread is the one that still can tell.
"""

import posix
import sys
import time

from vbdkit.protocol.failure import Failure

TYPE_CHECKING = False
if TYPE_CHECKING:
    import _thread
    import signal as _signal
    from collections.abc import Callable
    from types import FrameType
else:
    import _signal  # signal itself imports enum
    import _thread

_ENDING: "dict[int, str]" = {_signal.SIGTERM: "SIGTERM", _signal.SIGINT: "SIGINT", _signal.SIGHUP: "SIGHUP"}


class Guard:
    """Stands at the door of one run. Until armed, nothing comes from outside and all else does no harm."""

    __slots__ = ("_armed", "_gate", "_held", "_late", "_noted", "_settled")

    def __init__(self) -> None:
        """Be ready; nothing is armed."""
        self._armed = False
        self._held = False
        self._late: Failure | None = None
        self._noted = 0
        self._settled = False
        # Whoever gets it speaks for this run: the main thread, or the one that finds the run overdue.
        self._gate = _thread.allocate_lock()

    def arm(self) -> None:
        """Take the process's signals. For a process that is one run and nothing else, as ``watch`` is."""
        self._armed = True
        for number in _ENDING:
            if _signal.signal(number, self._came) == _signal.SIG_IGN:
                _signal.signal(number, _signal.SIG_IGN)  # whoever started us wants it ignored (nohup)

    def watch(self, overdue: float, tell: "Callable[[], None]") -> None:
        """Call ``tell`` at ``overdue`` (time.monotonic()) where the run is unsettled then; end the process with 1."""
        try:
            _thread.stack_size(1 << 16)  # it does little; less to map
            # Signals go to the main thread as long as that can take them (complete_signal in the kernel's signal.c).
            _thread.start_new_thread(self._wake, (max(overdue - time.monotonic(), 0), tell))
        except RuntimeError:
            pass  # no thread can be had; all other time limits hold

    def limit(self, when: float, failure: "Failure | None") -> None:
        """End what is done in the main thread at ``when`` with ``failure``, as a signal would; None: not any more."""
        if not self._armed:
            return
        self._late = failure
        if self._noted == _signal.SIGALRM:
            self._noted = 0  # it came too late to matter
        _signal.signal(_signal.SIGALRM, self._came)
        _signal.setitimer(_signal.ITIMER_REAL, 0.0 if failure is None else max(when - time.monotonic(), 0.001))

    def hold(self) -> None:
        """From now on a signal is only noted."""
        self._held = True

    @property
    def held(self) -> bool:
        """Whether signals are only noted for now."""
        return self._held

    def resume(self) -> None:
        """Let signals end the run again. Raises Failure where one came meanwhile."""
        self._held = False
        if self._noted:
            self._end()

    def settle(self) -> None:
        """From now on nothing ends this run from outside: its outcome is being written. Again is no harm.

        Raises Failure where a signal was noted; does not return where the other thread is telling already.
        """
        if self._noted and not self._held:
            self._end()
        self._held = True
        if not self._settled:
            while not self._gate.acquire(False):
                time.sleep(60)  # the process ends meanwhile
            self._settled = True

    def _end(self) -> None:
        self._held = True
        if self._noted == _signal.SIGALRM and self._late is not None:
            raise self._late
        raise Failure("the script was ended by {signal} before it was done", signal=_ENDING[self._noted])

    def _came(self, number: int, frame: "FrameType | None") -> None:
        if number == _signal.SIGALRM and self._late is None:
            return
        self._noted = number
        # While a failure is handled the undo is going on: it is not to be disturbed.
        if not self._held and sys.exc_info()[1] is None:
            self._end()

    def _wake(self, seconds: float, tell: "Callable[[], None]") -> None:
        time.sleep(seconds)
        if self._gate.acquire(False):
            try:
                tell()
            finally:
                posix._exit(1)
