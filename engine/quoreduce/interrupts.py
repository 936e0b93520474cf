"""Signals that end a process: SIGINT, SIGTERM and SIGHUP reach the code as an exception, once, and never at a bad
moment.

The first one raises KeyboardInterrupt (SIGINT) or :class:`Terminated`, so that everything is left through its clean-up.
Until that has come out of the outermost :class:`scope`, further ones are ignored for AGAIN_S seconds: they want what is
being done already. After that one raises anew: what is raised in a ``__del__`` or a callback of C is lost, and a
clean-up may hang. In a section that is :class:`held` none is raised before its end: what is made there is known to
those who delete it.

While this process forks none is raised either: what hooks of others (that of ``logging`` in Python) raise then is lost.

Signals are handled only in the main thread, and only where their handler is the default one. One
that is ignored (``nohup``), or for which the user's script has a handler, stays as it is.
"""

from __future__ import annotations

import logging  # noqa: F401 - its hooks for forks are to be registered before ours, which surround them
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from types import FrameType, TracebackType

AGAIN_S = 10.0
AFTER_FORK_S = 0.05  # when all hooks have run
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
Handlers = Mapping[signal.Signals, Callable[[int, FrameType | None], object] | signal.Handlers]
_DEFAULTS: Handlers = {
    signal.SIGINT: signal.default_int_handler,
    signal.SIGTERM: signal.SIG_DFL,
    signal.SIGHUP: signal.SIG_DFL,
}


class Terminated(SystemExit):
    """The process was told to end by SIGTERM or SIGHUP: it leaves with 128 + the signal's number, as shells say it."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)


class _State:
    """Of the main thread: how many users have asked for handlers, how deep sections are nested, and what has come
    in.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.users = 0
        self.taken: list[signal.Signals] = []
        self.scopes = 0
        self.sections = 0
        self.pending = 0
        self.raised = 0
        self.ending = False
        self.raised_at = 0.0


_state = _State()


def _handle(number: int, _frame: FrameType | None) -> None:
    if _state.ending and time.monotonic() - _state.raised_at < AGAIN_S:
        return
    if _state.sections:
        _state.pending = _state.pending or number
        return
    _raise(number)


def _raise(number: int) -> None:
    _state.pending = 0
    _state.ending, _state.raised_at = _state.scopes > 0, time.monotonic()
    _state.raised = 0 if number == signal.SIGINT or not _state.scopes else number
    raise KeyboardInterrupt if number == signal.SIGINT else Terminated(number)


def _noted(error: Terminated, other: BaseException) -> Terminated:
    for note in getattr(other, "__notes__", ()):
        error.add_note(note)
    return error


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def take() -> bool:
    """Take the signals that would end this process, until :func:`give_back` was called as often; False in another
    thread.
    """
    if not _in_main_thread():
        return False
    _state.users += 1
    if _state.users == 1:
        _state.taken = [number for number in SIGNALS if signal.getsignal(number) is _DEFAULTS[number]]
        retake()
    return True


def retake() -> None:
    """Take them again from a library that has replaced our handlers (Ray does)."""
    if _in_main_thread():
        for number in _state.taken:
            signal.signal(number, _handle)


def give_back() -> None:
    """Let signals do again what they did before; a handler that was installed meanwhile stays."""
    if not _in_main_thread() or _state.users == 0:
        return
    _state.users -= 1
    if _state.users == 0:
        _restore(_DEFAULTS)


def ignore() -> None:
    """The process is about to end because of a signal: nothing is left to be done about others."""
    if _in_main_thread() and _state.taken:
        _restore(dict.fromkeys(SIGNALS, signal.SIG_IGN))


def _restore(handlers: Handlers) -> None:
    for number in _state.taken:
        if signal.getsignal(number) is _handle:
            signal.signal(number, handlers[number])
    _state.taken = []


def _forked() -> None:
    """A forked process has signals of its own."""
    if _in_main_thread():
        _restore(_DEFAULTS)
    _state.reset()


def _forks() -> None:
    if _in_main_thread():
        _state.sections += 1


def _has_forked() -> None:
    if _in_main_thread():
        if _state.sections == 1 and _state.pending:
            number, _state.pending = _state.pending, 0
            threading.Timer(AFTER_FORK_S, signal.pthread_kill, (threading.get_ident(), number)).start()
        _state.sections -= 1


os.register_at_fork(before=_forks, after_in_parent=_has_forked, after_in_child=_forked)


class scope:  # noqa: N801 - used as a statement
    """A section that a signal ends as a whole: the first signal raises, further ones are ignored for a while."""

    def __enter__(self) -> None:
        self._counts = _in_main_thread()
        if self._counts:
            _state.scopes += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._counts:
            return
        _state.scopes -= 1
        number = _state.raised
        if _state.scopes == 0:
            _state.ending, _state.raised = False, 0
        if number and isinstance(error, SystemExit) and not isinstance(error, Terminated):
            raise _noted(Terminated(number), error)  # a library (Ray) has made another of it


class held:  # noqa: N801
    """A section in which no signal is raised; one that came in is raised at its end. It must be short."""

    def __enter__(self) -> None:
        self._counts = _in_main_thread()
        if self._counts:
            _state.sections += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._counts:
            _state.sections -= 1
            if _state.sections == 0 and _state.pending:
                _raise(_state.pending)
