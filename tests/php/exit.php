<?php
function leave(): never { exit(3); }
leave();
