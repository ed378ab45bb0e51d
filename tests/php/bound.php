<?php
// Binds one closure to a class after the other, each of which maps a number of pages of its own, and calls
// libc's functions by one variable: what is called is at addresses that were another's just before.
$libc = FFI::cdef('
    void *mmap(void *a, size_t n, int prot, int flags, int fd, long offset);
    void *mmap64(void *a, size_t n, int prot, int flags, int fd, long offset);
');
class A
{
    const PAGES = 31;
}
class B
{
    const PAGES = 32;
}
class C
{
    const PAGES = 33;
}
class D
{
    const PAGES = 34;
}
$prototype = function (): void {
    $GLOBALS['libc']->mmap(null, 4096 * static::PAGES, 0, 0x22, -1, 0);
};
for ($i = 0; $i < 20; $i++) {
    foreach (['A', 'B', 'C', 'D'] as $class) {
        $bound = Closure::bind($prototype, null, $class);
        $bound();
    }
    foreach (['mmap' => 35, 'mmap64' => 36] as $name => $pages) {
        $libc->$name(null, 4096 * $pages, 0, 0x22, -1, 0);
    }
}
echo 'grown';
