<?php
// libxml2's memory: Zend sees the text only.
$text = '<list>' . str_repeat('<item name="x"><b/></item>', 60_000) . '</list>';
$document = new DOMDocument();
$document->loadXML($text);
echo memory_get_usage();
