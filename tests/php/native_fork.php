<?php
// Forks; the child allocates 1 MB natively, frees it, keeps 500 KB and kills itself. The worker keeps one block of 1,024 bytes.
$libc = FFI::cdef('int fork(void); int getpid(void); int kill(int pid, int sig); int waitpid(int pid, int *status, int options);
    void *malloc(size_t size); void free(void *block);');
$pid = $libc->fork();
if ($pid === 0) {
    for ($i = 0; $i < 1000; $i++) {
        $libc->free($libc->malloc(1000));
        $libc->malloc(500);
    }
    $libc->kill($libc->getpid(), 9);
}
$libc->waitpid($pid, null, 0);
$libc->malloc(1008);
echo "forked\n";
