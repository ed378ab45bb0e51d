<?php
// Takes memory until the kernel ends the worker, or 1 GiB is taken.
ini_set('memory_limit', '-1');
$blocks = [];
for ($i = 0; $i < 512; $i++) {
    $blocks[] = str_repeat('x', 2 << 20);
}
