<?php
// Calls the C library's allocator in each of its ways, by FFI, as asked for in the query string; keeps one block.
$c = FFI::cdef('
    void *malloc(size_t); void *calloc(size_t, size_t); void *realloc(void *, size_t); void free(void *);
    int posix_memalign(void **, size_t, size_t); void *aligned_alloc(size_t, size_t); char *strdup(const char *);
');
switch ($_SERVER['QUERY_STRING']) {
    case 'malloc': $c->malloc(1009); break;
    case 'calloc': $c->calloc(7, 1009); break;
    case 'strdup': $c->strdup(str_repeat('s', 1009)); break;
    case 'freed': for ($i = 0; $i < 100; $i++) { $c->free($c->malloc(1009)); } break;
    case 'realloc up': $c->realloc($c->malloc(1009), 50_021); break;
    case 'realloc down': $c->realloc($c->malloc(50_021), 1009); break;
    case 'realloc of nothing': $c->realloc(null, 1009); break;
    case 'realloc to nothing': $c->realloc($c->malloc(1009), 0); break;
    case 'aligned': $c->aligned_alloc(256, 1024); break;
    case 'free of nothing': for ($i = 0; $i < 100; $i++) { $c->free(null); } break;
    case 'mapped': $c->malloc(3_000_017); break;
    case 'mapped and freed': $c->free($c->malloc(3_000_017)); break;
    case 'mapped and resized': $c->realloc($c->malloc(3_000_017), 5_000_011); break;
}
