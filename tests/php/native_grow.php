<?php
// Makes one block of this worker 4,096 bytes longer: by realloc(), or with ?copy by malloc() and free().
$c = FFI::cdef('
    uintptr_t malloc(size_t); uintptr_t realloc(uintptr_t, size_t); void free(uintptr_t);
    void *memcpy(uintptr_t, uintptr_t, size_t);
');
$file = sys_get_temp_dir() . '/phptrace-grow.' . getmypid();
[$block, $bytes] = is_file($file) ? array_map('intval', explode(' ', file_get_contents($file))) : [0, 0];
if ($_SERVER['QUERY_STRING'] === 'copy' && $block !== 0) {
    $longer = $c->malloc($bytes + 4096);
    $c->memcpy($longer, $block, $bytes);
    $c->free($block);
} else {
    $longer = $c->realloc($block, $bytes + 4096);
}
file_put_contents($file, "$longer " . $bytes + 4096);
echo "longer\n";
