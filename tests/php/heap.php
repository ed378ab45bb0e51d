<?php
// Keeps 1,072 bytes natively for each of `binds` calls, without FFI: glibc keeps every text domain that was ever bound,
// in a chunk of 1,040 bytes (a binding with a name of 1,000 characters) and one of 32 ("/"). Takes, and gives back:
// for `rows`, Zend's heap (6 MB for 20,000); for `nodes`, libxml2's memory, which is malloc's (some nine blocks each).
parse_str($_SERVER['QUERY_STRING'], $wanted);
$rows = [];
for ($i = 0; $i < (int) ($wanted['rows'] ?? 0); $i++) {
    $rows[] = ['id' => $i, 'name' => str_repeat('n', 40)];
}
if (isset($wanted['nodes'])) {
    $document = new DOMDocument();
    $document->loadXML('<list>' . str_repeat('<item name="x"><b/></item>', (int) $wanted['nodes']) . '</list>');
    unset($document);
}
for ($i = 0; $i < (int) ($wanted['binds'] ?? 0); $i++) {
    bindtextdomain(str_pad(bin2hex(random_bytes(12)), 1000, 'd'), '/');
}
echo count($rows);
