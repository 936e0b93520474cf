"""How a command ends: its exit codes, and the message when a signal comes late."""

from __future__ import annotations

EXIT_CODES = """exit codes:
  0  ok
  2  usage or bad input
  3  faults were masked, and --strict was given (the output is right and published)
  4  no quorum, too few failure domains, or the machine or a core failed
  5  the job is not deterministic
  6  attestation: evidence is refused, or cannot be made
  130  interrupted; 143, 129  terminated by SIGTERM, SIGHUP
  141  nobody reads standard output any more"""
PUBLISHED = "the output had been published before"
