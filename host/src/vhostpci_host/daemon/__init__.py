# SPDX-License-Identifier: Apache-2.0
"""The daemon: the event loop, the devices by name, and the control socket."""
