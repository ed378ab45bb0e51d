<?php
// More memory calls than the ring holds; then grows in a function of its own, says so by a file, and waits until
// the other file named in QUERY_STRING is there.
[$says, $awaits] = explode(',', $_SERVER['QUERY_STRING']);
$libc = FFI::cdef('
    void *mmap(void *a, size_t n, int prot, int flags, int fd, long offset);
    void *memset(void *p, int c, size_t n);
');
for ($i = 0; $i < 120_000; $i++) {
    $libc->mmap(null, 4096, 0, 0x22, -1, 0);
}
function unheard(): void
{
    global $libc;
    $libc->memset($libc->mmap(null, 3_000_017, 3, 0x22, -1, 0), 1, 3_000_017);
}
unheard();
touch($says);
while (!file_exists($awaits)) {
    clearstatcache();
    usleep(2000);
}
