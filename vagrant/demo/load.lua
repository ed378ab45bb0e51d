-- All scripts of the demo in turn, about 100 requests a second over 4 connections, whatever the machine can do.
local paths = {
	"/hello.php",
	"/native-leak.php",
	"/user/17",
	"/shop/basket",
	"/files.php",
	"/hello.php",
	"/user/4711/edit",
	"/slow.php",
	"/dokuwiki/doku.php?id=start",
	"/native-leak.php",
	"/shop/search?q=secret",
	"/heavy.php",
	"/hello.php",
	"/no-such-script.php",
	"/user/23",
	"/hello.php",
}
local n = 0
function delay()
	return 40
end
function request()
	n = n % #paths + 1
	return wrk.format("GET", paths[n])
end
