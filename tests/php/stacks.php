<?php
// Every way to get somewhere in PHP. Each probe maps a number of pages of its own, so that its stack is known
// among the others; the answer is what debug_backtrace() says of each, as JSON: {name: [pages, frames]}.
$libc = FFI::cdef('void *mmap(void *a, size_t n, int prot, int flags, int fd, long offset);');
$seen = [];

function probe(string $name): void
{
    global $libc, $seen;
    $pages = count($seen) + 1;
    $seen[$name] = [$pages, debug_backtrace(DEBUG_BACKTRACE_IGNORE_ARGS)];
    $libc->mmap(null, 4096 * $pages, 0, 0x22, -1, 0);
}

interface Named
{
    const LIMIT = 1;
}

trait Counts
{
    public function counted(): void
    {
        probe('trait method');
    }

    public static function countedStatically(): void
    {
        probe('static trait method');
    }
}

class Base
{
    public function inherited(): void
    {
        probe('inherited method');
    }
}

final class Situations extends Base implements Named, IteratorAggregate
{
    use Counts;

    public function method(): void
    {
        probe('method');
    }

    public static function statically(): void
    {
        probe('static method');
    }

    public function closure(): Closure
    {
        return function (): void {
            probe('closure in a method');
        };
    }

    public function __call(string $name, array $arguments): void
    {
        probe("__call $name");
    }

    public static function __callStatic(string $name, array $arguments): void
    {
        probe('__callStatic');
    }

    public function __toString(): string
    {
        probe('__toString');
        return '';
    }

    public function __invoke(): void
    {
        probe('__invoke');
    }

    public function __get(string $name): int
    {
        probe('__get');
        return 1;
    }

    public function getIterator(): Iterator
    {
        probe('getIterator');
        return new ArrayIterator([]);
    }
}

final class Destroyed
{
    public function __destruct()
    {
        probe('__destruct');
    }
}

enum Suit
{
    case Hearts;

    public function shown(): void
    {
        probe('method of an enum');
    }
}

function plain(): void
{
    probe('function');
}

function recursion(int $depth, string $name): void
{
    if ($depth > 1) {
        recursion($depth - 1, $name);
        return;
    }
    probe($name);
}

function inner(): Generator
{
    probe('generator that another delegates to');
    yield 1;
    probe('the same, resumed');
    yield 2;
}

function outer(): Generator
{
    yield from inner();
    probe('generator, after it delegated');
    yield 3;
}

function generator(): Generator
{
    probe('generator');
    yield 1;
    probe('generator, resumed');
}

function in_fiber(): void
{
    probe('fiber');
    Fiber::suspend();
    probe('fiber, resumed');
}

plain();
$situations = new Situations();
$situations->method();
Situations::statically();
$situations->inherited();
$situations->counted();
Situations::countedStatically();
($situations->closure())();
$situations->missing();
Situations::missingStatically();
strlen((string) $situations);
$situations();
$situations->absent;
foreach ($situations as $nothing) {
}
Suit::Hearts->shown();
$destroyed = new Destroyed();
unset($destroyed);
(function (): void {
    probe('closure');
})();
(static fn () => probe('arrow function'))();
$bound = Closure::bind(function (): void {
    probe('bound closure');
}, $situations, Situations::class);
$bound();
(function (): void {
    probe('Closure::call');
})->call($situations);
(plain_again(...))();

function plain_again(): void
{
    probe('first-class callable');
}

$anonymous = new class {
    public function method(): void
    {
        probe('method of an anonymous class');
    }
};
$anonymous->method();
foreach (generator() as $value) {
}
foreach (outer() as $value) {
}
$fiber = new Fiber('in_fiber');
$fiber->start();
$fiber->resume();
require __DIR__ . '/stacks.inc';
from_required();
eval('probe("eval");');
eval('function from_eval(): void { probe("function of eval"); } from_eval();');
array_map(function (int $value): void {
    probe('array_map');
}, [1]);
$one = [2, 1];
usort($one, function (int $a, int $b): int {
    probe('usort');
    return $a <=> $b;
});
preg_replace_callback('/x/', function (array $found): string {
    probe('preg_replace_callback');
    return '';
}, 'x');
call_user_func('plain_by_name');
call_user_func_array([$situations, 'byArray'], []);

function plain_by_name(): void
{
    probe('call_user_func');
}

spl_autoload_register(function (string $name): void {
    probe('autoloader');
    require __DIR__ . '/autoloaded.inc';
});
new Autoloaded();
set_error_handler(function (): bool {
    probe('error handler');
    return true;
});
echo $undefined;
restore_error_handler();
ob_start(function (string $buffer): string {
    return '';
});
ob_end_clean();
try {
    (function (): void {
        throw new RuntimeException();
    })();
} catch (RuntimeException) {
    probe('after an exception');
} finally {
    probe('finally');
}
recursion(60, 'recursion of 60');
recursion(150, 'recursion of 150');
register_shutdown_function(function (): void {
    global $seen;
    probe('shutdown function');
    echo json_encode($seen, JSON_PARTIAL_OUTPUT_ON_ERROR);
});
