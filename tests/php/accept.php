<?php
// Accepts a connection of its own in mid-request, as ext/ftp does, reads from it, and then leaks QUERY_STRING bytes.
$server = stream_socket_server('unix:///tmp/phptrace-accept.' . getmypid(), $code, $error);
$client = stream_socket_client('unix:///tmp/phptrace-accept.' . getmypid());
$accepted = stream_socket_accept($server);
unlink('/tmp/phptrace-accept.' . getmypid());
fwrite($client, "hello\n");
$line = fgets($accepted);
fclose($accepted);
$libc = FFI::cdef('void *malloc(size_t n); void *memset(void *p, int c, size_t n);');
$libc->memset($libc->malloc((int) $_SERVER['QUERY_STRING']), 1, (int) $_SERVER['QUERY_STRING']);
echo $line;
