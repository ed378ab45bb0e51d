<?php
// Leaks 524272 bytes a request, natively: memory_get_usage() does not see them, and no limit stops them.
final class Thumbnails
{
    private FFI $libc;

    public function __construct()
    {
        $this->libc = FFI::cdef('void *malloc(size_t n); void *memset(void *p, int c, size_t n);');
    }

    public function render(int $bytes): void
    {
        $this->keep($this->libc->malloc($bytes), $bytes);
    }

    private function keep(FFI\CData $pixels, int $bytes): void
    {
        $this->libc->memset($pixels, 1, $bytes); // and nobody ever frees them
    }
}

$thumbnails = new Thumbnails();
$thumbnails->render(524272);
header('Content-Type: text/plain');
echo memory_get_usage(), "\n";
