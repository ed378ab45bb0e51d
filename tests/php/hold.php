<?php
// An array of about QUERY_STRING MiB, held until the end.
$a = [];
for ($i = 0; $i < (int) $_SERVER['QUERY_STRING'] * 16; $i++) {
    $a[] = str_repeat(chr($i & 255), 65000);
}
echo memory_get_usage();
