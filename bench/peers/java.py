"""The JDK, and the jars of Spark and Hadoop's client, which PySpark brings."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from pathlib import Path

TIMEOUT_S = 120.0
PACKAGE = "missing: the package pyspark (pip install 'pyspark>=4')"
JDK = "missing: a JDK, 17 or later (apt-get install openjdk-17-jdk-headless)"


def why_missing() -> str:
    """What is to be installed, or an empty string."""
    if importlib.util.find_spec("pyspark") is None:
        return PACKAGE
    return "" if program("java") and program("javac") else JDK


def program(name: str) -> str | None:
    """``java`` or ``javac``: that of JAVA_HOME if there is one, else that on PATH."""
    home = os.environ.get("JAVA_HOME")
    return (shutil.which(name, path=f"{home}/bin") if home else None) or shutil.which(name)


def spark_home() -> Path:
    """The folder of the package pyspark."""
    spec = importlib.util.find_spec("pyspark")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


def compile_class(name: str, folder: Path) -> Path:
    """Compile ``NAME.java``, which lies beside this file, unless it is in ``folder``; return the folder of its
    classes.
    """
    classes = folder / name
    if classes.exists():
        return classes
    source = Path(__file__).with_name(f"{name}.java")
    javac = program("javac")
    assert javac is not None
    command = [javac, "-nowarn", "-cp", f"{spark_home()}/jars/*", "-d", str(classes), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=TIMEOUT_S)
    if done.returncode:
        raise RuntimeError(f"javac {source.name}: {done.stderr[-2000:]}")
    return classes
