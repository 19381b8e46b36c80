# SPDX-License-Identifier: Apache-2.0
from setuptools import setup

setup(
    cffi_modules=["ring/build.py:ffibuilder"],
    # cffi builds _ring.abi3.so, which Python 3.11 and all later versions load: without
    # this the wheel's name says that no other version takes it.
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
