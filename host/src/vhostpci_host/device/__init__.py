# SPDX-License-Identifier: Apache-2.0
"""One device: what its front-end asks for, and what its agent is shown."""
