<?php
// Allocates and frees natively what a page does, and keeps nothing: its blocks leave holes for others to fill.
setlocale(LC_ALL, 'C');
$d = new DateTimeImmutable('2026-01-01', new DateTimeZone('Europe/Stockholm'));
$f = new IntlDateFormatter('sv_SE', IntlDateFormatter::FULL, IntlDateFormatter::FULL);
$doc = new DOMDocument();
$doc->loadHTML('<p>hello <b>you</b></p>');
$c = new Collator('sv_SE');
$a = ['ö', 'a', 'å'];
$c->sort($a);
echo preg_replace('/\s+/u', ' ', $f->format($d)), json_encode($a), hash('sha256', $doc->saveHTML()), "\n";
