"""Connects to Ray, in all processes of ours in the same way: with our signal handlers, and without Ray's messages.

This module sets Ray's environment, which counts only before Ray is imported.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
from collections.abc import Iterator
from typing import Any

from quoreduce import interrupts
from quoreduce.errors import HostError
from quoreduce.files import Hold
from quoreduce.protocol.port import cores

OBJECT_STORE_BYTES = 512 << 20
LOCAL = "local"  # the address that means: start one here

os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")  # Ray's uv hook can hang workers
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")


def connect(address: str, namespace: str | None = None, folder: Hold | None = None) -> None:
    """Connect to Ray, or start one here (LOCAL) with its files in ``folder``. Raises HostError, and leaves nothing
    then.
    """
    import ray

    settings: dict[str, Any] = {
        "address": address, "namespace": namespace, "logging_level": logging.ERROR, "log_to_driver": False,
    }  # fmt: skip
    if address == LOCAL:
        settings |= {"num_cpus": len(cores()), "include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES}
        settings |= {"_temp_dir": str(folder.path)} if folder else {}
    try:
        with _quiet(), _own_signals():
            ray.init(**settings)
    except Exception as error:
        with contextlib.suppress(Exception):
            ray.shutdown()
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        where = "a local Ray" if address == LOCAL else f"Ray at {address}"
        raise HostError(f"cannot use {where}: {reason}; use --on local") from error
    except BaseException:  # Ctrl-C
        with contextlib.suppress(Exception):
            ray.shutdown()
        raise
    _mute()


def found_address() -> str:
    """The address of the Ray that ``auto`` stands for; HostError if there is none."""
    from ray._private.services import canonicalize_bootstrap_address_or_die

    try:
        return str(canonicalize_bootstrap_address_or_die("auto"))
    except ConnectionError as error:
        raise HostError("there is no Ray on this machine, or more than one") from error


@contextlib.contextmanager
def _own_signals() -> Iterator[None]:
    """Keep our handlers: Ray's handlers for SIGTERM end a process with another status than ours, or crash it."""
    with contextlib.ExitStack() as stack:
        stack.callback(interrupts.retake)
        with contextlib.suppress(ImportError, AttributeError):
            from ray._private import utils, worker

            for module, name, ours in (
                (utils, "set_sigterm_handler", lambda handler: None),
                (worker, "connect", _without_sigterm(worker.connect)),
            ):  # fmt: skip
                stack.callback(setattr, module, name, getattr(module, name))
                setattr(module, name, ours)
        yield


def _without_sigterm(connect: Any) -> Any:
    """``connect``, in which Ray's C++ takes SIGTERM: one that comes meanwhile waits until it is ours again."""

    def connected(*arguments: Any, **named: Any) -> Any:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        try:
            return connect(*arguments, **named)
        finally:
            interrupts.retake()
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    return connected


def _mute() -> None:
    """Stop Ray from printing every death of an actor: we expect and report them ourselves."""
    with contextlib.suppress(Exception):
        from ray._private import worker

        worker.print_to_stdstream = lambda *args, **kwargs: None


@contextlib.contextmanager
def _quiet() -> Any:
    """Keep Ray's own start-up messages off the terminal."""
    logger = logging.getLogger("ray")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
