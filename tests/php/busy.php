<?php
// Computes, without a system call, for as long as the byte at the address that comes in QUERY_STRING is 0: a page of
// the file of that name, mapped and shared with who waits for it.
$libc = FFI::cdef('void *mmap(void *a, size_t n, int prot, int flags, int fd, long offset); int open(char *name, int flags);');
$page = FFI::cast('char *', $libc->mmap(null, 4096, 1, 1, $libc->open($_SERVER['QUERY_STRING'], 0), 0));
while (ord($page[0]) < 1) {
}
echo 'computed';
