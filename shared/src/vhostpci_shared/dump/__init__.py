# SPDX-License-Identifier: Apache-2.0
"""Decodes copies of the metadata and of rings for the command `dump`, on both sides.

Plain `struct`, and no numpy: the largest ring has 32768 descriptors, which take some
tens of milliseconds, and the slave must need no package.  So there is one decoder, and
one set of tests with hostile rings.
"""
