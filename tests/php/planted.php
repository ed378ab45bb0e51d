<?php
// Behaves as its uri says, /leak for example; QUERY_STRING has a number for some. What a worker does once is marked by
// a file next to this one.
function once(string $name): bool
{
    $mark = __DIR__ . "/once/$name." . getmypid();
    return !is_file($mark) && touch($mark);
}
function libc(): FFI
{
    return FFI::cdef('void *malloc(size_t); void free(void *); void *memset(void *, int, size_t);');
}
function keep(int $bytes): void
{
    $libc = libc();
    $libc->memset($libc->malloc($bytes), 1, $bytes);
}
function rows(int $count): array
{
    $rows = [];
    for ($i = 0; $i < $count; $i++) {
        $rows[] = ['id' => $i, 'name' => str_repeat('n', 40)];
    }
    return $rows;
}
/** Small blocks are freed, and one above them is kept: malloc cannot give back what is below it. */
function raise(int $bytes): void
{
    $libc = libc();
    $blocks = [];
    for ($i = 0; $i < $bytes / 100_000; $i++) {
        $blocks[] = $block = $libc->malloc(100_000);
        $libc->memset($block, 1, 100_000);
    }
    $libc->malloc(120_000); // larger than a hole below
    foreach ($blocks as $block) {
        $libc->free($block);
    }
}
$number = (int) $_SERVER['QUERY_STRING'];
switch (explode('?', $_SERVER['REQUEST_URI'])[0]) {
    case '/leak':
    case '/rare-leak':
        require_once __DIR__ . '/keep.inc';
        Translations::bind($number);
        break;
    case '/large-leak':
        keep(524_272);
        break;
    case '/rows-and-leak':
        require_once __DIR__ . '/keep.inc';
        $rows = rows(20_000); // some 6 MB, in several chunks
        Translations::bind(32);
        break;
    case '/page':
        require __DIR__ . '/native_page.php';
        break;
    case '/static-cache':
        once('cache') && keep(3 << 20);
        break;
    case '/patterns':
        for ($i = 0; $i < 8; $i++) {
            preg_match('/(a|b)+' . random_int(1, 150) . '[cd]*x/', 'aabacdx');
        }
        break;
    case '/export':
        $held = str_repeat('h', 65 << 20);
        break;
    case '/month':
        once('month') && raise(90 << 20);
        break;
    case '/shared':
        include __DIR__ . "/generated/$number.php";
        break;
    case '/file':
        $file = fopen(__DIR__ . '/big.dat', 'rb');
        while (!feof($file)) {
            fread($file, 65_536);
        }
        break;
    case '/some-rows':
        $rows = rows($number);
        break;
    case '/dies':
        $held = str_repeat('d', 200_000_000); // beyond memory_limit
        break;
}
echo 'done';
