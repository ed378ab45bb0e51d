<?php
// ?keep: keeps a native block of 100,003 bytes, whose address is in the file `held`. ?free: frees it, after the page with
// its header was paged out. ?both: the two in one request.
$c = FFI::cdef('uintptr_t malloc(size_t); void free(uintptr_t); int madvise(uintptr_t, size_t, int);');
const PAGE = 4096, MADV_PAGEOUT = 21;
if ($_SERVER['QUERY_STRING'] !== 'free') {
    file_put_contents(__DIR__ . '/held', $c->malloc(100_003));
}
if ($_SERVER['QUERY_STRING'] !== 'keep') {
    $block = (int) file_get_contents(__DIR__ . '/held');
    $page = intdiv($block - 8, PAGE) * PAGE;
    $c->madvise($page, PAGE, MADV_PAGEOUT);
    // Bit 62: swapped. Documentation/admin-guide/mm/pagemap.rst
    $entry = unpack('P', file_get_contents('/proc/self/pagemap', false, null, intdiv($page, PAGE) * 8, 8))[1];
    echo $entry >> 62 & 1 ? 'paged out' : 'in memory';
    $c->free($block);
}
