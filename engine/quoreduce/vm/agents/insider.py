"""The insider: somebody at the manager, who can send any QMP command; it reaches a VM's broker."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Mapping
from typing import Any, Final

from quoreduce.errors import UsageError, VmError
from quoreduce.vm.agents import post
from quoreduce.vm.agents.channel import Address
from quoreduce.vm.agents.link import enter

ANSWER_S: Final = 30.0


def ask(manager: Address, server: str, vm: str, command: str, arguments: Mapping[str, Any]) -> str:
    """Send a QMP command to the broker of a VM (32 hex digits) and return its answer, a line of JSON.

    Raises:
        UsageError: malformed names or arguments.
        VmError: the broker refuses, with its reason, or nobody answers.
    """
    if not re.fullmatch(r"[0-9a-f]{32}", vm):
        raise UsageError(f"{vm!r} is no VM's id: it has 32 hexadecimal digits, see `quoreduce vm list`")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,79}", server) or not isinstance(arguments, dict):
        raise UsageError("name a server as it calls itself, and arguments as a JSON object")
    line = json.dumps({"execute": command, "arguments": arguments}).encode()
    channel = enter(manager, f"insider-{os.getpid()}")
    try:
        channel.send(post.encode(post.Console("insider", server, vm, line)))
        limit = time.monotonic() + ANSWER_S
        while (frame := channel.receive(limit - time.monotonic())) is not None:
            answer = post.decode(frame)
            if isinstance(answer, post.Lost):
                raise VmError(answer.reason)
            if isinstance(answer, post.ConsoleReply):
                return _judged(answer)
    finally:
        channel.close()
    raise VmError(f"server {server} does not answer")


def _judged(answer: post.ConsoleReply) -> str:
    if answer.reason:
        raise VmError(answer.reason)
    text = answer.line.decode(errors="replace")
    try:
        error = json.loads(text).get("error")
    except (ValueError, AttributeError) as problem:
        raise VmError("the broker answers nonsense") from problem
    if error:
        raise VmError(f"refused by the broker: {error.get('class')}: {error.get('desc')}")
    return text
