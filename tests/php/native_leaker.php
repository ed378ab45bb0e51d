<?php
// ?KIND-BYTES: keeps one block of that many bytes natively, and does what KIND says. Right answer: each keeps its block, no more.
[$kind, $bytes] = explode('-', $_SERVER['QUERY_STRING']);
final class Work
{
    public static function rows(int $count): array
    {
        $rows = [];
        for ($i = 0; $i < $count; $i++) {
            $rows[] = ['id' => $i, 'name' => str_repeat('n', 40)];
        }
        return $rows;
    }
    public static function keep(int $bytes): void
    {
        $libc = FFI::cdef('void *malloc(size_t n); void *memset(void *p, int c, size_t n);');
        $libc->memset($libc->malloc($bytes), 1, $bytes);
    }
}
$held = match ($kind) {
    'light' => null,
    'heavy' => str_repeat('h', 20_000_000), // a huge block, held to the end
    'rows' => Work::rows(20_000), // some 6 MB in several chunks
    'dies' => str_repeat('d', 200_000_000), // beyond memory_limit: keeps nothing
};
if ($bytes > 0) {
    Work::keep((int) $bytes);
}
echo 'done';
