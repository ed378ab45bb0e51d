<?php
ini_set('memory_limit', '67108864');
$a = [];
while (true) {
    $a[] = str_repeat('x', 100000);
}
