"""Find a job by the name that a user gives: a built-in one, ``FILE.py:NAME`` or ``MODULE:NAME``."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from quoreduce.errors import UsageError
from quoreduce.job import Job

BUILT_IN = {"wordcount": "quoreduce.jobs.wordcount", "sort": "quoreduce.jobs.sort"}


def find_job(name: str) -> Job:
    """Return the job called ``name``; raise UsageError that says what is wrong with the name or the file."""
    if name == "scan":
        raise UsageError("scan needs to know what to keep: --starts-with TEXT; in Python, scan_job(b'...')")
    if name in BUILT_IN:
        found = importlib.import_module(BUILT_IN[name]).JOB
    else:
        place, colon, attribute = name.rpartition(":")
        if not colon or not place or not attribute:
            raise UsageError(f"unknown job {name!r}: use {', '.join(BUILT_IN)}, scan, FILE.py:NAME or MODULE:NAME")
        found = getattr(_load(place), attribute, None)
    if not isinstance(found, Job):
        raise UsageError(f"{name} is not a quoreduce.Job")
    return found


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
        raise UsageError(f"cannot load {place}: {type(error).__name__}: {error}") from error
    return module
