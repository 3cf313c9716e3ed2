"""Imports a library that reads or samples points when it is first needed, or says in one sentence what to install."""

from __future__ import annotations

import importlib
from types import ModuleType

APT_PACKAGES = {"libusb-1.0": "libusb-1.0-0", "libGL": "libgl1", "libEGL": "libegl1", "libX11": "libx11-6",
                "libgomp": "libgomp1", "libidn2": "libidn2-0", "libudev": "libudev1", "libstdc++": "libstdc++6"}
"""Debian and Ubuntu packages of the system libraries that open3d's wheel links to, found with ldd; libgomp is for the
wheels before 0.20."""


def library(name: str) -> ModuleType:
    """Import open3d, laspy, scipy or fpsample, or raise ImportError with one sentence on what to install."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(_what_is_missing(name, str(error))) from error


def _what_is_missing(name: str, message: str) -> str:
    """One sentence. A wheel that is installed but lacks a system library says "libGL.so.1: cannot open ..."."""
    shared = message.split(":")[0]
    if ".so" not in shared or "cannot open" not in message:
        return f"{name} is missing, which reads point clouds. Install it with: pip install 'lacuna[pointcloud]'"
    packages = " ".join(APT_PACKAGES.values())
    package = APT_PACKAGES.get(shared.split(".so")[0], "")
    return (f"{name} cannot be loaded, since the system library {shared} is missing"
            f"{f' (package {package})' if package else ''}. Install what it needs with: apt-get install -y {packages}")
