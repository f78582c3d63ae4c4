"""Models of FreeBSD and NetBSD for tests on Linux: their programs as real executables, and a /dev of their own."""
