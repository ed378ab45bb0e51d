<?php
// A child that grows by as many bytes as QUERY_STRING says, and is no worker.
$size = (int) $_SERVER['QUERY_STRING'];
$child = proc_open(['/usr/bin/tail', '-c', (string) $size], [['pipe', 'r'], ['pipe', 'w']], $pipes);
$block = str_repeat('x', 65536);
for ($sent = 0; $sent < $size; $sent += 65536) {
    fwrite($pipes[0], $block);
}
fclose($pipes[0]);
$got = 0;
while (!feof($pipes[1])) {
    $got += strlen(fread($pipes[1], 65536));
}
proc_close($child);
echo $got;
