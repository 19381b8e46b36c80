# SPDX-License-Identifier: Apache-2.0
# The two commands of the README, on a Debian 12 machine as root:
#
#   make demo [ARGS="--bind uio --json FILE --keep"]
#   make test [ARGS="-e unit -- -k reboot"]
#
# and make yardstick: what the same VMs reach over -netdev tap on a bridge.

CACHE := $(shell tools/setup --cache-dir)
PYTHON := $(CACHE)/venv/bin/python

.PHONY: demo test yardstick setup

demo: setup
	@$(PYTHON) -m tests.vm.demo $(ARGS)

test: setup
	@$(PYTHON) -m tox $(ARGS)

yardstick: setup
	@$(PYTHON) -m tests.vm.yardstick $(ARGS)

setup:
	@tools/setup
