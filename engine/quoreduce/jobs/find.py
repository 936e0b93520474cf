"""Find a job by the name that a user gives: a built-in one, ``FILE.py:NAME`` or ``MODULE:NAME``."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from quoreduce.arguments import did_you_mean
from quoreduce.errors import UsageError, one_line
from quoreduce.job import Job

BUILT_IN = {"wordcount": "quoreduce.jobs.wordcount", "sort": "quoreduce.jobs.sort"}
NAMES_SHOWN = 20


def find_job(name: str) -> Job:
    """Return the job called ``name``; raise UsageError that says what is wrong with the name or the file."""
    if name == "scan":
        raise UsageError("scan needs to know what to keep: --starts-with TEXT; in Python, scan_job(b'...')")
    if name in BUILT_IN:
        found = importlib.import_module(BUILT_IN[name]).JOB
        assert isinstance(found, Job)
        return found
    place, colon, attribute = name.rpartition(":")
    if name.endswith(".py"):
        raise UsageError(f"{name}: name a job of that file, {name}:NAME; {_jobs_in(_load(name), '')}")
    if not colon or not place or not attribute:
        near = did_you_mean(name, (*BUILT_IN, "scan"))
        raise UsageError(
            f"unknown job {name!r}{near or ':'} use {', '.join(BUILT_IN)}, scan, FILE.py:NAME or MODULE:NAME"
        )
    module = _load(place)
    found = getattr(module, attribute, None)
    if isinstance(found, Job):
        return found
    if hasattr(module, attribute):
        kind = type(found).__name__
        raise UsageError(f"{name} is not a quoreduce.Job, it is of type {kind}; {_jobs_in(module, '')}")
    raise UsageError(f"{place} has no {attribute!r}; {_jobs_in(module, attribute)}")


def _jobs_in(module: ModuleType, near: str) -> str:
    """Say which jobs a module has, and which of them is ``near`` a name."""
    names = [name for name, value in vars(module).items() if isinstance(value, Job)]
    if not names:
        return "there is no quoreduce.Job in it"
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return f"its jobs are {', '.join(names[:NAMES_SHOWN])}{more}{did_you_mean(near, names)}"


def _load(place: str) -> ModuleType:
    try:
        if not place.endswith(".py"):
            return importlib.import_module(place)
        path = Path(place).resolve()
        if not path.is_file():
            raise UsageError(f"no such file: {place}")
        spec = importlib.util.spec_from_file_location(f"quoreduce_user_{path.stem}", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(f"cannot load {place}: {type(error).__name__}: {one_line(error)}") from error
    return module
