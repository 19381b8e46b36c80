# SPDX-License-Identifier: Apache-2.0
# The two commands of the README, on a Debian 12 or 13 machine as root:
#
#   make demo [ARGS="--bind uio --json FILE --keep"]
#   make test [ARGS="-e unit -- -k reboot"]
#
# and make yardstick: what the same VMs reach over -netdev tap on a bridge.

CACHE := $(shell tools/setup --cache-dir)
PYTHON := $(CACHE)/venv/bin/python

.PHONY: demo test yardstick

demo:
	@tools/setup demo $(ARGS)
	@$(PYTHON) -m tests.vm.demo $(ARGS)

test:
	@tools/setup test
	@$(PYTHON) -m tox $(ARGS)

yardstick:
	@tools/setup demo $(ARGS)
	@$(PYTHON) -m tests.vm.yardstick $(ARGS)
