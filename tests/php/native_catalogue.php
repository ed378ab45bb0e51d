<?php
// Takes some 6 MB of Zend's memory and gives all of it back, and keeps 34,304 native bytes.
require __DIR__ . '/keep.inc';
$rows = [];
for ($i = 0; $i < 20_000; $i++) {
    $rows[] = ['id' => $i, 'name' => str_repeat('n', 40)];
}
Translations::bind(32);
echo count($rows), "\n";
