<?php
// Names that a page or a terminal could choke on; each maps a number of pages of its own.
$libc = FFI::cdef('void *mmap(void *a, size_t n, int prot, int flags, int fd, long offset);');
function grow(int $pages): void
{
    $GLOBALS['libc']->mmap(null, 4096 * $pages, 0, 0x22, -1, 0);
}
$long = str_repeat('n', 10_000);
eval("function $long() { grow(21); } $long();");
eval("namespace Deep\\Space; function \xff\xfe() { \\grow(22); } \xff\xfe();");
$folder = __DIR__ . '/<script>alert(1)<';
@mkdir($folder);
file_put_contents("$folder/x.inc", '<?php grow(23);');
include "$folder/x.inc";
$deep = __DIR__ . str_repeat('/' . str_repeat('d', 100), 3);
@mkdir($deep, recursive: true);
file_put_contents("$deep/y.inc", '<?php grow(24);');
include "$deep/y.inc";
(new class {
    public function inside(): void
    {
        grow(25);
    }
})->inside();
echo 'grown';
