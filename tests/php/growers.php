<?php
// Functions that grow the worker in known ways; the answer is what each added, in bytes, as JSON:
// {function: [memory_get_usage(), anonymous memory, address space]}.
$kept = new SplFixedArray(1_000_000); // an array would grow by copying itself, and give back what was another's
$n = 0;

function keep(mixed $value): void
{
    global $kept, $n;
    $kept[$n++] = $value;
}

function small_strings(): void
{
    for ($i = 0; $i < 400_000; $i++) {
        keep(str_repeat(chr(65 + $i % 26), 40));
    }
}

function arrays(): void
{
    global $kept, $n;
    for ($i = 0; $i < 150_000; $i++) {
        $kept[$n++] = ['number' => $i, 'next' => $i + 1];
    }
}

function blocks(): void
{
    for ($i = 0; $i < 400; $i++) {
        keep(str_repeat(chr(65 + $i % 26), 50_021));
        for ($wait = 0; $wait < 2000; $wait++) {
        }
    }
}

function huge(): void
{
    keep(str_repeat('h', 7_000_003));
    keep(str_repeat('h', 11_000_027));
}

function file_in_one_piece(): void
{
    keep(file_get_contents(__DIR__ . '/ten-megabytes'));
}

function churn(): void
{
    for ($i = 0; $i < 7; $i++) {
        $gone = str_repeat('c', 9_000_011);
        unset($gone);
    }
}

function native(): void
{
    $libc = FFI::cdef('void *malloc(size_t n); void *memset(void *p, int c, size_t n);');
    $libc->memset($libc->malloc(3_000_017), 1, 3_000_017);
}

function measured(): array
{
    preg_match('/Anonymous:\s+(\d+)/', file_get_contents('/proc/self/smaps_rollup'), $anonymous);
    $pages = (int) file_get_contents('/proc/self/statm');
    return [memory_get_usage(), 1024 * (int) $anonymous[1], 4096 * $pages];
}

measured();
$grown = [];
foreach (explode(',', $_SERVER['QUERY_STRING']) as $function) {
    $before = measured();
    $function();
    $after = measured();
    $grown[$function] = array_map(fn (int $a, int $b): int => $a - $b, $after, $before);
}
echo json_encode($grown);
