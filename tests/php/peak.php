<?php
// Takes QUERY_STRING elements, gives them back, and says what Zend says of its peak.
$a = [];
for ($i = 0; $i < (int) $_SERVER['QUERY_STRING']; $i++) {
    $a[] = "element number $i, long enough not to be interned";
}
unset($a);
echo memory_get_peak_usage(), ' ', memory_get_peak_usage(true);
