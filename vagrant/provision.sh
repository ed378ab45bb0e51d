#!/usr/bin/env bash
# The one definition of a machine that can run phptrace, its demo and its tests: Debian 12, as root.
# Vagrant, the README's two commands and CI all call it. Does nothing, quietly, when there is nothing to do.
#
#   provision.sh           what tracing and the demo need, from Debian alone
#   provision.sh --tests   also what the tests need, from Debian alone
#   provision.sh --dev     also ruff and mypy, from PyPI
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=${PHPTRACE_VENV:-/opt/phptrace/venv}
export PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin # which `su` leaves out
cd "$here"
launcher=/usr/local/bin/phptrace

tracing=(python3-bpfcc python3-click python3-pyelftools python3-rich)
packaging=(python3-venv python3-setuptools python3-wheel)
demo=(nginx-light php8.2-fpm php8.2-cli php8.2-cgi php8.2-opcache php8.2-xml dokuwiki wrk)
tests=(apache2-bin caddy chromium chromium-driver python3-pytest python3-hypothesis python3-scipy python3-selenium libfcgi-bin lighttpd php8.2-gd php8.2-intl php8.2-mbstring php8.2-sqlite3 mediawiki gcc libc6-dev clang-format make procps vagrant vagrant-libvirt)

say() { echo "provision: $*"; }
die() {
	echo "provision: $*" >&2
	exit 1
}

[ "$(id -u)" = 0 ] || die "needs root: run it with sudo"
command -v apt-get >/dev/null || die "needs a Debian: there is no apt-get here"

case ${1:-} in
"") wanted=("${tracing[@]}" "${packaging[@]}" "${demo[@]}") ;;
--tests | --dev) wanted=("${tracing[@]}" "${packaging[@]}" "${demo[@]}" "${tests[@]}") ;;
*) die "unknown option $1" ;;
esac

missing=()
for package in "${wanted[@]}"; do
	[ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || missing+=("$package")
done
if [ ${#missing[@]} -gt 0 ]; then
	say "installing ${missing[*]}"
	log=$(mktemp)
	export DEBIAN_FRONTEND=noninteractive
	apt="apt-get -o DPkg::Lock::Timeout=300 -o Acquire::Retries=3"
	if ! { $apt update && $apt install -y --no-install-recommends "${missing[@]}"; } >"$log" 2>&1 </dev/null; then
		tail -n 20 "$log" >&2
		die "apt could not install what is missing; its whole output is in $log. Is a Debian 12 mirror in /etc/apt/sources.list reachable?"
	fi
	rm -f "$log"
fi
# The tests start their own web servers. Of these packages, those two bring a service each.
if command -v systemctl >/dev/null; then
	for service in caddy lighttpd; do
		case " ${missing[*]} " in *" $service "*) systemctl disable --quiet --now "$service" || say "could not disable $service" ;; esac
	done
fi

# bcc is the distribution's, for /usr/bin/python3; PyPI's package of that name is another.
stamp=$venv/.phptrace
made="$here $(sha256sum <"$here/pyproject.toml")"
if [ "$(cat "$stamp" 2>/dev/null)" != "$made" ] || ! "$venv/bin/python" -I -c "import tracer.cli, bcc" 2>/dev/null; then
	say "making $venv: from now on, phptrace on this machine runs $here"
	log=$(mktemp)
	mkdir -p "$(dirname "$venv")"
	{
		/usr/bin/python3 -I -m venv --system-site-packages "$venv" &&
			"$venv/bin/python" -I -m pip install -qq --disable-pip-version-check --root-user-action=ignore \
				--no-index --no-deps --no-build-isolation --editable "$here"
	} >"$log" 2>&1 </dev/null || {
		cat "$log" >&2
		die "could not make the virtual environment $venv"
	}
	rm -f "$log"
	echo "$made" >"$stamp"
fi

if [ "${1:-}" = --dev ]; then
	# Set in pyproject.toml; installed only where they are wanted.
	if ! "$venv/bin/python" -I -m pip install -qq --disable-pip-version-check --root-user-action=ignore \
		$("$venv/bin/python" -c "
import tomllib
print(*(want.replace(' ', '') for want in tomllib.load(open('$here/pyproject.toml', 'rb'))['project']['optional-dependencies']['dev']))"); then
		die "pip could not install ruff and mypy"
	fi
fi

if [ "$(readlink "$launcher" 2>/dev/null)" != "$venv/bin/phptrace" ]; then
	if [ -e "$launcher" ] && [ ! -L "$launcher" ]; then
		die "$launcher is something else (PECL's trace has a command of that name); move it away"
	fi
	ln -sf "$venv/bin/phptrace" "$launcher"
	say "phptrace is at $launcher"
fi
