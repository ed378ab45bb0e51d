<?php
// Holds as many blocks of 1,000,000 bytes as the file QUERY_STRING says, and more as that number rises; ends at 0. The
// file with `.held` behind its name says how many it holds.
$file = $_SERVER['QUERY_STRING'];
$held = [];
while (($wanted = (int) file_get_contents($file)) > 0) {
    while (count($held) < $wanted) {
        $held[] = str_repeat(chr(count($held) & 255), 1_000_000);
    }
    file_put_contents("$file.held", count($held));
    usleep(2000);
}
echo 'done';
