"""The packages of the distribution; everything else is in pyproject.toml.

The repository root is the package `tessella` (docs/architecture.md says why), which setuptools
cannot find by itself.
"""

from setuptools import find_namespace_packages, setup

NOT_PACKAGES = ["tests", "benchmarks", "docs", "runs", "build", "dist", "datasets"]
DATA = ["configs", "assets", "data.bundled"]  # shipped as package data, whatever their folders hold

rooms = find_namespace_packages(
    exclude=[
        *(pattern for name in NOT_PACKAGES for pattern in (name, f"{name}.*")),
        *(f"{name}.*" for name in DATA),
        "data.bundled",
    ]
)
setup(
    package_dir={"tessella": "."},
    packages=["tessella", *(f"tessella.{room}" for room in sorted(rooms))],
)
