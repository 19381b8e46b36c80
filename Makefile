# SPDX-License-Identifier: Apache-2.0
# The two commands of the README, on a Debian 12 or 13 machine as root:
#
#   make demo [ARGS="--bind uio --json FILE --keep"]
#   make test [ARGS="-e unit -- -k reboot"]
#
# and make yardstick: what the same VMs reach over -netdev tap on a bridge; and what
# vhostpci reaches beside others (docs/performance.md), all parts or those that are named:
#
#   make bench [ARGS="ring --quick --json FILE"]
#
# and make debs: Debian packages of the checkout as it is, in dist/, checked by lintian;
#
# and make soak: many upgrades, or kills, under load (docs/testing.md):
#
#   make soak ARGS="upgrades --devices 200 --upgrades 100"
#   make soak ARGS="kills --minutes 30"
#
# and make wheels: what is published, in dist/ (docs/releasing.md):
#
#   make wheels [ARGS="--with-dependencies --sbom --dist DIRECTORY"]

CACHE := $(shell tools/setup --cache-dir)
PYTHON := $(CACHE)/venv/bin/python

.PHONY: bench debs demo soak test wheels yardstick

demo:
	@tools/setup demo $(ARGS)
	@$(PYTHON) -m tests.vm.demo $(ARGS)

test:
	@tools/setup test
	@$(PYTHON) -m tox $(ARGS)

bench:
	@tools/setup bench
	@$(PYTHON) -m tox -q -e bench -- $(ARGS)

debs:
	@tools/setup debs
	@tools/debs

soak:
	@tools/setup test
	@$(PYTHON) -m tox -q -e soak -- $(ARGS)

wheels:
	@tools/setup wheels
	@$(PYTHON) -m tox -q -e wheels -- $(ARGS)

yardstick:
	@tools/setup demo $(ARGS)
	@$(PYTHON) -m tests.vm.yardstick $(ARGS)
