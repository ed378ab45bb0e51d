<?php
// An extension's memory: comes from malloc, goes back to it.
$image = imagecreatetruecolor(1200, 900);
imagefilledrectangle($image, 0, 0, 1199, 899, 0x00aa33);
imagedestroy($image);
echo 'drawn';
