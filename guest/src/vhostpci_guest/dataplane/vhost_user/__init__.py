# SPDX-License-Identifier: Apache-2.0
"""The data plane that hands the rings to a back-end: another process, by vhost-user."""
