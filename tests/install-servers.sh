#!/bin/sh
# Install what the tests start: Redis, RabbitMQ, and a browser with its driver, as Debian packages.
set -e
missing=
command -v redis-server >/dev/null || missing="$missing redis-server"
[ -x /usr/sbin/rabbitmq-server ] || missing="$missing rabbitmq-server"
command -v chromium >/dev/null || missing="$missing chromium"
command -v chromedriver >/dev/null || missing="$missing chromium-driver"
[ -z "$missing" ] && exit 0
if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
    echo "The tests need these Debian packages:$missing" >&2
    echo "Install them: sudo apt-get install$missing" >&2
    exit 1
fi
echo "installing$missing"
apt-get update -qq
# Their services are not wanted: the tests start servers of their own.
printf '#!/bin/sh\nexit 101\n' > /usr/sbin/policy-rc.d.tfpool && chmod +x /usr/sbin/policy-rc.d.tfpool
[ -e /usr/sbin/policy-rc.d ] || { ln -s policy-rc.d.tfpool /usr/sbin/policy-rc.d; linked=yes; }
# shellcheck disable=SC2086 # a list of words
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq $missing >/dev/null
[ -z "$linked" ] || rm -f /usr/sbin/policy-rc.d
rm -f /usr/sbin/policy-rc.d.tfpool
