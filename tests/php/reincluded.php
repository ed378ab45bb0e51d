<?php
// Includes files again and again that are freed, and come to lie at the same addresses.
$libc = FFI::cdef('void *mmap(void *a, size_t n, int prot, int flags, int fd, long offset);');
for ($i = 0; $i < 50; $i++) {
    foreach (['one', 'two', 'six'] as $pages => $name) {
        $file = __DIR__ . "/reincluded-$name.inc";
        file_exists($file) or file_put_contents($file, '<?php $libc->mmap(null, 4096 * ' . ($pages + 11) . ', 0, 0x22, -1, 0);');
        include $file;
    }
}
echo 'grown';
