<?php exit(255);
