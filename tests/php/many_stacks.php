<?php
// Touches fresh pages in 200 functions, three times each, in turn: more stacks than the kernel sums up at a time.
$libc = FFI::cdef('
    void *mmap(void *a, size_t n, int prot, int flags, int fd, long offset);
    void *memset(void *p, int c, size_t n);
');
for ($i = 0; $i < 200; $i++) {
    eval("function grow_$i(): void { grow($i); }");
}
function grow(int $i): void
{
    global $libc;
    $size = 4096 * (1 + $i % 7);
    $libc->memset($libc->mmap(null, $size, 3, 0x22, -1, 0), 1, $size);
}
for ($turn = 0; $turn < 3; $turn++) {
    for ($i = 0; $i < 200; $i++) {
        "grow_$i"();
    }
}
echo 'grown';
