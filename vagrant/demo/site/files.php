<?php
// Reads a big file: page cache, which `free` shows as used, and which is nobody's memory.
header('Content-Type: text/plain');
$bytes = 0;
$file = fopen(__DIR__ . '/big.dat', 'rb');
while (!feof($file)) {
    $bytes += strlen(fread($file, 65536));
}
echo $bytes, "\n";
