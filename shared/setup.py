# SPDX-License-Identifier: Apache-2.0
from setuptools import setup

setup(
    cffi_modules=["relay/build.py:ffibuilder", "memory/build.py:ffibuilder"],
    # As in guest/setup.py: one wheel for Python 3.11 and all later versions.
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
