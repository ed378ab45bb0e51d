<?php
// The front controller: to the web server every one of these is index.php; REQUEST_URI tells them apart.
header('Content-Type: text/plain');
$path = explode('/', trim(parse_url($_SERVER['REQUEST_URI'], PHP_URL_PATH), '/'));
switch ($path[0]) {
    case 'user':
        $user = array_fill(0, 500, (int) ($path[1] ?? 0));
        echo 'user ', array_sum($user) / 500, "\n";
        break;
    case 'shop':
        echo 'shop ', strlen(json_encode(range(1, 2000))), "\n";
        break;
    default:
        http_response_code(404);
        echo "no such page\n";
}
