# SPDX-License-Identifier: Apache-2.0
"""The system calls of Python, of its library and of the C library, on our behalf.

No module of ours asks for these by name.  `tools/system_calls.py` reads this file as it
reads our modules: each line that begins with "System calls:" names some.
"""

# Files: modules that are imported late, /proc, the text of a traceback.
# System calls: close, fstat, getcwd, getdents64, ioctl(FIOCLEX), ioctl(FIONCLEX).
# System calls: ioctl(TCGETS), lseek, newfstatat, openat, pread64, read, readlink.
# System calls: readv, stat, statx, write, writev.
# Memory: of the allocator, of modules and of stacks; never executable.
# System calls: brk, madvise, mmap(NO_EXEC), mprotect(NO_EXEC), mremap, munmap.
# Threads: locks, their start and their end.
# System calls: clone(THREAD), exit, futex, gettid, rseq, sched_yield.
# System calls: set_robust_list, set_tid_address, prctl(PR_SET_NAME).
# System calls: sched_getaffinity, membarrier.
# Signals: handlers, and what goes on behind one.
# System calls: restart_syscall, rt_sigaction, rt_sigprocmask, rt_sigreturn.
# System calls: sigaltstack.
# Clocks and numbers by chance; the kernel's page answers most questions for the time.
# System calls: clock_getres, clock_gettime, clock_nanosleep, getrandom.
# System calls: gettimeofday, nanosleep, time.
# What the process is: asked at its start and by some functions of the C library.
# System calls: getegid, geteuid, getgid, getpid, getppid, getrusage, getuid, sysinfo.
# System calls: uname, prlimit64(OURS), getrlimit.
# asyncio's loop, and its sockets and pipes.
# System calls: accept4, dup, epoll_create1, epoll_ctl, epoll_wait, pipe2, poll, select.
# System calls: ioctl(FIONBIO), fcntl(F_GETFD), fcntl(F_SETFD), fcntl(F_GETFL).
# System calls: fcntl(F_SETFL), fcntl(F_DUPFD_CLOEXEC), recvfrom, recvmsg, sendmsg.
# System calls: sendto, socketpair(AF_UNIX), getsockname, getpeername, getsockopt.
# System calls: setsockopt, shutdown.
# The end of the process, wanted or not: abort() sends itself a signal.
# System calls: exit_group, tgkill(OURS).
