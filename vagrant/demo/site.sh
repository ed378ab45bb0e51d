# Sourced by the demo and the benchmarks: starts and stops a site of its own on loopback, in a folder of its own.
# Sets demo_folder, demo_address, demo_master.

export PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin # where nginx and php-fpm are, and which `su` leaves out
demo_address=127.0.0.1:${PHPTRACE_DEMO_PORT:-8089}
demo_source=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
demo_pids=()

demo_start() {
	# www-data has to be able to read the site, and the checkout may lie where it may not look.
	demo_folder=$(mktemp -d /tmp/phptrace-demo.XXXXXX)
	chmod 755 "$demo_folder"
	cp -r "$demo_source/site" "$demo_folder/site"
	head -c 50000000 /dev/zero | tr '\0' 'x' >"$demo_folder/site/big.dat"
	sed "s|@FOLDER@|$demo_folder|g; s|@ADDRESS@|$demo_address|g" "$demo_source/nginx.conf" >"$demo_folder/nginx.conf"
	sed "s|@FOLDER@|$demo_folder|g" "$demo_source/php-fpm.conf" >"$demo_folder/php-fpm.conf"
	php-fpm8.2 --nodaemonize --fpm-config "$demo_folder/php-fpm.conf" >"$demo_folder/php-fpm.out" 2>&1 &
	demo_master=$!
	demo_pids+=("$demo_master")
	nginx -p "$demo_folder" -c "$demo_folder/nginx.conf" >"$demo_folder/nginx.out" 2>&1 &
	demo_pids+=($!)
	for _ in $(seq 100); do
		demo_is_up && return
		sleep 0.1
	done
	cat "$demo_folder"/*.out "$demo_folder"/*.log >&2
	echo "demo: the site did not come up on $demo_address; is the port taken? Set PHPTRACE_DEMO_PORT." >&2
	exit 1
}

demo_is_up() {
	local answer
	{ exec 3<>"/dev/tcp/${demo_address/://}"; } 2>/dev/null || return 1
	printf 'GET /hello.php HTTP/1.0\r\n\r\n' >&3
	answer=$(cat <&3)
	exec 3>&-
	[[ $answer == HTTP/1.1\ 200* ]]
}

# Requests over all scripts, paced, in the background, until demo_load_stop; for that many seconds at most.
demo_load() {
	wrk -t1 -c4 -d"${1}s" -s "$demo_source/load.lua" "http://$demo_address" >"$demo_folder/wrk.out" 2>&1 &
	demo_load_pid=$!
}

demo_load_stop() {
	[ -n "${demo_load_pid:-}" ] || return 0
	kill "$demo_load_pid" 2>/dev/null || true
	wait "$demo_load_pid" 2>/dev/null || true
	demo_load_pid=
}

demo_stop() {
	demo_load_stop
	for pid in "${demo_pids[@]}"; do kill "$pid" 2>/dev/null || true; done
	for pid in "${demo_pids[@]}"; do wait "$pid" 2>/dev/null || true; done
	demo_pids=()
	[ -z "${demo_folder:-}" ] || rm -rf "$demo_folder"
}
