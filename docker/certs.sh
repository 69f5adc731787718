#!/bin/sh
# Make a certificate authority, a server certificate, a key pair for each node, and the federation's key, which is for the
# nodes alone. Existing files are kept.
#
#   docker/certs.sh FOLDER NODE...            e.g. docker/certs.sh certs a b
#   HOSTS=DNS:tes.example.org docker/certs.sh certs a b     adds names that the server is reached by
set -eu
[ $# -ge 2 ] || { echo "usage: [HOSTS=DNS:name,IP:address] $0 FOLDER NODE..." >&2; exit 2; }
umask 077
folder=$1
shift
mkdir -p "$folder"
cd "$folder"

if [ ! -e ca.crt ]; then
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -sha256 -days 3650 -subj "/CN=fedsd CA" \
        -addext "basicConstraints=critical,CA:TRUE" -addext "keyUsage=critical,keyCertSign,cRLSign" \
        -keyout ca.key -out ca.crt 2>/dev/null
fi
if [ ! -e server.pem ]; then
    names="DNS:localhost,DNS:superlink,DNS:gateway,IP:127.0.0.1${HOSTS:+,$HOSTS}"
    printf 'basicConstraints=CA:FALSE\nextendedKeyUsage=serverAuth\nsubjectAltName=%s\n' "$names" > server.ext
    openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj "/CN=fedsd TES" \
        -keyout server.key -out server.csr 2>/dev/null
    openssl x509 -req -in server.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 825 -sha256 -extfile server.ext \
        -out server.pem 2>/dev/null
    rm server.csr server.ext
fi
for node in "$@"; do
    [ -e "$node" ] || ssh-keygen -q -t ecdsa -b 384 -N "" -C "$node" -f "$node"
done
[ -e federation.key ] || openssl rand -hex 32 > federation.key
chmod 644 ca.crt server.pem ./*.pub
