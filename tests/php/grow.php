<?php
// A huge block that grows step by step: Zend extends or moves the mapping.
$s = str_repeat('x', 3000000);
for ($i = 0; $i < 20; $i++) {
    $s .= str_repeat('y', 700001);
}
echo strlen($s);
