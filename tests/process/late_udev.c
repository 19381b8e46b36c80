// SPDX-License-Identifier: Apache-2.0
/*
 * Preloaded into systemd-udevd: makes it change each interface late.
 *
 * udevd reads whether an interface has a random MAC, and then writes another
 * one.  A program that sets the MAC between the two loses it, which happens once
 * in some hundred starts.  Here the write waits for the test: it happens when
 * the file LATE_UDEV_DIR/go exists, and LATE_UDEV_DIR/waits exists from then on.
 */
#include <dlfcn.h>
#include <fcntl.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

static void late_wait(const char *directory)
{
	char waits[256], go[256];
	int fd;

	snprintf(waits, sizeof(waits), "%s/waits", directory);
	snprintf(go, sizeof(go), "%s/go", directory);
	fd = open(waits, O_CREAT | O_CLOEXEC | O_WRONLY, 0600);
	if (fd < 0)
		abort(); /* else the test would wait for nothing */
	close(fd);
	while (access(go, F_OK))
		usleep(1000);
}

ssize_t sendto(int fd, const void *data, size_t len, int flags,
	       const struct sockaddr *to, socklen_t to_len)
{
	ssize_t (*next)(int, const void *, size_t, int, const struct sockaddr *,
			socklen_t) = dlsym(RTLD_NEXT, "sendto");
	const struct nlmsghdr *request = data;

	/* Other sockets carry other bytes: an address tells what this one is. */
	if (to && to->sa_family == AF_NETLINK && len >= sizeof(*request) &&
	    request->nlmsg_type == RTM_SETLINK)
		late_wait(getenv("LATE_UDEV_DIR"));
	return next(fd, data, len, flags, to, to_len);
}
