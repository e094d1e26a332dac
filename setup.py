"""The packages of the distribution; everything else is in pyproject.toml.

The repository root is the package `tessella` (docs/architecture.md says why), which setuptools
cannot find by itself. Its sub-packages are the folders that hold Python files, without those that
are no part of it.
"""

import os

from setuptools import setup

NOT_PACKAGES = {
    *("tests", "benchmarks", "docs", "assets", "configs"),
    *("build", "dist", "runs", "datasets"),
    "bundled",  # in data/ and text/: data, with the scripts that made it
}
"""Folders that are not searched; assets, configs and what is bundled are shipped as data."""


def find_rooms() -> list[str]:
    """Dotted names of the folders below this one that hold Python files, sorted."""
    found = []
    for folder, inner, files in os.walk("."):
        inner[:] = [name for name in inner if name.isidentifier() and name not in NOT_PACKAGES]
        if folder != "." and any(name.endswith(".py") for name in files):
            found.append(os.path.relpath(folder, ".").replace(os.sep, "."))
    return sorted(found)


setup(
    script_name="setup.py",  # so that this file is known, and not taken for a module of the root
    package_dir={"tessella": "."},
    packages=["tessella", *(f"tessella.{room}" for room in find_rooms())],
)
