<?php
// Forks. The child ends by a signal, for which its parent waits, or stays, or ends by exit(), which runs PHP's shutdown.
$libc = FFI::cdef('int fork(void); int getpid(void); int kill(int pid, int sig); int pause(void); int waitpid(int pid, int *status, int options);');
$pid = $libc->fork();
if ($pid === 0) {
    if ($_SERVER['QUERY_STRING'] === 'kill') {
        $libc->kill($libc->getpid(), 9);
    }
    if ($_SERVER['QUERY_STRING'] === 'stay') {
        $libc->pause();
    }
    exit(0);
}
if ($_SERVER['QUERY_STRING'] === 'kill') {
    $libc->waitpid($pid, null, 0);
}
echo 'forked';
